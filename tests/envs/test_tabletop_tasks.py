"""Reach, lift, pick and place, stack: where things start, rewards, experts, and that an episode is its seed's."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.envs.base import Step
from visuomotor.envs.registry import get_task, make_env
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.tasks.reach import ReachConfig
from visuomotor.envs.tasks.tabletop import flat_yaw, scatter, yaw_quat

TASKS = ("reach", "lift", "pick_place", "stack")
torch.set_num_threads(1)


def build(name: str, n: int, mode: str = "ee_delta", **settings: Any) -> SimVecEnv:
    config: Any = get_task(name).config_class(**settings)
    config.engine.threads, config.control.mode = 1, mode
    env = make_env(config, n)
    assert isinstance(env, SimVecEnv)
    return env


def begin(env: SimVecEnv, seeds: list[int], diversity: float = 0.5) -> Any:
    env.reset(seeds=seeds)
    expert = env.task.expert(diversity)
    everyone = Selection.all(env.num_envs, env.device)
    expert.reset(everyone, Draws(torch.tensor(seeds) * 7919 + 13))
    return expert


def run(env: SimVecEnv, expert: Any, steps: int = 250) -> tuple[list[Step], list[Tensor], list[Tensor], Tensor]:
    """Steps, phases before them, which worlds were in them; and who succeeded."""
    active, success = torch.ones(env.num_envs, dtype=torch.bool), torch.zeros(env.num_envs, dtype=torch.bool)
    taken, phases, actives = [], [], []
    for _ in range(steps):
        phases.append(expert.phase.clone())
        actives.append(active)
        taken.append(env.advance(expert.act(), active))
        success |= taken[-1].info["success"] & active
        active = active & ~(taken[-1].terminated | taken[-1].truncated)
        if not active.any():
            break
    return taken, phases, actives, success


@cache
def demonstrated(name: str) -> tuple[list[Step], list[Tensor], list[Tensor], Tensor]:
    env = build(name, 16, privileged=True)
    return run(env, begin(env, list(range(16))))


@pytest.mark.parametrize("name", TASKS)
def test_the_expert_solves_the_task(name: str) -> None:
    _, _, actives, success = demonstrated(name)
    assert success.tolist() == [True] * 16
    lengths = torch.stack(actives).sum(0) / 20.0
    assert float(lengths.mean()) < {"reach": 1.5, "lift": 3.2, "pick_place": 6.0, "stack": 6.0}[name]


@pytest.mark.parametrize("mode", ["joint_pos", "joint_delta", "joint_vel"])
def test_the_expert_works_in_every_action_mode(mode: str) -> None:
    env = build("lift", 3, mode)
    assert run(env, begin(env, [0, 1, 2]))[-1].all()


@pytest.mark.parametrize("robot", ["ur5e", "so100"])
@pytest.mark.parametrize("name", ["lift", "pick_place"])
def test_other_arms_do_it_too(name: str, robot: str) -> None:
    env = build(name, 3, robot=robot)
    assert run(env, begin(env, [0, 1, 2]))[-1].all()


@pytest.mark.parametrize("name", TASKS)
def test_dense_reward_is_bounded_and_grows_along_the_way(name: str) -> None:
    steps, phases, actives, _ = demonstrated(name)
    reward, active, phase = torch.stack([s.reward for s in steps]), torch.stack(actives), torch.stack(phases)
    assert torch.isfinite(reward).all()
    assert float(reward.min()) >= 0.0
    assert float(reward.max()) == 1.0
    assert float(reward[0].max()) < 0.6
    ends = [float(reward[active & (phase == k)].mean()) for k in range(int(phase.max()) + 1)]
    assert all(later > earlier for earlier, later in pairwise(ends)), ends
    last = active.sum(0) - 1
    assert torch.equal(reward[last, torch.arange(16)], torch.ones(16))


@pytest.mark.parametrize("name", TASKS)
def test_sparse_reward_is_success(name: str) -> None:
    env = build(name, 4, reward="sparse")
    steps, _, _, success = run(env, begin(env, [0, 1, 2, 3]))
    assert success.all()
    for s in steps:
        assert torch.equal(s.reward > 0, s.terminated)
        assert set(s.reward.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("robot", ["panda", "so100"])
@pytest.mark.parametrize("name", TASKS)
def test_starts(name: str, robot: str) -> None:
    env = build(name, 256, robot=robot)
    env.reset(seeds=range(256))
    task: Any = env.task
    outcome = task.outcome()
    assert not outcome.success.any()
    assert float(outcome.score.max()) < 0.9
    if name == "reach":
        return
    half, cube = task.grip_half, task.objects["cube"].pos()
    assert torch.allclose(cube[:, 2], torch.tensor(half), atol=1e-6)
    distance = cube[:, :2].norm(dim=1) / task.reach
    assert 0.6 < float(distance.min()) < 0.8
    assert 1.2 < float(distance.max()) < 1.4
    if name != "lift":
        top, _, stands = task.support()
        assert stands.all()
        room = math.sqrt(2) * (half + task.support_half)
        assert float((top - cube)[:, :2].norm(dim=1).min()) > room


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("lift", {"spread": -0.1}),
        ("lift", {"spread": 0.7}),
        ("stack", {"spread": 0.7}),
        ("stack", {"width": -1.0}),
        ("stack", {"spread": 0.0, "width": 0.1}),  # the cubes would lie in each other
        ("pick_place", {"spread": 0.1, "width": 0.1}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        build(name, 1, **setting)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40), st.integers(2, 4), st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_scatter_keeps_two_apart_and_all_inside(seed: int, count: int, a: float, b: float) -> None:
    gap = 0.99 * math.hypot(a, b)
    places = scatter(Draws(torch.arange(40) + seed), count, (1.0, -2.0), (a, b), gap)
    assert (places - torch.tensor([1.0, -2.0])).abs().amax((0, 1)).le(torch.tensor([a, b]) + 1e-5).all()
    assert float((places[:, 0] - places[:, 1]).norm(dim=1).min()) >= gap - 1e-5
    alone = scatter(Draws(torch.tensor([17 + seed])), count, (1.0, -2.0), (a, b), gap)
    assert torch.equal(alone[0], places[17])


def test_flat_yaw_of_a_box_on_any_face() -> None:
    yaw = torch.tensor([0.3, -2.0])
    upright = yaw_quat(yaw)
    assert torch.allclose(flat_yaw(upright), yaw, atol=1e-6)
    c, s = torch.cos(yaw / 2), torch.sin(yaw / 2)
    h = math.sqrt(0.5)  # turned a quarter about its own y first: its x axis is vertical, its y axis tells the yaw
    fallen = torch.stack([c * h, -s * h, c * h, s * h], 1)
    assert torch.allclose(flat_yaw(fallen), yaw + math.pi / 2, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_an_episode_is_its_seeds_alone(name: str) -> None:
    """Bit for bit, in any company; joint targets need no arithmetic whose last bits depend on the row's place."""

    def episode(seeds: list[int], i: int) -> list[Tensor]:
        env = build(name, len(seeds), "joint_pos", privileged=True)
        obs = env.reset(seeds=seeds)
        home, way = env.task.arms[0].target.clone(), torch.linspace(-0.4, 0.4, 8)[:7]  # type: ignore[attr-defined]
        seen = [v[i].clone() for v in obs.values()]
        for t in range(12):
            action = torch.cat([home + way * t / 12, torch.full((len(seeds), 1), float(t % 2))], 1)
            s = env.advance(action, torch.ones(len(seeds), dtype=torch.bool))
            seen += [v[i].clone() for v in s.obs.values()] + [s.reward[i], env.sim.field("qpos")[i].clone()]
        return seen

    alone = episode([7], 0)
    for seeds, i in (([1, 2, 7, 4, 5], 2), ([*range(9), 7], 9)):
        for a, b in zip(alone, episode(seeds, i), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", TASKS)
def test_snapshot_goes_on_bit_for_bit(name: str) -> None:
    env = build(name, 3, end_on_success=False, privileged=True)
    expert = begin(env, [3, 4, 5])
    everyone = torch.ones(3, dtype=torch.bool)
    for _ in range(20):
        env.advance(expert.act(), everyone)
    kept, own = env.snapshot(), {k: v.clone() for k, v in expert.buffers().items()}
    first = [env.advance(expert.act(), everyone) for _ in range(25)]
    env.restore(kept)
    for k, v in expert.buffers().items():
        v.copy_(own[k])
    for s in first:
        again = env.advance(expert.act(), everyone)
        assert torch.equal(s.reward, again.reward)
        assert all(torch.equal(v, again.obs[k]) for k, v in s.obs.items())


@pytest.mark.parametrize("name", TASKS)
def test_a_chunk_is_its_steps(name: str) -> None:
    one, other = build(name, 3), build(name, 3)
    expert = begin(one, [0, 1, 2])
    other.reset(seeds=[0, 1, 2])
    everyone = torch.ones(3, dtype=torch.bool)
    actions, steps = [], []
    for _ in range(6):
        actions.append(expert.act())
        steps.append(one.advance(actions[-1], everyone))
    chunk = other.step_chunk(torch.stack(actions, 1))
    assert torch.equal(chunk.reward, torch.stack([s.reward for s in steps], 1))
    assert all(torch.equal(v, steps[-1].obs[k]) for k, v in chunk.obs.items())


def test_privileged_tells_what_is_held() -> None:
    steps, _, _, _ = demonstrated("lift")
    names = build("lift", 1, privileged=True).task.privileged_names
    seen = torch.stack([s.obs["privileged"] for s in steps])
    assert seen.shape[2] == len(names) == len(set(names))
    assert torch.isfinite(seen).all()
    held, height = seen[..., names.index("holds_cube")], seen[..., names.index("cube_z")]
    assert not held[0].any()
    assert held[-1].all()
    assert float(height[-1].min()) > 0.115


def test_a_held_cube_neither_slips_nor_is_squeezed() -> None:
    env = build("lift", 8, end_on_success=False)
    expert, task = begin(env, list(range(8)), 0.0), env.task
    everyone, rel, squeezed = torch.ones(8, dtype=torch.bool), [], []
    for _ in range(70):
        lifting = expert.phase == 3
        env.advance(expert.act(), everyone)
        arm, cube = task.arms[0], task.objects["cube"]  # type: ignore[attr-defined]
        offset = (arm.tcp.matrix().transpose(1, 2) @ (cube.pos() - arm.tcp.pos())[..., None])[..., 0]
        if lifting.all():
            rel.append(offset)
            squeezed.append(0.04 - arm.fingers.pos().sum(1))
            fingers = arm.fingers.pos()
            assert float((fingers[:, 0] - fingers[:, 1]).abs().max()) < 2e-3
    assert len(rel) > 15
    assert float((torch.stack(rel) - rel[0]).norm(dim=2).max()) < 2e-3
    assert float(torch.stack(squeezed).max()) < 1.5e-3


def test_reach_can_ask_for_the_orientation() -> None:
    env = build("reach", 8, angle=0.2)
    assert run(env, begin(env, list(range(8))))[-1].all()
    with pytest.raises(ConfigError, match="angle=-1"):
        ReachConfig(angle=-1)
