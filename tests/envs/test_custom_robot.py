"""Arms from a user's MJCF or URDF: what is found, what may be stated, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.envs.robots.custom import load_robot
from visuomotor.envs.robots.model import RobotModel
from visuomotor.envs.robots.registry import get_robot
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.tasks.lift import Lift, LiftConfig

SHARED = Path(__file__).parents[3] / "shared" / "robots"
ARM = (
    ("pan", "0 0 .05", "0 0 1", 80),
    ("lift", "0 0 .1", "0 1 0", 80),
    ("elbow", "0 0 .35", "0 1 0", 80),
    ("wrist_1", "0 0 .3", "0 1 0", 20),
    ("wrist_2", "0 0 .08", "1 0 0", 20),
    ("wrist_3", "0 0 .08", "0 0 1", 20),
)
INERTIA = '<inertia ixx=".005" iyy=".005" izz=".002" ixy="0" ixz="0" iyz="0"/>'


def link(name: str, mass: float = 1.0, shape: str = '<cylinder radius=".03" length=".2"/>', xyz: str = "0 0 .1") -> str:
    origin = f'<origin xyz="{xyz}"/>'
    return (
        f'<link name="{name}"><inertial>{origin}<mass value="{mass}"/>{INERTIA}</inertial>'
        f"<collision>{origin}<geometry>{shape}</geometry></collision></link>"
    )


def urdf(shape: str = '<cylinder radius=".03" length=".2"/>') -> str:
    """Six joints and two coupled fingers; a visual in a format that MuJoCo cannot read."""
    text, parent = '<robot name="own"><link name="base_link"/>', "base_link"
    for i, (name, xyz, axis, effort) in enumerate(ARM):
        text += link(f"l{i}", shape=shape)
        text += f'<joint name="{name}" type="revolute"><parent link="{parent}"/><child link="l{i}"/>'
        text += f'<origin xyz="{xyz}"/><axis xyz="{axis}"/><limit lower="-2.8" upper="2.8" effort="{effort}"/></joint>'
        parent = f"l{i}"
    text += '<link name="palm"><visual><geometry><mesh filename="package://own/palm.dae"/></geometry></visual></link>'
    text += (
        f'<joint name="mount" type="fixed"><parent link="{parent}"/><child link="palm"/><origin xyz="0 0 .2"/></joint>'
    )
    for side, sign in (("left", 1), ("right", -1)):
        text += link(side, 0.02, '<box size=".02 .01 .06"/>', f"0 {0.005 * sign} .03")
        text += f'<joint name="{side}_slide" type="prismatic"><parent link="palm"/><child link="{side}"/>'
        text += f'<axis xyz="0 {sign} 0"/><limit lower="0" upper=".04" effort="30"/>'
        text += "</joint>" if sign > 0 else '<mimic joint="left_slide"/></joint>'
    return text + "</robot>"


def write(folder: Path, text: str, name: str = "own.urdf", **beside: str) -> str:
    (folder / name).write_text(text)
    for stem, statements in beside.items():
        (folder / f"{stem}.robot.yaml").write_text(statements)
    return str(folder / name)


def success_of_lift(model: str, episodes: int) -> float:
    config = LiftConfig(robot="custom", model=model, engine=EngineConfig(threads=1))
    env = SimVecEnv(Lift(config), config, episodes)
    env.reset(seeds=range(episodes))
    expert = env.task.expert()
    expert.reset(Selection.all(episodes, env.device), Draws(torch.arange(episodes)))
    done = success = torch.zeros(episodes, dtype=torch.bool)
    while not bool(done.all()):
        s = env.advance(expert.act(), ~done)
        success = success | s.info["success"]
        done = done | s.terminated | s.truncated
    return float(success.float().mean())


def test_a_urdf_gets_servos_a_gripper_and_a_home(tmp_path: Path) -> None:
    robot = load_robot(write(tmp_path, urdf()))
    assert robot.joints == tuple(name for name, *_ in ARM)
    assert robot.actuators == tuple(f"{j}_servo" for j in robot.joints)
    g = robot.gripper
    assert g is not None
    assert (g.joints, g.actuators) == (("left_slide", "right_slide"), ("left_slide_servo",))  # the other follows
    assert (g.opened, g.closed) == ((0.04,), (0.0,))
    assert g.width == pytest.approx(0.08, abs=1e-3)
    m = robot.spec().compile()
    d = mujoco.MjData(m)
    for joint, value in zip(robot.joints, robot.home, strict=True):
        d.joint(joint).qpos[:] = value
        assert m.actuator(f"{joint}_servo").forcerange[1] == {n: e for n, _, _, e in ARM}[joint]
    mujoco.mj_forward(m, d)
    pos, rot = d.site(robot.tcp).xpos, d.site(robot.tcp).xmat.reshape(3, 3)
    assert rot[2, 2] < -0.97  # down
    assert abs(rot[1, 1]) > 0.97  # closing sideways
    assert pos[0] == pytest.approx(robot.reach, abs=0.01)
    # between the tips: along the axis of the last joint, 6 cm from the palm, less the 0.8 cm of the pads
    np.testing.assert_allclose(
        d.body("palm").xmat.reshape(3, 3).T @ (pos - d.body("palm").xpos), [0, 0, 0.052], atol=2e-3
    )


def test_added_servos_hold_an_arm_where_it_is_told(tmp_path: Path) -> None:
    robot = load_robot(write(tmp_path, urdf()))
    spec = robot.spec()
    spec.option.timestep, spec.option.integrator = 0.005, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    m = spec.compile()
    d = mujoco.MjData(m)
    goal = np.array(robot.home) + 0.2
    for joint, actuator, start, end in zip(robot.joints, robot.actuators, robot.home, goal, strict=True):
        d.joint(joint).qpos[:], d.actuator(actuator).ctrl[:] = start, end
    way = []
    for _ in range(200):
        mujoco.mj_step(m, d)
        way.append([d.joint(j).qpos[0] for j in robot.joints])
    assert np.abs(way[-1] - goal).max() < 1e-3
    assert (np.array(way) - goal).max() < 0.02


def test_an_own_arm_lifts(tmp_path: Path) -> None:
    assert success_of_lift(write(tmp_path, urdf()), 4) >= 0.75


def test_everything_found_may_be_stated(tmp_path: Path) -> None:
    stated = (
        "joints: [pan, lift, elbow, wrist_1, wrist_2, wrist_3]\ntcp: palm\nhome: [0, .1, 1.2, .9, 0, 0]\nreach: .4\n"
        "yaw: 90\ngripper_opened: [.03]\ngripper_closed: [.01]\nrotation_weight: .1\ngravcomp: false\n"
    )
    robot = load_robot(write(tmp_path, urdf(), own=stated))
    assert (robot.home, robot.reach, robot.rotation_weight) == ((0, 0.1, 1.2, 0.9, 0, 0), 0.4, 0.1)
    assert robot.gripper is not None
    assert (robot.gripper.opened, robot.gripper.closed) == ((0.03,), (0.01,))
    m = robot.spec().compile()
    d = mujoco.MjData(m)
    mujoco.mj_forward(m, d)
    np.testing.assert_allclose(d.site(robot.tcp).xpos, d.body("palm").xpos, atol=1e-6)
    np.testing.assert_allclose(d.joint("lift").xaxis, [-1, 0, 0], atol=1e-6)  # +y, turned by 90 degrees
    assert not m.body_gravcomp.any()
    (tmp_path / "own.robot.yaml").write_text("gripper: false\n")
    assert load_robot(str(tmp_path / "own.urdf")).gripper is None


def test_meshes_of_packages_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "own_description" / "meshes"
    folder.mkdir(parents=True)
    (tmp_path / "own_description" / "urdf").mkdir()
    corners = "v 0 0 0\nv .05 0 0\nv 0 .05 0\nv 0 0 .2\n"
    (folder / "link.obj").write_text(corners + "f 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")
    text = urdf('<mesh filename="package://own_description/meshes/link.obj"/>')
    robot = load_robot(write(tmp_path / "own_description" / "urdf", text))
    assert robot.spec().compile().nmesh == 1


MOTORS = """<mujoco><compiler angle="radian"/><worldbody><light/><geom type="plane" size="1 1 .1"/>
<body name="a" pos="0 0 .2"><joint name="j1" axis="0 0 1" range="-2 2"/><geom type="capsule" size=".03 .05"/>
 <body name="b"><joint name="j2" axis="0 1 0" range="-2 2"/><geom type="capsule" fromto="0 0 0 0 0 .3" size=".03"/>
  <body name="c" pos="0 0 .3"><joint name="j3" axis="0 1 0" range="-2 2"/>
   <geom type="capsule" fromto="0 0 0 0 0 .3" size=".03"/><site name="ee_site" pos="0 0 .3"/></body></body></body>
</worldbody><actuator><motor joint="j1" gear="50" ctrlrange="-1 1"/><motor joint="j2" gear="50" ctrlrange="-1 1"/>
<motor joint="j3" gear="50" ctrlrange="-1 1"/></actuator></mujoco>"""


def test_motors_become_servos_and_floor_and_lights_go(tmp_path: Path) -> None:
    robot = load_robot(write(tmp_path, MOTORS, "own.xml"))
    assert robot.gripper is None
    m = robot.spec().compile()
    assert (m.nu, m.nlight) == (3, 0)
    assert not (m.geom_type == mujoco.mjtGeom.mjGEOM_PLANE.value).any()
    np.testing.assert_allclose(m.actuator_forcerange, [[-50, 50]] * 3)
    assert (m.actuator_biasprm[:, 1] < 0).all()
    d = mujoco.MjData(m)
    mujoco.mj_forward(m, d)
    np.testing.assert_allclose(d.site(robot.tcp).xpos, d.site("ee_site").xpos, atol=1e-9)


GEOM = '<geom size=".1"/>'
MISTAKES = {
    "nothing.xml": ("", r"is not XML"),
    "page.xml": ("<html/>", r"its root is <html>; expected <mujoco> \(MJCF\) or <robot> \(URDF\)"),
    "still.xml": (f"<mujoco><worldbody><body>{GEOM}</body></worldbody></mujoco>", "has no joints; expected one arm"),
    "rover.xml": (
        f'<mujoco><worldbody><body><freejoint name="root"/>{GEOM}</body></worldbody></mujoco>',
        r"mobile base \(free joint 'root'\)",
    ),
    "two.xml": (
        f'<mujoco><worldbody><body name="l"><joint/>{GEOM}</body><body name="r"><joint/>{GEOM}</body></worldbody>'
        "</mujoco>",
        r"2 mechanisms: 'l' \(1 joints\); 'r' \(1 joints\)",
    ),
    "short.xml": (
        f'<mujoco><worldbody><body><joint name="only"/>{GEOM}</body></worldbody></mujoco>',
        r"before the first branch are only; expected an arm of three joints or more. State its joints",
    ),
    "mesh.xml": (
        '<mujoco><asset><mesh name="a" file="gone.stl"/></asset><worldbody><body><joint/><geom type="mesh" mesh="a"/>'
        "</body></worldbody></mujoco>",
        r"cannot compile it: .*gone\.stl",
    ),
    "mesh.urdf": (urdf('<mesh filename="package://x/gone.stl"/>'), r"meshes are missing .*: package://x/gone\.stl$"),
    "dae.urdf": (
        urdf('<mesh filename="part.dae"/>'),
        r"no format that MuJoCo reads \(\.stl, \.obj, \.msh\): part\.dae$",
    ),
    "arm.xacro": ("<robot/>", r"expand it first: xacro arm\.xacro"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_file_that_is_no_arm_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    text, message = MISTAKES[name]
    with pytest.raises(ConfigError, match=message) as e:
        get_robot("custom", write(tmp_path, text, name))
    assert "\n" not in str(e.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model=/no/arm\.xml: there is no such file"):
        get_robot("custom", "/no/arm.xml")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("reech: 1", "unknown setting 'reech'. Did you mean 'reach'"),
        ("home: [1]", r"home has 1 positions; expected 6: \['pan'"),
        ("joints: [elbo]", "has no joint 'elbo'. Did you mean 'elbow'"),
        ("tcp: plam", "has no site or body 'plam'. Did you mean 'palm'"),
        ("reach: far", r"robot\.yaml: Value 'far'"),
        ("reach: -1", "reach=-1"),
        ("gripper_opened: [1]", "go together"),
        ("gripper_opened: [1, 2]\ngripper_closed: [0, 0]", "expected 1, for left_slide_servo"),
        ("- a", "expected settings as 'name: value'"),
        ("a: [", "own.robot.yaml"),
    ],
)
def test_a_statement_that_does_not_fit_is_refused(statement: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_robot(write(tmp_path, urdf(), own=statement))


def shared(name: str) -> str:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: this test needs the model beside the repository")
    return str(path)


def load_shared(name: str) -> tuple[RobotModel, mujoco.MjModel, mujoco.MjData]:
    robot = load_robot(shared(name))
    m = robot.spec().compile()
    d = mujoco.MjData(m)
    for joint, value in zip(robot.joints, robot.home, strict=True):
        d.joint(joint).qpos[:] = value
    mujoco.mj_forward(m, d)
    return robot, m, d


@pytest.mark.slow
def test_menagerie_panda() -> None:
    robot, m, d = load_shared("franka_emika_panda/scene.xml")
    assert robot.joints == tuple(f"joint{i}" for i in range(1, 8))
    assert robot.gripper is not None
    assert (robot.gripper.opened, robot.gripper.closed) == ((255.0,), (0.0,))
    assert robot.gripper.width == pytest.approx(0.08, abs=1e-3)
    np.testing.assert_allclose(robot.home[:4], [0, 0, 0, -1.57079])
    hand = d.body("hand")
    local = hand.xmat.reshape(3, 3).T @ (d.site(robot.tcp).xpos - hand.xpos)
    np.testing.assert_allclose(local, [0, 0, 0.1034], atol=0.008)  # Franka's own number
    assert 0.4 < robot.reach < 0.6
    assert m.nkey == 0


@pytest.mark.slow
def test_menagerie_so_arm100_faces_forward_with_one_jaw() -> None:
    robot, _, d = load_shared("trs_so_arm100/so_arm100.xml")
    assert robot.joints == ("Rotation", "Pitch", "Elbow", "Wrist_Pitch", "Wrist_Roll")
    assert robot.gripper is not None
    assert robot.gripper.actuators == ("Jaw",)
    assert robot.gripper.opened == (1.75,)
    pos, rot = d.site(robot.tcp).xpos, d.site(robot.tcp).xmat.reshape(3, 3)
    assert pos[0] > 0.15  # its own front is -y
    assert rot[2, 2] < -0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["franka_emika_panda/panda.xml", "ufactory_xarm7/xarm7.xml", "trs_so_arm100/so_arm100.xml"]
)
def test_lifts_expert_succeeds_with_menagerie_arms(name: str) -> None:
    assert success_of_lift(shared(name), 20) >= 0.8
