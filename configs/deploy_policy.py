"""The policy of a deployment: a checkpoint in this process or a server, made ready before anything moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from visuomotor.configs.build import LoadedPolicy, load_policy, pick_device
from visuomotor.configs.deploy_config import DeployConfig
from visuomotor.configs.serve import about_policy
from visuomotor.data.errors import ConfigError
from visuomotor.data.parts import PartConfig
from visuomotor.policies.goals import load_goals
from visuomotor.sim2real.remote.client import ClientConfig, RemoteSource
from visuomotor.sim2real.remote.policy_source import PolicySource
from visuomotor.sim2real.remote.source import ChunkSource, PlanRequest
from visuomotor.sim2real.runtime.build import Setup, make_rhythm
from visuomotor.sim2real.runtime.pilot import Pilot, steps_of

__all__ = ["Chosen", "choose", "constants_of", "loader"]

_TIMED = 5  # chunks that are made before anything moves, to know how long one takes


@dataclass(frozen=True)
class Chosen:
    """A policy that makes chunks, and what is known of it."""

    source: ChunkSource
    about: Mapping[str, Any]
    loaded: LoadedPolicy | None


def choose(config: DeployConfig) -> Chosen:
    """The policy of a checkpoint, or of a server."""
    if config.url is not None:
        client = ClientConfig(url=config.url, token=config.token, tls_ca=config.tls_ca, jpeg=config.jpeg)
        remote = RemoteSource(client)
        return Chosen(remote, remote.about, None)
    assert config.checkpoint is not None
    loaded = load_policy(
        config.checkpoint,
        weights=config.weights,
        device=pick_device(config.device),
        solver=config.solver,
        sample_steps=config.sample_steps,
    )
    execute = config.execute.config()
    return Chosen(PolicySource(loaded.policy, execute), about_policy(loaded, execute), loaded)


def constants_of(config: DeployConfig, chosen: Chosen) -> dict[str, np.ndarray]:
    """Goals and texts of the policy: the first of those that there are."""
    spec, where = chosen.source.spec, config.goal or ""
    parts: dict[str, PartConfig] = {}
    if chosen.loaded is not None and spec.constant_keys:
        saved = chosen.loaded.checkpoint.document("config")["config"]["data"]
        parts = {k: PartConfig(**v) for k, v in saved.get("parts", {}).items()}
        where = config.goal or chosen.loaded.checkpoint.document("training")["dataset"]["path"]
    if spec.constant_keys and not where and config.text is None:
        raise ConfigError(f"the policy reads {', '.join(sorted(spec.constant_keys))}: give text= or goal=")
    table = load_goals(spec, where, config.text, parts)
    return {} if table is None else {k: v[0].numpy() for k, v in table.values.items()}


def loader(
    config: DeployConfig, setup: Setup, chosen: Chosen, constants: Mapping[str, np.ndarray], console: Console
) -> Callable[[], Pilot]:
    def load() -> Pilot:
        policy = setup.policy
        assert policy is not None
        takes = _measure(chosen.source, constants)
        steps, window = steps_of(takes, policy.fps), policy.spec.window
        ahead = window.horizon - window.n_obs + 1
        ensemble = config.execute.mode == "ensemble"
        n_exec = config.execute.n_exec or (1 if ensemble else window.n_exec)
        console.print(f"a chunk takes {1e3 * takes:.0f} ms: {steps} control steps", highlight=False)
        if n_exec + steps > ahead:
            console.print(
                f"warning: a chunk reaches {ahead} control steps ahead, but the next one comes after about "
                f"{n_exec + steps}: the arm will wait in between. Give a smaller execute.n_exec=, or fewer "
                "sample_steps=",
                highlight=False,
            )
        rhythm = make_rhythm(
            setup, n_exec=n_exec, delay=config.execute.delay, ensemble=ensemble, decay=config.execute.decay
        )
        return Pilot(chosen.source, rhythm, constants)

    return load


def _measure(source: ChunkSource, constants: Mapping[str, np.ndarray]) -> float:
    """Median time of a chunk [s], from the second on: the first pass through a network takes many times as long."""
    spec = source.spec
    obs = {k: np.zeros((spec.window.n_obs, *s.shape), s.dtype) for k, s in spec.obs.items() if k not in constants}
    obs |= {k: v[None] for k, v in constants.items()}
    previous, times = None, []
    for i in range(_TIMED + 1):
        began = time.perf_counter()
        made = source.plan(PlanRequest(obs=obs, previous=previous, seed=0, plan=i, delay=1, deadline_s=60.0))
        if made is None:
            raise ConfigError("the policy made no chunk within 60 s")
        previous = made
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))
