"""What only MuJoCo Warp needs: recorded steps, sizes, devices, the folder of its kernels."""

from __future__ import annotations

import os
from pathlib import Path

import mujoco
import pytest
import torch

from tests.envs.engine_models import XML, model
from visuomotor.data.errors import ConfigError, MissingExtraError
from visuomotor.envs.sim.engines import engine_device
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.warp import WarpSimulator
from visuomotor.envs.sim.warp_setup import guess_sizes, load_warp

pytestmark = pytest.mark.timeout(900)  # the first test that runs compiles MuJoCo Warp's kernels


def test_recorded_steps_are_the_steps_themselves() -> None:
    """Recording (a CUDA graph on a GPU) sees what is written in place, and is made anew when a field is expanded."""
    plain, recorded = (WarpSimulator(model(), 2, device="cpu", graph=g) for g in (False, True))
    for sim in (plain, recorded):
        everyone = Selection.all(2, sim.device)
        for k in range(3):
            sim.field("ctrl")[:, 0] = 0.1 * k
            sim.step(3)
        sim.model_field("dof_damping")[1] = 2.0
        for _ in range(3):
            sim.step(3)
        for scale in (1.5, 2.0, 3.0):  # at once, recorded, replayed
            sim.model_field("body_mass")[:] = sim.nominal("body_mass") * scale
            sim.set_const(everyone)
            sim.forward(everyone)
            sim.step(3)
    assert torch.equal(plain.state(), recorded.state())
    assert torch.equal(plain.model_field("dof_invweight0"), recorded.model_field("dof_invweight0"))
    assert not torch.equal(recorded.state()[0], recorded.state()[1])


def test_state_shares_its_memory_with_warp() -> None:
    sim = WarpSimulator(model(), 2, device="cpu")
    mass = sim.model_field("body_mass")
    assert sim.field("qpos").data_ptr() == sim.warp_data.qpos.ptr
    assert mass.data_ptr() == sim.warp_model.body_mass.ptr
    assert sim.model_field("body_mass") is mass


def test_other_integrators_step_too() -> None:
    """RK4, which does not split into the two halves of a step: v = g t in free fall."""
    m = mujoco.MjModel.from_xml_string(XML.replace("implicitfast", "RK4"))
    sim = WarpSimulator(m, 1, device="cpu")
    sim.field("qpos")[:, 2] = 3.0
    sim.forward(Selection.all(1, sim.device))
    for _ in range(5):
        sim.step(10)
    assert sim.field("qvel")[0, 2].item() == pytest.approx(-9.81 * 0.2, rel=1e-5)
    assert sim.field("time")[0].item() == pytest.approx(0.2, rel=1e-5)


def test_guessed_sizes() -> None:
    """Three moving geoms that collide: 12 contacts, raised to 32, of 3 rows in an elliptic cone; one limited joint."""
    assert guess_sizes(model()) == (32, 32 * 3 + 1)
    pyramidal = mujoco.MjModel.from_xml_string(XML.replace("elliptic", "pyramidal"))
    assert guess_sizes(pyramidal) == (32, 32 * 4 + 1)


def test_devices_that_are_not_there_are_refused() -> None:
    assert engine_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:99", "cuda:x", "meta"):
        with pytest.raises(ConfigError, match=f"engine.device={name}"):
            engine_device(name)


def test_models_that_it_cannot_run_are_refused() -> None:
    with pytest.raises(ConfigError, match="MuJoCo Warp cannot run this model"):
        WarpSimulator(mujoco.MjModel.from_xml_string(XML.replace("<option", '<option solver="PGS"')), 1, device="cpu")
    with pytest.raises(ConfigError, match="bodies sleep"):
        WarpSimulator(model('<option><flag sleep="enable"/></option>'), 1, device="cpu")


def test_kernels_are_kept_in_our_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    warp, _ = load_warp()
    monkeypatch.setattr(warp.config, "kernel_cache_dir", None)
    monkeypatch.delenv("WARP_CACHE_PATH", raising=False)
    monkeypatch.setenv("VISUOMOTOR_CACHE", str(tmp_path))
    load_warp()
    assert warp.config.kernel_cache_dir == os.path.join(tmp_path, "warp")
    monkeypatch.setattr(warp.config, "kernel_cache_dir", "/chosen/by/the/user")
    load_warp()
    assert warp.config.kernel_cache_dir == "/chosen/by/the/user"


@pytest.mark.parametrize("name", ["warp", "mujoco_warp"])
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtraError, match=r"visuomotor\[warp\]"):
        load_warp()
