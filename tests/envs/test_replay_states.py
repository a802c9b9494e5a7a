"""Recorded states replayed: poses by hand, what strangers' models may not do, and robosuite's own recordings."""

from __future__ import annotations

import math
from pathlib import Path

import mujoco
import numpy as np
import pytest

from visuomotor.configs.data import main as data_command
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.importing.registry import open_source
from visuomotor.data.importing.run import import_demos
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.envs.replay_model import read_replay_model
from visuomotor.envs.replay_states import ReplayConfig, StateReplay, replay_specs
from visuomotor.envs.sim.gl import RenderingError

SUITE = Path(__file__).parents[2].parent / "shared" / "data" / "robosuite_demos" / "v1.0_panda"
PENDULUM = """
<mujoco>
  <compiler angle="radian" meshdir="meshes/"/> <size nconmax="5000"/>
  <asset>
    <mesh name="bob" file="/Users/author/suite/meshes/bob.stl"/>
    <texture name="wood" type="cube" file="/Users/author/suite/textures/wood.png"/>
    <material name="wood" texture="wood"/>
  </asset>
  <worldbody>
    <camera name="front" pos="0 -3 0" xyaxes="1 0 0 0 0 1"/> <light pos="0 -2 3"/>
    <body name="arm" pos="0 0 1">
      <joint name="hinge" type="hinge" axis="0 1 0"/>
      <geom type="capsule" size=".05" fromto="0 0 0 1 0 0" material="wood"/>
      <site name="tip" pos="[1, 0, 0]"/>
    </body>
    <body name="thing" pos="0 0 0"> <freejoint/> <geom type="mesh" mesh="bob"/> </body>
  </worldbody>
</mujoco>
"""


def states(n: int = 9) -> np.ndarray:
    """Time, hinge angle, the thing's pose; then velocities: 1 + 8 + 7 numbers."""
    rows = np.zeros((n, 16))
    rows[:, 0] = np.arange(n) * 0.05
    rows[:, 1] = np.linspace(0, 2 * math.pi, n)
    rows[:, 2:5], rows[:, 5] = [0.5, -0.5, 0.2], 1
    return rows


def test_poses_by_hand() -> None:
    found = read_replay_model(PENDULUM)
    assert found.lost == ("bob.stl", "wood.png")
    with StateReplay(found.model, ReplayConfig(bodies=["thing", "arm"], sites=["tip"])) as replay:
        out = replay.replay(states())
    a = states()[:, 1]
    expected = np.stack([np.cos(a), 0 * a, 1 - np.sin(a)], 1)  # turned about +y, x goes to -z
    np.testing.assert_allclose(out["tip_pos"], expected, atol=1e-6)
    np.testing.assert_allclose(out["tip_quat"], np.stack([np.cos(a / 2), 0 * a, np.sin(a / 2), 0 * a], 1), atol=1e-6)
    np.testing.assert_allclose(out["thing_pos"], np.tile([0.5, -0.5, 0.2], (9, 1)), atol=1e-6)
    np.testing.assert_allclose(np.abs((out["arm_quat"] * out["tip_quat"]).sum(1)), 1, atol=1e-6)


def test_what_is_asked_for_must_exist() -> None:
    model = read_replay_model(PENDULUM).model
    with pytest.raises(ConfigError, match=r"no site 'tpi'\. Did you mean 'tip'"):
        StateReplay(model, ReplayConfig(sites=["tpi"]))
    for config in (ReplayConfig(), ReplayConfig(sites=["tip", "tip"]), ReplayConfig(cameras=["front"], height=0)):
        with pytest.raises(ConfigError):
            replay_specs(config)
    with StateReplay(model, ReplayConfig(sites=["tip"])) as replay:
        with pytest.raises(DataError, match=r"expected \[T, 16\] \(time, 8 positions, 7 velocities\)"):
            replay.replay(np.zeros((3, 15)))
        with pytest.raises(DataError, match="not finite"):
            replay.replay(np.full((3, 16), np.nan))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no XML <", "no XML"),
        ("<robot/>", "expected <mujoco>"),
        ('<!DOCTYPE m [<!ENTITY a "aa">]><mujoco>&a;</mujoco>', "declares entities"),
        ('<mujoco><include file="/etc/passwd"/></mujoco>', "<include>"),
        ('<mujoco><extension><plugin plugin="x"/></extension></mujoco>', "<extension>"),
        ('<mujoco><worldbody><replicate count="99999"><geom/></replicate></worldbody></mujoco>', "<replicate>"),
        ('<mujoco><asset><texture name="t" builtin="flat" width="99999999" height="8"/></asset></mujoco>', "width"),
        ('<mujoco><asset><hfield name="t" nrow="99999" ncol="2" size="1 1 1 1"/></asset></mujoco>', "nrow"),
        ('<mujoco><worldbody><geom file="/etc/passwd" size="1"/></worldbody></mujoco>', "reads a file in <geom>"),
        ('<mujoco><worldbody><body><joint type="wheel"/></body></worldbody></mujoco>', "cannot be compiled"),
    ],
)  # fmt: skip
def test_models_of_strangers(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_replay_model(text)
    assert "\n" not in str(caught.value)


def test_files_are_found_by_name_in_the_folder_given_only(tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    for folder, size in (("other", 1.0), ("meshes", 0.1)):
        (assets / folder).mkdir(parents=True)
        corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) * size
        faces = ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3))
        lines = [f"v {x} {y} {z}" for x, y, z in corners] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces]
        (assets / folder / "bob.obj").write_text("\n".join(lines))
    (tmp_path / "wood.png").write_bytes(b"not to be opened")
    found = read_replay_model(PENDULUM.replace("bob.stl", "bob.obj"), assets)
    assert found.lost == ("wood.png",)
    mesh = mujoco.mj_name2id(found.model, mujoco.mjtObj.mjOBJ_MESH, "bob")
    assert mesh >= 0
    assert np.ptp(found.model.mesh_vert, axis=0).max() < 0.2  # meshes/bob.obj, whose folder agrees with the model's


def test_the_command_makes_a_store_with_poses_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = {
        "action": ArraySpec(shape=(1,), role="action"),
        "states": ArraySpec(shape=(16,), dtype="float64", role="privileged"),
    }
    with DemoStore.create(tmp_path / "a.zarr", specs, fps=20, episode_columns={"model": "str"}) as store:
        for n in (3, 2):
            store.append_episode({"action": np.zeros((n, 1), np.float32), "states": states(n)}, {"model": PENDULUM})
    words = [
        str(tmp_path / "a.zarr"),
        str(tmp_path / "b.zarr"),
        "sites=[tip]",
        "cameras=[front]",
        "height=48",
        "width=64",
    ]
    try:
        assert data_command(["replay", *words]) == 0
    except RenderingError as error:
        pytest.skip(f"no OpenGL: {error}")
    assert "2 meshes and textures were not found" in capsys.readouterr().out
    with DemoStore.open(tmp_path / "b.zarr") as store:
        assert (store.n_episodes, store.fps, store.specs["front_image"].shape) == (2, 20, (48, 64, 3))
        first = store.episode(0)
        assert first["states"].tobytes() == states(3).tobytes()
        bright = first["front_image"].max(-1) > 60
        columns = np.flatnonzero(bright[0].any(0))  # at angle 0 the arm reaches to the right of the middle
        assert columns.min() >= 24
        assert columns.max() > 40
    with pytest.raises(DataError, match="lacks the array 'states'"):
        data_command(["replay", str(_bare(tmp_path)), str(tmp_path / "c.zarr"), "sites=[tip]"])


def _bare(folder: Path) -> Path:
    with DemoStore.create(folder / "bare.zarr", {"action": ArraySpec(shape=(1,), role="action")}) as store:
        store.append_episode({"action": np.zeros((2, 1), np.float32)})
    return folder / "bare.zarr"


@pytest.mark.skipif(not SUITE.is_dir(), reason=f"the recorded robosuite demonstrations are not at {SUITE}")
@pytest.mark.parametrize("task", ["door", "lift", "nut-assembly", "pick-place", "stack", "wipe"])
def test_states_of_robosuite_are_those_of_a_hand_that_does_what_it_is_told(task: str, tmp_path: Path) -> None:
    """Meshes are absent, kinematics are whole.

    The hand's velocity, which the recorded joint velocities give through the Jacobian, must be what its recorded
    positions change by; and the task must be solved at the end, measured on the replayed objects.
    """
    source = open_source(SUITE / task / "panda" / "demo.hdf5")
    import_demos(source, tmp_path / "s.zarr")
    source.close()
    with DemoStore.open(tmp_path / "s.zarr") as store:
        rows, actions = store.read("states", 0, store.n_steps), store.read("action", 0, store.n_steps)
        model = read_replay_model(store.episode_columns["model"][0]).model
    site = "gripper0_grip_site"
    with StateReplay(model, ReplayConfig(sites=[site])) as replay:
        hand = replay.replay(rows)[f"{site}_pos"].astype(np.float64)
    speed = _velocities(model, rows, site)
    change = (hand[2:] - hand[:-2]) / (rows[2:, :1] - rows[:-2, :1])
    error = np.sqrt(((change - speed[1:-1]) ** 2).sum(1).mean())
    assert error < 0.15 * np.sqrt((speed**2).sum(1).mean())
    assert np.corrcoef(actions[:-1, 1], np.diff(hand[:, 1]))[0, 1] > 0.5  # pushed along +y it goes along +y
    _check_solved(task, model, rows[-1])


def _velocities(model: mujoco.MjModel, rows: np.ndarray, site: str) -> np.ndarray:
    data, index = mujoco.MjData(model), mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, site)
    jacobian, out = np.zeros((3, model.nv)), []
    for row in rows:
        data.qpos[:], data.qvel[:] = row[1 : 1 + model.nq], row[1 + model.nq :]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacSite(model, data, jacobian, None, index)
        out.append(jacobian @ data.qvel)
    return np.array(out)


def _check_solved(task: str, model: mujoco.MjModel, row: np.ndarray) -> None:
    q = {model.joint(i).name: row[1 + model.jnt_qposadr[i] :] for i in range(model.njnt)}
    match task:
        case "door":
            assert q["door_hinge"][0] > 0.3  # rad: robosuite's own criterion
        case "lift":
            assert q["cube_jnt0"][2] > 0.8 + 0.04  # m above the table's top, likewise
        case "stack":
            assert np.abs(q["cubeA_jnt0"][:2] - q["cubeB_jnt0"][:2]).max() < 0.01
            assert 0.03 < q["cubeA_jnt0"][2] - q["cubeB_jnt0"][2] < 0.06
        case "nut-assembly":
            for nut, peg in (("SquareNut0_jnt0", 0.1), ("RoundNut0_jnt0", -0.1)):
                assert np.abs(q[nut][:2] - [0.23, peg]).max() < 0.03
        case "pick-place":
            assert all(q[f"{thing}0_jnt0"][1] > 0 for thing in ("Milk", "Bread", "Cereal", "Can"))  # the right-hand bin
