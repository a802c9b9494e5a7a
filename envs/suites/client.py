"""This side of a suite: worker processes in the suite's own Python, as a :class:`VecEnv`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.gym_adapter import WorldsVecEnv, fields_of
from visuomotor.envs.suites.process import SuiteProcess, SuiteWorlds
from visuomotor.envs.suites.suites import Suite, split_id
from visuomotor.envs.worlds import Field

__all__ = ["SuiteConfig", "SuiteEnv", "suite_ids"]


@dataclass(kw_only=True, slots=True)
class SuiteConfig:
    """Settings of an environment of another project; ``visuomotor envs list`` shows what there is.

    Attributes:
        id: ``<suite>:<environment>``, such as ``metaworld:reach-v3``; must be given.
        images: cameras whose pictures are observed, each under its own name, in addition to the state.
        image_size: side of these pictures [px].
        max_episode_steps: time limit; the environment's own holds as well. None: the environment's, or the suite's.
        workers: processes that share the worlds; 0 or -1 takes one a core (a suite never runs in this process).
        settings: arguments for the suite's own constructor, such as ``{robots: Sawyer}``.
        gl: MUJOCO_GL of the workers (egl, osmesa); None takes what the suite is known to render with.
        timeout_s: longest wait for one answer of a worker [s].
    """

    id: str = ""
    images: list[str] = field(default_factory=list)
    image_size: int = 84
    max_episode_steps: int | None = None
    workers: int = -1
    settings: dict[str, Any] = field(default_factory=dict)
    gl: str | None = None
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        if self.id:
            split_id(self.id)
        steps = self.max_episode_steps if self.max_episode_steps is not None else 1
        for name, value, low in (("max_episode_steps", steps, 1), ("workers", self.workers, -1),
                                 ("image_size", self.image_size, 8), ("timeout_s", self.timeout_s, 0.1)):  # fmt: skip
            if not value >= low:
                raise ConfigError(f"{name}={value}; expected at least {low}")
        if len(set(self.images)) < len(self.images):
            raise ConfigError(f"images={self.images} names a camera twice")


class SuiteEnv(WorldsVecEnv):
    """``num_envs`` worlds of one environment of a suite.

    Attributes:
        has_expert: whether :meth:`expert_action` can be asked.
        versions: of Python, numpy and gymnasium in the workers.

    Raises:
        ConfigError: no id, an unknown suite, or one that is not installed.
        EnvWorkerError: the suite refused or failed; its traceback is the error's note.
    """

    def __init__(self, config: SuiteConfig, num_envs: int) -> None:
        if not config.id:
            raise ConfigError("env.id is missing: give env.id=<suite>:<environment>, such as metaworld:reach-v3")
        suite, name = split_id(config.id)
        kinds = {k: getattr(config, k) for k in ("images", "image_size", "settings")}
        kinds["limit"] = config.max_episode_steps or suite.limit
        worlds = SuiteWorlds(
            suite, name, num_envs, workers=config.workers, kinds=kinds, gl=config.gl, timeout_s=config.timeout_s
        )
        try:
            found = worlds.description
            obs_spec = {k: _obs_spec(s, config.id) for k, s in found["observation"].items()}
            action = found["action"]
            action_spec = ArraySpec(shape=action["shape"], dtype=action["dtype"], role="action", source=config.id)
            limits = [x for x in (config.max_episode_steps, found["limit"]) if x is not None]
            limit = min(limits, default=suite.limit)
            if limit is None or found["fps"] is None:
                missing = "time limit: give env.max_episode_steps=" if limit is None else "rate"
                raise ConfigError(f"{config.id} states no {missing}")
            fields = fields_of(obs_spec, action_spec, found["info"])
            self.has_expert = bool(found["expert"])
            if self.has_expert:
                fields.append(Field(name="expert", shape=action_spec.shape, dtype=action_spec.dtype))
            worlds.map(fields, num_envs)
        except BaseException:
            worlds.close()
            raise
        self.versions = worlds.processes[0].versions or {}
        self._suite_worlds, self._id = worlds, config.id
        super().__init__(
            worlds,
            num_envs=num_envs,
            obs_spec=obs_spec,
            action_spec=action_spec,
            action_low=torch.tensor(action["low"], dtype=torch.float32),
            action_high=torch.tensor(action["high"], dtype=torch.float32),
            fps=float(found["fps"]),
            max_episode_steps=int(limit),
            info_names=found["info"],
        )

    def expert_action(self, active: Tensor) -> Tensor:
        """What the suite's scripted expert would do now, ``[N, Da]``; 0 outside ``active`` (bool ``[N]``).

        Raises:
            UserError: the environment has no expert.
        """
        if not self.has_expert:
            raise UserError(f"{self._id} has no scripted expert; of the suites, metaworld has them")
        arrays = self._suite_worlds.arrays
        arrays["mask"][:] = active.cpu().numpy()
        arrays["expert"].fill(0)
        self._suite_worlds.expert()
        return torch.from_numpy(arrays["expert"].copy())


def _obs_spec(described: dict[str, Any], source: str) -> ArraySpec:
    dtype = "float32" if np.issubdtype(np.dtype(described["dtype"]), np.floating) else described["dtype"]
    return ArraySpec(shape=described["shape"], dtype=dtype, role="observation", source=source)


def suite_ids(suite: Suite) -> list[str]:
    """Ids of all environments of an installed suite, asked of the suite itself."""
    memory = os.memfd_create("visuomotor-suite")
    try:
        process = SuiteProcess(suite, memory, gl=None, timeout_s=120.0, what=f"the worker of suite {suite.name}")
    finally:
        os.close(memory)
    try:
        process.order("ids")
        return [f"{suite.name}:{name}" for name in process.result()]
    finally:
        process.end()
