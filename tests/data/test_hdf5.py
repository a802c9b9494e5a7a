"""HDF5 from strangers: whatever is in the file, one DataError or the arrays; nothing run, followed or written."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.importing import hdf5_probe
from visuomotor.data.importing.hdf5 import Hdf5File, allowed_bytes, is_hdf5
from visuomotor.data.importing.naming import choose, numbered, store_name
from visuomotor.data.importing.registry import detect, open_source

h5py = pytest.importorskip("h5py", reason="needs the extra hdf5")
DEMO = "data/demo_0"


def sound(path: Path) -> Path:
    """A small robomimic file: three episodes of 20 steps, packed in the ways that are allowed."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as f:
        for i in range(3):
            g = f.create_group(f"data/demo_{i}")
            g.attrs["num_samples"], g.attrs["model_file"] = 20, "<mujoco/>"
            g["actions"], g["states"] = rng.normal(size=(20, 7)), rng.normal(size=(20, 9))
            g["obs/pos"] = rng.normal(size=(20, 3)).astype(">f4")
            pixels = rng.integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
            g.create_dataset("obs/image", data=pixels, chunks=(1, 16, 16, 3), compression="gzip", shuffle=True)
            g.create_dataset("obs/lzf", data=np.zeros((20, 4)), chunks=(5, 4), compression="lzf", fletcher32=True)
        f["data"].attrs["env_args"] = '{"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}}'
        f["mask/train"] = np.array(["demo_0", "demo_2"], dtype="S")
    return path


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


BOMB = pickle.dumps(Boom())


def replace(f: Any, make: Callable[[Any], None]) -> None:
    del f[f"{DEMO}/actions"]
    make(f[DEMO])


def opaque_pickle(f: Any) -> None:
    replace(f, lambda g: g.create_dataset("actions", data=np.array([np.void(BOMB)] * 20)))


def text_pickle(f: Any) -> None:
    replace(f, lambda g: g.create_dataset("actions", data=np.array([BOMB.hex()] * 20, dtype="S")))


def vlen_pickle(f: Any) -> None:
    def make(g: Any) -> None:
        d = g.create_dataset("actions", (20, 7), dtype=h5py.vlen_dtype(np.uint8))
        d[0, 0] = np.frombuffer(BOMB, np.uint8)

    replace(f, make)


def reference(f: Any) -> None:
    replace(f, lambda g: g.create_dataset("actions", data=np.array([[f.ref] * 7] * 20, dtype=h5py.ref_dtype)))


def compound(f: Any) -> None:
    replace(f, lambda g: g.create_dataset("actions", data=np.zeros((20, 7), dtype=[("a", "f8"), ("b", "f8")])))


def external_link(f: Any) -> None:
    replace(f, lambda g: g.__setitem__("actions", h5py.ExternalLink("other.hdf5", "/secret")))


def external_group(f: Any) -> None:
    del f[f"{DEMO}/obs"]
    f[f"{DEMO}/obs"] = h5py.ExternalLink("other.hdf5", "/")


def soft_link(f: Any) -> None:
    f["far"] = h5py.ExternalLink("other.hdf5", "/secret")
    replace(f, lambda g: g.__setitem__("actions", h5py.SoftLink("/far")))


def virtual(f: Any) -> None:
    layout = h5py.VirtualLayout(shape=(20, 7), dtype="f8")
    layout[:] = h5py.VirtualSource("other.hdf5", "secret", shape=(20, 7))
    replace(f, lambda g: g.create_virtual_dataset("actions", layout))


def raw_outside(f: Any) -> None:
    replace(f, lambda g: g.create_dataset("actions", (20, 7), "f8", external=[("secret.bin", 0, h5py.h5f.UNLIMITED)]))


def absurd_shape(f: Any) -> None:
    replace(f, lambda g: g.create_dataset("actions", (1 << 40, 7), "f8", chunks=(1024, 7)))


def absurd_row(f: Any) -> None:
    f[DEMO].create_dataset("obs/wide", (20, 1 << 33), "u1", chunks=(1, 1 << 20), compression="gzip")


def huge_chunk(f: Any) -> None:
    f[DEMO].create_dataset("obs/chunky", (20, 1 << 10), "u1", chunks=(1 << 18, 1 << 10), maxshape=(None, 1 << 10))


def chunk_bomb(f: Any) -> None:
    d = f[DEMO].create_dataset("obs/bomb", (20, 64), "u1", chunks=(20, 64), compression="gzip")
    d.id.write_direct_chunk((0, 0), zlib.compress(bytes(64 << 20), 9))


def late_bomb(f: Any) -> None:
    """A chunk of a size that would do, filled with what unpacks to 40 times it."""
    rng = np.random.default_rng(0)
    d = f[DEMO].create_dataset("obs/bomb", (20, 1 << 16), "u1", chunks=(20, 1 << 16), compression="gzip")
    packed = zlib.compress(rng.integers(0, 255, 1 << 20, dtype=np.uint8).tobytes() + bytes(40 << 20), 9)
    d.id.write_direct_chunk((0, 0), packed)


def plugin_filter(f: Any) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((20, 7))
    plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (2, 2, 8, 1120))
    space = h5py.h5s.create_simple((20, 7))
    replace(f, lambda g: h5py.h5d.create(g.id, b"actions", h5py.h5t.NATIVE_DOUBLE, space, plist))


def circle(f: Any) -> None:
    f[f"{DEMO}/obs/again"] = f[DEMO]


def named_type(f: Any) -> None:
    replace(f, lambda g: g.__setitem__("actions", np.dtype("f8")))


def bad_name(f: Any) -> None:
    f[f"{DEMO}/obs/pos\n"] = np.zeros((20, 2))


def many_arrays(f: Any) -> None:
    for i in range(1100):
        f[f"{DEMO}/obs/{i}"] = f[f"{DEMO}/actions"]


HOSTILE = [
    opaque_pickle, text_pickle, vlen_pickle, reference, compound, external_link, external_group, soft_link, virtual,
    raw_outside, absurd_shape, absurd_row, huge_chunk, chunk_bomb, late_bomb, plugin_filter, circle, named_type,
    bad_name, many_arrays,
]  # fmt: skip


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda f: f.__name__)
def test_hostile_files_are_refused_by_one_error(
    spoil: Callable[[Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with h5py.File("other.hdf5", "w") as f:
        f["secret"] = np.ones((20, 7))
    Path("secret.bin").write_bytes(np.ones((20, 7)).tobytes())
    with h5py.File(sound(folder / "demo.hdf5"), "a") as f:
        spoil(f)
    before = {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir()}

    def use() -> None:
        source = open_source(folder / "demo.hdf5", "robomimic")
        try:
            source.read(0)
        finally:
            source.close()

    with pytest.raises(DataError, match=r"demo\.hdf5") as caught:
        use()
    assert "\n" not in str(caught.value)
    assert {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir()} == before


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    with h5py.File(sound(tmp_path / "demo.hdf5"), "a") as f:
        d = f.create_dataset("bomb", (1 << 21,), "u1", chunks=(1 << 21,), compression="gzip")
        d.id.write_direct_chunk((0,), zlib.compress(bytes(300 << 20), 1))  # 1.3 MB that unpacks to 300
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Hdf5File(tmp_path / "demo.hdf5") as h5, pytest.raises(DataError, match="unpacks to more than 2097152 bytes"):
        h5.read("bomb")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_file_that_hangs_the_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_probe, "_SECONDS", 2.0)
    broken = bytearray(sound(tmp_path / "demo.hdf5").read_bytes())
    broken[broken.index(b"GCOL") + 24] = 255  # size of a text: HDF5 2.0 never gets to the end of that heap
    (tmp_path / "demo.hdf5").write_bytes(broken)
    with pytest.raises(DataError, match=r"demo\.hdf5 is damaged: reading it takes more than 2 s"):
        open_source(tmp_path / "demo.hdf5")
    assert detect(sound(tmp_path / "good.hdf5")) == "robomimic"  # by another process


def test_a_file_that_crashes_the_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prober = hdf5_probe._Prober()
    monkeypatch.setattr(hdf5_probe, "_PROBER", prober)
    monkeypatch.setattr(hdf5_probe, "_SERVE", "import os; print('ready', flush=True); input(); os.abort()")
    for _ in range(2):  # the second time it is known
        with pytest.raises(DataError, match=r"demo\.hdf5 is damaged: reading it crashes the HDF5 library"):
            Hdf5File(sound(tmp_path / "demo.hdf5"))
    prober.stop()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return sound(tmp_path_factory.mktemp("sound") / "demo.hdf5").read_bytes()


def outcome(path: Path) -> str:
    """``"refused"``, or how many episodes could be read; anything but a DataError goes through."""
    try:
        source = open_source(path, "robomimic")
    except DataError:
        return "refused"
    good = 0
    for i in range(len(source.episodes)):
        try:
            good += len(source.read(i).arrays) > 0
        except DataError:
            continue
    source.close()
    return str(good)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_told_and_never_a_crash(
    data: st.DataObject, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5_probe, "_SECONDS", 2.0)
    broken = bytearray(whole)
    if data.draw(st.booleans(), label="cut"):
        del broken[data.draw(st.integers(0, len(whole) - 1), label="at") :]
    for _ in range(data.draw(st.integers(0 if len(broken) < len(whole) else 1, 8), label="flips")):
        if broken:
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "demo.hdf5").write_bytes(broken)
    result = outcome(tmp_path / "demo.hdf5")
    if len(broken) < len(whole):
        assert result == "refused"


def test_a_sound_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = sound(tmp_path / "demo.hdf5")
    assert outcome(path) == "3"
    with Hdf5File(path) as h5, h5py.File(path, locking=False) as f:
        for name, stored in h5.leaves(DEMO).items():
            expected = f[f"{DEMO}/{name}"][()]
            got = h5.read(f"{DEMO}/{name}")
            assert got.shape == stored.shape
            assert got.dtype.isnative
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(h5.read(f"{DEMO}/actions", 3, 5), f[f"{DEMO}/actions"][3:5])
        assert h5.texts("mask/train") == ["demo_0", "demo_2"]
        assert h5.attributes(DEMO) == {"num_samples": 20, "model_file": "<mujoco/>"}
        with pytest.raises(DataError, match=r"has no 'data/demo_9'.*demo_"):
            h5.leaves("data/demo_9")


def test_attributes_of_other_types_are_left_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as f:
        f.attrs["pickle"], f.attrs["ref"] = np.void(BOMB), f.ref
        f.attrs["n"], f.attrs["t"], f.attrs["list"], f.attrs["none"] = 3, "x", ["a", "b"], h5py.Empty("f8")
    with Hdf5File(tmp_path / "a.hdf5") as h5:
        assert h5.attributes() == {"n": 3, "t": "x", "list": ["a", "b"]}


def test_what_is_hdf5_and_what_is_not(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "block.hdf5", "w", userblock_size=1024) as f:
        f["x"] = 1
    (tmp_path / "text.hdf5").write_text("no HDF5")
    assert is_hdf5(tmp_path / "block.hdf5")
    assert not is_hdf5(tmp_path / "text.hdf5")
    assert not is_hdf5(tmp_path)
    with pytest.raises(DataError, match=r"text\.hdf5"):
        Hdf5File(tmp_path / "text.hdf5")
    with pytest.raises(DataError, match="no format known"):
        detect(tmp_path / "block.hdf5")


def test_names_and_options() -> None:
    assert store_name("robot/pos.x") == "robot_pos_x"
    for bad in ("", "-x", "a\nb", "ä"):
        with pytest.raises(DataError, match="no name for an array"):
            store_name(bad)
    assert numbered(["demo_10", "demo_2", "demo_x", "demo_", "xdemo_1"], "demo_") == ["demo_2", "demo_10"]
    known = {"fps": None, "filter": "", "next_obs": False}
    assert choose({"fps": 5}, known, "f") == {"fps": 5, "filter": "", "next_obs": False}
    for options in ({"fsp": 5}, {"fps": -1}, {"fps": True}, {"next_obs": "yes"}, {"fps": float("nan")}):
        with pytest.raises(ConfigError, match=r"f has no option|f: option"):
            choose(options, known, "f")


@given(held=st.integers(0, 1 << 50))
def test_limits_grow_with_what_is_stored(held: int) -> None:
    assert allowed_bytes(held) >= held + (1 << 24)
