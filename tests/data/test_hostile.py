"""Hostile files made by hand: paths that lead out, pickles, bombs, absurd sizes, endless files; see fuzzing.py."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))
from fuzzing import PICKLE, Ask, Change, Marks, Trial, make_trial, replaced, worker
from samples import masked_crc


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with worker() as send:
        yield send


@pytest.fixture(scope="module")
def trial(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trial]:
    """Trials by the names of their samples, each made once."""
    return cache(lambda name: make_trial(name, tmp_path_factory.mktemp("trial"), ask))


def told(**entries: Any) -> Change:
    """A JSON file with other entries."""
    return replaced(lambda b: json.dumps({**json.loads(b), **entries}).encode())


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Change:
    """An archive with more entries, or other ones of the same name."""

    def change(file: Path) -> None:
        with zipfile.ZipFile(file) as old:
            kept = {n: old.read(n) for n in old.namelist()}
        with zipfile.ZipFile(file, "w", method) as new:
            for name, data in {**kept, **entries}.items():
                new.writestr(name, data)

    return change


def linked(target: str) -> Change:
    def change(file: Path) -> None:
        file.unlink()
        file.symlink_to(target)

    return change


def looped(file: Path) -> None:
    (file.parent / "loop").symlink_to("..", target_is_directory=True)


def pickled_npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Marks()] * 13, dtype=object))
    return buffer.getvalue()


def hdf5(change: Callable[[Any], None]) -> Change:
    def edit(file: Path) -> None:
        import h5py

        with h5py.File(file, "a") as f:
            change(f)

    return edit


def hdf5_pickle(f: Any) -> None:
    del f["data/demo_0/actions"]
    f["data/demo_0"].create_dataset("actions", data=np.array([np.void(PICKLE)] * 8))


def hdf5_link(f: Any) -> None:
    import h5py

    del f["data/demo_0/actions"]
    f["data/demo_0/actions"] = h5py.ExternalLink("../sample/robomimic.hdf5", "/data/demo_0/actions")


def hdf5_absurd(f: Any) -> None:
    del f["data/demo_0/actions"]
    f["data/demo_0"].create_dataset("actions", (1 << 40, 2), "f4", chunks=(1024, 2), compression="gzip")


def parquet_pickle(file: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({"pandas": PICKLE, "huggingface": PICKLE}), file)


def parquet_bomb(file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    zeros = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000_000, np.int32)), pa.array([PICKLE * 50]))
    pq.write_table(pa.table({"episode_index": zeros, "action": zeros}), file, compression="zstd")


def record_of(n: int) -> Change:
    length = n.to_bytes(8, "little")
    return replaced(lambda b: length + masked_crc(length).to_bytes(4, "little") + b[12:])


INFO, DATA = "lerobot/meta/info.json", "lerobot/data/chunk-000/file-000.parquet"
ZARR, YAML, ENDS = "buffer.zarr/data/action/.zarray", "ros2/metadata.yaml", "meta/episode_ends/.zarray"
PYTHON_TAG = b"\nx: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [marker]]\n"
HOSTILE: dict[str, tuple[str, str, Change]] = {
    "lerobot: data outside": ("lerobot", INFO, told(data_path="../../sample/" + DATA)),
    "lerobot: absolute data": ("lerobot", INFO, told(data_path="/etc/passwd")),
    "lerobot: videos outside": ("lerobot", INFO, told(video_path="../../sample/lerobot/videos/{video_key}.mp4")),
    "lerobot: format string": ("lerobot", INFO, told(data_path="{chunk_index.__class__}/{file_index!r:>999999999}")),
    "lerobot: absurd shape": ("lerobot", INFO, told(features={"action": {"dtype": "float32", "shape": [10**18]}})),
    "lerobot: no features": ("lerobot", INFO, told(features=[1])),
    "lerobot: rate": ("lerobot", INFO, told(fps=-1)),
    "lerobot: nested": ("lerobot", INFO, replaced(lambda b: b"[" * 200_000)),
    "lerobot: version": ("lerobot", INFO, told(codebase_version={"a": []})),
    "lerobot: parquet bomb": ("lerobot", DATA, parquet_bomb),
    "lerobot: endless data": ("lerobot", DATA, linked("/dev/zero")),
    "robomimic: pickle": ("robomimic", "robomimic.hdf5", hdf5(hdf5_pickle)),
    "robomimic: outside": ("robomimic", "robomimic.hdf5", hdf5(hdf5_link)),
    "robomimic: absurd shape": ("robomimic", "robomimic.hdf5", hdf5(hdf5_absurd)),
    "zarr: absurd shape": ("zarr_2", ZARR, told(shape=[10**15, 2])),
    "zarr: huge chunks": ("zarr_2", ZARR, told(chunks=[10**8, 2])),
    "zarr: pickle": ("zarr_2", ZARR, told(compressor={"id": "pickle"})),
    "zarr: objects": ("zarr_2", ZARR, told(dtype="|O", filters=[{"id": "vlen-utf8"}], compressor={"id": "pickle"})),
    "zarr: ends": ("zarr_2", "buffer.zarr/" + ENDS, told(shape=[10**9], chunks=[10**9])),
    "zarr: nested": ("zarr_2", ZARR, replaced(lambda b: b"[" * 200_000)),
    "zip: outside": ("zarr_zip", "buffer.zarr.zip", zipped({"../escaped": b"x"})),
    "zip: absolute": ("umi", "dataset.zarr.zip", zipped({"/tmp/escaped": b"x"})),
    "zip: bomb": ("zarr_zip", "buffer.zarr.zip", zipped({"data/camera/0.0.0.0": bytes(300 << 20)})),
    "umi: other frame": ("umi", "dataset.zarr.zip", zipped({"data/camera0_rgb/3.0.0.0": b"\xff\x0a" + bytes(99)})),
    "npz: pickle": ("npz", "demos.npz", zipped({"data/action.npy": pickled_npy()})),
    "npz: bomb": ("npz", "demos.npz", zipped({"data/action.npy": bytes(300 << 20)})),
    "npz: outside": ("npz", "demos.npz", zipped({"../escaped.npy": b"x"})),
    "bag: python": ("ros2", YAML, replaced(lambda b: b + PYTHON_TAG)),
    "rlds: absurd shape": ("rlds", "rlds/features.json", replaced(lambda b: b.replace(b'"3"', b'"3000000000000"'))),
    "rlds: endless record": ("rlds", "rlds/demo-train.tfrecord-00000-of-00001", record_of(1 << 62)),
    "rlds: endless file": ("rlds", "rlds/demo-train.tfrecord-00000-of-00001", linked("/dev/zero")),
}  # fmt: skip
# What must be read all the same: what is hostile in it is never looked at, or replaced by what is right.
HARMLESS: dict[str, tuple[str, str, Change]] = {
    "lerobot: pickled metadata": ("lerobot", DATA, parquet_pickle),
    "bag: outside": ("ros2", YAML, replaced(lambda b: b.replace(b"ros2.db3", b"../../sample/ros2/ros2.db3"))),
    "rlds: outside": ("rlds", "rlds/dataset_info.json", replaced(lambda b: b.replace(b"{DATASET}", b"../{DATASET}"))),
    "zarr: a loop of links": ("zarr_2", ZARR, looped),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(trial: Callable[[str], Trial], case: str) -> None:
    """Refused, or the arrays or episodes in question are left out and named."""
    name, file, change = HOSTILE[case]
    made = trial(name)
    answer = made.damaged(change, file)
    assert answer["faults"] == []
    named = (
        answer["kind"] == "refused" or bool(answer["skipped"]) or len(answer["findings"]) > len(made.clean["findings"])
    )
    assert named, answer


@pytest.mark.parametrize("case", HARMLESS)
def test_harmless(trial: Callable[[str], Trial], case: str) -> None:
    name, file, change = HARMLESS[case]
    made = trial(name)
    answer = made.damaged(change, file)
    assert answer["faults"] == []
    assert (answer["kind"], answer["episodes"], answer["wrong"]) == ("read", made.clean["episodes"], [])
