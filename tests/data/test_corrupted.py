"""Damaged and hostile files of every format: read with right values or refused with one error, and nothing else.

Each variant is imported in a process of its own with little memory and time, in a folder of which nothing but the
store may change. In every sample but those with checksums a flipped bit of a value cannot be noticed by anybody.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

_HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("samples", _HERE / "samples.py")
assert _spec is not None
assert _spec.loader is not None
samples = importlib.util.module_from_spec(_spec)
sys.modules["samples"] = samples  # its dataclasses look there
_spec.loader.exec_module(samples)

_EXTRAS = {
    "lerobot": "pyarrow", "lerobot_png": "pyarrow", "robomimic": "h5py", "aloha": "h5py", "minari": "h5py",
    "umi": "imagecodecs", "ros1": "rosbags", "ros2": "rosbags", "mcap": "rosbags",
}  # fmt: skip
_QUICK = 5  # variants of each sample in the quick run
_PEAK = 600 << 20  # bytes above what the worker itself takes
Change = Callable[[Path], None]


class Marks:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("marker"),))


PICKLE = pickle.dumps(Marks())


@dataclass(frozen=True)
class Variant:
    """One way to damage the file ``name`` of a sample."""

    name: str
    how: str
    change: Change

    def __str__(self) -> str:
        return f"{self.name}: {self.how}"


def replaced(data: Callable[[bytes], bytes]) -> Change:
    return lambda file: cast(None, file.write_bytes(data(file.read_bytes())))


def variants(path: Path, seed: int) -> list[Variant]:
    """About 12 a file, of one file of each kind that the sample has; 24 where it is a single one."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    kinds: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(path.parent).as_posix()
        kinds.setdefault(re.sub(r"\d+", "0", name), file)
    out = []
    for file in kinds.values():
        name, n = file.relative_to(path.parent).as_posix(), file.stat().st_size
        rng = random.Random(f"{seed} {name}")
        kept = sorted({0, 1, n // 3, n * 9 // 10, n - 1})
        out += [Variant(name, f"cut to {k} bytes", replaced(lambda b, k=k: b[:k])) for k in kept]  # type: ignore[misc]
        many = 3 if len(kinds) == 1 else 1
        for k in range(4 * many):
            at = rng.randrange(min(n, 512) if k % 2 else n)
            out.append(Variant(name, f"bit flipped at {at}", replaced(_flip(at, rng.randrange(8)))))
        for fill in (0, 255):
            places = [rng.randrange(n) for _ in range(many)]
            out += [Variant(name, f"8 bytes of {fill} at {at}", replaced(_fill(at, fill))) for at in places]
        out.append(Variant(name, "a pickle", replaced(lambda b: PICKLE)))
        out.append(Variant(name, "twice", replaced(lambda b: b + b)))
        out.append(Variant(name, "absent", Path.unlink))
    return out


def _flip(at: int, bit: int) -> Callable[[bytes], bytes]:
    return lambda b: b[:at] + bytes([b[at] ^ 1 << bit]) + b[at + 1 :]


def _fill(at: int, value: int) -> Callable[[bytes], bytes]:
    return lambda b: b[:at] + bytes([value] * len(b[at : at + 8])) + b[at + 8 :]


class Trial:
    """A sample, its values, and a process that imports what is made of it."""

    def __init__(self, name: str, root: Path, ask: Callable[..., dict[str, Any]]) -> None:
        self.name, self.root, self._ask = name, root, ask
        (root / "sample").mkdir(parents=True)
        self.sample = samples.SAMPLES[name](root / "sample")
        self.clean = self._run(self.sample.path, keep=True)
        assert self.clean["kind"] == "read", self.clean
        assert self.clean["skipped"] == {}, self.clean
        assert self.clean["episodes"] >= 1

    def _run(self, path: Path, **more: Any) -> dict[str, Any]:
        return self._ask(
            source=str(path), store=str(self.root / "out" / "a.zarr"), format=self.sample.format, cwd=str(self.root),
            options=self.sample.options, truth=str(self.root / "truth.npz"), **more,
        )  # fmt: skip

    def damaged(self, change: Change, file: str) -> dict[str, Any]:
        """The answer, with ``faults``: what must not be."""
        for folder in ("work", "out"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        (self.root / "work").mkdir()
        (self.root / "out").mkdir()
        path = self.root / "work" / self.sample.path.name
        copy = shutil.copytree if self.sample.path.is_dir() else shutil.copy
        copy(self.sample.path, path)
        change(path.parent / file)
        if not path.exists():
            return {"kind": "refused", "faults": []}
        before = listing(self.root)
        answer = self._run(path)
        answer["faults"] = self._faults(answer, before)
        return answer

    def _faults(self, answer: dict[str, Any], before: dict[str, int]) -> list[str]:
        faults = []
        if answer["kind"] not in ("read", "refused"):
            faults.append(f"{answer['kind']}: {answer['message']}")
        if (after := listing(self.root)) != before:
            faults.append(f"files changed: {sorted(set(after.items()) ^ set(before.items()))}")
        told = [answer.get("message", ""), *answer.get("skipped", {}).values()]
        faults += [f"no memory: {t}" for t in told if "more memory than there is" in t]
        faults += [f"more than one line: {t}" for t in told if t.count("\n") > 30]
        if answer.get("peak", 0) > self.clean["peak"] + _PEAK:
            faults.append(f"took {answer['peak'] >> 20} MB")
        if self.sample.checksums and answer.get("wrong"):
            faults.append(f"wrong values: {answer['wrong']}")
        return faults


def listing(root: Path) -> dict[str, int]:
    """Every file but those of the store, with the time of its last change."""
    out = {}
    for folder, names, files in os.walk(root):
        if folder == str(root / "out"):
            names[:] = [n for n in names if n != "a.zarr"]
        for name in files:
            path = Path(folder) / name
            out[path.relative_to(root).as_posix()] = path.lstat().st_mtime_ns
    return out


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., dict[str, Any]]]:
    """Send one command to the process that imports in a child."""
    script = _HERE / "fuzz_worker.py"
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}  # arenas take address space
    worker = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    stdin, stdout = cast(Any, worker.stdin), cast(Any, worker.stdout)

    def send(**command: Any) -> dict[str, Any]:
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        return cast(dict[str, Any], json.loads(stdout.readline()))

    yield send
    stdin.close()
    worker.wait(timeout=30)


@pytest.fixture
def trial(ask: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[[str], Trial]:
    def make(name: str) -> Trial:
        if name in _EXTRAS:
            pytest.importorskip(_EXTRAS[name], reason=f"{_EXTRAS[name]} is not installed")
        return Trial(name, tmp_path / name, ask)

    return make


def judge(trial: Trial, chosen: list[Variant]) -> None:
    answers = [(v, trial.damaged(v.change, v.name)) for v in chosen]
    faults = [f"{v}: {fault}" for v, answer in answers for fault in answer["faults"]]
    if path := os.environ.get("VISUOMOTOR_FUZZ_LOG"):
        with Path(path).open("a") as f:
            for v, answer in answers:
                f.write(json.dumps({"sample": trial.name, "variant": str(v), **answer}) + "\n")
    assert not faults, "\n\n".join(faults)


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_some_damage(trial: Callable[[str], Trial], name: str) -> None:
    made = trial(name)
    chosen = variants(made.sample.path, 0)
    assert len(chosen) >= 20
    judge(made, chosen[:: len(chosen) // _QUICK])


@pytest.mark.slow
@pytest.mark.parametrize("name", samples.SAMPLES)
def test_much_damage(trial: Callable[[str], Trial], name: str) -> None:
    made = trial(name)
    judge(made, variants(made.sample.path, 1))


# ---------------------------------------------------------------- made by hand


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
    return replaced(lambda b: length + samples.masked_crc(length).to_bytes(4, "little") + b[12:])


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
