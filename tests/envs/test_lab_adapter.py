"""The adapter of manager-based environments on a small one with the surface of Isaac Lab's and mjlab's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.envs.lab_adapter import ManagerBasedVecEnv

N = 3
LIMIT = 6


class Observations:
    """The observation manager."""

    def __init__(self, env: Counters, group: str, apart: bool) -> None:
        self._env, self._apart = env, apart
        self.active_terms = {group: ["count", "twice"], "critic": ["count", "twice"]}
        self.group_obs_term_dim = {g: [(1,), (1,)] for g in self.active_terms}
        self.group_obs_dim = dict.fromkeys(self.active_terms, (2,))
        self.group_obs_concatenate = dict.fromkeys(self.active_terms, not apart)

    def compute_group(self, group: str) -> Any:
        count = self._env.count[:, None]
        parts = {"count": count.clone(), "twice": 2 * count}
        return parts if self._apart else torch.cat(list(parts.values()), 1)

    def compute(self) -> dict[str, Any]:
        return {g: self.compute_group(g) for g in self.active_terms}


class Actions:
    """The action manager."""

    active_terms, action_term_dim = ("push",), (1,)


class Terminations:
    """The termination manager; its terms are cleared by resets."""

    active_terms = ("success", "time_out")

    def __init__(self) -> None:
        self.won = torch.zeros(N, dtype=torch.bool)

    def get_term(self, name: str) -> Tensor:
        assert name == "success"
        return self.won


class Counters:
    """Worlds that count up by ``1 + action`` from a drawn start; above 10 they end, with success."""

    num_envs, device, step_dt, max_episode_length = N, "cpu", 0.05, LIMIT

    def __init__(self, group: str = "policy", apart: bool = False) -> None:
        self.count, self.steps = torch.zeros(N), torch.zeros(N, dtype=torch.long)
        self.resets: list[list[int]] = []
        self.actions: list[Tensor] = []
        self.observation_manager = Observations(self, group, apart)
        self.action_manager, self.termination_manager, self.sim = Actions(), Terminations(), object()
        self._generator = torch.Generator()
        self.closed = False

    def seed(self, seed: int) -> int:
        self._generator.manual_seed(seed)
        return seed

    def reset(self, *, env_ids: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        self._reset_idx(env_ids)
        return self.observation_manager.compute(), {}

    def _reset_idx(self, env_ids: Tensor) -> None:
        self.resets.append(env_ids.tolist())
        self.count[env_ids] = torch.rand(len(env_ids), generator=self._generator)
        self.steps[env_ids] = 0
        self.termination_manager.won[env_ids] = False

    def step(self, action: Tensor) -> tuple[dict[str, Any], Tensor, Tensor, Tensor, dict[str, Any]]:
        self.actions.append(action.clone())
        self.count += 1 + action[:, 0]
        self.steps += 1
        self.termination_manager.won = self.count > 10
        terminated, late = self.termination_manager.won.clone(), self.steps >= LIMIT
        if (terminated | late).any():
            self._reset_idx((terminated | late).nonzero()[:, 0])
        return self.observation_manager.compute(), action[:, 0] + 1, terminated, late & ~terminated, {}

    def render(self) -> None:
        return None

    def close(self) -> None:
        self.closed = True


def started(**settings: Any) -> tuple[Counters, ManagerBasedVecEnv]:
    inner = Counters(**settings)
    env = ManagerBasedVecEnv(inner)
    env.reset(seeds=range(N))
    inner.resets.clear()
    return inner, env


def test_names_rates_and_limits_are_the_environments() -> None:
    env = ManagerBasedVecEnv(Counters(), privileged="critic")
    assert env.obs_spec["policy"].names == ("count_0", "twice_0")
    assert env.obs_spec["privileged"].role == "privileged"
    assert env.action_spec.names == ("push_0",)
    assert (env.fps, env.max_episode_steps, env.num_envs) == (20.0, LIMIT, N)
    assert env.reset()["privileged"].shape == (N, 2)
    assert set(ManagerBasedVecEnv(Counters("actor")).obs_spec) == {"actor"}
    apart = ManagerBasedVecEnv(Counters(apart=True))
    assert {k: s.shape for k, s in apart.obs_spec.items()} == {"count": (1,), "twice": (1,)}
    assert apart.reset().keys() == apart.obs_spec.keys()


def test_the_observation_that_ended_an_episode_is_kept_apart_from_the_next_ones_first() -> None:
    inner, env = started()
    before = inner.count.clone()
    s = env.step(torch.tensor([[20.0], [0.0], [0.0]]))
    assert s.terminated.tolist() == [True, False, False]
    assert s.info["success"].tolist() == [True, False, False]
    assert s.reward.tolist() == [21.0, 1.0, 1.0]
    torch.testing.assert_close(s.final_obs["policy"][:, 0], before + torch.tensor([21.0, 1.0, 1.0]))
    assert s.obs["policy"][0, 0] < 1.0
    assert torch.equal(s.obs["policy"][1:], s.final_obs["policy"][1:])
    assert inner.resets == [[0]]  # its own alone


def test_time_limits_truncate() -> None:
    _, env = started()
    for k in range(LIMIT):
        s = env.step(torch.zeros(N, 1))
        assert s.truncated.tolist() == [k == LIMIT - 1] * N
        assert not s.terminated.any()
    assert (s.final_obs["policy"][:, 0] >= LIMIT).all()
    assert (s.obs["policy"][:, 0] < 1).all()


def test_a_world_that_ends_in_mid_chunk_is_fed_zeros_and_begins_anew_at_the_boundary() -> None:
    inner, env = started()
    action = torch.zeros(N, 4, 1)
    action[0, 1] = 20.0
    action[0, 2:] = 0.5
    c = env.step_chunk(action)
    assert c.n_executed.tolist() == [2, 4, 4]
    assert c.terminated.tolist() == [True, False, False]
    assert c.reward[0].tolist() == [1.0, 21.0, 0.0, 0.0]
    assert [a[0, 0].item() for a in inner.actions] == [0.0, 20.0, 0.0, 0.0]
    assert torch.equal(c.history["policy"][0, 1], c.history["policy"][0, 3])
    assert c.final_obs["policy"][0, 0] > 20
    assert inner.resets == [[0], [0]]  # once by itself, once more at the boundary, since it had moved on
    assert c.obs["policy"][0, 0] < 1
    assert inner.count[0] == c.obs["policy"][0, 0]


def test_the_same_seeds_give_the_same_episodes() -> None:
    _, env = started()
    first = env.reset(seeds=[1, 2, 3])
    env.step(torch.zeros(N, 1))
    assert torch.equal(env.reset(seeds=[1, 2, 3])["policy"], first["policy"])
    assert not torch.equal(env.reset(seeds=[1, 2, 4])["policy"], first["policy"])
    with pytest.raises(UserError, match="2 seeds for 3 worlds"):
        env.reset(seeds=[1, 2])


def test_a_masked_reset_leaves_the_others() -> None:
    inner, env = started()
    seen = env.step(torch.zeros(N, 1)).obs["policy"]
    obs = env.reset(mask=torch.tensor([False, True, False]))["policy"]
    assert inner.resets == [[1]]
    assert torch.equal(obs[[0, 2]], seen[[0, 2]])
    assert obs[1, 0] < 1


def test_mistakes_are_said() -> None:
    with pytest.raises(ConfigError, match=r"'polcy'.*'policy'"):
        ManagerBasedVecEnv(Counters(), group="polcy")
    with pytest.raises(ConfigError, match="manager-based"):
        ManagerBasedVecEnv(object())
    inner = Counters()
    env = ManagerBasedVecEnv(inner)
    with pytest.raises(UserError, match="reset"):
        env.step(torch.zeros(N, 1))
    env.reset()
    for mask in (torch.ones(2, dtype=torch.bool), torch.ones(N)):
        with pytest.raises(UserError, match=r"mask is .*; expected torch.bool \[3\]"):
            env.reset(mask=mask)
    with pytest.raises(UserError, match=r"\[3, 2\]"):
        env.step(torch.zeros(N, 2))
    with pytest.raises(UserError, match="render_mode"):
        env.render(0)
    env.close()
    assert inner.closed
