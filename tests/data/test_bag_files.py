"""Containers and messages of ROS bags: against rosbags, damaged, and hostile."""

from __future__ import annotations

import bz2
import sqlite3
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("rosbags")

from rosbags.highlevel import AnyReader

sys.path.append(str(Path(__file__).parent))
from bag_samples import KINDS, ROS1, ROS2, drive, header, joints, message, twist, write_bag

from visuomotor.data.errors import DataError, UserError
from visuomotor.data.importing.bags import BagSource
from visuomotor.data.importing.image_bytes import decode_image, image_size
from visuomotor.data.importing.recording import decompress
from visuomotor.data.importing.ros2_bag import find_recordings, open_recording
from visuomotor.data.importing.ros_types import Decoder, parse_definition, standard_types

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "bags"
MAPPING = {"fps": 20, "keys": {"state": {"topic": "/joint_states"}, "action": {"topic": "/cmd"}}}


def same(ours: Any, theirs: Any) -> bool:
    """Our dicts against the message objects of rosbags."""
    if isinstance(ours, dict):
        return all(same(v, getattr(theirs, k)) for k, v in ours.items())
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, np.ndarray):
        return bool(np.array_equal(ours, theirs))
    return bool(ours == theirs)


def decoder_of(recording: Any, topic: str) -> Decoder:
    info = recording.topics[topic]
    types = parse_definition(info.definition, info.msgtype, info.encoding) if info.definition else standard_types()
    return Decoder(types, ros1=info.ros1)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded bags are not beside this checkout")
@pytest.mark.parametrize(
    "name", ["ros1_bag_turtlesim/example.bag", "ros1_bag_turtlesim/example-lz4.bag", "ros2_bag_rehab_robot"]
)
def test_every_recorded_message_is_as_rosbags_reads_it(name: str) -> None:
    recording = open_recording(SHARED / name)
    decoders = {t: decoder_of(recording, t) for t in recording.topics}
    ours = sorted(recording.messages(list(recording.topics)), key=lambda m: (m[1], m[0]))
    assert recording.notes == []
    with AnyReader([SHARED / name], default_typestore=None if "ros1" in name else ROS2) as reader:
        theirs = sorted(((c, t, d) for c, t, d in reader.messages()), key=lambda m: (m[1], m[0].topic))
        assert len(ours) == len(theirs) == sum(t.count for t in recording.topics.values())
        for (topic, time, raw), (connection, their_time, data) in zip(ours, theirs, strict=True):
            assert (topic, time, bytes(raw)) == (connection.topic, their_time, bytes(data))
        for (topic, _, raw), (connection, _, data) in list(zip(ours, theirs, strict=True))[::3]:
            decoded = decoders[topic].decode(recording.topics[topic].msgtype, raw)
            assert same(decoded, reader.deserialize(data, connection.msgtype))


def samples_of_types(ros1: bool) -> list[tuple[str, dict[str, Any]]]:
    rng = np.random.default_rng(1)
    head = header(1.5, ros1=ros1)
    pose = {"position": {"x": 1.0, "y": 2.0, "z": 3.0}, "orientation": {"x": 0.0, "y": 0.0, "z": 0.6, "w": 0.8}}
    transform = {"translation": pose["position"], "rotation": pose["orientation"]}
    frames = [{"header": head, "child_frame_id": f"frame{'x' * i}", "transform": transform} for i in range(3)]
    layout = {"dim": [{"label": "rows", "size": 2, "stride": 6}], "data_offset": 0}
    image = {"encoding": "mono8", "is_bigendian": 0, "step": 3, "height": 1, "width": 3, "data": np.zeros(3, np.uint8)}
    return [
        ("sensor_msgs/msg/JointState", joints(1, ["a", "bcd"], [1.5, -2.0], ros1=ros1)),
        ("sensor_msgs/msg/Image", {"header": head, **image}),
        ("geometry_msgs/msg/PoseStamped", {"header": head, "pose": pose}),
        ("geometry_msgs/msg/PoseWithCovariance", {"pose": pose, "covariance": rng.normal(size=36)}),
        ("tf2_msgs/msg/TFMessage", {"transforms": frames}),
        ("std_msgs/msg/Float32MultiArray", {"layout": layout, "data": rng.normal(size=7).astype(np.float32)}),
        ("std_msgs/msg/Int64", {"data": -(2**62)}),
        ("std_msgs/msg/String", {"data": "é"}),
        ("std_msgs/msg/Bool", {"data": True}),
    ]


@pytest.mark.parametrize("ros1", [True, False])
def test_messages_as_rosbags_writes_them(ros1: bool) -> None:
    store = ROS1 if ros1 else ROS2
    for msgtype, fields in samples_of_types(ros1):
        if msgtype not in store.fielddefs:  # ROS 1 has tf2_msgs in a package of its own
            continue
        text = store.generate_msgdef(msgtype, ros_version=1 if ros1 else 2)[0]
        decoder = Decoder(parse_definition(text, msgtype, "msg"), ros1=ros1)
        assert decoder.knows(msgtype)
        obj = message(store, msgtype, fields)
        raw = store.serialize_ros1(obj, msgtype) if ros1 else store.serialize_cdr(obj, msgtype)
        assert same(decoder.decode(msgtype, bytes(raw)), obj), msgtype
        if not ros1:
            big = bytes(store.serialize_cdr(obj, msgtype, little_endian=False))
            assert same(decoder.decode(msgtype, big), obj), msgtype
        for cut in range(0, len(raw) - 1, 5):  # never anything but one error
            with pytest.raises(DataError, match="a message of"):
                decoder.decode(msgtype, bytes(raw)[:cut])


def test_alignment_by_hand() -> None:
    # uint8 at 0, float64 at 8 (7 bytes of padding), string at 16: length 3 with its NUL
    types = {"p/msg/T": (("a", ("base", "uint8")), ("b", ("base", "float64")), ("c", ("base", "string")))}
    raw = b"\0\1\0\0" + b"\x07" + bytes(7) + struct.pack("<d", 2.5) + struct.pack("<I", 3) + b"hi\0"
    assert Decoder(types, ros1=False).decode("p/msg/T", raw) == {"a": 7, "b": 2.5, "c": "hi"}
    packed = b"\x07" + struct.pack("<d", 2.5) + struct.pack("<I", 2) + b"hi"
    assert Decoder(types, ros1=True).decode("p/msg/T", packed) == {"a": 7, "b": 2.5, "c": "hi"}


def test_lengths_beyond_the_message_take_no_memory() -> None:
    numbers = {"p/msg/T": (("a", ("sequence", ("base", "float64"), 0)),)}
    empty = {"p/msg/E": (), "p/msg/T": (("a", ("sequence", ("name", "p/msg/E"), 0)),)}
    loop = {"p/msg/T": (("a", ("name", "p/msg/T")),)}
    raw = b"\0\1\0\0" + struct.pack("<I", 2**32 - 1)
    with pytest.raises(DataError, match="4294967295 values of float64 declared, 0 bytes left"):
        Decoder(numbers, ros1=False).decode("p/msg/T", raw)
    with pytest.raises(DataError, match="4294967295 elements declared"):
        Decoder(empty, ros1=True).decode("p/msg/T", raw[4:])
    with pytest.raises(DataError, match="nested more than 32"):
        Decoder(loop, ros1=True).decode("p/msg/T", raw)
    with pytest.raises(DataError, match="not the header of plain CDR"):
        Decoder(numbers, ros1=False).decode("p/msg/T", b"\0\x07\0\0")


def test_definitions_are_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for text in (
        f"float64 x = __import__('pathlib').Path('{marker}').touch()",
        f"string s \"\\\"); __import__('os').system('touch {marker}'); (\\\"\"",
        "float64[100000000] x",
        "float64 x\n" * 200_000,
    ):
        try:
            found = parse_definition(text, "p/msg/T", "msg")
            Decoder(found, ros1=True).decode("p/msg/T", bytes(64))
        except DataError:
            pass
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["none", "bz2", "lz4", "zstd", "rot13"])
def test_bombs_are_refused(kind: str) -> None:
    import lz4.frame
    import zstandard

    plain = bytes(1 << 20)
    pack: dict[str, Any] = {"bz2": bz2.compress, "lz4": lz4.frame.compress, "zstd": zstandard.compress}
    data = pack.get(kind, lambda x: x)(plain)
    if kind == "rot13":
        with pytest.raises(DataError, match="unknown compression"):
            decompress(kind, data, len(plain))
        return
    assert decompress(kind, data, len(plain)) == plain
    for declared in (len(plain) - 1, len(plain) + 1, 1 << 40):
        with pytest.raises(DataError, match="declared to hold"):
            decompress(kind, data, declared)
    if kind != "none":
        with pytest.raises(DataError):
            decompress(kind, data[: len(data) // 2], len(plain))
        with pytest.raises(DataError):
            decompress(kind, b"nonsense" * 4, 100)
    if kind == "zstd":  # messages declare no size: 2**27 zeros in a few kilobytes
        with pytest.raises(DataError, match="hold more than"):
            decompress(kind, zstandard.compress(bytes(1 << 27)), None)


def test_an_mcap_or_bag_that_was_never_closed_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    for kind in ("mcap", "bag"):
        path = write_bag(tmp_path, kind, drive(kind))
        whole = open_recording(path).topics
        path.write_bytes(path.read_bytes()[: -40 if kind == "mcap" else -200])
        recording = open_recording(path)
        assert recording.topics.keys() == whole.keys()
        assert [t.count for t in recording.topics.values()] == [t.count for t in whole.values()]
        assert "were found up to" in recording.notes[0]
        source = BagSource(path, {"mapping": MAPPING})
        assert len(source.read(0).arrays["state"]) == 39
        assert any("were found up to" in f.message for f in source.findings)


def test_a_view_instead_of_messages_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db3"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE topics(id INTEGER, name TEXT, type TEXT, serialization_format TEXT)")
        endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x AS topic_id FROM r"
        db.execute(f"CREATE VIEW messages AS {endless}")
    with pytest.raises(DataError, match="has no table messages"):
        open_recording(path)


def test_metadata_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    write_bag(tmp_path, "mcap", drive("mcap"), "elsewhere")
    folder = tmp_path / "bag"
    folder.mkdir()
    yaml = "rosbag2_bagfile_information:\n  relative_file_paths: [../elsewhere/elsewhere.mcap, /etc/passwd]\n"
    (folder / "metadata.yaml").write_text(yaml)
    assert find_recordings(folder) == [folder]
    with pytest.raises(DataError, match=r"its files are absent: elsewhere.mcap, passwd"):
        open_recording(folder)
    (folder / "metadata.yaml").write_text("rosbag2_bagfile_information: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(DataError, match="cannot be read"):
        open_recording(folder)


def test_pictures_that_declare_too_much() -> None:
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 100_000, 90_000) + bytes(9)
    assert image_size(png) == (90_000, 100_000)
    with pytest.raises(DataError, match="declares 100000 x 90000 pixels"):
        decode_image(png)
    jpeg = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08" + struct.pack(">HHB", 7, 9, 3)
    assert image_size(jpeg) == (7, 9)
    for data in (b"", b"GIF89a", png[:12], jpeg[:9], jpeg):
        with pytest.raises(DataError):
            decode_image(data)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    return {kind: write_bag(folder, kind, drive(kind, 10), kind).read_bytes() for kind in KINDS}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_damage_is_one_error_or_harmless(kind: str, data: st.DataObject, originals: Any, tmp_path: Path) -> None:
    raw = bytearray(originals[kind])
    for _ in range(data.draw(st.integers(0, 6))):
        place, width = data.draw(st.integers(0, len(raw) - 9)), data.draw(st.sampled_from([1, 4, 8]))
        raw[place : place + width] = data.draw(st.binary(min_size=width, max_size=width) | st.just(b"\xff" * width))
    path = tmp_path / f"x.{kind.split('-')[0]}"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
    try:
        source = BagSource(path, {"mapping": MAPPING})
        arrays = source.read(0).arrays
    except UserError:
        return
    assert len({len(a) for a in arrays.values()}) == 1


def test_topics_of_other_encodings_are_named(tmp_path: Path) -> None:
    mcap = pytest.importorskip("mcap.writer")
    path = tmp_path / "x.mcap"
    with path.open("wb") as file:
        writer = mcap.Writer(file)
        writer.start(profile="", library="")
        schema = writer.register_schema("geometry_msgs/Twist", "ros1msg", ROS1.generate_msgdef(TWIST)[0].encode())
        channel = writer.register_channel("/cmd", "ros1", schema)
        other = writer.register_channel("/json", "json", writer.register_schema("x", "jsonschema", b"{}"))
        for i in range(3):
            raw = ROS1.serialize_ros1(message(ROS1, TWIST, twist(i, 0)), TWIST)
            writer.add_message(channel, i * 10**8, bytes(raw), i * 10**8)
            writer.add_message(other, i * 10**8, b"{}", i * 10**8)
        writer.finish()
    source = BagSource(path, {"mapping": {"fps": 10, "keys": {"action": {"topic": "/cmd", "field": "linear.x"}}}})
    assert source.read(0).arrays["action"].tolist() == [[0.0], [1.0], [2.0]]
    assert "topic /json is not read: messages in json" in source.findings[0].message
    with pytest.raises(UserError, match="topic /json cannot be read"):
        BagSource(path, {"mapping": {"fps": 10, "keys": {"a": {"topic": "/json"}}}})


TWIST = "geometry_msgs/msg/Twist"
