"""The parts of identification by hand: commands that hold, initial states, inertias, motions to record, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.configs.cli import main
from visuomotor.data.errors import ConfigError, DataError, MissingExtraError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.envs.robots.registry import get_robot
from visuomotor.sim2real.identification import toolbox
from visuomotor.sim2real.identification.excitation import ExcitationConfig, excite
from visuomotor.sim2real.identification.fit import FitConfig, split
from visuomotor.sim2real.identification.plant import Plant, held, initial_state, resampled
from visuomotor.sim2real.identification.recording import Episode, KeysConfig, Recording, read_recording
from visuomotor.sim2real.identification.unknowns import choose

PANDA = get_robot("panda")
MODEL = PANDA.spec().compile()
JOINTS = ("a", "b")
LIMITS = np.array([[-2.0, 2.0], [-2.0, 2.0]])


def test_commands_hold_until_the_next_and_are_means_over_physics_steps() -> None:
    time, command = np.array([0.0, 0.1, 0.2]), np.array([[1.0], [2.0], [4.0]])
    np.testing.assert_allclose(held(time, command, 6, 0.05, 0.0)[:, 0], [1, 1, 2, 2, 4, 4])
    # delayed by half a step: every second step lies half in one command and half in the next
    np.testing.assert_allclose(held(time, command, 6, 0.05, 0.025)[:, 0], [1, 1, 1.5, 2, 3, 4])
    np.testing.assert_allclose(held(time, command, 4, 0.05, 0.3)[:, 0], 1.0)  # before the first, the first


def test_rows_between_two_are_linear_and_ends_hold() -> None:
    rows = np.array([[0.0], [2.0], [6.0]])
    np.testing.assert_allclose(resampled(rows, np.array([-1.0, 0.5, 1.25, 9.0]))[:, 0], [0, 1, 3, 6])


def test_the_initial_state_of_a_parabola_is_exact() -> None:
    t = np.arange(50) / 100
    position = np.stack([0.3 + 0.7 * t - 2 * t**2, -1.0 + 0 * t], axis=1)
    velocity = np.stack([0.7 - 4 * t, 0 * t], axis=1)
    for measured in ({"position": position}, {"position": position, "velocity": velocity}):
        q, v = initial_state(Episode(index=0, time=t, command=position, measured=measured))
        np.testing.assert_allclose(q, [0.3, -1.0], atol=1e-9)
        np.testing.assert_allclose(v, [0.7, 0.0], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=10, max_size=10))
def test_every_inertia_that_is_tried_is_physical(numbers: list[float]) -> None:
    u = choose(["inertia:link4"], MODEL, PANDA)
    model = PANDA.spec().compile()
    u.write(model, mujoco.MjData(model), np.array(numbers))
    body = model.body("link4").id
    inertia = model.body_inertia[body]
    assert model.body_mass[body] > 0
    assert (inertia > 0).all()
    assert inertia.sum() - 2 * inertia.max() >= -1e-12 * inertia.sum()  # the triangle inequality


def test_the_nominal_inertia_is_left_as_it_is() -> None:
    u = choose(["inertia:link4", "mass:hand", "center_of_mass:link6", "damping"], MODEL, PANDA)
    model = PANDA.spec().compile()
    u.write(model, mujoco.MjData(model), np.zeros(len(u.names)))
    for name in ("body_mass", "body_ipos", "dof_damping", "dof_M0", "dof_invweight0"):
        np.testing.assert_allclose(getattr(model, name), getattr(MODEL, name), rtol=1e-9, atol=1e-12)


def test_a_mass_takes_its_inertia_along() -> None:
    u = choose(["mass:link4"], MODEL, PANDA)
    model, body = PANDA.spec().compile(), MODEL.body("link4").id
    u.write(model, mujoco.MjData(model), u.inverse(np.array([2 * MODEL.body_mass[body]])))
    np.testing.assert_allclose(model.body_inertia[body], 2 * MODEL.body_inertia[body])


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (["dampin"], "unknown quantity 'dampin'. Did you mean 'damping'"),
        (["mass:hnd"], "no moving body of that name. Did you mean 'hand'"),
        (["mass:base"], "no moving body"),
        (["damping", "damping:joint1"], "damping/joint1 is asked for twice"),
        (["inertia:hand", "mass:hand"], "mass/hand is a part of inertia/hand"),
        (["actuator_delay", "sensor_delay"], "the motion shows only their sum"),
        (["actuator_delay:joint1"], "one number for the whole arm"),
        ([], "fit is empty"),
    ],
)
def test_what_cannot_be_identified_is_refused(fit: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(fit, MODEL, PANDA)


@pytest.mark.parametrize("robot", ["panda", "ur5e", "so100"])
def test_motions_stay_within_limits(robot: str) -> None:
    config = ExcitationConfig(duration=6, episodes=2, velocity=0.8, acceleration=3.0)
    model = get_robot(robot)
    limits = Plant(model, threads=1).limits
    motions = excite(model, config)
    for m in motions:
        step = 1 / config.rate_hz
        np.testing.assert_allclose(m.command[[0, -1]], np.tile(model.home, (2, 1)), atol=1e-9)
        v = np.diff(m.command, axis=0) / step
        assert np.abs(v).max() <= 0.8 * 1.01
        assert np.abs(np.diff(v, axis=0) / step).max() <= 3.0 * 1.05
        assert np.abs(v[[0, -1]]).max() < 1e-3  # begins and ends at rest
        inside = np.minimum(m.command - limits[:, 0], limits[:, 1] - m.command)[300]
        assert (inside > 0.09).all()
        assert (np.ptp(m.command, axis=0) > 0.2).all()
    assert np.abs(motions[0].command - motions[1].command).max() > 0.1


def test_a_motion_over_a_high_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="stays clear"):
        excite(PANDA, ExcitationConfig(duration=6, episodes=1, table=0.6))
    with pytest.raises(ConfigError, match=r"no joint 'joint9'\. Did you mean"):
        excite(PANDA, ExcitationConfig(duration=6, episodes=1, joints=("joint9",)))
    with pytest.raises(ConfigError, match="too short"):
        ExcitationConfig(duration=2)


def test_some_joints_move_and_the_others_stand() -> None:
    (motion,) = excite(PANDA, ExcitationConfig(duration=6, episodes=1, joints=("joint2", "joint4")))
    moved = np.ptp(motion.command, axis=0) > 1e-9
    assert moved.tolist() == [False, True, False, True, False, False, False]


def write(path: Path, episodes: Sequence[dict[str, np.ndarray]], **changes: ArraySpec) -> DemoStore:
    both = ArraySpec(shape=(2,), dtype="float64", role="observation", unit="rad", names=JOINTS)
    specs = {"action": replace(both, role="action"), "joint_pos": both} | changes
    with DemoStore.create(path, specs, fps=50.0) as store:
        for e in episodes:
            store.append_episode({k: e[k] for k in specs})
    return DemoStore.open(path)


def wave(n: int = 100, size: float = 0.5) -> dict[str, np.ndarray]:
    t = np.arange(n) / 50
    rows = size * np.stack([np.sin(3 * t), np.cos(2 * t)], axis=1)
    return {"action": rows, "joint_pos": rows + 0.01, "joint_vel": rows, "stamp": (t * 1e9).astype(np.int64)}


def read(store: DemoStore, keys: KeysConfig | None = None, **names: str) -> Recording:
    with store:
        return read_recording(store, JOINTS, LIMITS, keys or KeysConfig(), names)


def test_columns_are_found_by_name_and_units_are_converted(tmp_path: Path) -> None:
    turned = ArraySpec(shape=(3,), dtype="float64", unit="deg", names=("grip", "arm/b", "arm/a"))
    rows = wave()
    rows["joint_pos"] = np.degrees(np.stack([0 * rows["action"][:, 0], rows["action"][:, 1], rows["action"][:, 0]], 1))
    short = {k: v[:20] for k, v in rows.items()}
    got = read(write(tmp_path / "s.zarr", [rows, short], joint_pos=turned))
    assert len(got.episodes) == 1
    assert "episode 1 is shorter than 1 s" in got.notes[0]
    np.testing.assert_allclose(got.episodes[0].measured["position"], rows["action"])
    assert got.keys == {"command": "action", "position": "joint_pos"}


def test_stamps_give_the_time(tmp_path: Path) -> None:
    stamp = ArraySpec(shape=(), dtype="int64", role="timestamp", unit="ns")
    got = read(write(tmp_path / "s.zarr", [wave()], stamp=stamp), KeysConfig(time="stamp"))
    np.testing.assert_allclose(got.episodes[0].time, np.arange(100) / 50, atol=1e-8)
    rows = wave()
    rows["stamp"][7] = rows["stamp"][6]
    with pytest.raises(DataError, match="stamp, episode 0, step 7: the time does not go on"):
        read(write(tmp_path / "t.zarr", [rows], stamp=stamp), KeysConfig(time="stamp"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (KeysConfig(command="actoin"), r"no array 'actoin' \(keys.command\). Did you mean 'action'"),
        (KeysConfig(position="qpos"), r"no array 'qpos' \(keys.position\)"),
        (KeysConfig(effort="torque"), r"no array 'torque' \(keys.effort\)"),
        (KeysConfig(velocity="joint_pos"), r"joint_pos \(keys.velocity\) is in rad; expected rad/s"),
    ],
)
def test_wrong_keys_are_named(tmp_path: Path, keys: KeysConfig, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "s.zarr", [wave()]), keys)


def test_stores_that_do_not_serve_are_refused_in_a_sentence(tmp_path: Path) -> None:
    named = ArraySpec(shape=(2,), dtype="float64", unit="rad", names=("x1", "x2"))
    with pytest.raises(DataError, match=r"joint_pos has no joint 'a'; it has x1, x2\. Say joints\.a="):
        read(write(tmp_path / "a.zarr", [wave()], joint_pos=named))
    assert read(write(tmp_path / "b.zarr", [wave()], joint_pos=named), a="x1", b="x2").episodes
    with pytest.raises(ConfigError, match=r"joints\.q: the arm has no such joint"):
        read(write(tmp_path / "c.zarr", [wave()]), q="x1")
    with pytest.raises(DataError, match="the arm hardly moves: b moves most"):
        read(write(tmp_path / "d.zarr", [wave(size=0.001)]))
    with pytest.raises(DataError, match="is it in degrees"):
        read(write(tmp_path / "e.zarr", [wave(size=40.0)]))
    with pytest.raises(DataError, match="none of its 1 episodes lasts 1 s"):
        read(write(tmp_path / "f.zarr", [wave(20)]))
    write(tmp_path / "g.zarr", [wave()]).close()
    zarr.open_array(str(tmp_path / "g.zarr" / "data" / "joint_pos"), mode="r+")[3, 1] = np.nan  # as others write
    with pytest.raises(DataError, match="joint_pos, episode 0, step 3"):
        read(DemoStore.open(tmp_path / "g.zarr"))
    delta = replace(named, names=("a_change", "b_change"))
    with pytest.raises(DataError, match="action has no joint 'a'; it has a_change"):
        read(write(tmp_path / "h.zarr", [wave()], action=delta))


def test_episodes_are_split_and_a_single_one_is_fitted(tmp_path: Path) -> None:
    e = [Episode(index=i, time=np.zeros(1), command=np.zeros((1, 1)), measured={}) for i in range(8)]
    kept, out = split(e, 0.25, seed=0)
    assert len(out) == 2
    assert sorted(x.index for x in kept + out) == list(range(8))
    assert split(e[:1], 0.25, seed=0) == (e[:1], [])
    assert len(split(e[:2], 0.01, seed=0)[1]) == 1
    assert split(e, 0.0, seed=0)[1] == []
    with pytest.raises(ConfigError, match=r"solver\.validation=1"):
        FitConfig(validation=1.0)


def test_the_empty_toolbox_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import mujoco.sysid as sysid

    monkeypatch.delattr(sysid, "ParameterDict", raising=False)
    with pytest.raises(MissingExtraError, match=r"visuomotor\[sysid\]"):
        toolbox.require()


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["sysid", "data=x.zarr", "robot=pandaa"], "unknown robot 'pandaa'"),
        (["sysid", f"data={tmp_path / 'no.zarr'}", "robot=panda"], "no.zarr"),
        (["sysid", "data=x", "robot=panda", "tolerance=2"], "tolerance=2"),
        (["sysid", "excite", "robot=panda", "sines=0"], "sines=0"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["sysid"]) == main(["sysid", "--help"]) == main(["sysid", "excite", "--help"]) == 0
    assert "solver.settle" in capsys.readouterr().out


def test_a_motion_is_written_as_a_store_of_commands(tmp_path: Path) -> None:
    out = tmp_path / "motion.zarr"
    assert main(["sysid", "excite", "robot=ur5e", f"out={out}", "duration=6", "episodes=2", "joints=[elbow]"]) == 0
    with DemoStore.open(out) as store:
        assert store.specs["action"].names == get_robot("ur5e").joints
        assert store.specs["action"].unit == "rad"
        assert store.n_episodes == 2
        assert store.fps == 100.0
