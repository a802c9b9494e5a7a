"""The arms of the framework: their geometry by the makers' numbers, their servos, their hands; and finding by name."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from numpy import cos, sin

from visuomotor.data.errors import ConfigError
from visuomotor.envs.robots import registry
from visuomotor.envs.robots.model import RobotModel
from visuomotor.envs.robots.registry import get_robot, robot_names

ROBOTS = ("panda", "ur5e", "so100")
# a, d [m], alpha [rad] of Franka's table, Craig's convention; the last row is the flange
PANDA_DH = [
    (0, 0.333, 0),
    (0, 0, -math.pi / 2),
    (0, 0.316, math.pi / 2),
    (0.0825, 0, math.pi / 2),
    (-0.0825, 0.384, -math.pi / 2),
    (0, 0, math.pi / 2),
    (0.088, 0, math.pi / 2),
    (0, 0.107, 0),
]
# a, d, alpha of Universal Robots' table, Denavit and Hartenberg's own convention
UR5E_DH = [
    (0, 0.1625, math.pi / 2),
    (-0.425, 0, 0),
    (-0.3922, 0, 0),
    (0, 0.1333, math.pi / 2),
    (0, 0.0997, -math.pi / 2),
    (0, 0.0996, 0),
]


def turn_x(angle: float, a: float = 0.0) -> np.ndarray:
    c, s = cos(angle), sin(angle)
    return np.array([[1, 0, 0, a], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1.0]])


def turn_z(angle: float, d: float = 0.0) -> np.ndarray:
    c, s = cos(angle), sin(angle)
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, d], [0, 0, 0, 1.0]])


def at(robot: RobotModel, q: Any, m: mujoco.MjModel | None = None) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """The arm in a pose, gripper open."""
    m = robot.spec().compile() if m is None else m
    d = mujoco.MjData(m)
    g = robot.gripper
    assert g is not None
    for names, values in ((robot.joints, q), (g.joints, g.joint_opened)):
        for name, value in zip(names, values, strict=True):
            d.joint(name).qpos[:] = value
    for names, values in ((robot.actuators, q), (g.actuators, g.opened)):
        for name, value in zip(names, values, strict=True):
            d.actuator(name).ctrl[:] = value
    mujoco.mj_forward(m, d)
    return m, d


@pytest.mark.parametrize("seed", range(4))
def test_panda_is_where_its_denavit_hartenberg_parameters_say(seed: int) -> None:
    q = np.random.default_rng(seed).uniform(-1.5, -0.1, 7)
    flange = np.eye(4)
    for (a, d, alpha), angle in zip(PANDA_DH, [*q, 0.0], strict=True):
        flange = flange @ turn_x(alpha, a) @ turn_z(angle, d)
    hand = flange @ turn_z(-math.pi / 4)  # Franka's hand is mounted at -45 degrees
    _, data = at(get_robot("panda"), q)
    np.testing.assert_allclose(data.body("hand").xpos, hand[:3, 3], atol=1e-6)
    np.testing.assert_allclose(data.body("hand").xmat.reshape(3, 3), hand[:3, :3], atol=1e-6)
    np.testing.assert_allclose(data.site("tcp").xpos, (hand @ [0, 0, 0.1034, 1])[:3], atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_ur5e_is_where_its_denavit_hartenberg_parameters_say(seed: int) -> None:
    q = np.random.default_rng(seed).uniform(-3, 3, 6)
    flange = turn_z(math.pi)  # the arm's own base frame looks backwards
    for (a, d, alpha), angle in zip(UR5E_DH, q, strict=True):
        flange = flange @ turn_z(angle, d) @ turn_x(alpha, a)
    _, data = at(get_robot("ur5e"), q)
    np.testing.assert_allclose(data.body("hand").xpos, flange[:3, 3], atol=1e-6)
    np.testing.assert_allclose(data.body("hand").xmat.reshape(3, 3), flange[:3, :3], atol=1e-6)


def test_so100_has_the_lengths_of_its_drawings() -> None:
    _, d = at(get_robot("so100"), [0, 0, 0, 0, 0])
    upper, fore, wrist, hand = (d.body(n).xpos for n in ("upper_arm", "forearm", "wrist", "hand"))
    np.testing.assert_allclose(upper, [0.02, 0, 0.118], atol=1e-9)
    np.testing.assert_allclose(fore - upper, [0, 0, 0.116], atol=1e-9)  # up
    np.testing.assert_allclose(wrist - fore, [0.135, 0, 0], atol=1e-9)  # forward
    np.testing.assert_allclose(hand - wrist, [0.06, 0, 0], atol=1e-9)


@pytest.mark.parametrize("name", ROBOTS)
def test_at_home_the_hand_points_down_before_the_arm(name: str) -> None:
    robot = get_robot(name)
    m, d = at(robot, robot.home)
    pos, rot = d.site(robot.tcp).xpos, d.site(robot.tcp).xmat.reshape(3, 3)
    assert abs(pos[1]) < 1e-3
    assert 0.8 * robot.reach < pos[0] < 1.1 * robot.reach
    assert pos[2] > 0.05
    assert rot[2, 2] < -0.99  # z out of the hand: down
    assert rot[1, 1] > 0.99  # the fingers close sideways
    for joint, value in zip(robot.joints, robot.home, strict=True):
        low, high = m.joint(joint).range
        assert low < value < high


@pytest.mark.parametrize("name", ROBOTS)
def test_fingers_close_along_y_around_the_tcp(name: str) -> None:
    robot = get_robot(name)
    assert robot.gripper is not None
    m, d = at(robot, robot.home)
    pads = [g for g in range(m.ngeom) if m.geom_priority[g] == 1]
    assert len(pads) == 2
    middle = d.site(robot.tcp).xpos
    y = d.site(robot.tcp).xmat.reshape(3, 3)[:, 1]
    sides = sorted(float((d.geom_xpos[g] - middle) @ y) for g in pads)
    assert sides[0] < -0.02
    assert sides[1] > 0.02
    for joint, value in zip(robot.gripper.joints, robot.gripper.joint_closed, strict=True):
        d.joint(joint).qpos[:] = value
    mujoco.mj_kinematics(m, d)
    gap = mujoco.mj_geomDistance(m, d, pads[0], pads[1], 0.2, None)
    assert gap < 0.004


@pytest.mark.parametrize("name", ROBOTS)
@pytest.mark.parametrize("size", [0.05, 0.3])
def test_servos_settle_without_overshoot_or_error(name: str, size: float) -> None:
    robot = get_robot(name)
    m, d = at(robot, robot.home)
    m.opt.timestep, m.opt.integrator = 0.005, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    goal = np.array(robot.home) - size
    low, high = np.array([m.joint(j).range for j in robot.joints]).T
    goal = np.clip(goal, low, high)
    for name_, value in zip(robot.actuators, goal, strict=True):
        d.actuator(name_).ctrl[:] = value
    way = []
    for _ in range(300):
        mujoco.mj_step(m, d)
        way.append([d.joint(j).qpos[0] for j in robot.joints])
    q = np.array(way)
    assert (q - goal).min() > -0.03 * size  # overshoot
    assert np.abs(q[100] - goal).max() < 0.05 * size  # after half a second
    _, there = at(robot, goal)
    assert np.linalg.norm(d.site(robot.tcp).xpos - there.site(robot.tcp).xpos) < 1e-3


@pytest.mark.parametrize("name", ROBOTS)
def test_an_arm_touches_the_scene_but_never_itself(name: str) -> None:
    robot = get_robot(name)
    spec = robot.spec()
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[2, 2, 0.1])
    m = spec.compile()
    low, high = np.array([m.joint(j).range for j in robot.joints]).T
    rng = np.random.default_rng(0)
    touched = False
    for _ in range(40):
        _, d = at(robot, rng.uniform(low, high), m)
        for c in range(d.ncon):
            bodies = {int(m.geom_bodyid[g]) for g in d.contact[c].geom}
            assert 0 in bodies
            touched = True
    assert touched
    _, d = at(robot, robot.home, m)
    assert d.ncon == 0


@pytest.mark.parametrize("name", ROBOTS)
def test_the_wrist_camera_sees_between_the_fingertips(name: str) -> None:
    robot = get_robot(name)
    m, d = at(robot, robot.home)
    camera = d.camera("wrist")
    x, y, z = camera.xmat.reshape(3, 3).T @ (d.site(robot.tcp).xpos - camera.xpos)
    half = math.tan(math.radians(float(m.camera("wrist").fovy[0]) / 2))
    assert z < -0.03  # before the camera
    assert abs(x / -z) < half
    assert abs(y / -z) < 0.8 * half


def test_robots_are_found_by_name() -> None:
    assert set(ROBOTS) <= set(robot_names())
    with pytest.raises(ConfigError, match="Did you mean 'panda'"):
        get_robot("pandas")
    with pytest.raises(ConfigError, match="Known: custom, panda, so100, ur5e"):
        get_robot("xyz")
    with pytest.raises(ConfigError, match=r"model=a\.xml goes with robot=custom"):
        get_robot("panda", "a.xml")
    with pytest.raises(ConfigError, match="needs model="):
        get_robot("custom")


def test_other_packages_add_robots_by_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "their_robots.py").write_text(
        "from visuomotor.envs.robots.panda import PANDA\nimport dataclasses\n"
        "ARM = dataclasses.replace(PANDA, name='theirs')\nJUNK = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    group = "visuomotor.robots"
    points = [EntryPoint("theirs", "their_robots:ARM", group), EntryPoint("junk", "their_robots:JUNK", group)]
    points.append(EntryPoint("broken", "their_robots_of_old:ARM", group))
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points)
    registry._outside.cache_clear()
    try:
        assert get_robot("theirs").name == "theirs"
        assert "theirs" in robot_names()
        with pytest.raises(ConfigError, match=r"'junk' of group visuomotor.robots is 3; expected a RobotModel"):
            get_robot("junk")
        assert get_robot("panda").name == "panda"
        with pytest.raises(ConfigError, match=r"'broken' .* cannot be loaded: No module named 'their_robots_of_old'"):
            get_robot("broken")
    finally:
        monkeypatch.undo()
        registry._outside.cache_clear()
