"""The engine isaac through its real server and protocol, with a stand-in for Isaac Gym itself (``fake_isaacgym``)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
import torch

from tests.envs.isaac_stand_in import scene, stand_in  # noqa: F401  (a fixture for all of this file)
from visuomotor.data.errors import ConfigError, UserError
from visuomotor.envs.registry import get_task
from visuomotor.envs.sim.engines import EngineConfig, make_simulator
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.simulator import Simulator
from visuomotor.envs.tasks.drawer import Drawer
from visuomotor.envs.tasks.lift import Lift

N = 3
OUTPUTS = ("xpos", "xmat", "site_xpos", "geom_xpos")


@pytest.fixture(scope="module")
def shared() -> Iterator[Simulator]:
    """One simulation of Lift for the tests that leave no trace but states."""
    sim = make_simulator(scene(Lift), N, EngineConfig(name="isaac", device="cpu"))
    for name in OUTPUTS:
        sim.field(name)
    sim.step(1)
    yield sim
    sim.close()


@pytest.fixture
def sim(shared: Simulator) -> Simulator:
    shared.reset(everyone(shared))
    shared.forward(everyone(shared))
    return shared


def everyone(sim: Simulator) -> Selection:
    return Selection.all(sim.num_envs, sim.device)


def chosen(*worlds: int, dense: bool = False) -> Selection:
    mask = torch.zeros(N, dtype=torch.bool)
    mask[list(worlds)] = True
    return Selection(mask, dense)


def outputs(sim: Simulator) -> dict[str, torch.Tensor]:
    return {name: sim.field(name).clone() for name in OUTPUTS}


# ---- the contract


def test_fields_have_mujocos_shapes_and_stay_where_they_are(sim: Simulator) -> None:
    data = mujoco.MjData(sim.model)
    names = ("qpos", "qvel", "ctrl", "mocap_pos", "mocap_quat", *OUTPUTS)
    at = {n: sim.field(n).data_ptr() for n in names}
    assert all(sim.field(n).shape == (N, *getattr(data, n).shape) for n in names)
    sim.step(2)
    sim.set_state(everyone(sim), sim.state())
    assert {n: sim.field(n).data_ptr() for n in names} == at
    assert sim.field("time").tolist() == pytest.approx([0.01] * N)
    with pytest.raises(ConfigError, match="'qpos'"):
        sim.field("qpoz")
    with pytest.raises(ConfigError, match="no data field 'sensordata'"):
        sim.field("sensordata")
    with pytest.raises(ConfigError, match="cannot vary model field 'body_ipos'"):
        sim.model_field("body_ipos")


def test_a_reset_shows_at_once_and_concerns_its_worlds_alone(sim: Simulator) -> None:
    sim.field("ctrl")[:] += 0.2
    sim.step(10)
    state, before = sim.state(), outputs(sim)
    sim.reset(chosen(1))
    sim.forward(chosen(1))
    home = sim.nominal("key_qpos")[0]
    assert torch.equal(sim.field("qpos")[1], home)
    model, data = sim.mj_state(1)
    np.testing.assert_allclose(sim.field("xpos")[1], data.xpos, atol=1e-5)
    assert torch.equal(sim.state()[[0, 2]], state[[0, 2]])
    assert all(torch.allclose(v[[0, 2]], before[k][[0, 2]], atol=1e-6) for k, v in outputs(sim).items())
    assert model.nq == len(home)
    sim.step(1)
    assert (sim.field("qpos")[1] - home).abs().max() < 1e-3
    assert (sim.field("qpos")[0] - home).abs().max() > 1e-2


def test_what_is_written_is_what_is_simulated(sim: Simulator) -> None:
    """A cube thrown up, spinning about its own x axis, for 0.1 s without contact."""
    q, v = sim.field("qpos"), sim.field("qvel")
    quat = torch.tensor([math.cos(0.4), 0.0, math.sin(0.4), 0.0])  # turned about y by 0.8
    for world, speed in enumerate((1.0, 2.0, 3.0)):
        q[world, 9:12], q[world, 12:16] = torch.tensor([0.3, 0.4, 0.5]), quat
        v[world, 9:15] = torch.tensor([0.0, 0.0, speed, 2.0, 0.0, 0.0])
    sim.forward(everyone(sim))
    sim.step(20)
    for world, speed in enumerate((1.0, 2.0, 3.0)):
        assert v[world, 11].item() == pytest.approx(speed - 0.981, abs=1e-3)
        assert q[world, 11].item() == pytest.approx(0.5 + 0.1 * speed - 9.81 * 0.1 * 0.105 / 2, abs=1e-3)
        np.testing.assert_allclose(v[world, 12:15], [2.0, 0, 0], atol=1e-3)
        half = [math.cos(0.1), math.sin(0.1), 0.0, 0.0]  # by 0.2 about x, first
        want = np.zeros(4)
        mujoco.mju_mulQuat(want, quat.double().numpy(), np.array(half))
        np.testing.assert_allclose(q[world, 12:16], want, atol=1e-3)


def test_masked_step_leaves_the_others_exactly(sim: Simulator) -> None:
    sim.field("ctrl")[:] += 0.1
    sim.step(5)
    state, before = sim.state(), outputs(sim)
    active = torch.tensor([True, False, True])
    for _ in range(3):
        sim.step(5, active)
    assert torch.equal(sim.state()[1], state[1])
    assert all(torch.equal(v[1], before[k][1]) for k, v in outputs(sim).items())
    assert ((sim.state()[[0, 2]] - state[[0, 2]]).abs().amax(1) > 1e-3).all()
    sim.step(15)  # it goes on from there, as the others did
    assert torch.allclose(sim.field("qpos")[1, :7], sim.field("qpos")[0, :7], atol=0.05)
    assert not torch.equal(sim.state()[1], state[1])


@pytest.mark.parametrize("dense", [False, True])
def test_a_state_put_back_continues_nearly_as_before(sim: Simulator, dense: bool) -> None:
    sim.field("ctrl")[:] += 0.1
    sim.step(10)
    state = sim.state()
    sim.step(10)
    end = sim.state()
    worlds = chosen(1, dense=dense)
    sim.set_state(worlds, worlds.take(state))
    assert torch.equal(sim.state()[1], state[1])
    assert torch.equal(sim.state()[[0, 2]], end[[0, 2]])
    sim.step(10, worlds.mask)
    assert torch.allclose(sim.state()[1], end[1], atol=2e-3)


def test_servos_move_as_in_the_batch_engine(sim: Simulator) -> None:
    """The same inputs for 1 s: joint positions within 0.01 rad (the stand-in's servos are MuJoCo's)."""
    other = make_simulator(sim.model, 1, EngineConfig(threads=1))
    for k in range(20):
        for s in (sim, other):
            s.field("ctrl")[:, :7] = s.nominal("key_ctrl")[0, :7] + 0.3 * math.sin(0.3 * k)
            s.field("ctrl")[:, 7:] = 0.01 * (k % 4)
            s.step(10)
    assert (other.field("qpos")[0, :7] - other.nominal("key_qpos")[0, :7]).abs().max() > 0.1
    np.testing.assert_allclose(sim.field("qpos")[:, :9], other.field("qpos")[:, :9].expand(N, -1), atol=0.01)


def test_a_world_that_diverges_harms_no_other_and_is_put_right_by_a_reset(sim: Simulator) -> None:
    sim.field("qpos")[1, 0] = torch.nan
    sim.forward(chosen(1))
    for _ in range(3):
        sim.step(4)
    assert sim.diverged().tolist() == [False, True, False]
    assert torch.isfinite(sim.state()[[0, 2]]).all()
    sim.reset(chosen(1))
    sim.forward(chosen(1))
    sim.step(4)
    assert not sim.diverged().any()
    assert sim.overflow() == {"contacts": 0, "constraints": 0}


def test_worlds_have_their_own_physics() -> None:
    sim = make_simulator(scene(Lift), N, EngineConfig(name="isaac", device="cpu"))
    try:
        cube = sim.model.body("cube").id
        scale = torch.tensor([1.0, 2.0, 4.0])
        sim.model_field("body_mass")[:, cube] = sim.nominal("body_mass")[cube] * scale
        sim.model_field("actuator_gainprm")[:, 0, 0] = sim.nominal("actuator_gainprm")[0, 0] / scale
        sim.set_const(everyone(sim))
        sim.field("ctrl")[:, 0] = 0.05
        sim.step(10)
        moved = sim.field("qpos")[:, 0]
        assert (moved[0] > 1.2 * moved[1]) & (moved[1] > 1.2 * moved[2]) & (moved[2] > 0.001)
        assert sim.mj_state(2)[0].body_mass[cube] == pytest.approx(4 * sim.model.body_mass[cube])
        sim.model_field("opt.gravity")[:, 2] = 0.0
        sim.reset(everyone(sim))
        sim.field("qpos")[:, 11] = 1.0
        sim.forward(everyone(sim))
        sim.step(10)
        np.testing.assert_allclose(sim.field("qpos")[:, 11], 1.0, atol=1e-5)
        snapshot = sim.snapshot()
        sim.model_field("body_mass")[:] = 1.0
        sim.restore(snapshot)
        assert torch.equal(sim.model_field("body_mass")[:, cube], snapshot.model["body_mass"][:, cube])
        sim.model_field("opt.gravity")[1, 2] = -1.0
        sim.forward(everyone(sim))
        with pytest.raises(UserError, match="one gravity for all worlds"):
            sim.step(1)
    finally:
        sim.close()


# ---- tasks


def test_the_expert_of_lift_lifts() -> None:
    config = get_task("lift").config_class(engine=EngineConfig(name="isaac", device="cpu"))
    env = SimVecEnv(Lift(config), config, 2)
    try:
        env.reset(seeds=[0, 1])
        expert = env.task.expert(0.0)
        expert.reset(Selection.all(2, env.device), Draws(torch.arange(2)))
        done = torch.zeros(2, dtype=torch.bool)
        success = done.clone()
        for _ in range(150):
            s = env.advance(expert.act(), ~done)
            success |= s.info["success"]
            done |= s.terminated | s.truncated
            if done.all():
                break
        assert success.all()
        assert env.warnings() == []
    finally:
        env.close()


def test_bodies_without_joints_fall_onto_the_ground_and_still_things() -> None:
    """A ball of 10 cm falls on the ground, another on a box that stands there; no degrees of freedom at all."""
    xml = """<mujoco><option timestep="0.005"/><worldbody><geom type="plane" size="1 1 1"/>
      <geom type="box" size=".2 .2 .1" pos="1 0 .1"/>
      <body name="a" pos="0 0 .3"><freejoint/><geom size=".1"/></body>
      <body name="b" pos="1 0 .5"><freejoint/><geom size=".1"/></body></worldbody></mujoco>"""
    sim = make_simulator(mujoco.MjModel.from_xml_string(xml), 2, EngineConfig(name="isaac", device="cpu"))
    try:
        sim.step(200)
        np.testing.assert_allclose(sim.field("qpos")[:, [2, 9]], [[0.1, 0.3]] * 2, atol=2e-3)
        sim.set_state(everyone(sim), sim.state())
        sim.step(1)
        np.testing.assert_allclose(sim.field("qpos")[:, [2, 9]], [[0.1, 0.3]] * 2, atol=2e-3)
    finally:
        sim.close()


def test_cabinets_stand_where_resets_put_them_whatever_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions of the whole simulation instead of each world: found out at the start, and a drawer opens."""
    monkeypatch.setenv("FAKE_ISAACGYM_GLOBAL", "1")
    config = get_task("drawer").config_class(engine=EngineConfig(name="isaac", device="cpu"))
    env = SimVecEnv(Drawer(config), config, 2)
    try:
        env.reset(seeds=[3, 4])
        m, sim = env.sim.model, env.sim
        adr = int(m.jnt_qposadr[m.joint("drawer").id])
        assert not torch.equal(sim.field("mocap_pos")[0], sim.field("mocap_pos")[1])
        sim.field("qvel")[:, m.jnt_dofadr[m.joint("drawer").id]] = 0.5
        sim.forward(Selection.all(2, env.device))
        sim.step(10)
        assert ((sim.field("qpos")[:, adr] > 0.002) & (sim.field("qpos")[:, adr] < 0.025)).all()
        sim.step(150)  # friction has stopped it
        assert (sim.field("qvel")[:, m.jnt_dofadr[m.joint("drawer").id]].abs() < 0.01).all()
        assert not sim.diverged().any()
    finally:
        env.close()
