"""Identification against arms whose physics is known because they are simulated ones."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest

from visuomotor.configs.cli import main
from visuomotor.configs.randomize import compose_randomization
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.envs.registry import get_task, make_env
from visuomotor.envs.robots.registry import get_robot
from visuomotor.sim2real.identification.excitation import ExcitationConfig, excite
from visuomotor.sim2real.identification.fit import FitConfig
from visuomotor.sim2real.identification.identify import identify
from visuomotor.sim2real.identification.plant import Plant
from visuomotor.sim2real.identification.posterior import autocorrelation_time, profile
from visuomotor.sim2real.identification.recording import Episode, Recording
from visuomotor.sim2real.identification.unknowns import Unknowns, choose
from visuomotor.sim2real.randomization.build import build_events

pytest.importorskip("scipy", reason="the extra sysid")
sys.path.append(str(Path(__file__).parents[1] / "data"))
NOISE = {"position": 5e-4, "velocity": 5e-3}  # [rad, rad/s]


def real_arm(
    name: str, unknowns: list[str], hidden: dict[str, float], config: ExcitationConfig, noise: dict[str, float] = NOISE
) -> Recording:
    """Motions of an arm whose true values are ``hidden``, measured with noise."""
    robot = get_robot(name)
    plant = Plant(robot, threads=1)
    u = choose(unknowns, plant.model, robot)
    z = u.inverse(np.array([hidden.get(n, v) for n, v in zip(u.names, u.nominal, strict=True)]))
    rng, episodes = np.random.default_rng(0), []
    for i, motion in enumerate(excite(robot, config)):
        still = np.tile(np.array(robot.home), (len(motion.time), 1))
        begun = Episode(
            index=i, time=motion.time, command=motion.command, measured={"position": still, "velocity": 0 * still}
        )
        true = plant.simulate(u, z[:, None], [begun])[0]
        measured = {k: true[k][0] + s * rng.standard_normal(still.shape) for k, s in noise.items()}
        episodes.append(Episode(index=i, time=motion.time, command=motion.command, measured=measured))
    return Recording(joints=robot.joints, episodes=tuple(episodes), keys={})


PANDA = {
    **{f"friction_loss/joint{i + 1}": x for i, x in enumerate((1.5, 2.6, 0.9, 1.8, 0.3, 0.25, 0.5))},
    "armature/joint5": 0.14, "armature/joint6": 0.07, "armature/joint7": 0.05,
    "actuator_delay": 0.017, "mass/hand": 1.1,
}  # fmt: skip


def test_the_hidden_physics_of_a_panda_is_found() -> None:
    wanted = ["friction_loss", "armature:joint[567]", "actuator_delay", "mass:hand"]
    recording = real_arm("panda", wanted, PANDA, ExcitationConfig(duration=5, episodes=3))
    found = identify(Plant(get_robot("panda"), threads=1), recording, wanted, FitConfig(starts=2, rounds=2))
    identified = [e for e in found.posterior.estimates if e.verdict == "identified"]
    assert len(identified) >= 10
    for e in identified:
        assert e.value == pytest.approx(PANDA[e.name], rel=0.1), e
    for e in found.posterior.estimates:
        assert abs(e.value - PANDA[e.name]) < 5 * e.std, e
        assert e.low < e.value < e.high
    validation = found.fitted.validation
    assert validation is not None
    noise = [NOISE[kind] for kind, _ in validation.channels]
    np.testing.assert_allclose(validation.rms(found.fitted.z), noise, rtol=0.2)  # only the noise is left
    assert (validation.rms(0 * found.fitted.z) > 1.5 * np.array(noise)).mean() > 0.8


UR5E = {"damping/elbow": 3.0, "velocity_gain/elbow": -240.0, "friction_loss/elbow": 4.0, "sensor_delay": 0.012}


def test_what_the_motion_does_not_show_is_flagged_on_a_ur5e() -> None:
    wanted = ["damping:elbow", "velocity_gain:elbow", "friction_loss:elbow", "friction_loss:wrist_3", "sensor_delay"]
    moved = ("shoulder_lift", "elbow", "wrist_1")
    recording = real_arm("ur5e", wanted, UR5E, ExcitationConfig(duration=5, episodes=2, joints=moved))
    found = identify(Plant(get_robot("ur5e"), threads=1), recording, wanted, FitConfig(starts=1, rounds=2))
    estimates = {e.name: e for e in found.posterior.estimates}
    # a servo's damping and the joint's are one and the same force
    a, b = "damping/elbow", "velocity_gain/elbow"
    for one, other in ((a, b), (b, a)):
        assert estimates[one].verdict != "identified"
        partner = estimates[one].partner
        assert partner is not None
        assert partner[0] == other
    assert estimates[a].value - estimates[b].value == pytest.approx(243, rel=0.02)  # their sum is known
    assert estimates["friction_loss/wrist_3"].verdict != "identified"  # it hardly moves
    assert estimates["friction_loss/elbow"].verdict != "not identifiable"
    assert estimates["friction_loss/elbow"].partner is None
    assert estimates["friction_loss/elbow"].value == pytest.approx(4.0, rel=0.1)
    assert estimates["sensor_delay"].value == pytest.approx(0.012, rel=0.1)
    assert found.posterior.directions
    rows = profile(found.fitted, "friction_loss/elbow", estimates["friction_loss/elbow"].shrunk, points=3)
    rises = [rise for _, rise in rows]
    assert rises[1] < 0.5
    # two standard deviations away half the squared error has risen by 2, with independent samples
    assert min(rises[0], rises[2]) > 1.0


def test_the_command_writes_what_the_other_commands_take(tmp_path: Path) -> None:
    fit = ["friction_loss:joint5", "friction_loss:joint6", "actuator_delay", "center_of_mass:hand", "inertia:link6"]
    recording = real_arm("panda", fit, PANDA, ExcitationConfig(duration=4, episodes=2))
    store = tmp_path / "real.zarr"
    names = tuple(f"left_{j}" for j in recording.joints)  # as a driver with a prefix calls them
    spec = {
        key: ArraySpec(shape=(7,), dtype="float64", role=role, unit=unit, names=names)
        for key, role, unit in (
            ("action", "action", "rad"),
            ("joint_pos", "observation", "rad"),
            ("joint_vel", "observation", "rad/s"),
        )
    }
    with DemoStore.create(store, spec, fps=100.0) as s:
        for e in recording.episodes:
            rows = {"action": e.command, "joint_pos": e.measured["position"], "joint_vel": e.measured["velocity"]}
            s.append_episode(rows)
    out = tmp_path / "out"
    words = [f"data={store}", "robot=panda", f"out={out}", f"fit=[{','.join(fit)}]", "threads=1", "solver.starts=1",
             "solver.rounds=1", "profile=[actuator_delay]"]  # fmt: skip
    assert main(["sysid", *words]) == 0
    numbers = json.loads((out / "sysid.json").read_text())
    assert {e["name"] for e in numbers["estimates"]} >= {"friction_loss/joint5", "center_of_mass/hand/z"}
    page = (out / "report.html").read_text()
    assert page.count("<svg") > 20
    assert "friction_loss/joint5" in page
    # the randomisation binds to a task, the model is a robot of it
    config = compose_randomization([f"randomization={out / 'randomization.yaml'}"])
    from omegaconf import OmegaConf

    events = build_events(OmegaConf.to_object(config))  # type: ignore[arg-type]
    settings = get_task("reach").config_class(robot="custom", model=str(out / "panda_identified.xml"))
    env = make_env(settings, 2, events)
    env.reset(seeds=[0, 1])
    loss = env.sim.model_field("dof_frictionloss")  # type: ignore[attr-defined]
    found = next(e for e in numbers["estimates"] if e["name"] == "friction_loss/joint5")
    dof = env.sim.model.joint("robot/joint5").dofadr[0]  # type: ignore[attr-defined]
    assert found["low"] - 1e-5 <= float(loss[0, dof]) <= found["high"] + 1e-5
    env.close()


def test_torques_narrow_what_positions_leave_open() -> None:
    wanted = ["position_gain:joint4", "friction_loss:joint4", "armature:joint4", "mass:hand"]
    hidden = {"position_gain/joint4": 1300.0, "friction_loss/joint4": 1.0, "armature/joint4": 0.13, "mass/hand": 0.9}
    motion = ExcitationConfig(duration=4, episodes=1, joints=("joint4",))
    recording = real_arm("panda", wanted, hidden, motion, noise=NOISE | {"effort": 0.1})
    without = [replace(e, measured={k: e.measured[k] for k in NOISE}) for e in recording.episodes]
    stds = []
    for episodes in (recording.episodes, tuple(without)):
        plant = Plant(get_robot("panda"), threads=2)
        found = identify(plant, replace(recording, episodes=episodes), wanted, FitConfig(starts=1, rounds=2))
        gain = found.posterior.estimates[0]
        assert gain.value == pytest.approx(1300.0, abs=5 * gain.std)
        stds.append(gain.std)
    assert stds[0] < 0.7 * stds[1]


def test_threads_do_not_change_what_is_simulated() -> None:
    recording = real_arm("panda", ["friction_loss"], PANDA, ExcitationConfig(duration=4, episodes=1))
    u = choose(["friction_loss", "mass:hand"], Plant(get_robot("panda"), threads=1).model, get_robot("panda"))
    z = np.clip(np.random.default_rng(0).standard_normal((len(u.names), 5)), u.low[:, None], None)
    one, other = (Plant(get_robot("panda"), threads=n).simulate(u, z, recording.episodes)[0] for n in (1, 3))
    for kind in ("position", "velocity", "effort"):
        np.testing.assert_array_equal(one[kind], other[kind])


def test_the_identified_model_is_what_was_written(tmp_path: Path) -> None:
    from visuomotor.sim2real.identification.ranges import write_model

    robot = get_robot("panda")
    plant = Plant(robot, threads=1)
    u = choose(["inertia:hand", "damping", "friction_loss", "position_gain"], plant.model, robot)
    z = np.clip(np.random.default_rng(0).standard_normal(len(u.names)), u.low, u.high)
    assert write_model(tmp_path / "arm.xml", robot, u, z) is None
    model = mujoco.MjModel.from_xml_path(str(tmp_path / "arm.xml"))
    u.write(plant.model, mujoco.MjData(plant.model), z)
    for name in ("dof_damping", "dof_frictionloss", "actuator_gainprm", "body_mass", "body_ipos", "dof_M0"):
        np.testing.assert_allclose(getattr(model, name), getattr(plant.model, name), rtol=1e-5, atol=1e-7)


def test_autocorrelation_time_of_a_process_of_first_order() -> None:
    rng, phi = np.random.default_rng(0), 0.8
    noise = rng.standard_normal((20_000, 2))
    rows = noise.copy()
    for t in range(1, len(rows)):
        rows[t, 1] = phi * rows[t - 1, 1] + noise[t, 1]
    tau = autocorrelation_time(rows, np.array([0, 10_000, 20_000]))
    assert tau[0] == pytest.approx(1.0, abs=0.1)
    assert tau[1] == pytest.approx((1 + phi) / (1 - phi), rel=0.15)  # 9


def test_unknowns_are_inverted(unknowns: Unknowns) -> None:
    z = np.clip(np.random.default_rng(1).standard_normal(len(unknowns.names)), unknowns.low, unknowns.high)
    np.testing.assert_allclose(unknowns.inverse(unknowns.values(z)), z, atol=1e-12)
    np.testing.assert_array_equal(unknowns.values(0 * z), unknowns.nominal)
    step = 1e-6
    slope = (unknowns.values(z + step) - unknowns.values(z - step)) / (2 * step)
    np.testing.assert_allclose(unknowns.slopes(z), np.abs(slope), rtol=1e-6)


@pytest.fixture
def unknowns() -> Unknowns:
    robot = get_robot("panda")
    every = ["mass:link4", "center_of_mass:hand", "inertia:link5", "damping", "friction_loss", "position_gain",
             "velocity_gain", "force_limit", "sensor_delay"]  # fmt: skip
    return choose(every, Plant(robot, threads=1).model, robot)


def test_a_bag_is_imported_first(tmp_path: Path) -> None:
    pytest.importorskip("rosbags")
    from bag_samples import joints, write_bag

    (episode,) = real_arm("panda", ["friction_loss"], PANDA, ExcitationConfig(duration=4, episodes=1)).episodes
    names = [f"panda_{j}" for j in get_robot("panda").joints]
    samples = []
    for t, command, position in zip(episode.time, episode.command, episode.measured["position"], strict=True):
        for topic, values in (("/arm/command", command), ("/joint_states", position)):
            samples.append((topic, float(t), "sensor_msgs/msg/JointState", joints(float(t), names, values.tolist())))
    mapping = tmp_path / "map.yaml"
    keys = {"command": {"topic": "/arm/command", "unit": "rad", "role": "action"},
            "joint_pos": {"topic": "/joint_states", "unit": "rad"}}  # fmt: skip
    mapping.write_text(json.dumps({"fps": 100, "keys": {k: {**v, "joints": names} for k, v in keys.items()}}))
    bag = write_bag(tmp_path, "mcap", samples).parent
    words = [f"data={bag}", f"options.mapping={mapping}", "robot=panda", f"out={tmp_path / 'out'}",
             "fit=[friction_loss,actuator_delay]", "threads=1", "solver.starts=1",
             "solver.rounds=1"]  # fmt: skip
    assert main(["sysid", *words]) == 0
    numbers = json.loads((tmp_path / "out" / "sysid.json").read_text())
    (found,) = [e["value"] for e in numbers["estimates"] if e["name"] == "friction_loss/joint3"]
    assert found == pytest.approx(PANDA["friction_loss/joint3"], rel=0.1)
    assert "nothing was left to validate on" in " ".join(numbers["notes"])
