"""Demonstrations by the scripted experts of a suite, as a store: successes only, resumable.

Attempts are made with consecutive seeds and kept in their order, so a store is a function of its settings alone. Arrays
and columns are those of :mod:`visuomotor.envs.generate`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.envs.generate import COLUMNS, Tally, first_seed
from visuomotor.envs.suites.client import SuiteConfig, SuiteEnv

__all__ = ["SuiteDemos", "write_demos"]

_NO_EFFECT = ("workers", "gl", "timeout_s")  # settings on which no number of a state depends


@dataclass(kw_only=True, slots=True)
class SuiteDemos:
    """What is demonstrated.

    Attributes:
        out: the store; one that the same settings began is gone on with.
        episodes: demonstrations that it shall hold.
        seed: other seeds give other demonstrations.
        num_envs: worlds side by side.
        noise: standard deviation of disturbances, as a share of half the action's range. They are added to what is
            executed; the expert's own action is recorded (DART, Laskey et al. 2017).
        hold: steps recorded after the goal is reached; it must still hold then.
        text: what a person would say to ask for it; null takes the environment's name.
        env: settings of the environment.
    """

    out: str = ""
    episodes: int = 20
    seed: int = 0
    num_envs: int = 4
    noise: float = 0.0
    hold: int = 10
    text: str | None = None
    env: SuiteConfig = field(default_factory=SuiteConfig)

    def __post_init__(self) -> None:
        for name, low in (("episodes", 1), ("seed", 0), ("num_envs", 1), ("noise", 0), ("hold", 0)):
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name}={getattr(self, name)}; expected at least {low}")


def write_demos(config: SuiteDemos, on_progress: Callable[[Tally], None] | None = None) -> Tally:
    """Let the expert of a suite make demonstrations until the store holds as many as were asked for.

    Raises:
        ConfigError: no ``out``, an environment without an expert, or a store that was made with other settings.
        UserError: the expert hardly ever succeeds.
        EnvWorkerError: the suite failed.
    """
    if not config.out:
        raise ConfigError("out is missing: give out=<zarr>")
    path = Path(config.out).expanduser()
    with closing(SuiteEnv(config.env, config.num_envs)) as env:
        if not env.has_expert:
            raise ConfigError(f"{config.env.id} has no scripted expert; of the suites, metaworld has them")
        text = config.text or re.sub(r"-v\d+$", "", config.env.id.partition(":")[2]).replace("-", " ")
        with _open(path, env, config, text) as store:
            seeds = store.episode_columns["seed"]
            begin = first_seed(config.seed)
            tally = Tally(len(seeds), int(seeds[-1]) + 1 - begin if len(seeds) else 0)
            while tally.kept < config.episodes:
                wave = range(begin + tally.tried, begin + tally.tried + env.num_envs)
                for seed, arrays in zip(wave, _attempts(env, wave, config), strict=True):
                    tally = Tally(tally.kept + (arrays is not None), tally.tried + 1)
                    if arrays is not None:
                        store.append_episode(arrays, {"success": True, "seed": seed, "task": text})
                    if on_progress is not None:
                        on_progress(tally)
                    if tally.kept == config.episodes:
                        break
                if tally.hopeless:
                    raise UserError(
                        f"{tally}: the expert of {config.env.id} hardly ever succeeds with these settings, so no "
                        f"demonstrations can be made. The store {path} keeps what there is"
                    )
    return tally


def _attempts(env: SuiteEnv, seeds: Sequence[int], config: SuiteDemos) -> Iterator[dict[str, np.ndarray] | None]:
    """One episode a world: its arrays ``[L, ...]``, or None where the goal was not reached or did not hold."""
    n = env.num_envs
    generators = [np.random.default_rng(seed) for seed in seeds]
    reach = config.noise * (env.action_high - env.action_low) / 2
    obs = env.reset(seeds=list(seeds))
    rows: list[dict[str, np.ndarray]] = []
    active, good = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    left, length = torch.full((n,), config.hold), torch.zeros(n, dtype=torch.int64)
    while bool(active.any()):
        action = env.expert_action(active)
        executed = action
        if config.noise:
            noise = np.stack([g.standard_normal(env.action_spec.size) for g in generators]).astype(np.float32)
            executed = (action + reach * torch.from_numpy(noise)).clamp(env.action_low, env.action_high)
        step = env.advance(executed, active)
        rows.append({k: v.numpy() for k, v in {**obs, "action": action, "reward": step.reward}.items()})
        length += active
        success = step.info["success"]
        good = torch.where(active, success, good)
        left -= (active & (success | (left < config.hold))).long()
        active = active & ~(step.terminated | step.truncated) & (left >= 0)
        obs = step.final_obs
    for i in range(n):
        yield {k: np.stack([row[k][i] for row in rows[: length[i]]]) for k in rows[0]} if good[i] else None


def _open(path: Path, env: SuiteEnv, config: SuiteDemos, text: str) -> DemoStore:
    kinds = {k: v for k, v in asdict(config.env).items() if k not in _NO_EFFECT}
    settings = {"seed": config.seed, "noise": config.noise, "hold": config.hold, "text": text, "env": kinds}
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        specs = {**env.obs_spec, "action": env.action_spec, "reward": ArraySpec(shape=(), role="reward")}
        origin: dict[str, Any] = {"settings": settings, "versions": env.versions}
        return DemoStore.create(path, specs, fps=env.fps, episode_columns=COLUMNS, origin=origin)
    store = DemoStore.open(path, "a")
    made = store.origin.get("settings")
    if made != settings:
        store.close()
        raise ConfigError(
            f"{path} was made with {made or 'something else'}; this command says {settings}: give another out="
        )
    return store
