"""What only the CPU engine promises: bit-exactness, writes that need no forward, MuJoCo's errors in one sentence."""

from __future__ import annotations

import logging
from pathlib import Path

import mujoco
import pytest
import torch

from tests.envs.engine_models import model
from visuomotor.data.errors import ConfigError, UserError
from visuomotor.envs.sim.alerts import Alerts
from visuomotor.envs.sim.batch import BatchSimulator
from visuomotor.envs.sim.selection import Selection


def test_worlds_are_the_same_bit_for_bit_on_any_number_of_threads() -> None:
    one, two = BatchSimulator(model(), 5, threads=1), BatchSimulator(model(), 5, threads=2)
    for sim in (one, two):
        sim.field("qpos")[:, 0] = torch.arange(5) * 0.01
        sim.forward(Selection.all(5, sim.device))
        sim.step(120)
    assert torch.equal(one.state(), two.state())


def test_positions_written_without_forward_are_seen_by_the_next_step() -> None:
    sim, data = BatchSimulator(model(), 2, threads=1), mujoco.MjData(model())
    mujoco.mj_resetDataKeyframe(sim.model, data, 0)
    sim.step(5)
    for _ in range(5):
        mujoco.mj_step(sim.model, data)
    sim.field("qpos")[:, 7] = data.qpos[7] = 0.9
    sim.field("mocap_pos")[:, 0, 2] = data.mocap_pos[0, 2] = 2.0
    sim.step(1)
    mujoco.mj_step(sim.model, data)
    assert sim.field("qpos")[1].tolist() == data.qpos.tolist()


ONE_LEG = """
<mujoco><worldbody><geom type="plane" size="1 1 .1"/><body pos="0 0 .3"><joint type="slide" axis="0 0 1"/>
  <geom size=".05"/><body><joint axis="0 1 0" range="-30 30"/><geom type="capsule" size=".04" fromto="0 0 0 .2 0 -.3"/>
</body></body></worldbody></mujoco>"""


def test_one_mechanism_is_computed_without_islands_and_alike_to_the_last_bit() -> None:
    plain = mujoco.MjModel.from_xml_string(ONE_LEG)
    island = mujoco.mjtDisableBit.mjDSBL_ISLAND.value
    sim, data = BatchSimulator(plain, 1, threads=1), mujoco.MjData(plain)
    assert sim.model.opt.disableflags & island
    assert not plain.opt.disableflags & island
    for _ in range(200):
        sim.step(1)
        mujoco.mj_step(plain, data)
        assert sim.field("qpos")[0].tolist() == data.qpos.tolist()
    assert data.nefc > 0
    assert not BatchSimulator(model(), 1, threads=1).model.opt.disableflags & island


def test_many_fast_worlds_have_not_diverged() -> None:
    sim = BatchSimulator(model(), 3, threads=1)
    sim.field("qvel")[:2, 0] = 6e9  # more than 1e10 together
    assert sim.diverged().tolist() == [False, False, False]
    sim.field("qvel")[2, 0] = torch.nan
    assert sim.diverged().tolist() == [False, False, True]


def test_outputs_bound_late_are_filled_at_once() -> None:
    sim = BatchSimulator(model(), 2, threads=1)
    sim.step(10)
    assert sim.field("site_xpos")[0, 0, 2].item() == pytest.approx(sim.field("qpos")[0, 2].item())


def test_what_mujoco_cannot_do_is_one_sentence() -> None:
    sim = BatchSimulator(model('<size memory="7K"/>'), 2, threads=1)
    with pytest.raises(UserError, match=r"the physics of the scene cannot go on.*out of memory"):
        sim.step(100)
    with pytest.raises(ConfigError, match="threads=-1"):
        BatchSimulator(model(), 2, threads=-1)


def test_warnings_are_counted_and_the_rest_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    before = mujoco.get_mju_user_warning()
    alerts = Alerts()
    contacts = mujoco.mju_warningText(mujoco.mjtWarning.mjWARN_CONTACTFULL.value, 8)
    constraints = mujoco.mju_warningText(mujoco.mjtWarning.mjWARN_CNSTRFULL.value, 8)
    unstable = mujoco.mju_warningText(mujoco.mjtWarning.mjWARN_BADQACC.value, 3)
    with alerts, caplog.at_level(logging.WARNING):
        handler = mujoco.get_mju_user_warning()
        for text in (contacts, contacts, constraints, unstable, "Inertia matrix is too close to singular"):
            handler(text)
    assert alerts.counts() == {"contacts": 2, "constraints": 1}
    assert alerts.counts() == {"contacts": 0, "constraints": 0}
    assert [r.getMessage() for r in caplog.records] == ["MuJoCo: Inertia matrix is too close to singular"]
    assert mujoco.get_mju_user_warning() is before


def test_a_start_that_does_not_fit_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Twelve boxes in one another: too many contacts for 60 kB, and no room at all in 20 kB."""
    monkeypatch.chdir(tmp_path)
    floor = "<geom type='plane' size='1 1 1'/>"
    boxes = "".join(
        f"<body pos='0 0 {k / 100}'><freejoint/><geom type='box' size='.1 .1 .1'/></body>" for k in range(12)
    )
    xml = f"<mujoco><size memory='60K'/><worldbody>{floor}{boxes}</worldbody></mujoco>"
    sim = BatchSimulator(mujoco.MjModel.from_xml_string(xml), 2, threads=1)
    sim.field("xpos")
    assert sim.overflow()["contacts"] == 2
    tiny = mujoco.MjModel.from_xml_string(xml.replace("60K", "20K"))
    with pytest.raises(UserError, match="physics of the scene cannot go on"):
        BatchSimulator(tiny, 2, threads=1)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
