"""Every fault injected into clean demonstrations is found at its place; clean demonstrations give no warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visuomotor.data.checks.alignment import alignments
from visuomotor.data.checks.survey import survey
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.checks.vectors import Vectors
from visuomotor.data.errors import DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import Finding, validate

PUSHT = Path(__file__).parents[2].parent / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"
FPS = 20.0
SPECS = {
    "state": ArraySpec(shape=(3,), role="observation", unit="m", names=("x", "y", "z")),
    "pose": ArraySpec(shape=(4,), role="observation", names=("qw", "qx", "qy", "qz")),
    "action": ArraySpec(shape=(3,), role="action", unit="m", names=("x", "y", "z")),
    "time": ArraySpec(shape=(), dtype="float64", role="timestamp", unit="s"),
}
CAMERA = {"cam": ArraySpec(shape=(16, 16, 3), dtype="uint8", role="observation")}
Arrays = dict[str, np.ndarray]


def clean(seed: int, n: int = 120, *, lag: int = 2, camera: bool = False) -> Arrays:
    """A smooth path, its orientation, and targets that the state reaches ``lag`` steps later."""
    rng = np.random.default_rng(seed)
    t = np.arange(n + lag) / FPS
    waves = [rng.uniform(0.1, 0.3) * np.sin(rng.uniform(0.5, 2) * t + rng.uniform(0, 6)) for _ in range(3)]
    path = np.stack(waves, axis=1) + rng.uniform(-0.1, 0.1, 3)
    half = 0.4 * np.sin(t[:n] + rng.uniform(0, 6)) + 0.5
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    arrays = {
        "state": path[:n].copy(),
        "pose": np.concatenate([np.cos(half)[:, None], np.sin(half)[:, None] * axis], axis=1),
        "action": path[lag:].copy(),
        "time": t[:n] + rng.uniform(0, 0.002, n),
    }
    if camera:
        arrays["cam"] = rng.integers(0, 255, (n, 16, 16, 3), dtype=np.uint8)
    return arrays


def write(path: Path, episodes: list[Arrays], **changes: ArraySpec) -> Path:
    specs = {k: s for k, s in {**SPECS, **CAMERA, **changes}.items() if k in episodes[0]}
    with DemoStore.create(path, specs, fps=FPS) as store:
        for arrays in episodes:
            store.append_episode({k: np.nan_to_num(v).astype(specs[k].dtype) for k, v in arrays.items()})
    start = 0
    for arrays in episodes:  # a store refuses NaN: put it there behind its back
        for key, rows in arrays.items():
            for row in np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)):
                array = zarr.open_group(path, mode="r+")[f"data/{key}"]
                assert isinstance(array, zarr.Array)
                array[start + int(row)] = rows[row]
        start += len(next(iter(arrays.values())))
    return path


def found(path: Path, **settings: Any) -> list[Finding]:
    """Errors and warnings."""
    with DemoStore.open(path) as store:
        return [f for f in validate(store, **settings) if f.severity != "info"]


def demos(n: int = 6, **kwargs: Any) -> list[Arrays]:
    return [clean(i, 100 + 9 * i, **kwargs) for i in range(n)]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), lag=st.integers(1, 6), camera=st.booleans())
def test_clean_demonstrations_have_no_warning(tmp_path_factory, seed, lag, camera):
    episodes = [clean(seed + i, 60 + (seed + 13 * i) % 90, lag=lag, camera=camera) for i in range(5)]
    path = write(tmp_path_factory.mktemp("clean") / "a.zarr", episodes)
    assert [str(f) for f in found(path)] == []


@pytest.mark.parametrize(
    "fault", ["nan", "jump", "flip", "norm", "zero", "backwards", "gap", "frozen", "black", "stuck"]
)
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(episode=st.integers(0, 5), at=st.floats(0.2, 0.6))
def test_each_fault_is_found_in_its_episode_at_its_row(tmp_path_factory, fault, episode, at):
    episodes = demos(camera=fault in ("frozen", "black"))
    if fault == "stuck":  # only a rare exception is a fault
        episodes += [clean(i, 100) for i in range(6, 12)]
    n = len(episodes[episode]["state"])
    row = int(at * n)
    array, text, at_row = inject(episodes[episode], fault, row)
    path = write(tmp_path_factory.mktemp("fault") / "a.zarr", episodes)
    told = found(path)
    hits = [f for f in told if text in f.message]
    assert [(f.array, f.episode, f.row) for f in hits] == [(array, episode, at_row)]
    rest = [f for f in told if f not in hits]
    if fault == "backwards":  # catching up is a gap
        rest = [f for f in rest if "gaps" not in f.message]
    assert [str(f) for f in rest] == []


def inject(arrays: Arrays, fault: str, row: int) -> tuple[str, str, int]:
    """Put a fault into an episode; returns array, a part of the message, and where it is to be found."""
    match fault:
        case "nan":
            arrays["state"][row, 1] = np.nan
            return "state", "value is nan, component 1 (y)", row
        case "jump":
            arrays["state"][row:, 2] += 0.8
            return "state", "component 2 (z) jumps by", row
        case "flip":
            arrays["pose"][row:] *= -1
            return "pose", "changes its sign at 1 steps", row
        case "norm":
            arrays["pose"][row] *= 1.1
            return "pose", "length 1.1 (1 such steps)", row
        case "zero":
            arrays["pose"][row] = 0
            return "pose", "length 0 is no rotation", row
        case "backwards":
            arrays["time"][row] = arrays["time"][row - 2]
            return "time", "time does not increase", row
        case "gap":
            arrays["time"][row:] += 0.5
            return "time", "1 gaps, about 10 steps lost", row
        case "frozen":
            arrays["cam"][row : row + 25] = arrays["cam"][row]
            return "cam", "frozen for 25 frames", row
        case "black":
            arrays["cam"][row : row + 12] //= 100
            arrays["cam"][row : row + 12, 0, 0, 0] = np.arange(12) % 9
            return "cam", "12 of", row
    arrays["state"][:, 0] = arrays["state"][0, 0]
    return "state", "component 0 (x) does not change in 1 episodes", 0


def test_a_jump_beyond_physical_speed_is_found_by_unit_and_rate_even_if_it_is_usual(tmp_path):
    episodes = demos()
    for arrays in episodes:
        arrays["state"] = arrays["state"] * 40  # 12 m back and forth, at up to 24 m/s
    hits = [f for f in found(write(tmp_path / "a.zarr", episodes)) if "jumps" in f.message]
    assert hits
    assert {f.array for f in hits} == {"state"}
    assert "up to 0.5 is plausible" in hits[0].message  # 10 m/s at 20 Hz


def test_whole_turns_of_an_angle_are_a_note_and_no_jump(tmp_path):
    spec = ArraySpec(shape=(1,), role="observation")
    episodes = [{"angle": np.mod(np.linspace(i, 20 + i, 100), 2 * np.pi)[:, None]} for i in range(4)]
    with DemoStore.open(write(tmp_path / "a.zarr", episodes, angle=spec)) as store:
        notes = validate(store)
    (wraps,) = [f for f in notes if f.array == "angle"]
    turns = sum(int((np.diff(e["angle"][:, 0]) < 0).sum()) for e in episodes)
    assert wraps.severity == "info"
    assert f"component 0 is an angle that wraps round, {turns} times" in wraps.message


def test_rests_are_counted_and_the_longest_is_named(tmp_path):
    episodes = demos()
    for key in ("state", "pose", "action"):
        first = episodes[2][key][:1]
        episodes[2][key] = np.concatenate([np.repeat(first, 45, axis=0), episodes[2][key]])
        middle = episodes[4][key][50:51]
        episodes[4][key] = np.concatenate([episodes[4][key][:50], np.repeat(middle, 30, axis=0), episodes[4][key][50:]])
    for e in (2, 4):
        episodes[e]["time"] = np.arange(len(episodes[e]["state"])) / FPS
    with DemoStore.open(write(tmp_path / "a.zarr", episodes)) as store:
        (rest,) = [f for f in validate(store) if "nothing moves" in f.message]
    assert (rest.severity, rest.episode, rest.row, rest.fix) == ("info", 2, 0, "trim idle")
    assert "in 2 places of 2 episodes" in rest.message
    assert "1 of them at the start or end" in rest.message
    assert "45 steps" in rest.message  # 45 copies before the first step: as many steps in which nothing moves


@pytest.mark.parametrize("lag", [-3, 0, 1, 4])
def test_the_offset_of_actions_is_found(tmp_path, lag):
    episodes = demos()
    for arrays in episodes:
        n = len(arrays["state"]) - abs(lag)
        state, when = arrays["state"], slice(lag, lag + n) if lag >= 0 else slice(0, n)
        base = slice(0, n) if lag >= 0 else slice(-lag, -lag + n)
        arrays |= {k: v[base] for k, v in arrays.items() if k != "action"} | {"action": state[when]}
    path = write(tmp_path / "a.zarr", episodes)
    with DemoStore.open(path) as store:
        vectors = Vectors.of(store)
        aligned = alignments(vectors, survey(vectors), Thresholds())
        (told,) = [f for f in validate(store) if f.array == "action"]
    assert [(a.lag, a.exact, a.rate) for a in aligned] == [(lag, True, False)] * 3
    assert told.severity == ("info" if lag > 0 else "warning")
    assert {-3: "3 step(s) (0.15 s) behind", 0: "repeat the states of the same step"}.get(
        lag, "are the states of"
    ) in str(told)


def test_actions_that_are_changes_of_the_state_are_recognised(tmp_path):
    episodes = demos()
    for arrays in episodes:
        arrays["action"] = np.diff(arrays["state"], axis=0, append=arrays["state"][-1:])
    with DemoStore.open(write(tmp_path / "a.zarr", episodes)) as store:
        (told,) = [f for f in validate(store) if f.array == "action"]
    assert told.severity == "info"
    assert "changes of the state from that step to the next" in told.message


def test_copies_of_episodes_exact_cut_and_noisy_are_found(tmp_path):
    episodes = demos()
    cut = {k: v[20:-5].copy() for k, v in episodes[1].items()}
    noisy = {k: v + (1e-5 if k != "time" else 0) * np.sin(np.arange(len(v)))[:, None] if v.ndim > 1 else v for k, v in
             episodes[3].items()}  # fmt: skip
    same = {k: v.copy() for k, v in episodes[0].items()} | {"time": episodes[0]["time"] + 1000}
    hits = found(write(tmp_path / "a.zarr", [*episodes, cut, noisy, same]))
    assert [f.episode for f in hits] == [8, 6, 7]
    assert [f.fix for f in hits] == ["drop duplicates", None, None]
    assert "episode 0 are the same" in hits[0].message
    assert "episode 1 are the same in 100 % of its steps" in hits[1].message
    assert "episode 3 are nearly the same" in hits[2].message


def test_leakage_is_an_error_that_names_both_episodes(tmp_path):
    train = demos()
    write(tmp_path / "train.zarr", train)
    path = write(tmp_path / "test.zarr", [clean(100), {k: v[10:90].copy() for k, v in train[4].items()}])
    with DemoStore.open(tmp_path / "train.zarr") as other:
        (leak,) = found(path, against=other)
    assert (leak.severity, leak.episode) == ("error", 1)
    assert "episode 4 of " in leak.message
    write(tmp_path / "other.zarr", [{"x": np.zeros((5, 2))}], x=ArraySpec(shape=(2,), role="observation"))
    with (
        DemoStore.open(tmp_path / "other.zarr") as other,
        pytest.raises(DataError, match="no vectors of the same name"),
    ):
        found(path, against=other)


def test_saturated_and_constant_components(tmp_path):
    episodes = demos()
    for arrays in episodes:
        arrays["action"][:, 0] = np.clip(3 * arrays["action"][:, 0] / 0.3, -1, 0.5)
        arrays["state"][:, 1] = 0.25
    with DemoStore.open(write(tmp_path / "a.zarr", episodes)) as store:
        all_found = validate(store)
    (constant,) = [f for f in all_found if "constant" in f.message]
    assert (constant.severity, constant.array) == ("info", "state")
    assert "1 of 3 components: component 1 (y) is 0.25" in constant.message
    assert [f.severity for f in all_found if "at its largest value 0.5" in f.message] == ["warning"]


def test_episodes_of_unusual_length_and_place(tmp_path):
    episodes = [clean(i, 90 + 3 * i) for i in range(24)]
    episodes[7] = clean(7, 9)
    episodes[15]["state"] += 3.0
    with DemoStore.open(write(tmp_path / "a.zarr", episodes)) as store:
        all_found = validate(store)
    (short,) = [f for f in all_found if "are usual" in f.message]
    assert (short.severity, short.episode) == ("warning", 7)
    assert short.message.startswith("9 steps, where 12")
    assert 15 in [f.episode for f in all_found if "far from the other episodes" in f.message]


def test_a_camera_slower_than_the_store(tmp_path):
    episodes = demos(camera=True)
    for arrays in episodes:
        arrays["cam"] = np.repeat(arrays["cam"][::2], 2, axis=0)[: len(arrays["cam"])]
    (slow,) = found(write(tmp_path / "a.zarr", episodes))
    assert slow.array == "cam"
    assert "50 % of the frames repeat" in slow.message
    for arrays in episodes:
        arrays["cam"] = arrays["cam"] // 100
    (dark,) = [f for f in found(write(tmp_path / "b.zarr", episodes)) if f.severity == "error"]
    assert dark.message == "every frame is black"


def test_a_wrong_rate_and_jitter(tmp_path):
    episodes = demos()
    rng = np.random.default_rng(0)
    for arrays in episodes:
        arrays["time"] = np.cumsum(rng.uniform(0.06, 0.14, len(arrays["time"])))
    messages = [f.message for f in found(write(tmp_path / "a.zarr", episodes))]
    assert any("the store says 20 Hz" in m for m in messages)
    assert any("time steps vary" in m for m in messages)


def test_stamps_in_nanoseconds_since_1970_need_no_unit(tmp_path):
    episodes = demos()
    for arrays in episodes:
        arrays["time"] = (1_700_000_000_000_000_000 + arrays["time"] * 1e9).astype(np.int64)
    spec = ArraySpec(shape=(), dtype="int64", role="timestamp")
    assert found(write(tmp_path / "a.zarr", episodes, time=spec)) == []


def test_the_order_of_a_quaternion_that_turns_about_the_vertical(tmp_path):
    episodes = [
        {"quat": np.stack([np.zeros(80), np.zeros(80), np.sin(h), np.cos(h)], axis=1)}
        for h in (np.linspace(0, 1 + 0.1 * i, 80) for i in range(3))
    ]
    bare = write(tmp_path / "a.zarr", episodes, quat=ArraySpec(shape=(4,), role="observation"))
    with DemoStore.open(bare) as store:
        assert any("as in turns about z stored as xyzw" in f.message for f in validate(store))
    wrong = ArraySpec(shape=(4,), role="observation", names=("qw", "qx", "qy", "qz"))
    (told,) = found(write(tmp_path / "b.zarr", episodes, quat=wrong))
    assert "named as wxyz, but only components [2, 3] move" in told.message


def test_what_push_t_says():
    """Only what is true of it: an angle in 0..2 pi, and a pusher that trails its target by two steps of 0.1 s."""
    if not PUSHT.exists():
        pytest.skip(f"the recorded Push-T data is not at {PUSHT}")
    with DemoStore.open(PUSHT) as store:
        told = [str(f) for f in validate(store)]
    assert len(told) == 2
    assert told[0].startswith("info: array state: component 4 is an angle that wraps round, 91 times")
    assert told[1].startswith("info: array action: the robot follows its actions after 2 step(s)")
