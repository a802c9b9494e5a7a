"""Episodes on a simulated arm into a store, with a person who takes over and hands back."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from arm_rig import JOINTS, Rig, robot, spec

from visuomotor.configs.cli import main
from visuomotor.data.errors import DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import validate
from visuomotor.sim2real.messages import JointState
from visuomotor.sim2real.recording.layout import COLUMNS, EXTRA, array_specs, open_store
from visuomotor.sim2real.recording.tape import EpisodeTape
from visuomotor.sim2real.runtime.build import check_policy, describe_arm
from visuomotor.sim2real.runtime.types import Request, State

START = np.array([0.1, -0.4, 0.7])


def path(t):
    return START + np.array([0.1 * np.sin(t), 0.05 * t, 0.0])


def tape_of(rig, where, **others):
    arm, _ = describe_arm(rig.config)
    actions = check_policy(rig.setup.policy, arm)[1]
    tape = EpisodeTape(where, rig.policy, 20.0, tuple(rig.config.joints), actions, gripper=False, task="move", **others)
    rig.bridge.parts.listeners = [*rig.bridge.parts.listeners, tape]
    return tape


class Hand:
    """A teleoperating device that stays where it is put."""

    def __init__(self, rig):
        self._rig, self._out = rig, rig.bus.node("device").advertise("/device", JointState)

    def run(self, seconds, where):
        path = where if callable(where) else lambda t: where
        for i in range(round(seconds * 1e9 / self._rig.period_ns)):
            target = path(i * self._rig.period_ns * 1e-9)
            self._out.publish(JointState(name=JOINTS[::-1], position=np.array(target)[::-1]))
            self._rig.tick()


@pytest.fixture
def rig():
    return Rig(path, config=robot(teleop_topic="/device"), latency_s=0.05)


def record_takeover(rig, where):
    """Two seconds of the policy, two of a person, one of the policy; returns the store's arrays and columns."""
    tape, hand = tape_of(rig, where), Hand(rig)
    rig.start()
    hand.run(2.0, START)
    rig.box.put(Request.TAKE_OVER)
    there = rig.arm.q.copy()
    hand.run(2.0, lambda t: there + np.array([0.0, 0.0, 0.2 * np.sin(2 * t)]))
    assert rig.bridge.state is State.HUMAN
    rig.box.put(Request.HAND_BACK)
    hand.run(1.0, START)
    assert rig.bridge.state is State.RUN
    rig.box.put(Request.SUCCESS)
    rig.run(0.5)
    counts = tape.close()
    assert (counts.episodes, counts.dropped, counts.trouble) == (1, 0, "")
    with DemoStore.open(where) as store:
        return store.episode(0), {k: v[0] for k, v in store.episode_columns.items()}


def test_an_episode_with_a_takeover_and_a_hand_back(rig, tmp_path):
    arrays, columns = record_takeover(rig, tmp_path / "demos.zarr")
    assert set(arrays) == {"joint_pos", "action", *EXTRA} - {"sent_gripper", "measured_gripper"}
    human = arrays["is_intervention"]
    n = len(human)
    assert 98 <= n <= 103  # five seconds at 20 Hz
    stretches = np.flatnonzero(np.diff(human.astype(int)))
    assert len(stretches) == 2
    assert abs(human.sum() - 40) <= 2
    assert columns["success"]
    assert columns["complete"]
    assert (columns["interventions"], columns["task"]) == (1, "move")
    assert "run -> human: take_over" in columns["events"]
    np.testing.assert_allclose(np.diff(arrays["stamp"]), 0.05, atol=0.011)
    # the person's action is the position that was commanded at the end of the step, in the policy's order
    h = np.flatnonzero(human)
    np.testing.assert_allclose(arrays["action"][h], arrays["sent"][h], atol=1e-6)
    # the policy's is its own: its reference at the time of the step, where the arm goes
    run = np.arange(5, stretches[0] - 1)
    reference = np.stack([path(arrays["stamp"][i] - arrays["stamp"][0]) for i in run])
    np.testing.assert_allclose(arrays["action"][run], reference, atol=0.02)
    np.testing.assert_allclose(arrays["joint_pos"], arrays["measured_joints"], atol=0.05)


def test_neither_takeover_nor_hand_back_makes_a_jump(rig, tmp_path):
    record_takeover(rig, tmp_path / "demos.zarr")
    _, v, a, j = rig.motion()
    assert np.abs(v).max() <= 2.0 * (1 + 1e-6)
    assert np.abs(a).max() <= 8.0 * (1 + 1e-6)
    assert np.abs(j).max() <= 80.0 * (1 + 1e-5)


def test_what_was_recorded_is_valid_and_weighed(rig, tmp_path):
    where = tmp_path / "demos.zarr"
    arrays, _ = record_takeover(rig, where)
    with DemoStore.open(where) as store:
        assert not [f for f in validate(store) if f.severity == "error"]
    assert main(["data", "weigh", str(where), str(tmp_path / "weighed.zarr"), "method=interventions"]) == 0
    with DemoStore.open(tmp_path / "weighed.zarr") as store:
        weight, human = store.episode(0)["weight"], arrays["is_intervention"]
        assert weight[human].mean() > 1.1 * weight[~human].mean()
        assert weight[np.flatnonzero(human)[0] - 1] < weight[0]  # what led to the takeover counts less


@pytest.mark.slow
def test_what_was_recorded_trains_with_weights(rig, tmp_path, monkeypatch):
    monkeypatch.setenv("VISUOMOTOR_CACHE", str(tmp_path / "cache"))
    record_takeover(rig, tmp_path / "demos.zarr")
    weighed = tmp_path / "weighed.zarr"
    assert main(["data", "weigh", str(tmp_path / "demos.zarr"), str(weighed), "method=interventions"]) == 0
    words = [
        "train", f"data={weighed}", "data.weight_column=weight", "obs.keys=[joint_pos]", "policy=flow",
        "backbone.width=16", "backbone.depth=1", "train.batch_size=8", "train.steps=3", "threads=1", "device=cpu",
        f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(words) == 0


@pytest.mark.parametrize(
    ("names", "unit"),
    [(tuple(f"{j}_change" for j in JOINTS), "rad"), (tuple(f"{j}_rate" for j in JOINTS[::-1]), "rad/s")],
)
def test_a_person_acts_in_the_terms_of_the_policy(tmp_path, names, unit):
    action = ArraySpec(shape=(3,), role="action", names=names, unit=unit)
    policy = spec()
    policy = type(policy)(**{**{f: getattr(policy, f) for f in policy.__dataclass_fields__}, "action": action})
    rig = Rig(lambda t: np.zeros(3), config=robot(teleop_topic="/device"), policy=policy)
    arrays, _ = record_takeover(rig, tmp_path / "demos.zarr")
    h = np.flatnonzero(arrays["is_intervention"])
    change = arrays["action"][h].astype(np.float64)
    if unit == "rad/s":
        change = 0.05 * change[:, ::-1]
    # the changes of all steps lead from where the person began to where the arm was commanded last
    before = arrays["sent"][h[0] - 1]
    np.testing.assert_allclose(before + np.cumsum(change, 0), arrays["sent"][h], atol=0.02)
    still = np.flatnonzero(~arrays["is_intervention"])[5:20]
    np.testing.assert_array_equal(arrays["action"][still], 0.0)


def test_several_episodes_and_one_that_has_no_end(rig, tmp_path):
    tape = tape_of(rig, tmp_path / "demos.zarr")
    rig.start()
    for verdict in (Request.SUCCESS, Request.FAILURE):
        rig.run(1.0)
        rig.box.put(verdict)
        rig.run(1.0)
        rig.box.put(Request.START)
    rig.run(1.0)
    tape.close()
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        assert store.n_episodes == 2
        assert store.episode_columns["success"].tolist() == [True, False]
        assert store.episode_columns["seed"].tolist() == [0, 1]
    again = tape_of(rig, tmp_path / "demos.zarr")  # a store that exists is added to
    rig.box.put(Request.SUCCESS)
    rig.run(0.5)
    assert again.close().episodes in (0, 1)


def test_a_hold_leaves_no_steps_and_a_fault_is_a_failure(rig, tmp_path):
    tape = tape_of(rig, tmp_path / "demos.zarr")
    rig.start()
    rig.run(1.0)
    rig.box.put(Request.HOLD)
    rig.run(1.0)
    rig.box.put(Request.START)
    rig.run(1.0)
    rig.box.put(Request.STOP)
    rig.run(0.5)
    assert tape.close().episodes == 1
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        arrays = store.episode(0)
        assert 39 <= len(arrays["stamp"]) <= 43
        assert np.diff(arrays["stamp"]).max() > 0.8
        assert not store.episode_columns["success"][0]
        assert "stopped by the operator" in store.episode_columns["events"][0]


def test_a_disk_that_does_not_keep_up_delays_no_tick_and_cuts_the_episode(rig, tmp_path, monkeypatch):
    tape = tape_of(rig, tmp_path / "demos.zarr")
    monkeypatch.setattr(tape, "_room", threading.Semaphore(4))
    go = threading.Event()
    step = tape._recorder.step
    monkeypatch.setattr(tape._recorder, "step", lambda data: (go.wait(30), step(data)))
    rig.start()
    longest = 0.0
    for _ in range(250):
        begin = time.perf_counter()
        rig.tick()
        longest = max(longest, time.perf_counter() - begin)
    assert longest < 5.0  # the disk stands still all the time
    rig.box.put(Request.SUCCESS)
    rig.run(0.3)
    go.set()
    counts = tape.close()
    assert counts.dropped > 20
    assert counts.episodes == 1
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        assert 1 <= store.n_steps <= 6
        assert not store.episode_columns["complete"][0]
        assert not store.episode_columns["success"][0]


def test_a_value_that_the_store_does_not_take_is_told(rig, tmp_path, monkeypatch):
    tape = tape_of(rig, tmp_path / "demos.zarr")
    monkeypatch.setattr(tape._actions, "inverse", lambda *_: np.zeros(5))
    rig.start()
    rig.box.put(Request.HOLD)
    rig.run(0.5)
    rig.box.put(Request.SUCCESS)
    rig.run(0.5)
    assert "action" in tape.close().trouble


def test_an_error_of_any_kind_is_told_and_costs_its_own_step_only(rig, tmp_path, monkeypatch):
    tape = tape_of(rig, tmp_path / "demos.zarr")
    step, rows = tape._recorder.step, []

    def odd(data):
        rows.append(data)
        if len(rows) == 5:
            raise ValueError("odd")
        step(data)

    monkeypatch.setattr(tape._recorder, "step", odd)
    rig.start()
    rig.run(1.0)
    rig.box.put(Request.SUCCESS)
    rig.run(0.3)
    counts = tape.close()
    assert (counts.episodes, counts.steps, counts.trouble) == (1, 4, "ValueError: odd")
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        assert not store.episode_columns["complete"][0]


def test_a_store_that_cannot_be_closed_does_not_cost_the_summary(rig, tmp_path, monkeypatch):
    tape = tape_of(rig, tmp_path / "demos.zarr")

    def full():
        raise DataError("no space is left")

    with monkeypatch.context() as patch:
        patch.setattr(tape._store, "close", full)
        assert tape.close().trouble == "no space is left"
    tape._store.close()


def test_stores_that_do_not_fit_are_refused(tmp_path):
    specs = array_specs(spec(), JOINTS, gripper=True)
    with DemoStore.create(tmp_path / "a.zarr", {**specs, "reward": ArraySpec(shape=())}, fps=20.0):
        pass
    with pytest.raises(DataError, match="'reward', which is not recorded here"):
        open_store(tmp_path / "a.zarr", specs, 20.0)
    with DemoStore.create(tmp_path / "b.zarr", specs, fps=10.0):
        pass
    with pytest.raises(DataError, match="10 steps per second, this policy 20"):
        open_store(tmp_path / "b.zarr", specs, 20.0)
    other = {**specs, "action": ArraySpec(shape=(4,))}
    with pytest.raises(DataError, match="'action' of shape"):
        open_store(_made(tmp_path / "c.zarr", other), specs, 20.0)
    with pytest.raises(DataError, match="column 'mood'"):
        open_store(_made(tmp_path / "d.zarr", specs, {"mood": "str"}), specs, 20.0)
    few = {k: specs[k] for k in ("joint_pos", "action")}
    open_store(_made(tmp_path / "e.zarr", few, {"task": "str"}), specs, 20.0).close()
    with open_store(tmp_path / "f.zarr", specs, 20.0) as store:
        assert dict(store.column_types) == COLUMNS


def _made(path, specs, columns=None):
    with DemoStore.create(path, specs, fps=20.0, episode_columns=columns or {}):
        pass
    return path
