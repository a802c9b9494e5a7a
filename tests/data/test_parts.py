"""Components of a stored vector as an array of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from visuomotor.data.cache import CacheConfig, load_cache
from visuomotor.data.errors import DataError
from visuomotor.data.parts import PartConfig
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    state = ArraySpec(shape=(3,), unit="px", names=("x", "y", "angle"))
    with DemoStore.create(tmp_path / "demo.zarr", {"state": state}) as store:
        store.append_episode({"state": np.arange(12, dtype=np.float32).reshape(4, 3)})
    return tmp_path / "demo.zarr"


def test_a_part_is_read_cached_and_described_as_an_array(path: Path, tmp_path: Path):
    with DemoStore.open(path) as store:
        store.add_part("turned", PartConfig(key="state", dims=[2, 0]))
        assert store.read("turned", 1, 3).tolist() == [[5, 3], [8, 6]]
        assert store.specs["turned"] == ArraySpec(shape=(2,), unit="px", names=("angle", "x"))
        cache = load_cache(store, ["turned"], CacheConfig(dir=str(tmp_path / "cache")))
        assert cache.arrays["turned"].tolist() == [[2, 0], [5, 3], [8, 6], [11, 9]]
        first = store.fingerprint(["turned"])
    with DemoStore.open(path) as store:
        store.add_part("turned", PartConfig(key="state", dims=[0, 2]))
        assert store.fingerprint(["turned"]) != first  # or the cache of the other components would be used
        store.add_part("state", PartConfig(key="state", dims=[0]))
        assert store.specs["state"].shape == (3,)  # the store's own array is left alone


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (PartConfig(key="stat", dims=[0]), r"data\.parts\.p\.key: there is no array 'stat'.*'state'"),
        (PartConfig(key="state", dims=[3]), r"data\.parts\.p\.dims=\[3\]: 'state' has steps of shape \(3,\)"),
        (PartConfig(key="state"), r"data\.parts\.p\.dims=\[\]"),
    ],
)
def test_refusals(path: Path, part: PartConfig, says: str):
    with DemoStore.open(path) as store, pytest.raises(DataError, match=says):
        store.add_part("p", part)
