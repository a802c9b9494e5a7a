"""Push-T with an arm: the T, its coverage of the goal, and how pushes are planned."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visuomotor.envs.registry import make_env
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.tasks.push_t import PushTArmConfig, coverage, t_outline, t_rectangles
from visuomotor.envs.tasks.pushing import best_push
from visuomotor.envs.tasks.tabletop import yaw_quat


def test_t_turns_about_its_centre_of_mass() -> None:
    bar, stem = t_rectangles(0.04)
    assert 4 * bar[1] + 3 * stem[1] == pytest.approx(0.0)
    assert bar[1] - bar[3] == pytest.approx(stem[1] + stem[3])  # the stem begins where the bar ends


@pytest.mark.parametrize(
    ("x", "y", "yaw", "expected"),
    [
        (0.0, 0.0, 0.0, 1.0),
        (1.0, 0.0, 0.0, 3 / 7),  # the bars share 3 u^2, the stems nothing
        (0.0, -1.0, 0.0, 3 / 7),  # stems 2 u^2, and u^2 of the bar lies on the stem
        (0.5, 0.0, 0.0, 5 / 7),  # bars 3.5 u^2, stems 1.5 u^2
        (0.0, 0.0, math.pi, (1 + 1 + 5 / 7) / 7),  # each bar on the other's stem, and 5/7 u of both stems
        (9.0, 0.0, 1.0, 0.0),
    ],
)
def test_coverage_by_hand(x: float, y: float, yaw: float, expected: float) -> None:
    u = 0.04
    got = coverage(torch.tensor([[x * u, y * u]]), torch.tensor([yaw]), u)
    assert got.item() == pytest.approx(expected, abs=0.012)


def test_t_on_its_goal_is_a_success() -> None:
    env = make_env(PushTArmConfig(), 3)
    assert isinstance(env, SimVecEnv)
    env.reset(seeds=[0, 1, 2])
    task: Any = env.task
    everyone = Selection.all(3, env.device)
    goal = torch.cat([task._goal, torch.tensor([task.height / 2])]).repeat(3, 1)
    goal[1, 0] += 0.003  # 14.3 % a centimetre at most: 4 %
    goal[2, 1] += 0.012
    task._t.place(everyone, goal, yaw_quat(torch.full((3,), math.pi / 4)))
    assert task.outcome().success.tolist() == [True, True, False]
    way, turn = task.error()
    torch.testing.assert_close(way.norm(dim=1), torch.tensor([0.0, 0.003, 0.012]), atol=1e-6, rtol=0)
    assert turn.abs().max() < 1e-6


def test_a_t_held_over_its_goal_covers_nothing() -> None:
    env = make_env(PushTArmConfig(), 2)
    assert isinstance(env, SimVecEnv)
    env.reset(seeds=[0, 1])
    task: Any = env.task
    goal = torch.cat([task._goal, torch.tensor([task.height / 2])]).repeat(2, 1)
    goal[1, 2] += 0.03
    task._t.place(Selection.all(2, env.device), goal, yaw_quat(torch.full((2,), math.pi / 4)))
    assert task.covered().tolist() == [1.0, 0.0]
    assert task.outcome().success.tolist() == [True, False]


def test_outline_lies_on_the_sides() -> None:
    u = 0.04
    outline = t_outline(u)

    def inside(points: Tensor) -> Tensor:
        return torch.stack([
            ((points[:, 0] - x).abs() < a) & ((points[:, 1] - y).abs() < b) for x, y, a, b in t_rectangles(u)
        ]).any(0)  # fmt: skip

    assert inside(outline.points + 1e-4 * outline.normals).all()
    assert not inside(outline.points - 1e-4 * outline.normals).any()
    assert not inside(outline.points - 0.03 * outline.normals).any()  # room for the finger


def test_push_by_hand() -> None:
    rho = 0.1
    up = torch.tensor([[0.0, 1.0]])
    motion, left, gone = best_push(torch.tensor([[0.0, 0.02, 0.0]]), torch.tensor([[0.0, -0.05]]), up, rho)
    torch.testing.assert_close(motion, torch.tensor([[0.0, 0.02]]))
    assert left.item() == pytest.approx(0.0, abs=1e-7)
    assert gone.item() == pytest.approx(0.02)
    # a turn alone, pushed at the distance rho: half of it comes, with as much of a shift
    motion, left, _ = best_push(torch.tensor([[0.0, 0.0, 0.02]]), torch.tensor([[rho, 0.0]]), up, rho)
    torch.testing.assert_close(motion, torch.tensor([[0.0, 0.02]]))  # 0.01 of shift and 0.1 rad times rho
    assert left.item() == pytest.approx(0.02 / math.sqrt(2))
    motion, left, gone = best_push(torch.tensor([[0.0, -0.02, 0.0]]), torch.tensor([[0.0, -0.05]]), up, rho)
    assert motion.abs().max() == 0.0
    assert gone.item() == 0.0


@given(st.lists(st.floats(-0.2, 0.2), min_size=3, max_size=3), st.integers(0, 45))
@settings(max_examples=60, deadline=None)
def test_a_push_never_makes_it_worse(error: list[float], k: int) -> None:
    outline = t_outline(0.04)
    k = k % len(outline.points)
    wanted = torch.tensor([error])
    _, left, gone = best_push(wanted, outline.points[k : k + 1], outline.normals[k : k + 1], outline.turning_radius)
    assert left <= wanted.norm() + 1e-6
    assert gone >= -1e-6
