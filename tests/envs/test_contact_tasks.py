"""Drawer, peg, hand-over and push-T: what counts as success, experts, and that an episode is its seed's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.envs.registry import get_task, make_env
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.tasks.drawer import OPENED
from visuomotor.envs.tasks.peg import DEPTH, PEG_HALF
from visuomotor.envs.tasks.tabletop import yaw_quat
from visuomotor.envs.tasks.waypoints import Phase, Pose, WaypointExpert

TASKS = ("drawer", "peg", "handover", "push_t_arm")
torch.set_num_threads(1)


def build(name: str, n: int, mode: str = "ee_delta", **settings: Any) -> SimVecEnv:
    config: Any = get_task(name).config_class(**settings)
    config.engine.threads, config.control.mode = 1, mode
    env = make_env(config, n)
    assert isinstance(env, SimVecEnv)
    return env


@dataclass(frozen=True)
class Run:
    """Episodes of an expert; ``[T, N]``."""

    env: SimVecEnv
    reward: Tensor
    running: Tensor
    success: Tensor  # [N]


def drive(name: str, seeds: list[int], mode: str = "ee_delta", diversity: float = 0.0) -> Run:
    env = build(name, len(seeds), mode)
    env.reset(seeds=seeds)
    expert = env.task.expert(diversity)
    expert.reset(Selection.all(env.num_envs, env.device), Draws(torch.tensor(seeds) * 7919 + 13))
    active = torch.ones(env.num_envs, dtype=torch.bool)
    success, rewards, running = torch.zeros_like(active), [], []
    while active.any():
        running.append(active)
        step = env.advance(expert.act(), active)
        rewards.append(step.reward)
        success = success | (step.info["success"] & active)
        active = active & ~(step.terminated | step.truncated)
    return Run(env, torch.stack(rewards), torch.stack(running), success)


@cache
def dozen(name: str) -> Run:
    return drive(name, list(range(12)))


def actions(env: SimVecEnv, steps: int, n: int) -> Tensor:
    """The same for every world."""
    low, high = env.action_low.clamp(min=-0.03), env.action_high.clamp(max=1.0)
    u = torch.rand(steps, 1, env.action_spec.size, generator=torch.Generator().manual_seed(3))
    return (low + (high - low) * u).expand(-1, n, -1)


# ---- all tasks


@pytest.mark.parametrize("name", TASKS)
def test_expert_succeeds(name: str) -> None:
    assert dozen(name).success.sum() >= 11


@pytest.mark.parametrize("name", TASKS)
def test_rewards_are_bounded_and_rise_on_the_experts_way(name: str) -> None:
    run = dozen(name)
    assert run.reward.min() >= 0.0
    assert run.reward.max() <= 1.0
    for i in run.success.nonzero()[:, 0].tolist():
        reward = run.reward[run.running[:, i], i]
        third = len(reward) // 3
        first, second, last = reward[:third].mean(), reward[third : 2 * third].mean(), reward[-third:].mean()
        assert first < second < last, f"world {i}"
        assert reward[-1] == 1.0


@pytest.mark.parametrize("name", TASKS)
def test_an_episode_is_a_function_of_its_seed(name: str) -> None:
    alone, among = build(name, 1, "joint_delta"), build(name, 3, "joint_delta")
    one, three = alone.reset(seeds=[41]), among.reset(seeds=[7, 8, 41])
    for key in one:
        assert torch.equal(one[key][0], three[key][2]), key
        if key == "object":
            assert not torch.equal(three[key][0], three[key][2])
    for a in actions(alone, 12, 3):
        s, t = alone.step(a[:1]), among.step(a)
        for key in one:
            assert torch.equal(s.obs[key][0], t.obs[key][2]), key
        assert torch.equal(s.reward[0], t.reward[2])


@pytest.mark.parametrize("name", TASKS)
def test_a_snapshot_goes_on_bit_for_bit(name: str) -> None:
    env = build(name, 2)
    env.reset(seeds=[1, 2])
    way = actions(env, 16, 2)
    for a in way[:6]:
        env.step(a)
    kept = env.snapshot()
    first = [env.step(a) for a in way[6:]]
    env.restore(kept)
    for a, before in zip(way[6:], first, strict=True):
        again = env.step(a)
        assert torch.equal(again.reward, before.reward)
        assert all(torch.equal(again.obs[k], v) for k, v in before.obs.items())


@pytest.mark.parametrize("name", TASKS)
def test_an_expert_goes_on_bit_for_bit_from_a_snapshot(name: str) -> None:
    env, everyone = build(name, 2, end_on_success=False), torch.ones(2, dtype=torch.bool)
    env.reset(seeds=[1, 2])
    expert = env.task.expert(0.5)
    expert.reset(Selection.all(2, env.device), Draws(torch.tensor([5, 6])))
    for _ in range(45):
        env.advance(expert.act(), everyone)
    kept, own = env.snapshot(), {k: v.clone() for k, v in expert.buffers().items()}
    first = []
    for _ in range(45):
        first.append(expert.act())
        env.advance(first[-1], everyone)
    env.restore(kept)
    for k, v in expert.buffers().items():
        v.copy_(own[k])
    for action in first:
        assert torch.equal(expert.act(), action)
        env.advance(action, everyone)


@pytest.mark.parametrize("name", TASKS)
def test_nothing_is_won_or_lost_at_the_start(name: str) -> None:
    env = build(name, 64)
    obs = env.reset(seeds=list(range(500, 564)))
    outcome = env.task.outcome()
    assert not outcome.success.any()
    assert outcome.failure is None or not outcome.failure.any()
    assert outcome.score is not None
    assert outcome.score.max() < 0.8
    assert outcome.score.min() >= 0.0
    assert len(obs["object"].unique(dim=0)) == 64


@pytest.mark.parametrize("name", TASKS)
def test_names_fit_the_numbers(name: str) -> None:
    env = build(name, 2, privileged=True)
    obs = env.reset(seeds=[0, 1])
    for key, spec in env.obs_spec.items():
        assert obs[key].shape == (2, *spec.shape), key
        assert obs[key].dtype == torch.float32, key
        assert spec.names is None or len(spec.names) == spec.shape[0], key
    names = env.obs_spec["privileged"].names
    assert names is not None
    assert len(set(names)) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_expert_succeeds_on_200_seeds(name: str) -> None:
    assert sum(int(drive(name, list(range(i, i + 50))).success.sum()) for i in range(0, 200, 50)) >= 190


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["joint_pos", "joint_delta", "joint_vel"])
@pytest.mark.parametrize("name", TASKS)
def test_expert_succeeds_in_every_action_mode_and_with_diversity(name: str, mode: str) -> None:
    assert drive(name, list(range(16)), mode, diversity=0.5).success.sum() >= 14


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("drawer", {"spread": -1.0}),
        ("peg", {"clearance": 0.0}),
        ("peg", {"spread": 0.3}),
        ("handover", {"turn": 2.0}),
        ("handover", {"spread": math.nan}),
        ("drawer", {"turn": 3.0}),
        ("push_t_arm", {"spread": 2.0}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        get_task(name).config_class(**setting)


# ---- drawer


def test_drawer_is_open_at_four_fifths_of_its_travel() -> None:
    env = build("drawer", 3)
    env.reset(seeds=[0, 1, 2])
    task: Any = env.task
    assert task.travel == pytest.approx(0.16)
    everyone = Selection.all(3, env.device)
    shut = env.task.observe()["object"][:, :3]
    task._joint.set_pos(everyone, torch.tensor([[0.4], [OPENED - 0.01], [OPENED + 0.01]]) * task.travel)
    env.sim.forward(everyone)
    outcome = task.outcome()
    assert outcome.success.tolist() == [False, False, True]
    assert outcome.score is not None
    torch.testing.assert_close(outcome.score, torch.tensor([0.5, 0.79 / 0.8, 1.0]))
    moved = env.task.observe()["object"][:, :3] - shut  # the handle moves by the opening, towards the arm
    torch.testing.assert_close(moved.norm(dim=1), torch.tensor([0.4, 0.79, 0.81]) * 0.16, rtol=1e-4, atol=1e-5)
    assert (moved[:, 0] < 0).all()


# ---- peg


def contacts_with_block(env: SimVecEnv, side: float, yaw: float = 0.0, depth: float = 0.03) -> int:
    """Number of contacts of the peg when it stands ``side`` [m] beside the middle of the hole."""
    task: Any = env.task
    block = task._block
    local = torch.tensor([[side, 0.0, 0.05 - depth]])
    pos = task.hole() + (block.matrix() @ local[:, :, None])[:, :, 0]
    heading = torch.atan2(block.matrix()[:, 1, 0], block.matrix()[:, 0, 0]) + yaw
    everyone = Selection.all(1, env.device)
    task._peg.place(everyone, pos, yaw_quat(heading))
    env.sim.forward(everyone)
    return int(env.sim.mj_state(0)[1].ncon)


@pytest.mark.parametrize("clearance", [0.001, 0.0015])
def test_peg_has_the_stated_clearance(clearance: float) -> None:
    env = build("peg", 1, clearance=clearance)
    env.reset(seeds=[5])
    for quarter in range(4):
        assert contacts_with_block(env, clearance - 2e-4, quarter * math.pi / 2) == 0
        assert contacts_with_block(env, clearance + 2e-4, quarter * math.pi / 2) > 0
    # a square of half side h turned by a fills h (cos a + sin a): the hole takes it up to the clearance
    fits = math.asin((1 + clearance / PEG_HALF) ** 2 - 1) / 2
    assert contacts_with_block(env, 0.0, 0.9 * fits) == 0
    assert contacts_with_block(env, 0.0, 1.2 * fits) > 0


def test_peg_is_in_at_the_stated_depth() -> None:
    env = build("peg", 1)
    env.reset(seeds=[5])
    task: Any = env.task
    for depth, inside in ((DEPTH - 0.002, False), (DEPTH + 0.001, True)):
        contacts_with_block(env, 0.001, 0.0, depth)
        side, got, tilt = task.offset()
        torch.testing.assert_close(side, torch.tensor([[0.001, 0.0]]), atol=1e-6, rtol=0)
        assert got.item() == pytest.approx(depth, abs=1e-6)
        assert tilt.item() == pytest.approx(0.0, abs=1e-3)
        assert bool(task.outcome().success) is inside
    contacts_with_block(env, 0.06, 0.0, 0.06)  # as deep, but beside the hole
    outcome = task.outcome()
    assert not outcome.success
    assert outcome.score is not None
    assert outcome.score.item() == 0.0


# ---- hand-over


def test_stick_ends_in_the_second_hand_alone() -> None:
    run = dozen("handover")
    task: Any = run.env.task
    won = run.success
    assert task.holds(task._stick, 1)[won].all()
    assert not task.holds(task._stick, 0)[won].any()
    assert ((task._stick.pos() - task._goal.pos()).norm(dim=1)[won] < 0.03).all()
    assert (task._away(0)[won] > 0.05).all()


def test_fetching_the_stick_from_the_table_is_no_hand_over() -> None:
    env = build("handover", 4)
    env.reset(seeds=[0, 1, 2, 3])
    task: Any = env.task
    right = task.arms[1]

    def here() -> Pose:
        return right.tcp.pos(), None

    fetch = [
        Phase(target=lambda: task.grasp(1), above=0.06, grip=1, tolerance=0.015),
        Phase(target=lambda: task.grasp(1), grip=1, speed=0.2, tolerance=0.006),
        Phase(target=here, follow=False, grip=0, hold=8, timeout=12),
        Phase(target=here, follow=False, above=0.1, grip=0),
        Phase(target=task.delivery, grip=0, speed=0.3),
    ]
    expert, everyone = WaypointExpert(right, fetch, 0.05), torch.ones(4, dtype=torch.bool)
    expert.reset(Selection.all(4, env.device), Draws(torch.arange(4)))
    still = torch.zeros(4, 7)
    still[:, 6] = 1.0
    brought = ~everyone
    for _ in range(task.max_episode_steps - 1):
        step = env.advance(torch.cat([still, expert.act()], 1), everyone)
        at_goal = (task._stick.pos() - task._goal.pos()).norm(dim=1) < 0.03
        brought |= at_goal & task.holds(task._stick, 1)
        assert not step.info["success"].any()
        assert step.info["score"].max() == 0.0
    assert brought.all()


def test_hands_touch_each_other_and_no_arm_touches_itself() -> None:
    model = build("handover", 1).sim.model
    names = {model.body(model.geom_bodyid[i]).name: i for i in range(model.ngeom)}
    left, right = names["left_robot/hand"], names["right_robot/hand"]
    other = names["left_robot/left_finger"]

    def touch(a: int, b: int) -> bool:
        kinds, takes = model.geom_contype, model.geom_conaffinity
        return bool((kinds[a] & takes[b]) | (kinds[b] & takes[a]))

    assert touch(left, right)
    assert not touch(left, other)
    assert touch(left, names["stick"])
    assert touch(right, names["stick"])
