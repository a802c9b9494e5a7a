"""What Isaac Gym is told of a model: order, conventions, drives, collision filters, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from tests.envs.isaac_stand_in import scene
from visuomotor.data.errors import ConfigError
from visuomotor.envs.sim.isaac_model import VARIABLE, IsaacModel
from visuomotor.envs.tasks.drawer import Drawer
from visuomotor.envs.tasks.handover import Handover
from visuomotor.envs.tasks.lift import Lift


def test_velocities_are_those_of_the_centre_of_mass_in_the_worlds_axes() -> None:
    """A body turned a quarter about z whose centre is 0.2 m along its x, so along the world's y.

    It turns at 3 rad/s about its own x, the world's y, and at 1 rad/s about z: the centre moves at 1 * 0.2 m/s along
    the world's -x beside the origin's own velocity.
    """
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body name='b'><freejoint/><geom size='.1' pos='.2 0 0' mass='1'/></body></worldbody>"
        "</mujoco>"
    )
    found = IsaacModel(model)
    names = [{"dofs": [], "bodies": list(found.trees[0].shapes), "shapes": [1]}]
    found.arrange(names, torch.device("cpu"))
    r = math.sqrt(0.5)
    qpos, qvel = torch.tensor([[1.0, 2.0, 3.0, r, 0, 0, r]]), torch.tensor([[0.5, 0.0, 0.0, 3.0, 0.0, 1.0]])
    root, dof = torch.zeros(1, 1, 13), torch.zeros(1, 0, 2)
    none = torch.zeros(1, 0, 3), torch.zeros(1, 0, 4)
    found.to_isaac(qpos, qvel, *none, root, dof)
    np.testing.assert_allclose(root[0, 0], [1, 2, 3, 0, 0, r, r, 0.3, 0, 0, 0, 3, 1], atol=1e-6)
    back_q, back_v = torch.zeros_like(qpos), torch.zeros_like(qvel)
    found.from_isaac(root, dof, back_q, back_v)
    np.testing.assert_allclose(back_q, qpos, atol=1e-6)
    np.testing.assert_allclose(back_v, qvel, atol=1e-6)


@pytest.mark.parametrize("task", [Drawer, Handover, Lift], ids=lambda t: t.name)
def test_filters_let_collide_what_mujoco_lets_collide(task: Any) -> None:
    m = scene(task)
    found = IsaacModel(m)
    names = [
        {"dofs": list(t.joints), "bodies": list(t.shapes), "shapes": [len(s) for s in t.shapes.values()]}
        for t in found.trees
    ]
    found.arrange(names, torch.device("cpu"))
    excluded = {(int(s) >> 16, int(s) & 0xFFFF) for s in m.exclude_signature}
    bits = dict(zip(found.geoms.tolist(), found.filters.tolist(), strict=True))
    for a, x in bits.items():
        for b, y in bits.items():
            bodies = (int(m.geom_bodyid[a]), int(m.geom_bodyid[b]))
            if bodies[0] == bodies[1]:
                continue
            meet = m.geom_contype[a] & m.geom_conaffinity[b] or m.geom_contype[b] & m.geom_conaffinity[a]
            apart = not meet or bodies in excluded or bodies[::-1] in excluded
            assert bool(x & y) == apart, (m.geom(a).name, m.geom(b).name)


def test_drives_hold_gains_damping_limits_and_armature() -> None:
    m = scene(Lift)
    found = IsaacModel(m)
    names = [
        {"dofs": list(t.joints)[::-1], "bodies": list(t.shapes), "shapes": [len(s) for s in t.shapes.values()]}
        for t in found.trees
    ]
    found.arrange(names, torch.device("cpu"))
    values = {
        n: torch.tensor(getattr(m.opt if "." in n else m, n.removeprefix("opt.")))[None].float() for n in VARIABLE
    }
    got = found.properties(lambda n: values[n])
    # joint1 is last in this order: kp 1000, kv 100 and the joint's own damping of 1, 87 N m, armature 0.1
    np.testing.assert_allclose(got["drive"][0, -1], [1000, 101, 87, 0.1], rtol=1e-6)
    np.testing.assert_allclose(got["drive"][0, 0], [400, 26, 70, 0.5], rtol=1e-6)
    ctrl = torch.arange(9.0)[None]
    target = found.targets(ctrl)
    assert target[0, -1] == 0.0
    assert target[0, 0] == pytest.approx(0.04)  # clipped to the finger's range


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("<body><joint name='j' frictionloss='1'/><geom size='.1'/></body>|<position joint='j'/>", "frictionloss"),
        ("<body><joint name='j' stiffness='1'/><geom size='.1'/></body>|", "springs"),
        ("<body><joint name='j'/><geom size='.1'/></body>|<motor joint='j'/>", "position servos"),
        ("<body><joint name='j'/><geom size='.1'/></body>|<position joint='j' kp='1' gear='2'/>", "gear 1"),
        ("<body gravcomp='.5'><freejoint/><geom size='.1'/></body>|", "gravcomp"),
        ("<geom type='plane' size='1 1 1' pos='0 0 1'/><body><freejoint/><geom size='.1'/></body>|", "z = 0"),
        ("<geom size='.1' contype='0' conaffinity='0'/>|", "nothing in the model moves"),
    ],
)  # fmt: skip
def test_what_physx_has_not_is_refused_with_the_reason(xml: str, reason: str) -> None:
    world, _, actuators = xml.partition("|")
    text = f"<mujoco><worldbody>{world}</worldbody><actuator>{actuators}</actuator></mujoco>"
    with pytest.raises(ConfigError, match=reason):
        IsaacModel(mujoco.MjModel.from_xml_string(text))
