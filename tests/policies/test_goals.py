"""Goals for acting: read from stores and files, handed out by seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from visuomotor.data.actions import ActionConfig
from visuomotor.data.errors import CheckpointError, ConfigError, DataError
from visuomotor.data.parts import PartConfig
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.envs.base import Step, VecEnv
from visuomotor.policies.goals import GoalEnv, GoalTable, load_goals
from visuomotor.policies.spec import PolicySpec

GOAL, TEXT = ArraySpec(shape=(3,)), ArraySpec(shape=(8,), dtype="uint8")
IMAGE = ArraySpec(shape=(16, 16, 3), dtype="uint8")


def spec(**constant):
    """A policy that observes ``state [3]`` and the ``constant`` goals and texts."""
    obs = {"state": ArraySpec(shape=(3,)), **constant}
    return PolicySpec(
        obs=obs, action_key="action", action=ArraySpec(shape=(2,)), fps=None, window=WindowConfig(),
        action_config=ActionConfig(), constant_keys=frozenset(constant),
    )  # fmt: skip


BOTH = spec(**{"goal/state": GOAL, "goal/img": IMAGE, "task": TEXT})


class Counter(VecEnv):
    """Observes how many steps each world has made; ends after 3."""

    def __init__(self, n=4, **more):
        self.num_envs, self.device, self.fps, self.max_episode_steps = n, torch.device("cpu"), 10.0, 3
        self.obs_spec = {"state": ArraySpec(shape=(3,)), **more}
        self.action_spec, self.action_low, self.action_high = ArraySpec(shape=(2,)), -torch.ones(2), torch.ones(2)
        self.count = torch.zeros(n)

    def reset(self, *, seeds=None, mask=None):
        self.count = torch.where(torch.ones(self.num_envs, dtype=torch.bool) if mask is None else mask, 0, self.count)
        return self._obs()

    def advance(self, action, active):
        self.count = self.count + active
        done = self.count >= 3
        obs = self._obs()
        return Step(obs, torch.zeros(self.num_envs), done, torch.zeros_like(done), obs, {})

    def render(self, index):
        return np.zeros((8, 8, 3), np.uint8)

    def _obs(self):
        extra = {k: torch.zeros(self.num_envs, *s.shape) for k, s in self.obs_spec.items() if k != "state"}
        return {"state": self.count[:, None].expand(-1, 3).clone(), **extra}


def test_goals_of_a_store_are_the_last_steps_with_their_texts(demo_store):
    table = load_goals(BOTH, demo_store)
    assert table is not None
    assert table.values["goal/state"].tolist() == [[4.0] * 3, [5.0] * 3, [13.0] * 3]  # episodes of 5, 1 and 8 steps
    assert table.values["goal/img"].dtype == torch.uint8
    assert table.values["goal/img"][:, 0, 0, 0].tolist() == [4, 5, 13]
    assert [bytes(t.tolist()).rstrip(b"\0") for t in table.values["task"]] == [b"task 0", b"task 1", b"task 2"]


def test_parts_of_arrays_can_be_goals(demo_store):
    only = spec(**{"goal/height": ArraySpec(shape=(1,))})
    parts = {"height": PartConfig(key="state", dims=[2]), "observed": PartConfig(key="not here", dims=[0])}
    table = load_goals(only, demo_store, parts=parts)
    assert table is not None
    assert table.values["goal/height"].tolist() == [[4.0], [5.0], [13.0]]


def test_a_text_of_the_user_replaces_those_of_the_store(demo_store):
    table = load_goals(BOTH, demo_store, "push")
    assert table is not None
    assert table.values["task"].tolist() == [list(b"push\0\0\0\0")] * 3
    alone = load_goals(spec(task=TEXT), "nowhere", "push")
    assert alone is not None
    assert len(alone) == 1
    assert load_goals(spec(), "nowhere") is None
    with pytest.raises(ConfigError, match=r"reads no text.*'push'"):
        load_goals(spec(**{"goal/state": GOAL}), demo_store, "push")
    with pytest.raises(DataError, match=r"9 bytes.*at most 8"):
        load_goals(spec(task=TEXT), "nowhere", "too long!")


def test_goals_of_a_file(tmp_path):
    path, wanted = tmp_path / "g.npz", spec(**{"goal/state": GOAL})
    np.savez(path, state=np.arange(3.0))
    assert GoalTable.from_npz(path, wanted).values["goal/state"].tolist() == [[0.0, 1.0, 2.0]]
    np.savez(path, **{"goal/state": np.zeros((5, 3))})  # type: ignore[arg-type]
    assert len(GoalTable.from_npz(path, wanted)) == 5
    for arrays, says in [
        ({"stat": np.zeros(3)}, r"no goal 'goal/state'.*goal/stat"),
        ({"state": np.zeros(4)}, r"shape \(4,\): expected \(3,\)"),
        ({"state": np.full(3, np.nan)}, r"NaN"),
        ({"state": np.zeros(3, np.uint8)}, r"uint8: expected float32"),
    ]:
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=says):
            load_goals(wanted, path)
    with (tmp_path / "one.npy").open("wb") as file:
        np.save(file, np.zeros(3))
    np.savez_compressed(path, state=np.random.default_rng(0).random((100, 3)))
    damaged = path.read_bytes()[:100] + b"damaged" + path.read_bytes()[107:]
    for content in (b"no archive", b"", (tmp_path / "one.npy").read_bytes(), damaged):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read"):
            load_goals(wanted, path)


def test_an_episode_keeps_the_goal_of_its_seed():
    values = {"goal/state": torch.arange(30.0)[:, None].expand(-1, 3)}
    policy_spec = spec(**{"goal/state": GOAL})
    env = GoalEnv(Counter(), GoalTable(values), policy_spec)
    policy_spec.check_source(env.obs_spec, env.action_spec, env.fps, source="the env")
    first = env.reset(seeds=[5, 6, 7, 5])["goal/state"]
    assert torch.equal(first[0], first[3])
    assert len({float(x) for x in first[:3, 0]}) > 1
    again = GoalEnv(Counter(), GoalTable(values), policy_spec).reset(seeds=[7, 7, 5, 6])["goal/state"]
    assert torch.equal(again, first[[2, 2, 0, 1]])
    for _ in range(2):
        step = env.step(torch.zeros(4, 2))
        assert torch.equal(step.obs["goal/state"], first)
    mask = torch.tensor([True, False, False, False])
    partly = env.reset(seeds=[8, 8, 8, 8], mask=mask)["goal/state"]
    assert torch.equal(partly[1:], first[1:])
    step = env.step(torch.zeros(4, 2))  # worlds 1 to 3 end: the step belongs to the old goal, what follows to a new one
    assert torch.equal(step.final_obs["goal/state"][1:], first[1:])
    assert not torch.equal(step.obs["goal/state"][1:], first[1:])
    assert torch.equal(step.obs["goal/state"][0], partly[0])


def test_what_the_environment_gives_itself_stays():
    table = GoalTable({}).with_text("go", BOTH_STATES)
    env = GoalEnv(Counter(**{"goal/state": GOAL}), table, BOTH_STATES)
    obs = env.reset(seeds=[0, 1, 2, 3])
    assert torch.equal(obs["goal/state"], torch.zeros(4, 3))
    assert obs["task"].tolist() == [list(b"go\0\0\0\0\0\0")] * 4
    with pytest.raises(ConfigError, match=r"'goal/state'.*not given"):
        GoalEnv(Counter(), GoalTable({"task": torch.zeros(1, 8)}), BOTH_STATES)
    other = {"state": GOAL, "goal/state": ArraySpec(shape=(4,))}
    with pytest.raises(CheckpointError, match=r"'goal/state'.*\(3,\).*\(4,\)"):
        BOTH_STATES.check_source(other, ArraySpec(shape=(2,)), None, source="the env")


BOTH_STATES = spec(**{"goal/state": GOAL, "task": TEXT})


def test_the_spec_keeps_its_constant_keys():
    assert PolicySpec.from_dict(BOTH.to_dict()) == BOTH
    old = BOTH.to_dict()
    del old["constant_keys"]  # a checkpoint from before there were goals
    assert PolicySpec.from_dict(old).constant_keys == frozenset()
