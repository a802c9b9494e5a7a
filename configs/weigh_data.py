"""``visuomotor data weigh``: how much each recorded step should count, for weighted imitation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visuomotor.configs.compose import parse_plain
from visuomotor.data.editing.demos import Demos
from visuomotor.data.editing.write import write_store, write_view
from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.policies.learn.values import ValueFitConfig, discounted_returns, held_out_values
from visuomotor.policies.learn.weights import advantage_weights, effective_share, intervention_weights

__all__ = ["WeighConfig", "main"]

_METHODS, _REWARDS = ("advantage", "interventions"), ("auto", "success", "steps")
_USAGE = "data weigh: expected <store> <out> [setting=value ...]; data weigh --help lists the settings"


@dataclass(kw_only=True, slots=True)
class WeighConfig:
    """``visuomotor data weigh <store> <out>``: how much each step should count in ``visuomotor train``.

    Attributes:
        method: ``advantage``: steps that ended better than expected count more (advantage-weighted regression, Peng et
            al. 2019); ``interventions``: by who acted (Sirius, Liu et al. 2022).
        reward: ``success``: 1 at the end of episodes whose column ``success`` is true; ``steps``: the array ``reward``;
            ``auto``: ``success`` where some episodes failed, else ``steps``.
        keys: observations that the value of a state is read from; empty takes all vectors, privileged ones included.
        gamma: discount per step.
        temperature: smaller weighs more sharply; in standard deviations of the advantage.
        largest: weight, before the mean is made 1.
        before: with ``interventions``: steps that led to one and get no weight.
        name: of the array or column that is written.
        value: the network that predicts returns.
        seed: of its weights and batches.
    """

    method: str = "advantage"
    reward: str = "auto"
    keys: list[str] = field(default_factory=list)
    gamma: float = 0.99
    temperature: float = 1.0
    largest: float = 20.0
    before: int = 15
    name: str = "weight"
    value: ValueFitConfig = field(default_factory=ValueFitConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, options in (("method", _METHODS), ("reward", _REWARDS)):
            if (value := getattr(self, name)) not in options:
                raise ConfigError(f"{name}={value!r} is unknown. {nearest(value, options)}")
        if not 0.0 < self.gamma <= 1.0 or not self.temperature > 0 or not self.largest > 1 or self.before < 0:
            raise ConfigError(
                f"gamma={self.gamma}, temperature={self.temperature}, largest={self.largest}, before={self.before}: "
                "expected above 0 and up to 1, above 0, above 1, and 0 or more"
            )


def main(words: Sequence[str]) -> int:
    """Run ``visuomotor data weigh``; returns the exit status."""
    if not words or words[0] in ("-h", "--help", "help"):
        from visuomotor.configs.help import settings_help

        print(settings_help(WeighConfig), end="")
        return 0
    if len(words) < 2 or any("=" in w for w in words[:2]):
        raise ConfigError(_USAGE)
    source, out = words[0], Path(words[1]).expanduser()
    config = parse_plain(WeighConfig, words[2:])
    with DemoStore.open(source) as store:
        if store.n_episodes == 0:
            raise DataError(f"{store.path} has no episodes to weigh")
        if config.name in store.specs or (out.suffix != ".json" and config.name in store.column_types):
            raise ConfigError(f"{store.path} has {config.name!r} already: give another name=")
        weight, lines = _weights(store, config)
        demos = Demos.of(store)
        entry = {"operation": " ".join(["weigh", *words[2:]]), "source": Path(source).name}
        demos = replace(demos, history=(*demos.history, entry))
        if out.suffix == ".json":
            means = np.add.reduceat(weight, np.concatenate([[0], store.episode_ends[:-1]])) / demos.lengths
            write_view(demos.with_column(config.name, "float64", means), out)
        else:
            write_store(_with_array(demos, config.name, weight), out)
    for line in [*lines, *_summary(store, weight)]:
        print(line)
    print(f"written: {out}; train on it with: visuomotor train data={out} data.weight_column={config.name} ...")
    return 0


def _weights(store: DemoStore, config: WeighConfig) -> tuple[NDArray[np.float64], list[str]]:
    """The weight of each step ``[T]``, and what is worth saying of how it came about."""
    ends = store.episode_ends
    if config.method == "interventions":
        marks = [k for k, s in store.specs.items() if s.role == "intervention" and s.size == 1]
        if not marks:
            raise DataError(f"{store.path} has no array of role intervention that says where a person acted")
        human = store.read(marks[0], 0, store.n_steps).reshape(-1).astype(bool)
        return intervention_weights(human, ends, config.before), [f"a person acted in {human.mean():.0%} of the steps"]
    if store.n_episodes < 2:
        raise DataError(f"{store.path} has one episode: there is nothing that it could be better than")
    reward = _reward(store, config)
    returns = discounted_returns(reward, ends, config.gamma)
    x = np.concatenate([store.read(k, 0, store.n_steps).reshape(store.n_steps, -1) for k in _keys(store, config)], 1)
    if not (np.isfinite(x).all() and np.isfinite(reward).all()):
        raise DataError(f"{store.path} holds numbers that are not finite: visuomotor data validate {store.path}")
    value = held_out_values(
        x.astype(np.float64), returns, ends, config.value, seed=config.seed, on_progress=_progress()
    )
    error, spread = np.square(returns - value).mean(), max(float(returns.var()), 1e-12)
    line = f"the value function explains {1 - error / spread:.0%} of the returns of episodes that it has not seen"
    return advantage_weights(returns - value, config.temperature, config.largest), [line]


def _reward(store: DemoStore, config: WeighConfig) -> NDArray[np.float64]:
    success = store.episode_columns.get("success")
    arrays = [k for k, s in store.specs.items() if s.role == "reward" and s.size == 1]
    kind = config.reward
    if kind == "auto":
        kind = "success" if success is not None and not success.all() else "steps"
    if kind == "steps" and not arrays:
        raise DataError(f"{store.path} has neither failures in a column success nor an array of rewards to weigh by")
    if kind == "steps":
        return store.read(arrays[0], 0, store.n_steps).reshape(-1).astype(np.float64)
    if success is None:
        raise DataError(f"{store.path} has no column meta/success")
    reward = np.zeros(store.n_steps)
    reward[store.episode_ends - 1] = success.astype(np.float64)
    return reward


def _keys(store: DemoStore, config: WeighConfig) -> list[str]:
    if config.keys:
        store.require(config.keys)
        return config.keys
    keys = [k for k, s in store.specs.items() if s.role in ("observation", "privileged") and len(s.shape) <= 1]
    if not keys:
        raise DataError(f"{store.path} has no vectors to read the value of a state from: images alone do not serve")
    return keys


def _with_array(demos: Demos, name: str, weight: NDArray[np.float64]) -> Demos:
    ends = np.cumsum(demos.lengths)

    def change(episode: int, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**rows, name: weight[ends[episode] - demos.lengths[episode] : ends[episode]].astype(np.float32)}

    specs: Mapping[str, ArraySpec] = {**demos.specs, name: ArraySpec(shape=(), role="other")}
    return demos.mapped(specs, change, lambda keys: [k for k in keys if k != name])


def _summary(store: DemoStore, weight: NDArray[np.float64]) -> list[str]:
    lines = [
        f"weights {weight.min():.3g} to {weight.max():.3g}; they tell as much as {effective_share(weight):.0%} of the "
        "steps would with equal ones"
    ]
    success: Any = store.episode_columns.get("success")
    if success is not None and success.any() and not success.all():
        good = np.repeat(success.astype(bool), np.diff(store.episode_ends, prepend=0))
        share = weight[good].sum() / weight.sum()
        lines.append(f"successful episodes: {good.mean():.0%} of the steps, {share:.0%} of the weight")
    return lines


def _progress() -> Callable[[int, int], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        print(f"\r{done} of {total} parts valued", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
