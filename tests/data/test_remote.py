from __future__ import annotations

import importlib.util
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from visuomotor.data.cache import CacheConfig, load_cache
from visuomotor.data.describe import describe
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.remote import UrlPath, as_path, is_url
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

pytest.importorskip("obstore", reason="the extra remote is not installed")
_spec = importlib.util.spec_from_file_location("object_server", Path(__file__).with_name("object_server.py"))
assert _spec is not None
assert _spec.loader is not None
object_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(object_server)

SHAPE = (24, 24, 3)


def write(path, n_episodes=6, seed=0):
    rng = np.random.default_rng(seed)
    specs = {"action": ArraySpec(shape=(2,), role="action", unit="m"), "img": ArraySpec(shape=SHAPE, dtype="uint8")}
    specs["state"] = ArraySpec(shape=(3,), dtype="float64", role="observation")
    with DemoStore.create(path, specs, fps=10, episode_columns={"task": "str"}) as store:
        for i in range(n_episodes):
            n = 20 + i
            arrays = {
                "action": rng.normal(size=(n, 2)).astype(np.float32),
                "img": rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8),
                "state": rng.normal(size=(n, 3)),
            }
            store.append_episode(arrays, {"task": f"task {i}"})


def pack(folder, compression):
    target = folder.with_name(folder.name + ".zip")
    with zipfile.ZipFile(target, "w", compression) as archive:
        for p in sorted(folder.rglob("*")):
            if p.is_file():
                archive.write(p, p.relative_to(folder))
    return target


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    write(root / "bucket" / "sets" / "demos.zarr")
    pack(root / "bucket" / "sets" / "demos.zarr", zipfile.ZIP_DEFLATED)
    server = object_server.ObjectServer(root)
    yield server
    server.close()


@pytest.fixture
def server(served, monkeypatch):
    served.fail, served.ranges, served.index, served.delay_s = {}, True, True, 0.0
    served.requests.clear()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": served.url, "VISUOMOTOR_TIMEOUT_S": "5", "NO_PROXY": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return served


def urls(server):
    return {
        "s3": "s3://bucket/sets/demos.zarr",
        "s3 zip": "s3://bucket/sets/demos.zarr.zip",
        "http": f"{server.url}/bucket/sets/demos.zarr",
        "http zip": f"{server.url}/bucket/sets/demos.zarr.zip",
    }


def test_a_url_prints_as_it_was_and_joins():
    assert str(as_path("s3://bucket/a/demos.zarr")) == "s3://bucket/a/demos.zarr"
    assert str(as_path("https://host:80/x") / "y") == "https://host:80/x/y"
    assert str(as_path(Path("gs://b/x"))) == "gs://b/x"  # pathlib has made one slash of two
    assert isinstance(as_path("http://h/x"), UrlPath)
    assert not is_url("/home/s3:/x")
    assert not is_url("data/demos.zarr")
    assert as_path("~/x") == Path.home() / "x"


@pytest.mark.parametrize("kind", ["s3", "s3 zip", "http", "http zip"])
def test_a_remote_store_is_the_local_one(server, kind):
    with DemoStore.open(server.root / "bucket/sets/demos.zarr") as local, DemoStore.open(urls(server)[kind]) as remote:
        assert remote.specs == local.specs
        assert remote.fps == local.fps == 10
        assert remote.episode_ends.tolist() == local.episode_ends.tolist()
        assert remote.episode_columns["task"].tolist() == [f"task {i}" for i in range(6)]
        for key in local.keys:
            np.testing.assert_array_equal(remote.read(key, 0, local.n_steps), local.read(key, 0, local.n_steps))
            np.testing.assert_array_equal(remote.read(key, 33, 41), local.read(key, 33, 41))
        a, b = describe(remote), describe(local)
        assert a.pop("path") == urls(server)[kind]
        assert b.pop("path")
        assert a == b


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_the_cache_is_filled_once_and_follows_the_content(server, kind, tmp_path):
    write(server.root / "bucket" / "changing.zarr")
    url = {"s3": "s3://bucket/changing.zarr", "http": f"{server.url}/bucket/changing.zarr"}[kind]
    config, calls = CacheConfig(dir=str(tmp_path)), []
    with DemoStore.open(url) as store:
        cache = load_cache(store, ["img", "state"], config, progress=lambda *a: calls.append(a))
        assert cache.arrays["img"].numpy().tobytes() == store.read("img", 0, store.n_steps).tobytes()
    with DemoStore.open(url) as store:
        n = len(calls)
        load_cache(store, ["img", "state"], config, progress=lambda *a: calls.append(a))
    assert len(calls) == n > 0
    shutil.rmtree(server.root / "bucket" / "changing.zarr")
    write(server.root / "bucket" / "changing.zarr", seed=1)
    with DemoStore.open(url) as store:
        again = load_cache(store, ["img", "state"], config)
        assert again.arrays["img"].numpy().tobytes() == store.read("img", 0, store.n_steps).tobytes()
        assert not again.arrays["img"].equal(cache.arrays["img"])
    shutil.rmtree(server.root / "bucket" / "changing.zarr")


def test_a_download_that_breaks_off_goes_on(server, tmp_path, monkeypatch):
    import visuomotor.data.ingest as ingest

    monkeypatch.setattr(ingest, "_BLOCK_BYTES", 1)  # a block is then one chunk file
    config = CacheConfig(dir=str(tmp_path))
    path = server.root / "bucket" / "long.zarr"
    write(path, 60)
    with DemoStore.open("s3://bucket/long.zarr") as store:
        rows = store.arrays["img"].chunks[0]
        monkeypatch.setattr("visuomotor.data.reader.chunk_rows", lambda a: rows)
        fetched: list[int] = []

        def stop_after_three(key, done, total):
            fetched.append(done)
            if len(fetched) == 3:
                raise DataError("the line went dead")

        with pytest.raises(DataError, match="went dead"):
            load_cache(store, ["img"], config, progress=stop_after_three)
        (left,) = tmp_path.glob("*.tmp")
        assert int((left / "rows").read_text()) == fetched[-1] == 3 * rows
        with open(left / "array.npy", "ab") as f:
            f.write(b"torn")  # of a block that was being written
        fetched.clear()
        cache = load_cache(store, ["img"], config, progress=lambda k, done, total: fetched.append(done))
        assert fetched[0] == 4 * rows
        np.testing.assert_array_equal(cache.arrays["img"].numpy(), store.read("img", 0, store.n_steps))
    assert not list(tmp_path.glob("*.tmp"))
    shutil.rmtree(path)


def test_large_objects_come_in_parallel_ranges(server, monkeypatch):
    monkeypatch.setattr("visuomotor.data.remote._PIECE_BYTES", 20_000)
    with DemoStore.open("s3://bucket/sets/demos.zarr") as store:
        server.requests.clear()
        whole = store.read("img", 0, store.n_steps)
        ranges = [r for _, name, r in server.requests if "img/c" in name and r]
        assert len(ranges) > 5
    with DemoStore.open(server.root / "bucket/sets/demos.zarr") as local:
        np.testing.assert_array_equal(whole, local.read("img", 0, local.n_steps))


def test_a_web_server_without_ranges_serves_folders_but_no_archives(server):
    server.ranges = False
    with DemoStore.open(urls(server)["http"]) as store:
        assert store.read("img", 3, 40).shape == (37, *SHAPE)
    with pytest.raises(DataError, match="gives no byte ranges, which reading an archive needs"):
        DemoStore.open(urls(server)["http zip"])


def test_a_web_server_that_lists_nothing_needs_consolidated_metadata(server):
    import zarr

    server.index = False
    with pytest.raises(DataError, match=r"cannot be found|without meta/episode_ends"):
        DemoStore.open(urls(server)["http"])
    path = server.root / "bucket" / "consolidated.zarr"
    write(path)
    with pytest.warns(Warning, match="Consolidated"):
        zarr.consolidate_metadata(path)
    with DemoStore.open(f"{server.url}/bucket/consolidated.zarr") as store, DemoStore.open(path) as local:
        assert store.keys == local.keys
        assert list(store.episode_columns) == ["task"]
        np.testing.assert_array_equal(store.read("state", 0, store.n_steps), local.read("state", 0, local.n_steps))
        assert len(store.fingerprint(["state"])) == 64
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://nowhere/demos.zarr", "no such bucket|no zarr.json"),
        ("s3://bucket/sets/other.zarr", "no demonstration store at s3://bucket/sets/other.zarr: there is no zarr.json"),
        ("s3://bucket/sets/other.zarr.zip", "nothing is there"),
        ("s3://bucket/sets/demos.zarr/data/img", "a single Zarr array"),
        ("http://127.0.0.1:9/demos.zarr", "the server cannot be reached"),
    ],
)
def test_what_is_not_there_is_one_error(server, url, why):
    with pytest.raises(DataError, match=why):
        DemoStore.open(url)


def test_no_permission_and_no_answer_are_one_error(server, monkeypatch):
    server.fail = {"zarr.json": 403, ".zarray": 403, ".zgroup": 403}
    with pytest.raises(DataError, match=r"no permission\. Set the credentials"):
        DemoStore.open("s3://bucket/sets/demos.zarr")
    server.fail = {}
    monkeypatch.setenv("VISUOMOTOR_TIMEOUT_S", "0.2")
    server.delay_s = 1.0
    with pytest.raises(DataError, match=r"no answer in time \(VISUOMOTOR_TIMEOUT_S=0\.2\)"):
        DemoStore.open("s3://bucket/sets/demos.zarr")
    server.delay_s = 0.0
    monkeypatch.setenv("VISUOMOTOR_TIMEOUT_S", "5")
    with DemoStore.open("s3://bucket/sets/demos.zarr") as store:
        monkeypatch.setattr(server, "fail", {"img/c/0/0/0/0": 403, "img/c.0.0.0.0": 403})
        with pytest.raises(DataError, match="no permission"):
            store.read("img", 0, 5)
    monkeypatch.setenv("VISUOMOTOR_TIMEOUT_S", "soon")
    with pytest.raises(ConfigError, match="VISUOMOTOR_TIMEOUT_S='soon'"):
        DemoStore.open("s3://bucket/sets/demos.zarr")


def test_an_object_that_is_replaced_while_it_is_read(server):
    path = server.root / "bucket" / "replaced.zarr"
    write(path)
    with DemoStore.open("s3://bucket/replaced.zarr") as store:
        store.fingerprint(["img"])
        chunk = max((p for p in (path / "data/img").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        chunk.write_bytes(chunk.read_bytes()[::-1])
        with pytest.raises(DataError, match="was replaced while it was read"):
            store.read("img", 0, store.n_steps)
        os.remove(chunk)
        with DemoStore.open("s3://bucket/replaced.zarr") as fresh, pytest.raises(DataError, match="object is missing"):
            fresh.read("img", 0, fresh.n_steps)
    shutil.rmtree(path)


def test_journal_episodes_are_not_left_out_silently(server):
    path = server.root / "bucket" / "open.zarr"
    write(path)
    (path / "journal" / "00000006").mkdir(parents=True)
    (path / "journal" / "00000006" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="1 episodes in its journal"):
        DemoStore.open("s3://bucket/open.zarr")
    shutil.rmtree(path)


def test_writing_is_refused_with_the_reason(server):
    with pytest.raises(DataError, match="crash-safe appending needs renames"):
        DemoStore.open("s3://bucket/sets/demos.zarr", "a")
    with pytest.raises(DataError, match="copy the closed folder"):
        DemoStore.create("gs://bucket/new.zarr", {"x": ArraySpec(shape=(1,))})


@pytest.mark.parametrize("harm", ["size", "content", "header"])
def test_damaged_archives(server, harm):
    path = server.root / "bucket" / f"{harm}.zarr.zip"
    data = bytearray((server.root / "bucket/sets/demos.zarr.zip").read_bytes())
    with zipfile.ZipFile(server.root / "bucket/sets/demos.zarr.zip") as archive:
        info = max(archive.infolist(), key=lambda i: i.file_size)
    directory = data.rindex(info.filename.encode()) - 46
    if harm == "size":  # a bomb: 4 GB declared
        data[directory + 24 : directory + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    elif harm == "content":
        data[info.header_offset + 200] ^= 0xFF
    else:
        data[info.header_offset : info.header_offset + 4] = b"XXXX"
    path.write_bytes(bytes(data))
    why = {"size": "declares 4294967280 bytes", "content": "damaged", "header": "has no header"}[harm]
    with DemoStore.open(f"s3://bucket/{harm}.zarr.zip") as store, pytest.raises(DataError, match=why):
        store.read("img", 0, store.n_steps)
