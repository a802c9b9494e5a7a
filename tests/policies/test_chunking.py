"""Receding horizon: which action is executed when, in worlds that start and end at different times."""

from __future__ import annotations

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.execution.build import make_actor
from visuomotor.policies.execution.config import ExecuteConfig


class _Recorder:
    """Stands in for a policy: a chunk counts up from the last observation, and every call is recorded."""

    def __init__(self, policy):
        self.spec, self.device, self.noise_shape = policy.spec, torch.device("cpu"), policy.noise_shape
        self.calls: list[tuple[dict[str, torch.Tensor], torch.Tensor]] = []

    def sample(self, obs, noise):
        self.calls.append((obs, noise))
        start = obs["state"][:, -1, :1, None]  # [B, 1, 1]
        return start + torch.arange(-1.0, 15.0).view(1, 16, 1).expand(len(start), 16, 2)  # index 1 is the present


@pytest.fixture
def recorder(make_policy):
    return _Recorder(make_policy()[0])


def _obs(*values):
    return {"state": torch.tensor([[float(v), 0.0, 0.0] for v in values])}


def test_executes_n_exec_actions_from_the_present_on(recorder):
    actor = make_actor(recorder, num_envs=1)
    actor.reset([7])
    actions = [float(actor.act(_obs(100 + t))[0, 0]) for t in range(17)]
    assert actions[:8] == [100, 101, 102, 103, 104, 105, 106, 107]
    assert actions[8:16] == [108, 109, 110, 111, 112, 113, 114, 115]  # planned again from observation 108
    assert len(recorder.calls) == 3


def test_history_begins_with_copies_and_then_rolls(recorder):
    actor = make_actor(recorder, num_envs=1, config=ExecuteConfig(n_exec=1))
    actor.reset([0])
    for t in range(3):
        actor.act(_obs(t))
    seen = [obs["state"][0, :, 0].tolist() for obs, _ in recorder.calls]
    assert seen == [[0, 0], [0, 1], [1, 2]]


def test_a_world_that_restarts_plans_alone_and_forgets_its_past(recorder):
    actor = make_actor(recorder, num_envs=2)
    actor.reset([0, 1])
    for t in range(3):
        actor.act(_obs(t, 50 + t))
    actor.reset([0, 9], mask=torch.tensor([False, True]))
    actions = actor.act(_obs(3, 200))
    assert actions[:, 0].tolist() == [3, 200]  # world 0 goes on with its chunk, world 1 begins anew
    obs, _ = recorder.calls[-1]
    assert obs["state"][:, :, 0].unique(dim=0).tolist() == [[200, 200]]  # the block is filled with copies


def test_noise_depends_on_the_seed_and_the_plan_alone(recorder):
    def noise_of(seeds, world):
        recorder.calls.clear()
        actor = make_actor(recorder, num_envs=len(seeds), config=ExecuteConfig(n_exec=2))
        actor.reset(seeds)
        for t in range(4):
            actor.act(_obs(*[t] * len(seeds)))
        return [noise[world] for _, noise in recorder.calls]

    alone, among = noise_of([5], 0), noise_of([1, 2, 5], 2)
    assert all(torch.equal(a, b) for a, b in zip(alone, among, strict=True))
    assert not torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], noise_of([6], 0)[0])


def test_inactive_worlds_are_not_planned_for(recorder):
    actor = make_actor(recorder, num_envs=3)
    actor.reset([0, 1, 2])
    actor.act(_obs(0, 1, 2), torch.tensor([True, False, True]))
    assert recorder.calls[0][0]["state"][:, -1, 0].unique().tolist() == [0, 2]
    assert len(recorder.calls[0][1]) == 16  # a whole block: results do not depend on how many worlds plan


def test_more_actions_than_the_chunk_holds_are_refused(recorder):
    with pytest.raises(ConfigError, match=r"n_exec=16.*1 to 15"):
        make_actor(recorder, num_envs=1, config=ExecuteConfig(n_exec=16))


def test_an_action_does_not_depend_on_how_many_worlds_plan(make_policy):
    policy = make_policy()[0].eval()

    def last(seeds, world):
        actor = make_actor(policy, num_envs=len(seeds))
        actor.reset(seeds)
        return actor.act(_obs(*seeds))[world]

    few, many = last([70, 3], 0), last([*range(60), 70], 60)
    assert torch.equal(few, many)
