"""RLDS and TFRecord: bytes written by hand, and by TensorFlow Datasets where its interpreter is given."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visuomotor.data.errors import ConfigError, DataError, UserError
from visuomotor.data.importing.registry import detect, open_source
from visuomotor.data.importing.rlds import RldsSource
from visuomotor.data.importing.run import import_demos
from visuomotor.data.importing.tfrecord import masked_crc, parse_example, read_record, record_spans
from visuomotor.data.store import DemoStore

PREFIX = "tensorflow_datasets.core.features."


def varint(n: int) -> bytes:
    n &= 2**64 - 1
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def sub(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def feature(values: Any, *, packed: bool = True) -> bytes:
    if isinstance(values, list):
        return sub(1, b"".join(sub(1, v) for v in values))
    if values.dtype.kind == "f":
        raw = values.astype("<f4").tobytes()
        return sub(2, sub(1, raw) if packed else b"".join(b"\x0d" + raw[i : i + 4] for i in range(0, len(raw), 4)))
    numbers = [varint(int(v)) for v in values]
    return sub(3, sub(1, b"".join(numbers)) if packed else b"".join(b"\x08" + n for n in numbers))


def example(features: dict[str, Any], *, packed: bool = True) -> bytes:
    entries = [sub(1, sub(1, k.encode()) + sub(2, feature(v, packed=packed))) for k, v in features.items()]
    return sub(1, b"".join(entries))


def frame(data: bytes) -> bytes:
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked_crc(head)) + data + struct.pack("<I", masked_crc(data))


def tensor(dtype: str, *shape: int, encoding: str = "none") -> dict[str, Any]:
    inner = {"dimensions": [str(n) for n in shape]} if shape else {}
    return {"pythonClassName": PREFIX + "Tensor", "tensor": {"shape": inner, "dtype": dtype, "encoding": encoding}}


def picture(*shape: int, dtype: str = "uint8") -> dict[str, Any]:
    inner = {"dimensions": [str(n) for n in shape]} if shape else {}
    return {"pythonClassName": PREFIX + "Image", "image": {"shape": inner, "dtype": dtype, "encodingFormat": "png"}}


TEXT = {"pythonClassName": PREFIX + "Text", "text": {}}


def group(**features: Any) -> dict[str, Any]:
    return {"pythonClassName": PREFIX + "FeaturesDict", "featuresDict": {"features": features}}


def png(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1])


LENGTHS = (3, 5, 2)
STEPS = group(
    observation=group(image=picture(), depth=picture(8, 9, 1, dtype="uint16"), state=tensor("float32", 4)),
    action=group(move=tensor("float32", 2), grip=tensor("bool")),
    blob=tensor("float64", 2, encoding="zlib"),
    reward=tensor("float32"),
    language_instruction=TEXT,
    ragged=tensor("float32", -1),
)


def episode(i: int) -> dict[str, np.ndarray]:
    rng, n = np.random.default_rng(i), LENGTHS[i]
    return {
        "image": rng.integers(0, 256, (n, 10, 12, 3), np.uint8),
        "depth": rng.integers(0, 60_000, (n, 8, 9)).astype(np.uint16),
        "state": rng.normal(size=(n, 4)).astype(np.float32),
        "action_move": rng.normal(size=(n, 2)).astype(np.float32),
        "action_grip": rng.integers(0, 2, (n, 1)).astype(bool),
        "blob": rng.normal(size=(n, 2)),
        "reward": np.arange(n, dtype=np.float32),
    }


def record(i: int) -> bytes:
    a, n = episode(i), LENGTHS[i]
    return example(
        {
            "steps/observation/image": [png(x) for x in a["image"]],
            "steps/observation/depth": [png(x) for x in a["depth"]],
            "steps/observation/state": a["state"].ravel(),
            "steps/action/move": a["action_move"].ravel(),
            "steps/action/grip": a["action_grip"].ravel().astype(np.int64),
            "steps/blob": [zlib.compress(x.tobytes()) for x in a["blob"]],
            "steps/reward": a["reward"],
            "steps/language_instruction": [f"do {i}".encode()] * n,
            "episode_metadata/file": [f"/x/{i}".encode()],
            "episode_metadata/id": np.array([-i]),
        },
        packed=i != 1,
    )


def write(folder: Path, **info: Any) -> Path:
    """A dataset of two shards (two episodes and one)."""
    folder.mkdir(parents=True)
    meta = group(file=TEXT, id=tensor("int32"))
    steps = {"pythonClassName": PREFIX + "Dataset", "sequence": {"feature": STEPS, "length": "-1"}}
    (folder / "features.json").write_text(json.dumps(group(steps=steps, episode_metadata=meta)))
    split = {"name": "train", "shardLengths": ["2", "1"], "numBytes": "1"}
    (folder / "dataset_info.json").write_text(
        json.dumps({"name": "toy", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split], **info})
    )
    (folder / "toy-train.tfrecord-00000-of-00002").write_bytes(frame(record(0)) + frame(record(1)))
    (folder / "toy-train.tfrecord-00001-of-00002").write_bytes(frame(record(2)))
    return folder


def test_checksum_of_the_standard() -> None:
    # CRC32C of "123456789" is 0xE3069283 (RFC 3720 B.4); rotated right by 15: 0x2507C60D; plus 0xA282EAD8
    assert masked_crc(b"123456789") == (0x2507C60D + 0xA282EAD8) & 0xFFFFFFFF


def test_an_example_byte_by_byte() -> None:
    # feature "a": int64_list {value: [1, 300, -1]}: 300 is ac 02, -1 ten bytes
    numbers = bytes.fromhex("01ac02ffffffffffffffffff01")
    body = b"\x1a" + bytes([len(numbers) + 2]) + b"\x0a" + bytes([len(numbers)]) + numbers
    entry = b"\x0a\x01a\x12" + bytes([len(body)]) + body
    whole = b"\x0a" + bytes([len(entry) + 2]) + b"\x0a" + bytes([len(entry)]) + entry
    parsed = parse_example(whole)
    assert parsed["a"].tolist() == [1, 300, -1]  # type: ignore[union-attr]
    assert whole == example({"a": np.array([1, 300, -1])})


def test_sequence_example_is_end_to_end() -> None:
    lists = sub(1, sub(1, b"s") + sub(2, b"".join(sub(1, feature(np.array([k, k + 0.5]))) for k in range(3))))
    parsed = parse_example(example({"c": [b"x"]}) + sub(2, lists))
    assert parsed["c"] == [b"x"]
    assert parsed["s"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]  # type: ignore[union-attr]


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.booleans())
def test_whole_numbers_of_any_size(values: list[int], packed: bool) -> None:
    parsed = parse_example(example({"a": np.array(values, np.int64)}, packed=packed))
    assert list(parsed["a"]) == values


def test_every_value_comes_through(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy" / "1.0.0").parent
    assert detect(folder) == "rlds"
    source = open_source(folder)
    assert [e.id for e in source.episodes] == [
        "toy-train.tfrecord-00000-of-00002#0", "toy-train.tfrecord-00000-of-00002#1",
        "toy-train.tfrecord-00001-of-00002#0",
    ]  # fmt: skip
    assert source.columns == {"split": "str", "task": "str", "file": "str", "id": "int64"}
    assert {k: s.role for k, s in source.specs.items()} == {
        "image": "observation", "depth": "observation", "state": "observation", "action_move": "action",
        "action_grip": "action", "blob": "other", "reward": "reward",
    }  # fmt: skip
    assert [f.message for f in source.findings] == ["steps/ragged is not imported: its shape varies"]
    report = import_demos(source, tmp_path / "out.zarr")
    assert (report.episodes, report.steps, report.skipped) == (3, 10, {})
    with DemoStore.open(tmp_path / "out.zarr") as store:
        for key in source.specs:
            expected = np.concatenate([episode(i)[key] for i in range(3)])
            np.testing.assert_array_equal(store.read(key, 0, 10), expected, err_msg=key)
        assert store.episode_columns["task"].tolist() == ["do 0", "do 1", "do 2"]
        assert store.episode_columns["id"].tolist() == [0, -1, -2]


def test_absent_and_short_shards_are_reported(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy")
    (folder / "toy-train.tfrecord-00000-of-00002").unlink()
    source = RldsSource(folder, {})
    assert len(source.episodes) == 1
    assert "shard toy-train.tfrecord-00000-of-00002 is absent: 2 episodes" in source.findings[0].message
    shard = folder / "toy-train.tfrecord-00001-of-00002"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(DataError, match="no record was found"):
        RldsSource(folder, {})
    with pytest.raises(DataError, match=r"declares \d+ bytes"):
        record_spans(shard)


def test_names_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    split = {"name": "../../etc/passwd", "shardLengths": ["1"], "filepathTemplate": "/{SPLIT}"}
    with pytest.raises(DataError, match="no record was found"):
        RldsSource(write(tmp_path / "toy", splits=[split]), {})


def test_options_and_layouts_that_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy")
    with pytest.raises(ConfigError, match=r"no split 'test'. Known: train"):
        RldsSource(folder, {"split": "test"})
    with pytest.raises(ConfigError, match="no option 'splits'"):
        RldsSource(folder, {"splits": "train"})
    with pytest.raises(DataError, match="stored as 'riegeli'"):
        RldsSource(write(tmp_path / "r", fileFormat="riegeli"), {})
    (folder / "features.json").write_text('{"type": "old", "content": {"steps": 1}}')
    with pytest.raises(DataError, match=r"is no feature|names no features|has no steps"):
        RldsSource(folder, {})


def test_wrong_checksums_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    data = bytearray(frame(b"hello") + frame(b"world"))
    path.write_bytes(data)
    spans = record_spans(path)
    assert [read_record(path, s) for s in spans] == [b"hello", b"world"]
    data[14] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="the record at byte 0 is damaged"):
        read_record(path, spans[0])
    data[21 + 2] ^= 1  # in the length of the second
    path.write_bytes(data)
    with pytest.raises(DataError, match="header of record 1 at byte 21 is damaged"):
        record_spans(path)


def test_a_huge_length_takes_no_memory(tmp_path: Path) -> None:
    head = struct.pack("<Q", 2**60)
    (tmp_path / "x").write_bytes(head + struct.pack("<I", masked_crc(head)) + bytes(100))
    with pytest.raises(DataError, match="declares 1152921504606846976 bytes"):
        record_spans(tmp_path / "x")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_inside_of_good_checksums_is_one_error(data: st.DataObject, tmp_path: Path) -> None:
    """Whoever damages on purpose sets the checksums right."""
    folder = tmp_path / "toy"
    if not folder.exists():
        write(folder)
    raw = bytearray(record(2))
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(raw) - 1) | st.integers(0, 60))
        raw[place : place + 1] = data.draw(st.binary(min_size=1, max_size=4) | st.just(b"\xff" * 9))
    raw = raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))]
    (folder / "toy-train.tfrecord-00001-of-00002").write_bytes(frame(bytes(raw)))
    try:
        arrays = RldsSource(folder, {}).read(2).arrays
    except UserError:
        return
    assert len({len(a) for a in arrays.values()}) == 1


TFDS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, tensorflow_datasets as tfds
from toy_builder.toy_builder import ToyBuilder
builder = ToyBuilder(data_dir=sys.argv[1] + "/data")
builder.download_and_prepare()
out = {}
for e, episode in enumerate(builder.as_dataset(split="train")):
    steps = list(episode["steps"].as_numpy_iterator())
    for k in ("image", "state"):
        out[f"{e}/{k}"] = np.stack([s["observation"][k] for s in steps])
    for k in ("action", "matrix", "is_last"):
        out[f"{e}/{k}"] = np.stack([s[k] for s in steps])
    out[f"{e}/task"] = steps[0]["language_instruction"].decode()
np.savez(sys.argv[1] + "/truth.npz", **out)
"""
BUILDER = """
import numpy as np, tensorflow_datasets as tfds
class ToyBuilder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        f = tfds.features
        return self.dataset_info_from_configs(features=f.FeaturesDict({"steps": f.Dataset({
            "observation": f.FeaturesDict({"image": f.Image(shape=(24, 32, 3), dtype=np.uint8, encoding_format="png"),
                                           "state": f.Tensor(shape=(4,), dtype=np.float32)}),
            "action": f.Tensor(shape=(2,), dtype=np.float64, encoding="zlib"),
            "matrix": f.Tensor(shape=(2, 3), dtype=np.int64), "is_last": f.Scalar(dtype=np.bool_),
            "language_instruction": f.Text()})}))
    def _split_generators(self, manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(4):
            r = np.random.default_rng(i)
            yield str(i), {"steps": [{
                "observation": {"image": r.integers(0, 256, (24, 32, 3)).astype(np.uint8),
                                "state": r.normal(size=4).astype(np.float32)},
                "action": r.normal(size=2), "matrix": r.integers(-9, 9, (2, 3)), "is_last": k == i,
                "language_instruction": f"task {i}"} for k in range(i + 1)]}
"""


@pytest.mark.slow
@pytest.mark.skipif(
    "TFDS_PYTHON" not in os.environ, reason="TFDS_PYTHON is no interpreter that has tensorflow-datasets"
)
def test_what_tensorflow_datasets_writes_is_read_as_it_reads_it(tmp_path: Path) -> None:
    package = tmp_path / "toy_builder"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "toy_builder.py").write_text(BUILDER)
    command = [os.environ["TFDS_PYTHON"], "-c", TFDS, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=200, cwd=tmp_path)
    source = open_source(tmp_path / "data" / "toy_builder")
    truth = np.load(tmp_path / "truth.npz")
    assert len(source.episodes) == 4
    for e in range(4):
        got = source.read(e)
        assert got.columns["task"] == str(truth[f"{e}/task"])
        for key in ("image", "state", "action", "matrix", "is_last"):
            np.testing.assert_array_equal(got.arrays[key], truth[f"{e}/{key}"])
