from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from visuomotor.envs.registry import get_task, make_env
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv

ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"


def make(task: str, n: int = 2, **settings: Any) -> SimVecEnv:
    env = make_env(get_task(task).config_class(engine=EngineConfig(threads=1), **settings), n)
    assert isinstance(env, SimVecEnv)
    return env


def place(env: SimVecEnv, qpos: list[float], qvel: list[float] | None = None, world: int = 0) -> None:
    env.sim.field("qpos")[world] = torch.tensor(qpos, dtype=torch.float64)
    if qvel is not None:
        env.sim.field("qvel")[world] = torch.tensor(qvel, dtype=torch.float64)


@pytest.mark.parametrize(
    ("task", "asset", "steps", "tolerance"),
    [
        ("hopper", "hopper.xml", 12, 1e-12),
        ("walker", "walker2d_v5.xml", 12, 1e-10),
        ("reacher", "reacher.xml", 12, 1e-12),
        ("cartpole", "inverted_pendulum.xml", 5, 5e-3),  # whose pole leans by 1/600
    ],
)
def test_physics_is_that_of_gymnasiums_model(task: str, asset: str, steps: int, tolerance: float) -> None:
    """The published numbers, in our own MJCF, move alike under random torques, with contact."""
    env = make(task)
    env.reset(seeds=[3, 4])
    theirs = mujoco.MjModel.from_xml_path(str(ASSETS / asset))
    data = mujoco.MjData(theirs)
    n = env.sim.model.nq
    data.qpos[:n], data.qvel[:n] = env.sim.field("qpos")[0].numpy(), env.sim.field("qvel")[0].numpy()
    generator = torch.Generator().manual_seed(0)
    low, high = env.action_low, env.action_high
    assert np.array_equal(np.stack([low, high], 1), theirs.actuator_ctrlrange)
    skip = round(1 / (env.fps * theirs.opt.timestep))
    for _ in range(steps):
        action = 0.1 * (low + (high - low) * torch.rand(2, low.shape[0], generator=generator))
        data.ctrl[:] = action[0].numpy()
        mujoco.mj_step(theirs, data, nstep=skip)
        assert not env.step(action).terminated[0]
        np.testing.assert_allclose(env.sim.field("qpos")[0].numpy(), data.qpos[:n], atol=tolerance)


@pytest.mark.parametrize(("task", "gymnasium_fps", "limit"), [("hopper", 125, 1000), ("reacher", 50, 50)])
def test_rates_limits_and_names(task: str, gymnasium_fps: float, limit: int) -> None:
    env = make(task)
    assert env.fps == pytest.approx(gymnasium_fps)
    assert env.max_episode_steps == limit
    state = env.reset(seeds=[0, 1])["state"]
    names = env.obs_spec["state"].names
    assert names is not None
    assert state.shape == (2, len(names))


def test_hopper_reward_by_hand() -> None:
    env = make("hopper")
    env.reset(seeds=[0, 1])
    before = env.sim.field("qpos")[:, 0].clone()
    s = env.step(torch.tensor([[0.5, -0.5, 1.0], [3.0, 0.0, 0.0]]))  # 3 is clipped to 1
    velocity = (env.sim.field("qpos")[:, 0] - before) / 0.008
    cost = 1e-3 * torch.tensor([0.25 + 0.25 + 1.0, 1.0])
    assert torch.allclose(s.reward, (1.0 + velocity - cost).float(), atol=1e-6)
    assert s.obs["state"][0, 0] == pytest.approx(1.25, abs=0.02)


def test_hopper_falls_and_arrives() -> None:
    env = make("hopper", 5, end_on_success=True)
    env.reset(seeds=range(5))
    stand = [0.0, 1.25, 0.0, 0.0, 0.0, 0.0]
    rest = [0.0] * 6
    for world, (index, value) in enumerate([(1, 0.65), (2, 0.3), (0, 9.0), (0, 4.0)]):
        place(env, [*stand[:index], value, *stand[index + 1 :]], rest, world)
    place(env, stand, [0.0, 0.0, 0.0, 0.0, 0.0, 30.0], 4)
    s = env.advance(torch.zeros(5, 3), torch.ones(5, dtype=torch.bool))
    assert s.terminated.tolist() == [True, True, True, False, False]  # too low, leaning, arrived
    assert s.info["success"].tolist() == [False, False, True, False, False]
    assert torch.allclose(s.info["score"], torch.tensor([0.0, 0.0, 1.0, 0.5, 0.0]), atol=1e-2)
    assert s.obs["state"].abs().max() <= 10.0  # velocities are clipped


def test_walker_may_lean_farther_than_hopper() -> None:
    env = make("walker", 2)
    env.reset(seeds=[0, 1])
    place(env, [0.0, 1.25, 0.9, *[0.0] * 6], world=0)
    place(env, [0.0, 1.25, 1.1, *[0.0] * 6], world=1)
    assert env.step(torch.zeros(2, 6)).terminated.tolist() == [False, True]


def test_reacher_by_hand() -> None:
    env = make("reacher", 2)
    env.reset(seeds=[0, 1])
    place(env, [0.0, math.pi / 2], [0.0, 0.0])
    env.sim.field("mocap_pos")[0, 0] = torch.tensor([0.1, 0.11, 0.01])  # where the fingertip is
    s = env.step(torch.tensor([[0.0, 0.0], [0.5, -1.0]]))
    expected = [1.0, 0.0, 0.0, 1.0, 0.1, 0.11, 0.0, 0.0, 0.0, 0.0]
    assert torch.allclose(s.obs["state"][0], torch.tensor(expected), atol=1e-6)
    assert s.info["success"].tolist()[0] is True
    assert s.reward[0] == pytest.approx(0.0, abs=1e-6)
    tip_to_target = s.obs["state"][1, 8:].norm()
    assert s.reward[1] == pytest.approx(-float(tip_to_target) - 0.1 * 1.25, abs=1e-6)
    targets = torch.cat([env.reset()["state"][:, 4:6] for _ in range(40)])
    assert targets.norm(dim=1).max() <= 0.2
    assert 0.35 < float((targets.norm(dim=1) < 0.2 / math.sqrt(2)).float().mean()) < 0.65  # uniform by area


def test_balancing_succeeds_only_at_the_end() -> None:
    env = make("cartpole", 2, max_episode_steps=5)
    env.reset(seeds=[0, 1])
    for i in range(5):
        place(env, [0.0, 0.0], [0.0, 0.0])
        place(env, [0.0, 0.3 if i == 4 else 0.0], [0.0, 0.0], 1)
        s = env.advance(torch.zeros(2, 1), torch.ones(2, dtype=torch.bool))
        assert s.reward.tolist() == [1.0, 1.0 if i < 4 else 0.0]
        assert s.info["score"][0] == pytest.approx((i + 1) / 5)
        assert s.info["success"].tolist() == [i == 4, False]
    assert s.truncated.tolist() == [True, False]
    assert s.terminated.tolist() == [False, True]


def test_swinging_up_begins_hanging_and_is_rewarded_upright() -> None:
    env = make("cartpole", 3, swing_up=True)
    state = env.reset(seeds=range(3))["state"]
    assert (state[:, 1] < -0.99).all()  # cosine
    place(env, [0.0, 0.0], [0.0, 0.0], 0)
    place(env, [0.0, 0.0], [0.0, 8.0], 1)
    place(env, [0.0, math.pi], [0.0, 0.0], 2)
    s = env.step(torch.zeros(3, 1))
    assert s.info["success"].tolist() == [True, False, False]
    assert s.reward[0] == pytest.approx(1.0, abs=1e-3)
    assert s.reward[2] == pytest.approx(0.0, abs=1e-3)
    assert not s.terminated.any()
    assert env.max_episode_steps == 250
