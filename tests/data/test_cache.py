from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.data import cache as cache_module
from visuomotor.data.cache import CacheConfig, load_cache
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

LENGTHS = (5, 3, 4)
T = sum(LENGTHS)
PUSHT = Path(__file__).parents[2].parent / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"


def write_store(path, arrays, names=None):
    """A store of episodes of 5, 3 and 4 steps from ``{key: [12, ...]}``."""
    specs = {k: ArraySpec(shape=v.shape[1:], dtype=v.dtype.name, names=(names or {}).get(k)) for k, v in arrays.items()}
    with DemoStore.create(path, specs) as store:
        first = 0
        for n in LENGTHS:
            store.append_episode({k: v[first : first + n] for k, v in arrays.items()})
            first += n
    return DemoStore.open(path)


def spoil(path, key, index, value):
    """Write a value that the store itself would refuse, as a foreign writer might have."""
    import zarr

    zarr.open_group(path, mode="r+")[f"data/{key}"][index] = value
    return DemoStore.open(path)


def state():
    return np.arange(T * 3, dtype=np.float64).reshape(T, 3)


def image(dtype="uint8"):
    return np.random.default_rng(0).integers(0, 256, (T, 8, 9, 3)).astype(dtype)


@pytest.fixture
def config(tmp_path):
    return CacheConfig(dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("mode", ["ram", "mmap"])
def test_values_types_and_second_load(tmp_path, mode):
    store = write_store(tmp_path / "s.zarr", {"state": state(), "img": image(), "flag": np.arange(T, dtype=np.int64)})
    config = CacheConfig(mode=mode, dir=str(tmp_path / "cache"))
    calls: list[tuple[str, int, int]] = []
    for expected_calls in ([("state", T, T), ("img", T, T), ("flag", T, T)], []):
        calls.clear()
        cache = load_cache(store, ["state", "img", "flag", "state"], config, progress=lambda *a: calls.append(a))
        assert calls == expected_calls
        assert (cache.placement, cache.nbytes) == (mode, T * (3 * 4 + 8 * 9 * 3 + 4))
        assert cache.episode_ends.tolist() == [5, 8, 12]
        assert {k: v.dtype for k, v in cache.arrays.items()} == {
            "state": torch.float32,
            "img": torch.uint8,
            "flag": torch.float32,
        }
        np.testing.assert_array_equal(cache.arrays["state"].numpy(), state())
        np.testing.assert_array_equal(cache.arrays["img"].numpy(), image())
    assert not list((tmp_path / "cache").glob("*.tmp"))


@pytest.mark.parametrize("scale", [1, 255])
def test_float_images_become_the_uint8_that_they_were(tmp_path, config, scale):
    pixels = image()
    pixels[:2] = 0  # black frames alone do not tell the convention
    store = write_store(tmp_path / "s.zarr", {"img": pixels.astype("float32") / np.float32(scale)})
    np.testing.assert_array_equal(load_cache(store, ["img"], config).arrays["img"].numpy(), pixels)


@pytest.mark.parametrize(
    ("pixels", "why"),
    [
        (np.ones((T, 8, 8, 3), "float32"), "only 0 and 1"),
        (image("float32") + np.float32(0.5), r"episode 0, step 0 .*whole numbers 0\.\.255"),
        (image("float32") / np.float32(127.5) - 1, r"expected pixels in"),
        (image("float32") * 2, r"expected pixels in whole numbers 0\.\.255"),
        (image("uint16"), "holds uint16: expected uint8"),
        (np.moveaxis(image(), -1, 1).copy(), r"channels first: expected \[H, W, C\]"),
    ],
)
def test_ambiguous_images_are_refused(tmp_path, config, pixels, why):
    with pytest.raises(DataError, match=why):
        load_cache(write_store(tmp_path / "s.zarr", {"img": pixels}), ["img"], config)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_finite_is_located(tmp_path, config, bad):
    write_store(tmp_path / "s.zarr", {"state": state()}, names={"state": ("x", "y", "z")})
    store = spoil(tmp_path / "s.zarr", "state", (7, 1), bad)
    with pytest.raises(DataError, match=r"'state' holds (nan|-?inf) at episode 1, step 2 \(row 7\), component 1 \(y\)"):
        load_cache(store, ["state"], config)
    assert not list(Path(config.dir).glob("*.tmp"))
    assert not list(Path(config.dir).glob("*/manifest.json"))


def test_a_changed_store_is_ingested_again_and_the_old_entry_goes(tmp_path, config):
    store = write_store(tmp_path / "s.zarr", {"state": state(), "other": state()})
    load_cache(store, ["state", "other"], config)
    store = spoil(tmp_path / "s.zarr", "state", (0, 0), 77.0)
    assert load_cache(store, ["state"], config).arrays["state"][0, 0] == 77
    names = sorted(p.name.split("-")[0] for p in Path(config.dir).iterdir() if p.is_dir())
    assert names == ["other", "state"]


def test_a_cut_file_is_built_again(tmp_path, config):
    store = write_store(tmp_path / "s.zarr", {"state": state()})
    load_cache(store, ["state"], config)
    file = next(Path(config.dir).glob("*/array.npy"))
    os.truncate(file, file.stat().st_size - 1)
    np.testing.assert_array_equal(load_cache(store, ["state"], config).arrays["state"].numpy(), state())


def load_in_process(path, folder, built, slow):
    store = DemoStore.open(path)
    if slow:
        read_blocks = cache_module.read_blocks

        def slowly(*args):
            yield from read_blocks(*args)
            built.put("writing")
            time.sleep(60 if slow == "killed" else 0.5)

        cache_module.read_blocks = slowly
    calls = []
    cache = load_cache(store, ["state"], CacheConfig(mode="ram", dir=folder), progress=lambda *a: calls.append(a))
    built.put((len(calls), float(cache.arrays["state"].sum())))


def test_two_processes_build_one_cache(tmp_path):
    write_store(tmp_path / "s.zarr", {"state": state()})
    context = multiprocessing.get_context("fork")
    built = context.Queue()
    arguments = (tmp_path / "s.zarr", str(tmp_path / "cache"), built, "slow")
    workers = [context.Process(target=load_in_process, args=arguments) for _ in range(2)]
    for w in workers:
        w.start()
    results = [built.get(timeout=60) for _ in range(3)]  # "writing" once, for one of them found it built
    for w in workers:
        w.join(60)
    assert results.count("writing") == 1
    assert sorted(r for r in results if r != "writing") == [(0, state().sum()), (1, state().sum())]


def test_a_killed_build_is_never_used(tmp_path):
    write_store(tmp_path / "s.zarr", {"state": state()})
    context = multiprocessing.get_context("fork")
    built = context.Queue()
    arguments = (tmp_path / "s.zarr", str(tmp_path / "cache"), built, "killed")
    worker = context.Process(target=load_in_process, args=arguments)
    worker.start()
    assert built.get(timeout=60) == "writing"
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(60)
    (leftover,) = (tmp_path / "cache").glob("*.tmp")
    config = CacheConfig(mode="ram", dir=str(tmp_path / "cache"))
    cache = load_cache(DemoStore.open(tmp_path / "s.zarr"), ["state"], config)
    np.testing.assert_array_equal(cache.arrays["state"].numpy(), state())
    assert not leftover.exists()


def test_a_full_disk_falls_back_to_ram_within_the_budget(tmp_path, config, monkeypatch):
    store = write_store(tmp_path / "s.zarr", {"state": state()})

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache = load_cache(store, ["state"], config)
    assert cache.placement == "ram"
    assert "No space left on device" in cache.reason
    np.testing.assert_array_equal(cache.arrays["state"].numpy(), state())
    assert not list(Path(config.dir).glob("*.tmp"))
    for refused in (CacheConfig(mode="mmap", dir=config.dir), CacheConfig(ram_budget_gb=1e-9, dir=config.dir)):
        with pytest.raises(ConfigError, match="No space left on device"):
            load_cache(store, ["state"], refused)


def test_a_cache_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    store = write_store(tmp_path / "s.zarr", {"state": state()})
    cache = load_cache(store, ["state"], CacheConfig(dir=str(tmp_path / "file" / "cache")))
    assert "Not a directory" in cache.reason


def test_placement_follows_the_budgets(tmp_path, config):
    store = write_store(tmp_path / "s.zarr", {"state": state()})
    cache = load_cache(store, ["state"], CacheConfig(ram_budget_gb=1.0, dir=config.dir))
    assert (cache.placement, cache.reason) == ("ram", "the arrays take 0.000 GB, within the ram budget 1.000 GB")
    cache = load_cache(store, ["state"], CacheConfig(ram_budget_gb=1e-9, dir=config.dir))
    assert (cache.placement, cache.reason) == ("mmap", "the arrays take 0.000 GB, over the ram budget 0.000 GB")
    with pytest.raises(ConfigError, match="over the ram budget"):
        load_cache(store, ["state"], CacheConfig(mode="ram", ram_budget_gb=1e-9, dir=config.dir))
    with pytest.raises(ConfigError, match="needs an accelerator"):
        load_cache(store, ["state"], CacheConfig(mode="device", dir=config.dir))
    with pytest.raises(ConfigError, match="Did you mean 'mmap'"):
        CacheConfig(mode="mmapp")
    assert load_cache(store, ["state"], config).placement == "ram"


def test_cache_directory_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("VISUOMOTOR_CACHE", str(tmp_path))
    assert CacheConfig().root == tmp_path
    assert CacheConfig(dir="/elsewhere").root == Path("/elsewhere")


def test_missing_key_and_empty_store(tmp_path, config):
    store = write_store(tmp_path / "s.zarr", {"state": state()})
    with pytest.raises(DataError, match=r"no array 'stat'.*'state'"):
        load_cache(store, ["stat"], config)
    DemoStore.create(tmp_path / "empty.zarr", {"state": ArraySpec(shape=(3,))}).close()
    with pytest.raises(DataError, match="holds no episodes"):
        load_cache(DemoStore.open(tmp_path / "empty.zarr"), ["state"], config)


@pytest.mark.gpu
def test_device_placement(tmp_path):
    store = write_store(tmp_path / "s.zarr", {"state": state()})
    cache = load_cache(store, ["state"], CacheConfig(dir=str(tmp_path / "cache")), "cuda")
    assert cache.placement == "device"
    assert cache.arrays["state"].is_cuda


@pytest.mark.skipif(not PUSHT.exists(), reason=f"the Push-T demonstrations are not at {PUSHT}")
def test_push_t_state_and_action(config):
    cache = load_cache(DemoStore.open(PUSHT), ["state", "action"], config)
    assert cache.arrays["state"].shape == (25650, 5)
    assert len(cache.episode_ends) == 206
    assert cache.arrays["action"].min() == 12
    assert cache.arrays["action"].max() == 511
