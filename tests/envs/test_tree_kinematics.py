"""Kinematics in torch against MuJoCo's own, on every task's scene and on scenes with every kind of joint."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.envs.registry import get_task
from visuomotor.envs.sim.kinematics import POSE_FIELDS, TreeKinematics
from visuomotor.envs.tasks.cartpole import Cartpole
from visuomotor.envs.tasks.drawer import Drawer
from visuomotor.envs.tasks.handover import Handover
from visuomotor.envs.tasks.hopper import Hopper
from visuomotor.envs.tasks.lift import Lift
from visuomotor.envs.tasks.peg import Peg
from visuomotor.envs.tasks.pick_place import PickPlace
from visuomotor.envs.tasks.push_t import PushTArm
from visuomotor.envs.tasks.reach import Reach
from visuomotor.envs.tasks.reacher import Reacher
from visuomotor.envs.tasks.stack import Stack
from visuomotor.envs.tasks.walker import Walker

TASKS = (Cartpole, Drawer, Handover, Hopper, Lift, Peg, PickPlace, PushTArm, Reach, Reacher, Stack, Walker)
N = 3
XML = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <body name="still" pos=".1 .2 .3" euler=".3 .2 .1"><geom size=".1"/>
      <body name="two" pos="0 0 .4" euler="0 .5 0">
        <joint type="hinge" axis="1 1 0" pos=".1 0 -.2" ref=".3"/><joint type="slide" axis="0 1 1" ref="-.1"/>
        <joint type="hinge" axis="0 0 1" pos="0 .3 0"/><geom type="box" size=".1 .2 .3" pos=".1 0 0"/>
        <site name="s" pos="0 0 1" euler="1 0 0"/></body></body>
    <body name="fly" pos="0 0 2"><freejoint/><geom size=".1" pos=".3 0 0"/>
      <body pos="0 .5 0"><joint axis="0 0 1"/><geom size=".1"/></body></body>
    <body name="goal" mocap="true" pos="0 1 1"><body pos="0 0 .2" euler="0 1 0"><joint type="slide"/>
      <geom size=".1"/></body></body>
  </worldbody>
</mujoco>
"""


def compare(model: mujoco.MjModel, dtype: torch.dtype, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    qpos = model.qpos0 + rng.uniform(-1.5, 1.5, (N, model.nq))
    mocap_pos, mocap_quat = rng.normal(size=(N, model.nmocap, 3)), rng.normal(size=(N, model.nmocap, 4))
    kinematics = TreeKinematics(model, torch.device("cpu"), dtype)
    out = {name: torch.empty(N, *kinematics.shape(name), dtype=dtype) for name in POSE_FIELDS}
    q, pos, quat = (torch.tensor(x, dtype=dtype) for x in (qpos, mocap_pos, mocap_quat))
    kinematics(q, pos, quat, out)
    data = mujoco.MjData(model)
    for i in range(N):
        data.qpos[:], data.mocap_pos[:], data.mocap_quat[:] = qpos[i], mocap_pos[i], mocap_quat[i]
        mujoco.mj_kinematics(model, data)
        for name, value in out.items():
            want = getattr(data, name)
            assert value[i].shape == want.shape, name
            np.testing.assert_allclose(value[i].double().numpy(), want, atol=tolerance, err_msg=name)


def test_every_kind_of_joint_as_mujoco_has_it() -> None:
    compare(mujoco.MjModel.from_xml_string(XML), torch.float64, 1e-12)


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_every_task_in_single_precision(task: Any) -> None:
    config = get_task(task.name).config_class()
    compare(task(config).scene().compile(), torch.float32, 1e-5)


def test_a_plain_pendulum_by_hand() -> None:
    """A rod of 2 m about y, turned by a quarter: its tip, below at first, is beside the joint."""
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body pos='0 0 3'><joint axis='0 1 0'/><geom size='.1'/>"
        "<body pos='0 0 -2'><geom size='.1'/></body></body></worldbody></mujoco>"
    )
    kinematics = TreeKinematics(model, torch.device("cpu"), torch.float64)
    out = {"xpos": torch.empty(1, 3, 3, dtype=torch.float64)}
    none = torch.empty(1, 0, 3, dtype=torch.float64)
    kinematics(torch.tensor([[torch.pi / 2]], dtype=torch.float64), none, torch.empty(1, 0, 4), out)
    np.testing.assert_allclose(out["xpos"][0], [[0, 0, 0], [0, 0, 3], [-2, 0, 3]], atol=1e-12)


def test_what_is_not_there_is_said() -> None:
    model = mujoco.MjModel.from_xml_string(XML)
    with pytest.raises(ConfigError, match="'xpos'"):
        TreeKinematics(model, torch.device("cpu"), torch.float64).shape("xpoz")
    ball = "<mujoco><worldbody><body><joint type='ball'/><geom size='.1'/></body></worldbody></mujoco>"
    with pytest.raises(ConfigError, match="ball"):
        TreeKinematics(mujoco.MjModel.from_xml_string(ball), torch.device("cpu"), torch.float64)
