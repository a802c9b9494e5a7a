"""Exported URDF read back by MuJoCo's own importer: the same kinematics, the same masses."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import quat_to_matrix
from visuomotor.envs.registry import get_task
from visuomotor.envs.sim.urdf import LIGHT_MASS, Tree, export_trees
from visuomotor.envs.tasks.drawer import Drawer
from visuomotor.envs.tasks.handover import Handover
from visuomotor.envs.tasks.lift import Lift
from visuomotor.envs.tasks.peg import Peg
from visuomotor.envs.tasks.push_t import PushTArm
from visuomotor.envs.tasks.walker import Walker


def inertia(model: mujoco.MjModel, body: int) -> np.ndarray:
    """About the centre of mass, in the body's axes."""
    turn = quat_to_matrix(np.array(model.body_iquat[body]))
    return turn @ np.diag(model.body_inertia[body]) @ turn.T


def check(model: mujoco.MjModel, tree: Tree, rng: np.random.Generator) -> None:
    """Same poses of links (relative to the root), same masses and inertias, same limits."""
    other = mujoco.MjSpec.from_string(tree.urdf, assets={k: v.encode() for k, v in tree.meshes.items()}).compile()
    ours, theirs = mujoco.MjData(model), mujoco.MjData(other)
    for _ in range(3):
        ours.qpos[:] = model.qpos0
        for name, j in tree.joints.items():
            adr = int(model.jnt_qposadr[j])
            moved = rng.uniform(-1.5, 1.5)
            ours.qpos[adr] = model.qpos0[adr] + moved
            theirs.qpos[other.jnt_qposadr[other.joint(name).id]] = moved
        mujoco.mj_kinematics(model, ours)
        mujoco.mj_kinematics(other, theirs)
        # the root's frame: where the joints of a root begin is the world's end of them
        origin, axes = np.array(model.body_pos[tree.body]), quat_to_matrix(np.array(model.body_quat[tree.body]))
        if tree.floating:
            origin, axes = ours.xpos[tree.body], ours.xmat[tree.body].reshape(3, 3)
        for link, body in tree.links.items():
            i = other.body(link).id
            mat = theirs.xmat[i].reshape(3, 3)
            pos = theirs.xpos[i] + mat @ tree.offset[body]
            np.testing.assert_allclose(origin + axes @ pos, ours.xpos[body], atol=1e-6)
            np.testing.assert_allclose(axes @ mat, ours.xmat[body].reshape(3, 3), atol=1e-6)
    for link, body in tree.links.items():
        i = other.body(link).id
        if model.body_mass[body] < LIGHT_MASS:
            assert other.body_mass[i] == LIGHT_MASS
            continue
        np.testing.assert_allclose(other.body_mass[i], model.body_mass[body], rtol=1e-9)
        np.testing.assert_allclose(other.body_ipos[i], model.body_ipos[body] + tree.offset[body], atol=1e-9)
        np.testing.assert_allclose(inertia(other, i), inertia(model, body), rtol=1e-6, atol=1e-12)
    for name, j in tree.joints.items():
        i, start = other.joint(name).id, model.qpos0[model.jnt_qposadr[j]]
        if model.jnt_limited[j]:
            np.testing.assert_allclose(other.jnt_range[i], model.jnt_range[j] - start, rtol=1e-9)
    assert [other.body(int(b)).name for b in other.geom_bodyid] == [n for n, s in tree.shapes.items() for _ in s]


@pytest.mark.parametrize("task", [Drawer, Handover, Lift, Peg, PushTArm, Walker], ids=lambda t: t.name)
def test_trees_of_the_tasks_come_back(task: Any) -> None:
    model = task(get_task(task.name).config_class()).scene().compile()
    trees = export_trees(model)
    moving = {int(model.body_rootid[model.jnt_bodyid[j]]) for j in range(model.njnt)}
    assert moving <= {t.body for t in trees}
    for tree in trees:
        check(model, tree, np.random.default_rng(1))


def test_lift_is_an_arm_and_a_free_cube() -> None:
    model = Lift(get_task("lift").config_class()).scene().compile()
    arm, cube = export_trees(model)
    assert (arm.name, arm.floating, len(arm.joints)) == ("robot/mount", False, 9)
    assert (cube.name, cube.floating, len(cube.joints)) == ("cube", True, 0)
    assert list(cube.shapes.values()) == [[model.geom("cube").id]]


@st.composite
def trees(draw: st.DrawFn) -> mujoco.MjModel:
    """A random tree: turned and shifted bodies, up to three joints each, anchored anywhere."""
    number = st.floats(-1, 1, allow_subnormal=False)
    vector = st.tuples(number, number, number)
    axis = vector.filter(lambda v: np.linalg.norm(v) > 0.1)
    angle = st.sampled_from([0.0, np.pi / 2, -np.pi / 2, np.pi]) | number
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    bodies: list[Any] = []
    for i in range(draw(st.integers(1, 4))):
        parent = draw(st.sampled_from(bodies)) if bodies else spec.worldbody
        quat = np.zeros(4)
        mujoco.mju_euler2Quat(quat, [draw(angle), draw(angle), draw(angle)], "xyz")
        body = parent.add_body(name=f"body {i}", pos=draw(vector), quat=quat)
        bodies.append(body)
        floating = i == 0 and draw(st.booleans())
        if floating:
            body.add_freejoint(name="free")
        for k in range(0 if floating else draw(st.integers(0, 3))):
            kind = draw(st.sampled_from([mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE]))
            limits = {"limited": True, "range": (-0.5, 2.0)} if draw(st.booleans()) else {}
            body.add_joint(
                name=f"joint {i} {k}", type=kind, axis=draw(axis), pos=draw(vector), ref=draw(number), **limits
            )
        shape = draw(st.sampled_from(["BOX", "SPHERE", "CYLINDER", "CAPSULE"]))
        body.add_geom(
            name=f"geom {i}", type=getattr(mujoco.mjtGeom, f"mjGEOM_{shape}"), size=(0.1, 0.2, 0.3), pos=draw(vector),
            quat=quat, mass=draw(st.floats(0.1, 3)),
        )  # fmt: skip
    return spec.compile()


@given(model=trees(), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_random_trees_come_back(model: mujoco.MjModel, seed: int) -> None:
    for tree in export_trees(model):
        check(model, tree, np.random.default_rng(seed))


def test_a_mesh_keeps_its_place() -> None:
    xml = """<mujoco><asset><mesh name="m" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/></asset><worldbody>
      <body name="b" pos="0 0 1"><joint/><geom name="g" type="mesh" mesh="m" pos=".2 0 0" euler="0 0 90"/></body>
      </worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    (tree,) = export_trees(model)
    other = mujoco.MjSpec.from_string(tree.urdf, assets={k: v.encode() for k, v in tree.meshes.items()}).compile()

    def corners(m: mujoco.MjModel) -> np.ndarray:
        g = m.ngeom - 1
        points = m.mesh_vert @ quat_to_matrix(np.array(m.geom_quat[g])).T + m.geom_pos[g]
        return points[np.lexsort(points.round(6).T)]

    np.testing.assert_allclose(corners(other), corners(model), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "extra", "reason"),
    [
        ("<joint type='ball'/><geom name='g' size='.1'/>", "", "ball"),
        ("<joint name='j'/><geom name='g' type='ellipsoid' size='.1 .1 .2'/>", "", "'g' .*ellipsoid"),
        ("<joint name='j'/><geom name='g' size='.1'/>", "<equality><joint joint1='j'/></equality>", "equality"),
        (
            "<joint name='j'/><geom name='g' size='.1'/>",
            "<tendon><fixed><joint joint='j' coef='1'/></fixed></tendon>",
            "tendons",
        ),
    ],
)
def test_what_urdf_cannot_say_is_refused_with_the_reason(body: str, extra: str, reason: str) -> None:
    xml = f"<mujoco><worldbody><body name='b'>{body}</body></worldbody>{extra}</mujoco>"
    with pytest.raises(ConfigError, match=reason):
        export_trees(mujoco.MjModel.from_xml_string(xml))
