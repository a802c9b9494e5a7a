"""One contract for all engines of MuJoCo models; tolerances where float32 differs are stated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from tests.envs.engine_models import model
from visuomotor.data.errors import ConfigError
from visuomotor.envs.sim.engines import ENGINES, EngineConfig, make_simulator
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.simulator import SETTABLE, Simulator

pytestmark = pytest.mark.timeout(900)  # the first test that runs compiles MuJoCo Warp's kernels
N = 3
Make = Callable[..., Simulator]
OUTPUTS = ("xpos", "xmat", "site_xpos", "site_xmat", "geom_xpos", "geom_xmat", "sensordata", "cvel")


@pytest.fixture(params=["batch", "warp"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes a simulator of an engine on the CPU; ``make.engine`` is its name."""

    def of(m: mujoco.MjModel | None = None, n: int = N, **settings: Any) -> Simulator:
        config = EngineConfig(name=request.param, device="cpu", threads=request.param == "batch", **settings)
        return make_simulator(m or model(), n, config)

    of.engine = request.param  # type: ignore[attr-defined]
    return of


def chosen(*worlds: int, n: int = N, dense: bool = False) -> Selection:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[list(worlds)] = True
    return Selection(mask, dense)


def everyone(sim: Simulator) -> Selection:
    return Selection.all(sim.num_envs, sim.device)


def started(sim: Simulator) -> Simulator:
    """Worlds that differ, fall and swing."""
    for name in OUTPUTS:
        sim.field(name)
    sim.field("qpos")[:, 0] += torch.arange(sim.num_envs) * 0.01
    sim.field("qvel")[:, 7] += torch.arange(sim.num_envs) * 0.2
    sim.forward(everyone(sim))
    return sim


def outputs(sim: Simulator) -> dict[str, torch.Tensor]:
    return {name: sim.field(name).clone() for name in OUTPUTS}


def test_names_of_engines() -> None:
    assert {"batch", "warp"} <= set(ENGINES)
    with pytest.raises(ConfigError, match=r"Did you mean 'warp'|Known: .*warp"):
        EngineConfig(name="wrap")


def test_fields_have_mujocos_shapes_and_stay_where_they_are(make: Make) -> None:
    sim = make()
    data = mujoco.MjData(sim.model)
    names = [n for n in (*SETTABLE, *OUTPUTS) if n != "time"]
    fields = {n: sim.field(n) for n in names}
    at = {n: f.data_ptr() for n, f in fields.items()}
    for name, field in fields.items():
        assert field.shape == (N, *getattr(data, name).shape), name
        assert field.dtype == sim.dtype or name == "eq_active"
    assert sim.field("time").shape == (N,)
    for name in ("body_mass", "geom_rgba", "cam_mat0", "geom_aabb", "opt.gravity", "opt.timestep", "actuator_gainprm"):
        assert sim.model_field(name).shape == (N, *sim.nominal(name).shape), name
    sim.step(2)
    sim.reset(chosen(1))
    sim.set_state(everyone(sim), sim.state())
    assert {n: sim.field(n).data_ptr() for n in names} == at
    sim.field("qpos")[1, 8] = 0.7  # what is written is what is simulated
    assert sim.state()[1].eq(0.7).any() or (sim.state()[1] - 0.7).abs().min() < 1e-7


def test_free_motion_follows_mujoco(make: Make) -> None:
    """Batch exactly; Warp, in float32, within 1e-3 over 100 steps."""
    sim = make()
    sim.field("qpos")[:, 2] = 3.0
    data = mujoco.MjData(sim.model)
    mujoco.mj_resetDataKeyframe(sim.model, data, 0)
    data.qpos[2] = 3.0
    for k in range(10):
        sim.field("ctrl")[:] = 0.3 * (-1) ** k
        data.ctrl[:] = sim.field("ctrl")[0].numpy()
        sim.step(10)
        for _ in range(10):
            mujoco.mj_step(sim.model, data)
    mujoco.mj_forward(sim.model, data)
    tolerance = 0.0 if sim.dtype == torch.float64 else 1e-3
    for name in ("qpos", "qvel", "act", "xpos", "site_xmat"):
        error = np.abs(sim.field(name)[1].double().numpy() - getattr(data, name)).max()
        assert error <= tolerance, (name, error)


def test_steps_in_contact_agree_from_the_same_state() -> None:
    """Warp's float32 solver starts elsewhere: trajectories part, so each step begins from Batch's state anew.

    Seen: 2e-7 m/s in qvel, 2e-5 N in the touch sensor under a box of 9.81 N; allowed 1e-3 and 0.5.
    """
    ours, other = (make_simulator(model(), 1, EngineConfig(name=e, device="cpu")) for e in ("batch", "warp"))
    for sim in (ours, other):
        started(sim)
    worst = {"qvel": 0.0, "sensordata": 0.0}
    for _ in range(80):
        ours.step(1)
        if not (ours.field("sensordata")[0, 0] > 0):
            continue
        for name in ("time", "qpos", "qvel", "act", "ctrl", "qacc_warmstart", "history"):
            other.field(name).copy_(ours.field(name))
        other.forward(everyone(other))
        ours.step(1)
        other.step(1)
        for name, seen in worst.items():
            worst[name] = max(seen, (ours.field(name) - other.field(name)).abs().max().item())
    assert 0.0 < worst["qvel"] < 1e-3
    assert worst["sensordata"] < 0.5


def test_masked_step_leaves_the_others_exactly(make: Make) -> None:
    sim, free = started(make()), started(make())
    sim.step(20), free.step(20)
    state, before = sim.state(), outputs(sim)
    active = torch.tensor([True, False, True])
    sim.step(5, active), free.step(5)
    assert torch.equal(sim.state()[1], state[1])
    assert torch.equal(sim.state()[active], free.state()[active])
    for name, value in outputs(sim).items():
        assert torch.equal(value[1], before[name][1]), name
        assert torch.equal(value[active], free.field(name)[active]), name


@pytest.mark.parametrize("dense", [False, True])
def test_reset_concerns_its_worlds_alone_and_brings_the_keyframe(make: Make, dense: bool) -> None:
    sim, fresh = started(make()), make()
    sim.step(30)
    sim.field("xfrc_applied")[:] = 1.0
    sim.field("mocap_pos")[:] = 5.0
    sim.forward(everyone(sim))
    state, before = sim.state(), outputs(sim)
    sim.reset(chosen(0, 2, dense=dense))
    sim.forward(chosen(0, 2, dense=dense))
    key = sim.nominal("key_qpos")[0]
    assert torch.equal(sim.field("qpos")[0], key)
    assert torch.equal(sim.state()[[0, 2]], fresh.state()[[0, 2]])
    assert torch.equal(sim.state()[1], state[1])
    for name, value in outputs(sim).items():
        assert torch.equal(value[1], before[name][1]), name
    fresh.forward(everyone(fresh))
    sim.step(10), fresh.step(10)
    assert torch.equal(sim.state()[[0, 2]], fresh.state()[[0, 2]])


def test_forward_computes_outputs_and_changes_no_state(make: Make) -> None:
    sim = started(make())
    sim.step(10)
    before = outputs(sim)
    sim.field("qpos")[0, 0] += 0.5
    sim.field("mocap_pos")[0, 0, 0] = 0.25
    state = sim.state()
    sim.forward(chosen(0))
    assert torch.equal(sim.state(), state)
    assert (sim.field("xpos")[0, 2, 0] - before["xpos"][0, 2, 0]).item() == pytest.approx(0.5, abs=1e-6)
    assert sim.field("site_xpos")[0, -1, 0].item() == 0.25
    for name, value in outputs(sim).items():
        assert torch.equal(value[1:], before[name][1:]), name


@pytest.mark.parametrize("dense", [False, True])
def test_a_state_put_back_continues_as_if_nothing_had_happened(make: Make, dense: bool) -> None:
    sim = started(make())
    sim.step(25)
    state = sim.state()
    sim.step(15)
    end, other = sim.state(), outputs(sim)
    worlds = chosen(1, dense=dense)
    sim.set_state(worlds, worlds.take(state))
    assert torch.equal(sim.state()[[0, 2]], end[[0, 2]])
    sim.step(15, worlds.mask)
    assert torch.equal(sim.state(), end)
    for name, value in outputs(sim).items():
        assert torch.equal(value, other[name]), name


def test_constants_are_those_of_a_model_compiled_with_the_numbers(make: Make) -> None:
    sim = started(make())
    sim.step(5)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=sim.dtype)
    for name in ("body_mass", "body_inertia"):
        sim.model_field(name)[:] = sim.nominal(name) * scale.view(-1, *[1] * sim.nominal(name).ndim)
    sim.model_field("dof_armature")[:] = 0.1 * scale[:, None]
    state, before = sim.state(), outputs(sim)
    sim.set_const(chosen(0, 2))
    assert torch.equal(sim.state(), state)
    sim.set_const(chosen(1))
    for name, value in outputs(sim).items():
        assert torch.allclose(value, before[name], atol=1e-12 if sim.dtype == torch.float64 else 1e-6), name
    for i in range(N):
        m = model()
        m.body_mass[:] *= scale[i].item()
        m.body_inertia[:] *= scale[i].item()
        m.dof_armature[:] = 0.1 * scale[i].item()
        mujoco.mj_setConst(m, mujoco.MjData(m))
        for name in ("body_subtreemass", "body_invweight0", "dof_invweight0", "actuator_acc0"):
            found = sim.model_field(name)[i].double().numpy()
            np.testing.assert_allclose(found, getattr(m, name), rtol=1e-12 if sim.dtype == torch.float64 else 1e-5)
        found_model, data = sim.mj_state(i)
        np.testing.assert_allclose(found_model.body_mass, m.body_mass, rtol=1e-6)
        np.testing.assert_allclose(data.qpos, sim.field("qpos")[i].double().numpy())
        np.testing.assert_allclose(data.xpos, sim.field("xpos")[i].double().numpy(), atol=1e-6)


def test_worlds_feel_their_own_physics_also_after_steps_were_recorded(make: Make) -> None:
    """A free fall of 0.2 s under each world's gravity: v = g t."""
    sim = make()
    sim.field("qpos")[:, 2] = 3.0
    sim.forward(everyone(sim))
    for _ in range(3):
        sim.step(2)
    sim.reset(everyone(sim))
    sim.field("qpos")[:, 2] = 3.0
    gravity = sim.model_field("opt.gravity")
    gravity[:, 2] = torch.tensor([0.0, -5.0, -10.0])
    sim.forward(everyone(sim))
    for _ in range(25):
        sim.step(2)
    np.testing.assert_allclose(sim.field("qvel")[:, 2], [0.0, -1.0, -2.0], atol=1e-5)
    gravity[:] = 0.0
    sim.forward(everyone(sim))
    sim.step(2)
    np.testing.assert_allclose(sim.field("qvel")[:, 2], [0.0, -1.0, -2.0], atol=1e-5)


def test_things_fixed_to_the_world_can_stand_elsewhere_in_each(make: Make) -> None:
    sim = make()
    for name in OUTPUTS:
        sim.field(name)
    sim.model_field("body_pos")[:, 1, 2] = torch.tensor([0.0, 0.1, 0.2])
    sim.set_const(everyone(sim))
    sim.forward(everyone(sim))
    np.testing.assert_allclose(sim.field("geom_xpos")[:, 0, 2], [0.0, 0.1, 0.2], atol=1e-7)
    for _ in range(75):
        sim.step(2)
    np.testing.assert_allclose(sim.field("qpos")[:, 2], [0.06, 0.16, 0.26], atol=1e-3)  # half the box above the table


def test_snapshots_hold_state_and_physics_whenever_fields_were_expanded(make: Make) -> None:
    sim = started(make())
    sim.model_field("geom_friction")[1, :, 0] = 0.3
    sim.step(40)
    snapshot = sim.snapshot()
    sim.step(20)
    end, last = sim.state(), outputs(sim)
    sim.model_field("geom_friction")[:] = 0.1
    sim.model_field("body_mass")[:] *= torch.tensor([[1.0], [2.0], [3.0]], dtype=sim.dtype)  # not in the snapshot
    sim.model_field("body_inertia")[:] *= 2.0
    sim.set_const(everyone(sim))
    sim.reset(chosen(0))
    sim.step(7)
    sim.restore(snapshot)
    assert torch.equal(sim.model_field("body_mass")[2], sim.nominal("body_mass"))
    assert torch.allclose(sim.model_field("dof_invweight0")[2], sim.nominal("dof_invweight0"), rtol=1e-5)
    sim.step(20)
    if sim.dtype == torch.float64:
        assert torch.equal(sim.state(), end)
        assert all(torch.equal(v, last[k]) for k, v in outputs(sim).items())
    else:  # its constants are recomputed in float32, which differs from the compiler's in the last bit
        assert torch.allclose(sim.state(), end, atol=1e-3)


def test_a_world_that_diverges_harms_no_other_and_is_put_right_by_a_reset(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sim, sane, fresh = started(make()), started(make()), make()
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    for s in (sim, sane):
        s.step(40)
    sim.field("qpos")[1, 0] = torch.nan
    sim.field("qvel")[1, 7] = torch.inf
    sim.forward(chosen(1))
    for _ in range(5):
        sim.step(4), sane.step(4)
    assert sim.diverged().tolist() == [False, True, False]
    assert torch.equal(sim.state()[[0, 2]], sane.state()[[0, 2]])
    sim.reset(chosen(1))
    sim.forward(chosen(1))
    fresh.forward(everyone(fresh))
    assert not sim.diverged().any()
    sim.step(10), sane.step(10), fresh.step(10)
    assert torch.equal(sim.state()[1], fresh.state()[1])
    assert torch.equal(sim.state()[[0, 2]], sane.state()[[0, 2]])
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_huge_states_count_as_diverged(make: Make) -> None:
    sim = make()
    sim.field("qvel")[2, 0] = -1e11
    assert sim.diverged().tolist() == [False, False, True]


def test_full_buffers_are_reported_once(make: Make) -> None:
    small = model('<size memory="4500"/>')  # bytes of MuJoCo's arena: room for contacts, not for their constraints
    sim = make(small) if make.engine == "batch" else make(contacts=1)  # type: ignore[attr-defined]
    assert sim.overflow() == {"contacts": 0, "constraints": 0}
    sim.step(100)  # the box lies on the table: four contacts a world
    assert sum(sim.overflow().values()) > 0
    assert sim.overflow() == {"contacts": 0, "constraints": 0}


def test_unknown_fields_are_refused_with_the_nearest_names(make: Make) -> None:
    sim = make()
    with pytest.raises(ConfigError, match="'qpos'"):
        sim.field("qpoz")
    with pytest.raises(ConfigError, match="'body_mass'"):
        sim.model_field("body_mas")
    with pytest.raises(ConfigError, match=r"'opt\.gravity'"):
        sim.nominal("opt.gravty")
    with pytest.raises(ConfigError, match="num_envs=0"):
        make(n=0)


def test_the_callers_model_is_left_alone(make: Make) -> None:
    m = model()
    flags = m.opt.disableflags
    sim = make(m)
    sim.model_field("body_mass")[:] = 7.0
    sim.set_const(everyone(sim))
    sim.mj_state(0)
    assert m.opt.disableflags == flags
    assert m.body_mass[2] == 1.0
    assert sim.nominal("body_mass")[2] == 1.0
