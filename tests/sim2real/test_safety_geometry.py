"""The arm stops before planes, spheres and itself, and covers of its shapes leave nothing out."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import mujoco
import numpy as np
import pytest

from visuomotor.data.errors import ConfigError
from visuomotor.envs.robots.registry import get_robot
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.safety.config import ArmLimits, BoxConfig, KeepOutConfig, PlaneConfig, SafetyConfig
from visuomotor.sim2real.safety.cover import cover_geom
from visuomotor.sim2real.safety.filter import SafetyFilter
from visuomotor.sim2real.safety.geometry import Geometry

TICK = 0.01
SHAPES = {
    "sphere": 'type="sphere" size=".07"',
    "capsule": 'type="capsule" size=".04 .2"',
    "cylinder": 'type="cylinder" size=".06 .15"',
    "flat cylinder": 'type="cylinder" size=".2 .01"',
    "box": 'type="box" size=".1 .05 .2"',
    "plate": 'type="box" size=".3 .2 .005"',
    "ellipsoid": 'type="ellipsoid" size=".1 .05 .2"',
}


@cache
def arm(name: str) -> Kinematics:
    return Kinematics.load(name)


def make(name: str = "panda", **config: Any) -> SafetyFilter:
    k, n = arm(name), arm(name).n
    limits = ArmLimits(
        low=k.low, high=k.high, velocity=np.full(n, 2.0), acceleration=np.full(n, 6.0), jerk=np.full(n, 120)
    )
    config = {"first_command": np.inf, "jump": np.inf, "resume_after_s": 0.0, "ramp_in_s": 0.0, **config}
    filter = SafetyFilter(limits, TICK, SafetyConfig(**config), k)
    assert k.home is not None
    filter.start(k.home)
    return filter


@pytest.mark.parametrize("shape", SHAPES)
def test_spheres_cover_a_shape(shape: str) -> None:
    m = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody><geom {SHAPES[shape]}/></worldbody></mujoco>")
    centres, radii = cover_geom(m, 0)
    d = mujoco.MjData(m)
    mujoco.mj_forward(m, d)
    rng = np.random.default_rng(0)
    uncovered = 0
    for way in rng.normal(size=(300, 3)):  # rays from far away hit the surface
        way /= np.linalg.norm(way)
        side = np.cross(way, rng.normal(size=3)) * 0.1
        start = side - way
        hit = mujoco.mj_ray(m, d, start, way, None, 1, -1, np.zeros(1, np.int32), None)
        if hit < 0:
            continue
        point = start + hit * way
        uncovered += not (np.linalg.norm(centres - point, axis=1) <= radii + 1e-6).any()
    assert uncovered == 0
    assert radii.max() <= 1.3 * max(0.36 if "plate" in shape else 0.1, float(m.geom_size[0].max()))


@pytest.mark.parametrize("name", ["panda", "ur5e", "so100"])
def test_spheres_move_with_the_links(name: str) -> None:
    """Every collision geom of the model, placed by MuJoCo, has its centre inside a sphere of its link."""
    k, robot = arm(name), get_robot(name)
    m = robot.spec().compile()
    d = mujoco.MjData(m)
    rng = np.random.default_rng(1)
    for _ in range(20):
        q = rng.uniform(k.low, k.high)
        d.qpos[[m.joint(j).qposadr[0] for j in robot.joints]] = q
        mujoco.mj_kinematics(m, d)
        centres, radii = k.spheres(q)
        for g in range(m.ngeom):
            if m.geom_contype[g]:
                assert (np.linalg.norm(centres - d.geom_xpos[g], axis=1) <= radii + 1e-6).any()


@pytest.mark.parametrize("name", ["panda", "ur5e", "so100"])
def test_home_is_free(name: str) -> None:
    k = arm(name)
    assert k.home is not None
    geometry = Geometry(k, SafetyConfig(planes=[PlaneConfig()]), k.joints)
    depth, where = geometry.depth(k.home[None])
    assert depth <= 0.0, where


def clearances(k: Kinematics, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spheres' centres ``[P, 3, K]`` and points of the hand ``[P, 3]`` along a path."""
    frames = k.frames(path)
    return k.spheres_of(frames), k.tcp_of(frames)


def run(filter: SafetyFilter, seed: int, ticks: int) -> tuple[np.ndarray, set[str]]:
    rng = np.random.default_rng(seed)
    k = arm("panda")
    sent, said, target = [], set(), k.home
    for t in range(ticks):
        if t % 60 == 0:
            target = rng.uniform(k.low, k.high)
        wild = rng.uniform(k.low, k.high) if t % 300 > 250 else target
        out = filter.step(wild)
        sent.append(out.position)
        said |= {event.text for event in out.events if event.kind == "geometry"}
    return np.array(sent), said


def test_the_arm_stays_out_of_everything_and_still_moves() -> None:
    plane = PlaneConfig(offset=0.05, hand=True, name="table")
    ball = KeepOutConfig(centre=[0.5, 0.3, 0.5], radius=0.1, name="camera")
    box = BoxConfig(low=[-0.5, -0.7, 0.1], high=[0.75, 0.7, 1.0])
    filter = make(planes=[plane], keep_out=[ball], workspace=box)
    sent, said = run(filter, 0, 1800)
    k = arm("panda")
    centres, tcp = clearances(k, sent)
    moving = k.links > 0
    assert (tcp >= np.array(box.low) - 1e-3).all()
    assert (tcp <= np.array(box.high) + 1e-3).all()
    assert (centres[:, 2] - k.radii)[:, moving].min() >= 0.05
    distance = np.linalg.norm(centres - np.array(ball.centre)[:, None], axis=1) - k.radii
    assert distance[:, moving].min() >= ball.radius
    assert np.abs(np.diff(sent, axis=0)).sum() > 18
    kinds = {text.split(":")[0] for text in said}
    assert len({"table", "workspace", "camera"} & kinds) >= 2
    velocity = np.diff(sent, axis=0) / TICK
    acceleration = np.diff(velocity, axis=0) / TICK
    assert np.abs(acceleration).max() <= 6.0 * (1 + 1e-6)
    assert np.abs(np.diff(acceleration, axis=0) / TICK).max() <= 120.0 * (1 + 1e-6)


def test_links_keep_apart() -> None:
    """On the way to places where they would meet."""
    k = arm("panda")
    geometry = Geometry(k, SafetyConfig(), k.joints)
    tried = np.random.default_rng(0).uniform(k.low, k.high, (1000, k.n))
    meeting = [q for q in tried if geometry.depth(q[None])[0] > 0.05][:5]
    assert len(meeting) == 5
    filter = make(clearance=0.01)
    sent, said = [], []
    for target in meeting:
        outs = [filter.step(target) for _ in range(200)]
        sent += [out.position for out in outs]
        said += [event.text for out in outs for event in out.events]
    assert any("self-collision: " in text and "too near by" in text for text in said)
    assert k.home is not None
    home, radii = k.spheres(k.home)
    centres, _ = clearances(k, np.array(sent))
    least = math.inf
    for i in range(len(radii)):
        for j in np.flatnonzero(k.links - k.links[i] > 2):
            if np.linalg.norm(home[i] - home[j]) > radii[i] + radii[j] + 0.01:
                gap = np.linalg.norm(centres[:, :, i] - centres[:, :, j], axis=1) - radii[i] - radii[j]
                least = min(least, float(gap.min()))
    assert 0.005 <= least < 0.03  # of 0.01: the ways between the points of a braking path are a little bent


@pytest.mark.parametrize(("name", "near", "far"), [("panda", 0.35, 0.65), ("ur5e", 0.35, 0.65), ("so100", 0.15, 0.28)])
def test_nothing_that_a_table_task_needs_is_forbidden(name: str, near: float, far: float) -> None:
    """The hand pointing down, above a table before the arm, near it and up."""
    k = arm(name)
    assert k.home is not None
    geometry = Geometry(k, SafetyConfig(planes=[PlaneConfig(offset=-0.01)]), k.joints)
    rot = k.pose(k.home)[1]
    for reach in np.linspace(near, far, 4):
        for turn in (-0.5, 0.0, 0.5):
            for height in (0.02, 0.2):
                q, goal = k.home, reach * np.array([math.cos(turn), math.sin(turn), 0.0]) + [0.0, 0.0, height]
                for _ in range(60):
                    q = k.solve(q, goal, rot, k.home)
                if np.linalg.norm(k.pose(q)[0] - goal) < 0.01:
                    depth, where = geometry.depth(q[None])
                    assert depth <= 0.0, (goal, where)


def test_it_stops_before_a_wall_not_at_it_and_comes_back() -> None:
    k = arm("panda")
    assert k.home is not None
    hand = k.pose(k.home)[0]
    wall = PlaneConfig(normal=[-1.0, 0.0, 0.0], offset=-(hand[0] + 0.1), name="wall")
    filter = make(planes=[wall], clearance=0.0)
    lean = k.home + np.array([0, 0.9, 0, 0.4, 0, 0.2, 0])
    said, reached = [], []
    for _ in range(200):
        out = filter.step(lean)
        said += [event.text for event in out.events]
        reached.append(k.pose(out.position)[0][0])
    assert said[0].startswith("wall: the arm would be beyond it by 0.00")
    assert hand[0] + 0.09 < max(reached) <= hand[0] + 0.1 + 1e-9
    assert np.abs(filter.velocity).max() < 0.05
    for _ in range(200):
        filter.step(k.home)
    np.testing.assert_allclose(filter.position, k.home, atol=1e-6)


def test_from_a_forbidden_place_the_arm_may_leave_but_not_go_deeper() -> None:
    k = arm("panda")
    assert k.home is not None
    hand = k.pose(k.home)[0]
    filter = make(planes=[PlaneConfig(offset=hand[2] + 0.03, name="high table")], self_collision=False)
    up, down = k.home - np.array([0, 0.3, 0, 0, 0, 0, 0]), k.home + np.array([0, 0.3, 0, 0, 0, 0, 0])
    lowest = min(float(k.pose(filter.step(down).position)[0][2]) for _ in range(50))
    assert lowest >= hand[2] - 1e-6
    for _ in range(200):
        filter.step(up)
    np.testing.assert_allclose(filter.position, up, atol=1e-6)


def test_constraints_that_make_no_sense_are_refused() -> None:
    for bad in (
        lambda: PlaneConfig(normal=[0.0, 0.0, 0.0]),
        lambda: PlaneConfig(normal=[0.0, 1.0]),
        lambda: KeepOutConfig(centre=[0.0, 0.0, 0.0], radius=0.0),
        lambda: BoxConfig(low=[0.0, 0.0, 0.0], high=[1.0, 0.0, 1.0]),
    ):
        with pytest.raises(ConfigError, match="expected"):
            bad()
