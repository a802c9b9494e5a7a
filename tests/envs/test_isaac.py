"""The engine isaac through its real server and protocol, with a stand-in for Isaac Gym itself (``fake_isaacgym``)."""

from __future__ import annotations

import ast
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.envs.registry import get_task
from visuomotor.envs.sim import isaac_server
from visuomotor.envs.sim.engines import EngineConfig, make_simulator
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.isaac import IsaacSimulator
from visuomotor.envs.sim.isaac_model import VARIABLE, IsaacModel
from visuomotor.envs.sim.isaac_process import IsaacError
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.simulator import Simulator
from visuomotor.envs.tasks.cartpole import Cartpole
from visuomotor.envs.tasks.drawer import Drawer
from visuomotor.envs.tasks.handover import Handover
from visuomotor.envs.tasks.lift import Lift

FAKE = Path(__file__).parent / "fake_isaacgym"
N = 3
OUTPUTS = ("xpos", "xmat", "site_xpos", "geom_xpos")


@pytest.fixture(autouse=True, scope="module")
def stand_in() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(FAKE))
        patch.setenv("VISUOMOTOR_ISAAC_PYTHON", sys.executable)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def scene(task: Any) -> mujoco.MjModel:
    return task(get_task(task.name).config_class()).scene().compile()


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


# ---- translation


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


def test_a_task_with_motors_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="position servos"):
        IsaacSimulator(scene(Cartpole), 1, device="cpu")


# ---- the process


def test_the_server_is_of_old_python_and_sees_nothing_of_ours() -> None:
    source = Path(isaac_server.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 7))
    imported = {
        (n.module or "").split(".")[0] if isinstance(n, ast.ImportFrom) else n.names[0].name.split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
    }
    assert imported <= {*sys.stdlib_module_names, "numpy", "isaacgym", "torch"}


def test_where_isaac_gym_is_has_to_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scene(Lift)
    monkeypatch.delenv("VISUOMOTOR_ISAAC_PYTHON")
    with pytest.raises(ConfigError, match=r"engine\.isaac_python=.*VISUOMOTOR_ISAAC_PYTHON"):
        IsaacSimulator(model, 1, device="cpu")
    with pytest.raises(ConfigError, match="no such program"):
        IsaacSimulator(model, 1, device="cpu", python="/no/python3.8")
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda"):
        IsaacSimulator(model, 1, device="tpu", python=sys.executable)
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(IsaacError, match="No module named 'isaacgym'") as caught:
        IsaacSimulator(model, 1, device="cpu", python=sys.executable)
    assert "Traceback" in "".join(caught.value.__notes__)


def test_a_crash_is_one_clear_error_with_the_end_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ISAACGYM_CRASH", "1")
    sim = IsaacSimulator(scene(Lift), 1, device="cpu")
    with pytest.raises(IsaacError, match="SIGSEGV") as caught:
        sim.step(1)
    assert "segmentation fault of the stand-in" in "".join(caught.value.__notes__)
    with pytest.raises(IsaacError, match="closed"):
        sim.step(1)


def test_the_process_goes_with_its_parent() -> None:
    code = (
        "import os, signal, sys\n"
        "from visuomotor.envs.sim.isaac_process import IsaacProcess\n"
        "p = IsaacProcess(sys.executable, {})\n"
        "print(p._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the server outlived its parent")
