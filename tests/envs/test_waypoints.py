"""Experts made of waypoints, on a hand that goes exactly where it is told."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.tasks.waypoints import Phase, WaypointExpert, _glide, top_down

DT = 0.05
CPU = torch.device("cpu")


class Hand:
    """Stands in for an arm: its hand is where the last action put it."""

    def __init__(self, n: int, obeys: bool = True) -> None:
        self.pos, self.rot = torch.zeros(n, 3), top_down(torch.full((n,), math.pi / 2))
        self.target, self.grip, self._obeys = torch.zeros(n, 7), torch.ones(n, 1), obeys
        self.tcp = SimpleNamespace(pos=lambda: self.pos.clone(), matrix=lambda: self.rot.clone())
        self.chain = SimpleNamespace(forward=lambda q: (self.pos.clone(), self.rot.clone()))

    def to_world(self, pos: Tensor, mat: Tensor) -> tuple[Tensor, Tensor]:
        return pos, mat

    def encode(self, pos: Tensor, rot: Tensor, grip: Tensor) -> Tensor:
        if self._obeys:
            self.pos, self.rot, self.grip = pos.clone(), rot.clone(), grip.clone()
        return torch.cat([pos, rot.reshape(-1, 9), grip], 1)


def start(hand: Hand, phases: list[Phase], diversity: float = 0.0, seed: int = 0) -> WaypointExpert:
    arm: Any = hand
    expert = WaypointExpert(arm, phases, DT, diversity)
    n = hand.pos.shape[0]
    expert.reset(Selection.all(n, CPU), Draws(torch.arange(n) + seed))
    return expert


def at(x: float, y: float, z: float, n: int = 2, yaw: float | None = None) -> Any:
    pos = torch.tensor([[x, y, z]]).repeat(n, 1)
    return lambda: (pos, None if yaw is None else top_down(torch.full((n,), yaw)))


def test_glide_is_bounded_in_speed_and_acceleration_and_arrives() -> None:
    draws = Draws(torch.arange(200))
    goal, pos = draws.uniform((3,), -1.0, 1.0), torch.zeros(200, 3)
    velocity, top = draws.uniform((3,), -0.3, 0.3), draws.uniform((), 0.2, 1.0)
    for _ in range(240):
        new = _glide(goal - pos, velocity, top, 1.5, DT)
        assert float((new - velocity).norm(dim=1).max()) <= 1.5 * DT + 1e-5
        assert (new.norm(dim=1) <= torch.maximum(top, velocity.norm(dim=1)) + 1e-5).all()
        pos, velocity = pos + new * DT, new
    assert float((goal - pos).norm(dim=1).max()) < 1e-3


def test_glide_from_rest_does_not_overshoot() -> None:
    pos, velocity, seen = torch.zeros(1, 3), torch.zeros(1, 3), 0.0
    for _ in range(60):
        velocity = _glide(torch.tensor([[0.3, 0.0, 0.0]]) - pos, velocity, torch.tensor([0.35]), 1.5, DT)
        pos = pos + velocity * DT
        seen = max(seen, float(pos[0, 0]))
    assert seen <= 0.3 + 5e-4
    assert float(pos[0, 0]) == pytest.approx(0.3, abs=1e-4)


def test_phases_follow_each_other_and_the_last_one_is_done() -> None:
    hand = Hand(2)
    expert = start(hand, [Phase(target=at(0.1, 0, 0), grip=1.0), Phase(target=at(0.1, 0.1, 0), grip=0.0)])
    for _ in range(60):
        expert.act()
    assert expert.phase.tolist() == [1, 1]
    assert expert.done.all()
    assert torch.allclose(hand.pos, torch.tensor([0.1, 0.1, 0.0]), atol=1e-3)
    assert hand.grip.flatten().tolist() == [0.0, 0.0]


def test_commands_do_not_jump_when_the_target_does() -> None:
    hand = Hand(1)
    expert = start(hand, [Phase(target=at(0.2, 0, 0, 1), grip=1.0), Phase(target=at(0, 0.3, 0.2, 1, 1.2), grip=0.0)])
    actions = torch.cat([expert.act() for _ in range(80)])
    steps = actions[1:] - actions[:-1]
    assert float((steps[1:, :3] - steps[:-1, :3]).norm(dim=1).max()) <= 1.5 * DT**2 + 1e-5  # acceleration
    assert float(steps[:, -1].abs().max()) <= 0.25


def test_a_goal_that_is_never_reached_is_left_after_the_timeout() -> None:
    hand = Hand(1, obeys=False)
    expert = start(hand, [Phase(target=at(1, 0, 0, 1), grip=1.0, timeout=7), Phase(target=at(0, 0, 0, 1), grip=1.0)])
    phases = []
    for _ in range(9):
        expert.act()
        phases.append(int(expert.phase[0]))
    assert phases == [0] * 6 + [1] * 3


def test_a_failed_check_goes_back_and_others_go_on() -> None:
    hand, good = Hand(2), torch.tensor([True, False])
    here = at(0.0, 0.0, 0.0)
    phases = [
        Phase(target=here, grip=1.0),
        Phase(target=here, grip=0.0, hold=3, check=lambda: good),
        Phase(target=here, grip=0.0),
    ]
    expert = start(hand, phases)
    for _ in range(4):
        expert.act()
    assert expert.phase.tolist() == [2, 0]
    assert expert.retries.tolist() == [0, 1]
    good[1] = True
    for _ in range(6):
        expert.act()
    assert expert.phase.tolist() == [2, 2]
    assert expert.retries.tolist() == [0, 1]


def test_what_is_watched_is_noticed_at_once() -> None:
    hand, good = Hand(1), torch.tensor([True])
    far = at(1.0, 0.0, 0.0, 1)
    watched = Phase(target=far, grip=0.0, check=lambda: good, watch=True)
    expert = start(hand, [Phase(target=at(0, 0, 0, 1), grip=1.0), watched])
    for _ in range(3):
        expert.act()
    assert expert.phase.tolist() == [1]
    good[0] = False
    expert.act()
    assert expert.phase.tolist() == [0]
    assert not expert.done.any()


@pytest.mark.parametrize("yaw", [-3.0, -2.0, -0.7, 0.1, 1.4, 2.9])
def test_the_nearest_of_four_equivalent_grasps_is_taken_and_kept(yaw: float) -> None:
    hand = Hand(1)
    expert = start(hand, [Phase(target=at(0, 0, 0, 1, yaw), grip=1.0, symmetry=4, angle_tolerance=0.0)])
    for _ in range(60):
        expert.act()
    y = hand.rot[0, :2, 1]
    end = math.atan2(float(y[1]), float(y[0]))
    turned = abs(end - math.pi / 2)
    assert turned <= math.pi / 4 + 1e-3
    assert math.remainder(end - yaw, math.pi / 2) == pytest.approx(0.0, abs=1e-3)


def test_a_target_that_is_not_followed_stays_where_the_leg_began() -> None:
    hand, moving = Hand(1), torch.tensor([[0.1, 0.0, 0.0]])
    expert = start(hand, [Phase(target=lambda: (moving.clone(), None), grip=1.0, follow=False, above=0.05)])
    expert.act()
    moving += 1.0
    for _ in range(40):
        expert.act()
    assert torch.allclose(hand.pos, torch.tensor([[0.1, 0.0, 0.05]]), atol=1e-3)


def test_reset_touches_the_chosen_worlds_alone() -> None:
    hand = Hand(3)
    expert = start(hand, [Phase(target=at(0.3, 0, 0, 3), grip=1.0, free=0.1)], 1.0)
    for _ in range(4):
        expert.act()
    before = {k: v.clone() for k, v in expert.buffers().items()}
    expert.reset(Selection(torch.tensor([False, True, False])), Draws(torch.tensor([77])))
    after = expert.buffers()
    for k, v in before.items():
        assert torch.equal(after[k][[0, 2]], v[[0, 2]]), k
    assert int(after["spent"][1]) == 0
    assert not torch.equal(after["offset"][1], before["offset"][1])


def test_buffers_hold_everything_it_remembers() -> None:
    hand = Hand(2)
    expert = start(hand, [Phase(target=at(0.3, 0, 0), grip=0.0, free=0.05), Phase(target=at(0, 0, 0), grip=1.0)], 1.0)
    for _ in range(5):
        expert.act()
    kept, pose = {k: v.clone() for k, v in expert.buffers().items()}, (hand.pos.clone(), hand.rot.clone())
    first = torch.stack([expert.act() for _ in range(20)])
    for k, v in expert.buffers().items():
        v.copy_(kept[k])
    hand.pos, hand.rot = pose
    assert torch.equal(torch.stack([expert.act() for _ in range(20)]), first)


def test_diversity_is_of_the_draws_alone() -> None:
    phases = [Phase(target=at(0.3, 0, 0, 4, 0.8), grip=0.0, free=0.05, symmetry=4)]

    def way(diversity: float, seed: int) -> Tensor:
        expert = start(Hand(4), phases, diversity, seed)
        return torch.stack([expert.act() for _ in range(15)])

    plain, varied = way(0.0, 0), way(1.0, 0)
    assert torch.equal(plain[:, :1].expand_as(plain), plain)
    assert torch.equal(plain, way(0.0, 5))
    assert torch.equal(varied, way(1.0, 0))
    assert not torch.equal(varied, way(1.0, 5))
    for i in range(1, 4):
        assert not torch.equal(varied[:, 0], varied[:, i])
