"""Manager-based environments of Isaac Lab and mjlab as a :class:`~visuomotor.envs.base.VecEnv`.

The environment is made by its own framework, in its own Python environment, and handed over as an object; nothing of
either is imported here. What is used is common to ``isaaclab.envs.ManagerBasedRLEnv`` (2.3) and
``mjlab.envs.ManagerBasedRlEnv`` (1.6): ``step``, ``reset(env_ids=...)``, ``_reset_idx`` and the managers of
observations, actions and terminations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, UserError, nearest
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.base import Obs, Step, VecEnv, merge_obs

__all__ = ["ManagerBasedVecEnv"]

_POLICY_GROUPS = ("policy", "actor")  # Isaac Lab, mjlab


class ManagerBasedVecEnv(VecEnv):
    """A manager-based environment.

    These environments reset ended worlds within ``step``. The observation that ended an episode is computed when they
    are about to (``_reset_idx`` is wrapped), from the same terms: of observations with a history it lacks the newest
    frame, and terms with noise draw once more. Further differences to what :class:`VecEnv` promises:

    - a world outside ``active`` cannot stand still: it is fed zero actions and reports what it last saw; a later
      ``reset`` of it begins a new episode. So a chunk in which a world ends counts only the steps before.
    - both frameworks draw from global generators: ``reset(seeds=...)`` seeds them with a number made of all seeds, so
      that the same list gives the same episodes, but an episode is no function of its own seed.
    - pictures (:meth:`render`) show what the environment's own camera shows, whatever the world's index.

    Args:
        env: the environment; closed with this object.
        group: of observations that the policy sees; empty: ``policy`` or ``actor``, whichever there is. Its terms
            become keys if the group keeps them apart; else the key is the group's name.
        privileged: a group that is observed as ``privileged`` (such as ``critic``); empty: none.
        success: the termination term that means success, if there is one of this name.

    Raises:
        ConfigError: no such group, or an object that is no manager-based environment.
    """

    def __init__(self, env: Any, *, group: str = "", privileged: str = "", success: str = "success") -> None:
        env = getattr(env, "unwrapped", env)
        needed = ("step", "reset", "_reset_idx", "observation_manager", "action_manager", "termination_manager")
        if missing := [n for n in needed if not hasattr(env, n)]:
            raise ConfigError(
                f"{type(env).__name__} has no {', '.join(missing)}; expected a manager-based environment of Isaac Lab "
                "or mjlab (direct-workflow environments are not)"
            )
        groups = env.observation_manager.active_terms
        if not group:
            group = next((g for g in _POLICY_GROUPS if g in groups), _POLICY_GROUPS[0])
        for name in (group, privileged):
            if name and name not in groups:
                raise ConfigError(f"the environment observes no group {name!r}. {nearest(name, groups)}")
        self._env, self._groups = env, {group: "observation"} | ({privileged: "privileged"} if privileged else {})
        self._success = success if success in env.termination_manager.active_terms else ""
        self.num_envs, self.device = int(env.num_envs), torch.device(env.device)
        self.fps, self.max_episode_steps = 1.0 / float(env.step_dt), int(env.max_episode_length)
        self.obs_spec = self._obs_spec()
        names = [
            f"{term}_{i}"
            for term, size in zip(env.action_manager.active_terms, env.action_manager.action_term_dim, strict=True)
            for i in range(size)
        ]
        self.action_spec = ArraySpec(shape=(len(names),), role="action", names=tuple(names))
        inf = torch.full((len(names),), torch.inf, device=self.device)
        self.action_low, self.action_high = -inf, inf
        self._fresh = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)  # reset and not stepped since
        self._seen: Obs = {}  # what every world last reported
        self._new: Obs = {}  # what the environment itself observes now
        self._last: tuple[Obs, Tensor | None] | None = None  # before the resets of the step that runs
        self._watching = False
        self._reset_idx = env._reset_idx
        env._reset_idx = self._capture

    def reset(self, *, seeds: Sequence[int] | None = None, mask: Tensor | None = None) -> Obs:
        if seeds is not None and len(seeds) != self.num_envs:
            raise UserError(f"{len(seeds)} seeds for {self.num_envs} worlds; expected one a world")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (self.num_envs,)):
            raise UserError(f"mask is {mask.dtype} {list(mask.shape)}; expected torch.bool [{self.num_envs}]")
        everyone = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        wanted = everyone if mask is None or not self._seen else mask
        if seeds is not None:
            self._env.seed(int(np.random.SeedSequence(list(seeds)).generate_state(1)[0] % 2**31))
        # a world that the environment has just reset by itself needs no second reset, unless its seed is given
        needed = wanted if seeds is not None or mask is None or not self._seen else wanted & ~self._fresh
        if bool(needed.any()):
            obs, _ = self._env.reset(env_ids=needed.nonzero()[:, 0])
            self._new = self._take(obs)
        self._seen = merge_obs(self._new, self._seen, wanted) if self._seen else dict(self._new)
        self._fresh |= wanted
        return dict(self._seen)

    def advance(self, action: Tensor, active: Tensor) -> Step:
        if not self._seen:
            raise UserError("the worlds have no running episode: reset them before stepping them")
        size = self.action_spec.size
        if action.shape != (self.num_envs, size):
            raise UserError(f"action of shape {list(action.shape)}; expected [{self.num_envs}, {size}]")
        action = action.detach().to(self.device, torch.float32)
        self._last, self._watching = None, True
        try:
            obs, reward, terminated, truncated, _ = self._env.step(torch.where(active[:, None], action, 0.0))
        finally:
            self._watching = False
        self._new = self._take(obs)
        ended = terminated.bool() | truncated.bool()
        final, success = self._new, self._success_now()
        if self._last is not None:
            final = merge_obs(self._last[0], self._new, ended)
            success = self._last[1] if self._last[1] is not None else success
        self._fresh = ended
        self._seen = merge_obs(final, self._seen, active)
        info = {} if success is None else {"success": success & active}
        done = terminated.bool() & active
        out_of_time = truncated.bool() & active & ~done
        return Step(dict(self._seen), reward.float() * active, done, out_of_time, dict(self._seen), info)

    def render(self, index: int) -> np.ndarray:
        picture = self._env.render()
        if picture is None:
            raise UserError("the environment draws nothing: make it with render_mode='rgb_array'")
        return np.asarray(picture)

    def close(self) -> None:
        self._env._reset_idx = self._reset_idx
        self._env.close()

    def _capture(self, env_ids: Any = None) -> None:
        """In place of the environment's ``_reset_idx``: note what is seen before the reset."""
        if self._watching:
            sim = self._env.sim
            if hasattr(sim, "sense"):  # mjlab: after its steps body poses lag by one physics step
                sim.forward()
                sim.sense()
            manager = self._env.observation_manager
            # not compute(): mjlab would answer with what it has computed before the step
            self._last = (self._take({g: manager.compute_group(g) for g in self._groups}), self._success_now())
        self._reset_idx(env_ids)

    def _success_now(self) -> Tensor | None:
        return self._env.termination_manager.get_term(self._success).bool().clone() if self._success else None

    def _take(self, obs: dict[str, Any]) -> Obs:
        """Copies of the observed groups under our keys."""
        found: Obs = {}
        for group, role in self._groups.items():
            terms = obs[group] if isinstance(obs[group], dict) else {group: obs[group]}
            if role == "privileged":
                flat = [t.reshape(self.num_envs, -1).float() for t in terms.values()]
                found["privileged"] = torch.cat(flat, 1)
            else:
                found |= {k: (v.float() if v.is_floating_point() else v).clone() for k, v in terms.items()}
        return found

    def _obs_spec(self) -> dict[str, ArraySpec]:
        manager, spec = self._env.observation_manager, {}
        for group, role in self._groups.items():
            terms = list(zip(manager.active_terms[group], manager.group_obs_term_dim[group], strict=True))
            names = tuple(f"{t}_{i}" for t, dim in terms for i in range(int(np.prod(dim))))
            if role == "privileged":
                spec["privileged"] = ArraySpec(shape=(len(names),), role=role, names=names)
            elif manager.group_obs_concatenate[group]:
                shape = tuple(manager.group_obs_dim[group])
                spec[group] = ArraySpec(shape=shape, role=role, names=names if shape == (len(names),) else None)
            else:
                for t, dim in terms:
                    own = tuple(f"{t}_{i}" for i in range(dim[0])) if len(dim) == 1 else None
                    spec[t] = ArraySpec(shape=tuple(dim), role=role, names=own)
        return spec
