"""What the motion says of each unknown, and what it does not.

At the fit the posterior is Gaussian with the precision ``J^T W J + I``: the Jacobian of the weighted errors, and the
prior. Errors of neighbouring samples are not independent (what the model lacks goes on for a while): the weight of a
channel is divided by the autocorrelation time of what is left in it. Whether an unknown is *identified* is judged
without the prior's help, that is with priors 30 times wider: then all that holds a value is the motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from visuomotor.sim2real.identification.fit import Fitted, residual
from visuomotor.sim2real.identification.toolbox import minimise
from visuomotor.sim2real.identification.unknowns import Unknowns

__all__ = ["Direction", "Estimate", "Posterior", "autocorrelation_time", "examine", "profile"]

_STEP = 1e-3
_WIDE = 30.0
_TIMES = 3.0  # standard deviations that have to lie within the tolerance
_LEAST = 0.3  # of a prior's width, below which a shift's own size is no measure
_CORRELATED = 0.9
_BOUND = 1e-3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One unknown.

    Attributes:
        name: of it.
        unit: of what follows.
        nominal: in the model.
        value: found.
        std: standard deviation of the posterior, the prior included.
        std_motion: the same by the motion alone (almost infinite where it says nothing).
        shrunk: posterior against prior standard deviation, 0..1.
        verdict: ``identified``, ``weak`` (narrower than before, not within the tolerance) or ``not identifiable``.
        partner: the unknown that it is confused with, and the correlation.
        at_bound: it lies at the end of its range: the range, the model or the data are wrong.
        low, high: range of 95 % of the posterior.
    """

    name: str
    unit: str
    nominal: float
    value: float
    std: float
    std_motion: float
    shrunk: float
    verdict: str
    partner: tuple[str, float] | None
    at_bound: bool
    low: float
    high: float


@dataclass(frozen=True)
class Direction:
    """A combination of unknowns that the motion hardly shows: how much of the prior's variance is left, and parts."""

    left: float
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """All unknowns.

    Attributes:
        estimates: one each.
        covariance: of ``z [n, n]``.
        condition: largest over smallest singular value of the weighted Jacobian.
        directions: the worst-known combinations.
        samples: effective number of samples a channel, the mean.
    """

    estimates: tuple[Estimate, ...]
    covariance: np.ndarray
    condition: float
    directions: tuple[Direction, ...]
    samples: float


def examine(fitted: Fitted, tolerance: float = 0.1) -> Posterior:
    """The posterior at a fit.

    Args:
        fitted: the fit.
        tolerance: an unknown is identified if three standard deviations are within this share of its value.
    """
    u, z = fitted.train.unknowns, fitted.z
    errors = fitted.train.errors(z[:, None])[0] / fitted.sigma
    tau = autocorrelation_time(errors, fitted.train.spans)
    jacobian = _jacobian(fitted, 1 / (fitted.sigma * np.sqrt(tau)))
    information = jacobian.T @ jacobian
    n = len(z)
    covariance = np.linalg.inv(information + np.eye(n))
    alone = np.linalg.inv(information + np.eye(n) / _WIDE**2)
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(information), 0))
    return Posterior(
        estimates=tuple(_estimate(u, z, i, covariance, alone, tolerance) for i in range(n)),
        covariance=covariance,
        condition=float(singular[-1] / max(singular[0], 1e-12 * singular[-1])),
        directions=_directions(u, covariance),
        samples=float((len(errors) / tau).mean()),
    )


def _estimate(
    u: Unknowns, z: np.ndarray, i: int, covariance: np.ndarray, alone: np.ndarray, tolerance: float
) -> Estimate:
    std_z, alone_z = np.sqrt(covariance[i, i]), np.sqrt(alone[i, i])
    value, slope = float(u.values(z)[i]), float(u.slopes(z)[i])
    size = abs(value) if u.log[i] else max(abs(value), _LEAST * float(u.width[i]))
    bound = bool(min(z[i] - u.low[i], u.high[i] - z[i]) < _BOUND and u.values(z)[i] != u.floor[i])
    if _TIMES * alone_z * slope <= tolerance * size:
        verdict = "identified"
    else:
        verdict = "weak" if std_z < 0.5 else "not identifiable"
    deviations = np.sqrt(np.diag(alone))
    correlation = alone[i] / (deviations * deviations[i])
    correlation[i] = 0
    worst = int(np.abs(correlation).argmax())
    confused = verdict != "identified" and abs(correlation[worst]) > _CORRELATED
    ends = z[i] + np.array([-2, 2]) * std_z
    at = np.tile(z, (2, 1))
    at[:, i] = np.clip(ends, u.low[i], u.high[i])
    low, high = sorted(u.values(at)[:, i].tolist())
    return Estimate(
        name=u.names[i], unit=u.unit[i], nominal=float(u.nominal[i]), value=value, std=float(std_z * slope),
        std_motion=float(alone_z * slope), shrunk=float(std_z), verdict=verdict,
        partner=(u.names[worst], float(correlation[worst])) if confused else None, at_bound=bound, low=low, high=high,
    )  # fmt: skip


def _jacobian(fitted: Fitted, weight: np.ndarray) -> np.ndarray:
    """Central differences of the weighted errors ``[S * channels, n]``."""
    z, n = fitted.z, len(fitted.z)
    both = np.concatenate([z[:, None] + _STEP * np.eye(n), z[:, None] - _STEP * np.eye(n)], axis=1)
    errors = fitted.train.errors(both) * weight
    return ((errors[:n] - errors[n:]) / (2 * _STEP)).reshape(n, -1).T


def autocorrelation_time(errors: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Integrated autocorrelation time of each column in samples, at least 1 (Sokal's window of 5 times it)."""
    tau = np.ones(errors.shape[1])
    for c in range(errors.shape[1]):
        lags = [_lags(errors[a:b, c]) for a, b in pairwise(spans) if b - a > 8]
        power = np.sum(lags, axis=0) if lags else np.zeros(1)
        if power[0] > 0:
            rho = power / power[0]
            running = 1 + 2 * np.cumsum(rho[1:])
            inside = np.arange(1, len(running) + 1) >= 5 * running
            tau[c] = max(1.0, float(running[int(inside.argmax()) if inside.any() else -1]))
    return tau


def _lags(x: np.ndarray, most: int = 400) -> np.ndarray:
    """Autocovariance at lags 0 .. ``most`` - 1 of what scatters about zero."""
    spectrum = np.abs(np.fft.rfft(x, 2 * len(x))) ** 2
    out = np.fft.irfft(spectrum)[: min(most, len(x))]
    return np.pad(out, (0, most - len(out)))


def _directions(u: Unknowns, covariance: np.ndarray, most: int = 4) -> tuple[Direction, ...]:
    values, vectors = np.linalg.eigh(covariance)
    out = []
    for k in np.argsort(values)[::-1][:most]:
        if values[k] < 0.25:
            break
        order = np.argsort(np.abs(vectors[:, k]))[::-1][:4]
        parts = tuple((u.names[i], float(vectors[i, k])) for i in order if abs(vectors[i, k]) > 0.2)
        out.append(Direction(float(values[k]), parts))
    return tuple(out)


def profile(fitted: Fitted, name: str, std: float, points: int = 5, iterations: int = 4) -> list[tuple[float, float]]:
    """Cost against one unknown, the others fitted anew: ``(value, rise of half the squared error)``.

    The check on the Gaussian picture: near the fit it rises by 1/2 at one standard deviation.

    Args:
        fitted: the fit.
        name: of the unknown.
        std: its posterior standard deviation in ``z``: the profile reaches two of them to both sides, within bounds.
        points: on it.
        iterations: of each fit of the others.
    """
    u, z = fitted.train.unknowns, fitted.z
    i = u.names.index(name)
    rest = np.delete(np.arange(len(z)), i)
    base, rows = residual(fitted.train, fitted.sigma), []
    least = 0.5 * float((base(z[:, None]) ** 2).sum())
    for at in np.linspace(max(u.low[i], z[i] - 2 * std), min(u.high[i], z[i] + 2 * std), points):

        def others(x: np.ndarray, at: float = at) -> np.ndarray:
            return base(np.insert(x, i, at, axis=0))

        found = minimise([u.names[k] for k in rest], z[rest], u.low[rest], u.high[rest], others, iterations=iterations)
        rows.append((float(u.values(np.insert(found.z, i, at))[i]), found.cost - least))
    return rows
