"""The fit: unknowns that make the simulated arm move as the real one did, with what was known of them before.

The maximum of the posterior of Gaussian noise and Gaussian priors: least squares of ``(simulated - measured) / sigma``
of every joint and kind of measurement, and of ``z``. The noise ``sigma`` of each channel is the root mean square of
what the fit leaves, estimated in turns with it, so that it holds model error too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.identification.plant import Plant
from visuomotor.sim2real.identification.recording import Episode, Recording
from visuomotor.sim2real.identification.toolbox import minimise
from visuomotor.sim2real.identification.unknowns import Unknowns

__all__ = ["FitConfig", "Fitted", "Problem", "fit", "residual", "split"]

_FLOOR = {"position": 1e-6, "velocity": 1e-5, "effort": 1e-4}  # least sigma [rad, rad/s, N m]
_ROWS = 60_000  # compared numbers, at most: records are thinned to it
_SCREENED = 12  # starts drawn from the prior for each that is followed
_BATCH = 64  # variants simulated at once: bounds the memory


@dataclass(kw_only=True, slots=True)
class FitConfig:
    """How the fit is made.

    Attributes:
        starts: how many starting points are followed to their minimum: the nominal model, and the best of draws from
            the prior.
        iterations: of each, at most.
        rounds: fits in turns with the estimate of the noise.
        settle: time at the start of each episode that is simulated and not compared [s]: what the arm did before is
            forgotten by then.
        validation: share of the episodes that are not fitted but predicted, at least one where there are several.
        seed: of starts and of the choice of episodes.
    """

    starts: int = 2
    iterations: int = 25
    rounds: int = 3
    settle: float = 0.5
    validation: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("starts", 1), ("iterations", 1), ("rounds", 1), ("settle", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"solver.{name}={getattr(self, name)}: expected {least} or more")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"solver.validation={self.validation}: expected 0 or more, and less than 1")


class Problem:
    """Simulated against measured, for a set of episodes.

    Args:
        plant: the arm.
        unknowns: what is fitted.
        episodes: what it is compared with.
        settle: start of each episode that is not compared [s].
    """

    def __init__(self, plant: Plant, unknowns: Unknowns, episodes: Sequence[Episode], settle: float) -> None:
        self.plant, self.unknowns, self.episodes = plant, unknowns, list(episodes)
        self.kinds = tuple(episodes[0].measured)
        joints = episodes[0].command.shape[1]
        total = sum(int((e.time >= settle).sum()) for e in episodes) * joints * len(self.kinds)
        stride = -(-total // _ROWS)
        self._rows = [np.flatnonzero(e.time >= settle)[::stride] for e in episodes]
        self.measured = np.concatenate([self._table(e.measured, r) for e, r in zip(episodes, self._rows, strict=True)])
        self.channels = [(kind, j) for kind in self.kinds for j in range(joints)]
        self.spans = np.cumsum([0, *(len(r) for r in self._rows)])

    def _table(self, values: object, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(values[k])[..., rows, :] for k in self.kinds], axis=-1)  # type: ignore[index]

    def errors(self, z: np.ndarray) -> np.ndarray:
        """Simulated minus measured ``[m, S, channels]`` in units, for ``z [n, m]``."""
        out = []
        for at in range(0, z.shape[1], _BATCH):
            done = self.plant.simulate(self.unknowns, z[:, at : at + _BATCH], self.episodes)
            out.append(np.concatenate([self._table(d, r) for d, r in zip(done, self._rows, strict=True)], axis=1))
        return np.concatenate(out) - self.measured

    def rms(self, z: np.ndarray) -> np.ndarray:
        """Root mean square error of each channel ``[channels]`` in units, for one ``z [n]``."""
        return np.sqrt((self.errors(z[:, None])[0] ** 2).mean(0))

    def floors(self) -> np.ndarray:
        """Least noise that is believed of each channel."""
        return np.array([_FLOOR[kind] for kind, _ in self.channels])


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What came out.

    Attributes:
        z: the maximum of the posterior ``[n]``.
        sigma: noise of each channel ``[channels]`` in units.
        cost: of each start that was followed, half the weighted squared error at its end.
        trace: cost of each iteration of the best start's first round.
        train, validation: the episodes.
    """

    z: np.ndarray
    sigma: np.ndarray
    cost: tuple[float, ...]
    trace: tuple[float, ...]
    train: Problem
    validation: Problem | None


def split(episodes: Sequence[Episode], share: float, seed: int) -> tuple[list[Episode], list[Episode]]:
    """Episodes to fit and episodes to predict; a single one is fitted."""
    held_out = min(max(1, round(share * len(episodes))), len(episodes) - 1) if share > 0 else 0
    order = np.random.default_rng(seed).permutation(len(episodes))
    chosen = set(order[:held_out].tolist())
    return (
        [e for i, e in enumerate(episodes) if i not in chosen],
        [e for i, e in enumerate(episodes) if i in chosen],
    )


def fit(
    plant: Plant, unknowns: Unknowns, recording: Recording, config: FitConfig,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Fitted:  # fmt: skip
    """Identify ``unknowns`` from a recording."""
    kept, predicted = split(recording.episodes, config.validation, config.seed)
    train = Problem(plant, unknowns, kept, config.settle)
    validation = Problem(plant, unknowns, predicted, config.settle) if predicted else None
    sigma = np.maximum(train.rms(unknowns.start), train.floors())
    starts = _starts(train, sigma, config)
    best: tuple[float, np.ndarray, tuple[float, ...]] | None = None
    costs = []
    for k, start in enumerate(starts):
        found = minimise(
            unknowns.names, start, unknowns.low, unknowns.high, residual(train, sigma), iterations=config.iterations
        )
        on_progress(f"start {k + 1} of {len(starts)}: cost {found.trace[0]:.4g} to {found.cost:.4g}")
        costs.append(found.cost)
        if best is None or found.cost < best[0]:
            best = found.cost, found.z, found.trace
    assert best is not None
    _, z, trace = best
    for k in range(config.rounds - 1):
        sigma = np.maximum(train.rms(z), train.floors())
        found = minimise(
            unknowns.names, z, unknowns.low, unknowns.high, residual(train, sigma), iterations=config.iterations
        )
        z = found.z
        on_progress(f"round {k + 2} of {config.rounds}: cost {found.trace[0]:.4g} to {found.cost:.4g}")
    sigma = np.maximum(train.rms(z), train.floors())
    return Fitted(z=z, sigma=sigma, cost=tuple(costs), trace=trace, train=train, validation=validation)


def residual(problem: Problem, sigma: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """``[n, m] -> [R + n, m]``: weighted errors of all samples, then the priors'."""

    def rows(z: np.ndarray) -> np.ndarray:
        errors = problem.errors(z) / sigma
        return np.concatenate([errors.reshape(z.shape[1], -1).T, z])

    return rows


def _starts(train: Problem, sigma: np.ndarray, config: FitConfig) -> list[np.ndarray]:
    """The nominal model, and the best of some draws from the prior."""
    u = train.unknowns
    more = config.starts - 1
    if not more:
        return [u.start]
    draws = np.random.default_rng(config.seed).standard_normal((len(u.names), _SCREENED * more))
    draws = np.clip(np.where(u.low[:, None] >= 0, np.abs(draws), draws), u.low[:, None] + 0.05, u.high[:, None] - 0.05)
    costs = (residual(train, sigma)(draws) ** 2).sum(0)
    return [u.start, *draws[:, np.argsort(costs)[:more]].T]
