"""ROS bags to arrays: mapping, clocks, episodes, what is missing."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

pytest.importorskip("rosbags")

sys.path.append(str(Path(__file__).parent))
from bag_samples import KINDS, drive, header, joints, twist, write_bag

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.importing.bag_mapping import load_mapping
from visuomotor.data.importing.bags import BagSource
from visuomotor.data.importing.registry import detect, open_source
from visuomotor.data.importing.run import import_demos
from visuomotor.data.store import DemoStore

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "bags"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded bags are not beside this checkout")
MAPPING: dict[str, Any] = {
    "fps": 20,
    "keys": {
        "state": {"topic": "/joint_states", "joints": ["a", "b"], "unit": "rad"},
        "action": {"topic": "/cmd", "field": ["linear.x", "angular.z"]},
    },
    "columns": {"task": "turn"},
}


def opened(path: Path, mapping: dict[str, Any] = MAPPING, **changes: Any) -> BagSource:
    return BagSource(path, {"mapping": {**mapping, **changes}})


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_gives_the_same(tmp_path: Path, kind: str) -> None:
    path = write_bag(tmp_path, kind, drive(kind))
    assert detect(path) == "bag"
    source = opened(path)
    episode = source.read(0)
    # commands end at 1.9 s, joint states at 1.95 s: 0 to 1.9 s at 20 Hz are 39 steps
    t = np.arange(39) / 20
    np.testing.assert_allclose(episode.arrays["state"], np.stack([t, -t], 1), atol=1e-6)  # joints by name
    np.testing.assert_allclose(episode.arrays["action"][:, 0], np.floor(t * 10 + 1e-9) / 10, atol=1e-6)  # held
    assert episode.columns == {"task": "turn"}
    assert source.specs["state"].names == ("a", "b")
    assert (source.specs["state"].role, source.specs["action"].role) == ("observation", "action")
    assert source.specs["action"].names == ("linear.x", "angular.z")
    assert source.specs["state"].source == "/joint_states position (sensor_msgs/msg/JointState; linear, receive)"
    assert [f.message for f in source.findings] == [
        "times of receipt are used for all: action have no stamps in their messages"
    ]


def test_a_folder_is_one_episode_each(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_bag(tmp_path, "mcap", drive("mcap"), name)
    write_bag(tmp_path, "bag", drive("bag"), "c")
    source = opened(tmp_path)
    assert [e.id for e in source.episodes] == ["a", "b", "c.bag"]
    report = import_demos(source, tmp_path / "out.zarr")
    assert (report.episodes, report.steps) == (3, 3 * 39)


def test_header_clock_and_its_conditions(tmp_path: Path) -> None:
    keys = {"state": {"topic": "/joint_states", "interpolation": "hold"}}
    source = opened(write_bag(tmp_path, "db3", drive("db3")), keys=keys)
    assert "header" in str(source.specs["state"].source)  # all keys have stamps
    assert source.specs["state"].names == ("b", "a")  # of the first message
    with pytest.raises(ConfigError, match=r"keys.action: /cmd has no stamps: use clock: receive"):
        opened(source.path, clock="header")


def test_messages_of_other_joints_are_skipped(tmp_path: Path) -> None:
    gripper = [("/joint_states", 0.01 + i, "sensor_msgs/msg/JointState", joints(i, ["g"], [7.0])) for i in range(2)]
    source = opened(write_bag(tmp_path, "mcap", [gripper[0], *drive("mcap"), gripper[1]]))
    episode = source.read(0)
    assert episode.arrays["state"].max() < 2
    assert any("2 messages of /joint_states have no such components" in f.message for f in episode.findings)
    with pytest.raises(ConfigError, match=r"keys.state: a message of /joint_states has no such part: it has"):
        opened(source.path, keys={"state": {"topic": "/joint_states", "joints": ["a", "z"]}})


def test_next_state_as_action_and_shift_in_seconds(tmp_path: Path) -> None:
    state = {"topic": "/joint_states", "joints": ["a"]}
    keys = {"state": state, "action": {**state, "shift_steps": 1}, "late": {**state, "shift": -0.1}}
    episode = opened(write_bag(tmp_path, "bag", drive("bag")), keys=keys, clock="receive").read(0)
    a = {k: v[:, 0] for k, v in episode.arrays.items()}
    np.testing.assert_allclose(a["action"][:-1], a["state"][1:], atol=1e-6)
    np.testing.assert_allclose(a["late"], a["state"] - 0.1, atol=1e-6)
    # begins 0.1 s in (late needs the past), ends 1 step early (action needs the next): 0.1 ... 1.9
    assert (a["state"][0], a["state"][-1]) == (pytest.approx(0.1), pytest.approx(1.9))


def test_episodes_by_flag_gap_and_times(tmp_path: Path) -> None:
    flags = [("/rec", t, "std_msgs/msg/Bool", {"data": on}) for t, on in ((0.5, True), (1.0, False), (1.3, True))]
    names = [("/name", t, "std_msgs/msg/String", {"data": n}) for t, n in ((0.4, "one"), (1.2, "two"))]
    path = write_bag(tmp_path, "db3", sorted([*drive("db3"), *flags, *names], key=lambda s: s[1]))
    source = opened(path, episodes={"topic": "/rec"}, columns={"task": {"topic": "/name"}})
    assert [e.id for e in source.episodes] == ["x.db3 0.500-1.000 s", "x.db3 1.300-1.950 s"]
    first, second = source.read(0), source.read(1)
    assert first.columns == {"task": "one"}
    assert second.columns == {"task": "two"}
    np.testing.assert_allclose(first.arrays["state"][:, 0], np.arange(0.5, 0.91, 0.05), atol=1e-6)
    assert second.arrays["state"][0, 0] == pytest.approx(1.3)
    source = opened(path, episodes={"topic": "/name"})
    assert len(source.episodes) == 2
    source = opened(path, episodes={"times": [[0.2, 0.6], [1.0, 1.5]], "min_length": 0.45})
    assert [e.id for e in source.episodes] == ["x.db3 1.000-1.500 s"]


def test_pauses_separate_episodes(tmp_path: Path) -> None:
    later = [(topic, t + 10, kind, values) for topic, t, kind, values in drive("mcap")]
    source = opened(write_bag(tmp_path, "mcap", [*drive("mcap"), *later]), episodes={"gap": 5.0})
    assert len(source.episodes) == 2
    np.testing.assert_array_equal(source.read(0).arrays["state"], source.read(1).arrays["state"])


def test_pauses_and_lost_messages_are_reported(tmp_path: Path) -> None:
    samples = [s for s in drive("bag", 100) if not (s[0] == "/joint_states" and 1.0 < s[1] < 2.0)]
    samples = [s for s in samples if s[1] != pytest.approx(3.0)]
    findings = opened(write_bag(tmp_path, "bag", samples)).read(0).findings
    said = {f.array: f for f in findings}
    # 20 Hz: 1.05 ... 1.95 (19) and 3.0 are lost; the pause is 1.0 s long and begins 1 s in
    assert "/joint_states: 80 messages, usually at 20 Hz, about 20 missing; 1 pauses over 0.15 s" in str(said["state"])
    assert "the longest 1 s after 1 s" in str(said["state"])
    assert said["state"].row == 24  # 1.2 s: the first step that is more than 0.15 s after 1.0 s
    assert "about 1 missing" in str(said["action"])


def test_latched_values_hold(tmp_path: Path) -> None:
    goal = [("/goal", 0.3, "geometry_msgs/msg/Twist", twist(4.0, 0.0))]
    path = write_bag(tmp_path, "mcap", sorted([*drive("mcap"), *goal], key=lambda s: s[1]))
    keys = {**MAPPING["keys"], "goal": {"topic": "/goal", "field": "linear.x", "latched": True}}
    episode = opened(path, keys=keys).read(0)
    assert set(episode.arrays["goal"][:, 0]) == {4.0}
    assert len(episode.arrays["goal"]) == 33  # from 0.3 s, when it was first sent, to 1.9 s
    with pytest.raises(DataError, match="no message of /goal is in this episode"):
        opened(path, keys={**keys, "goal": {"topic": "/goal"}}, episodes={"times": [[1, 2]]}).read(0)


def picture(seconds: float, encoding: str, image: np.ndarray, pad: int = 0) -> dict[str, Any]:
    rows = image.reshape(len(image), -1).view(np.uint8)
    data = np.pad(rows, ((0, 0), (0, pad)))
    return {
        "header": header(seconds), "height": len(image), "width": image.shape[1], "encoding": encoding,
        "is_bigendian": 0, "step": data.shape[1], "data": data.reshape(-1),
    }  # fmt: skip


RGB = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
MM = np.arange(120, dtype=np.uint16).reshape(12, 10)
METRES = np.where(MM == 5, np.nan, MM / 100).astype(np.float32)


@pytest.mark.parametrize(
    ("encoding", "sent", "expected"),
    [
        ("rgb8", RGB, RGB),
        ("bgr8", RGB[:, :, ::-1], RGB),
        ("rgba8", np.dstack([RGB, RGB[:, :, 0]]), RGB),
        ("bgra8", np.dstack([RGB[:, :, ::-1], RGB[:, :, 0]]), RGB),
        ("mono8", RGB[:, :, 0], np.repeat(RGB[:, :, :1], 3, 2)),
        ("16UC1", MM, MM),
        ("32FC1", METRES, np.nan_to_num(METRES)[..., None]),
    ],
)
def test_images(tmp_path: Path, encoding: str, sent: np.ndarray, expected: np.ndarray) -> None:
    sent = np.ascontiguousarray(sent)
    samples = [("/cam", i / 10, "sensor_msgs/msg/Image", picture(i / 10, encoding, sent, pad=6)) for i in range(3)]
    source = BagSource(
        write_bag(tmp_path, "mcap", samples), {"mapping": {"fps": 10, "keys": {"cam": {"topic": "/cam"}}}}
    )
    np.testing.assert_array_equal(source.read(0).arrays["cam"], np.stack([expected] * 3))


@pytest.mark.parametrize("phase", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_colours_are_right(tmp_path: Path, phase: str) -> None:
    colour = {"r": 200, "g": 100, "b": 30}
    tile = np.array([[colour[phase[0]], colour[phase[1]]], [colour[phase[2]], colour[phase[3]]]], np.uint8)
    samples = [("/cam", 0.0, "sensor_msgs/msg/Image", picture(0, f"bayer_{phase}8", np.tile(tile, (6, 6))))]
    source = BagSource(
        write_bag(tmp_path, "db3", samples), {"mapping": {"fps": 10, "keys": {"cam": {"topic": "/cam"}}}}
    )
    assert source.read(0).arrays["cam"][0, 5, 5].tolist() == [200, 100, 30]


def test_compressed_pictures_chosen_in_time_and_resized(tmp_path: Path) -> None:
    samples = []
    for i in range(10):  # 10 Hz; picture i is of value 20 i
        data = cv2.imencode(".png", np.full((20, 30, 3), 20 * i, np.uint8))[1].reshape(-1)
        fields = {"header": header(i / 10), "format": "png", "data": data}
        samples.append(("/cam", i / 10, "sensor_msgs/msg/CompressedImage", fields))
    path = write_bag(tmp_path, "bag-lz4", [(t, s, k, {**v, "header": header(s, ros1=True)}) for t, s, k, v in samples])
    for how, values in (("hold", [0, 0, 0, 20, 20]), ("nearest", [0, 0, 20, 20, 20])):
        keys = {"cam": {"topic": "/cam", "size": [10, 15], "interpolation": how}}
        images = BagSource(path, {"mapping": {"fps": 29, "keys": keys}}).read(0).arrays["cam"]
        assert images.shape[1:] == (10, 15, 3)
        assert images[:5, 0, 0, 0].tolist() == values  # 0, 34.5, 69, 103, 138 ms


def test_without_a_mapping_it_says_what_is_there(tmp_path: Path) -> None:
    path = write_bag(tmp_path, "mcap", drive("mcap"))
    with pytest.raises(ConfigError, match=r"(?s)needs a mapping.*/cmd +20 +10 Hz.*/joint_states +40 +20 Hz"):
        open_source(path)
    template = tmp_path / "map.yaml"
    with pytest.raises(ConfigError, match="was written: edit it"):
        open_source(path, options={"template": str(template)})
    source = open_source(path, options={"mapping": str(template)})  # works as it is
    assert {k: s.role for k, s in source.specs.items()} == {"cmd": "action", "joint_states": "observation"}
    assert yaml.safe_load(template.read_text())["fps"] == 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kyes": {}}, "unknown setting 'kyes'.*'keys'"),
        ({"fps": -1}, "fps is -1"),
        ({"clock": "wall"}, "clock is 'wall'"),
        ({"keys": {"a.b": {"topic": "/cmd"}}}, "letters, digits"),
        ({"keys": {"a": {"topic": "/cnd"}}}, "no topic '/cnd'. Did you mean '/cmd'"),
        ({"keys": {"a": {"topic": "/cmd", "field": "linear.w"}}}, "there is no 'w'. Known: x, y, z"),
        ({"keys": {"a": {"topic": "/cmd", "field": "linear..x"}}}, "cannot read the field"),
        ({"keys": {"a": {"topic": "/cmd", "interpolation": "cubic"}}}, "interpolation is 'cubic'"),
        ({"keys": {"a": {"topic": "/cmd", "interpolation": "slerp"}}}, "slerp is for quaternions"),
        ({"keys": {"a": {"topic": "/cmd", "joints": ["j"]}}}, "names none"),
        ({"keys": {"a": {"topic": "/cmd", "names": ["x"]}}}, "1 names for"),
        ({"keys": {"a": {"topic": "/cmd", "dtype": "float99"}}}, "float99"),
        ({"keys": {"a": {"topic": "/cmd", "shape": [5]}}}, r"6 numbers are no array of shape \[5\]"),
        ({"episodes": {"gap": 1.0, "times": [[0, 1]]}}, "choose one"),
        ({"columns": {"task": {"topic": "/cmd", "field": "linear"}}}, "no single value"),
    ],
)
def test_mistakes_in_the_mapping(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opened(write_bag(tmp_path, "db3", drive("db3", 4)), **change)


@shared
def test_turtlesim_bags_as_recorded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)/turtle1/cmd_vel +357 .*/turtle1/pose +1344 +62.5 Hz"):
        open_source(SHARED / "ros1_bag_turtlesim")
    keys = {
        "state": {"topic": "/turtle1/pose", "field": ["x", "y", "theta"]},
        "action": {"topic": "/turtle1/cmd_vel", "field": ["linear.x", "angular.z"]},
    }
    source = BagSource(SHARED / "ros1_bag_turtlesim", {"mapping": {"fps": 20, "keys": keys}})
    report = import_demos(source, tmp_path / "t.zarr")
    assert (report.episodes, report.steps) == (2, 666)
    action = next(f for f in report.findings if f.array == "action")
    assert "357 messages" in action.message
    assert "14 pauses over" in action.message
    assert "the longest 0.976 s" in action.message
    assert not [f for f in report.findings if f.array == "state"]  # 62.5 Hz without a loss
    with DemoStore.open(tmp_path / "t.zarr") as store:  # plain and lz4 hold the same recording
        np.testing.assert_array_equal(store.read("state", 0, 333), store.read("state", 333, 666))


@shared
def test_rehab_robot_bag_as_recorded(tmp_path: Path) -> None:
    topics = {"pos": "/mes_pos", "force": "/mes_force", "action": "/ref_pos", "trigger": "/trigger"}
    with pytest.raises(ConfigError, match=r"(?s)/mes_force +2090 +10.48 Hz +1.97 s"):
        open_source(SHARED / "ros2_bag_rehab_robot")
    keys = {k: {"topic": t, "dtype": "int32"} for k, t in topics.items()}
    source = BagSource(SHARED / "ros2_bag_rehab_robot", {"mapping": {"fps": 10, "keys": keys}})
    report = import_demos(source, tmp_path / "r.zarr")
    assert report.episodes == 1
    assert report.steps == 2104  # 210 s
    for key in topics:
        finding = next(f for f in report.findings if f.array == key)
        assert "2090 messages" in finding.message
        assert "7 pauses over" in finding.message
    with DemoStore.open(tmp_path / "r.zarr") as store:
        assert store.specs["pos"].dtype == "int32"
        assert store.read("pos", 0, store.n_steps).max() == 419


def test_frames_of_tf_by_name_and_quaternions(tmp_path: Path) -> None:
    """A quarter turn about z in 1 s, among other frames: half way it is 45 degrees."""
    samples = []
    for t in (0.0, 1.0):
        turn = {"x": 0.0, "y": 0.0, "z": np.sin(t * np.pi / 4), "w": np.cos(t * np.pi / 4)}
        frames = [
            {
                "header": header(t),
                "child_frame_id": name,
                "transform": {"translation": {"x": x + t, "y": 0.0, "z": 0.0}, "rotation": turn},
            }
            for name, x in (("base", 5.0), ("arm.tool0", 1.0))
        ]
        samples += [
            ("/tf", t, "tf2_msgs/msg/TFMessage", {"transforms": frames}),
            ("/tf", t + 0.01, "tf2_msgs/msg/TFMessage", {"transforms": frames[:1]}),
        ]
    at = "transforms[child_frame_id=arm.tool0].transform"
    keys = {
        "pos": {"topic": "/tf", "field": f"{at}.translation"},
        "quat": {"topic": "/tf", "field": f"{at}.rotation", "interpolation": "slerp"},
    }
    source = BagSource(write_bag(tmp_path, "db3", samples), {"mapping": {"fps": 2, "keys": keys}})
    episode = source.read(0)
    assert source.specs["pos"].names == ("x", "y", "z")
    np.testing.assert_allclose(episode.arrays["pos"], [[1.0, 0.0, 0.0], [1.5, 0.0, 0.0], [2.0, 0.0, 0.0]], atol=1e-6)
    eighth = math.pi / 8
    np.testing.assert_allclose(episode.arrays["quat"][1], [0.0, 0.0, math.sin(eighth), math.cos(eighth)], atol=1e-6)
    assert any("2 messages of /tf have no such components" in f.message for f in episode.findings)


def test_the_mapping_in_the_docs_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "importing.md").read_text(encoding="utf-8")
    mapping = load_mapping(yaml.safe_load(page.split("```yaml\n")[1].split("```")[0]))
    assert list(mapping.keys) == ["state", "pos", "quat", "front", "action"]
