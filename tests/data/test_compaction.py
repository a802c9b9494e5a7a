"""The journal of a store that others made or changed: chunks and codecs are not ours, rows must be the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, GzipCodec

from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_store_of_others_is_appended_to_across_its_chunks(tmp_path: Path, zarr_format: Literal[2, 3]) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=zarr_format)
    data, meta = group.create_group("data"), group.create_group("meta")
    action = data.create_array("action", shape=(7, 2), chunks=(5, 2), dtype="f4")
    action[:] = np.full((7, 2), 1, np.float32)
    image = data.create_array("img", shape=(7, 4, 4, 3), chunks=(3, 2, 2, 3), dtype="u1")  # cut in height and width too
    image[:] = np.full((7, 4, 4, 3), 1, np.uint8)
    ends = meta.create_array("episode_ends", shape=(2,), chunks=(2,), dtype="i8")
    ends[:] = np.array([3, 7])
    lengths = (4, 11, 2)
    with DemoStore.open(tmp_path / "a.zarr", "a") as store:
        for n in lengths:
            store.append_episode({"action": np.full((n, 2), n, "f4"), "img": np.full((n, 4, 4, 3), n, "u1")})
    expected = [1] * 7 + [n for n in lengths for _ in range(n)]
    with DemoStore.open(tmp_path / "a.zarr") as store:
        assert store.array_ends.tolist() == [3, 7, 11, 22, 24]
        assert store.read("action", 0, 24)[:, 1].tolist() == expected
        assert (store.read("img", 0, 24) == np.array(expected)[:, None, None, None]).all()


@pytest.mark.parametrize(
    "cut",
    [
        {"chunks": (5, 2, 4, 3)},
        {"compressors": [GzipCodec()]},
        {"serializer": BytesCodec(endian="big")},
        {"shards": (10, 4, 4, 3), "compressors": None},
        {"shards": {"shape": (10, 4, 4, 3), "index_location": "start"}},
    ],
    ids=["parts of rows", "gzip", "big endian", "uncompressed shards", "table first"],
)
def test_a_store_of_ours_may_have_been_made_anew_with_other_chunks(tmp_path: Path, cut: dict[str, Any]) -> None:
    path, spec = tmp_path / "a.zarr", ArraySpec(shape=(4, 4, 3), dtype="uint16", role="observation")
    with DemoStore.create(path, {"img": spec}) as store:
        store.append_episode({"img": np.full((7, 4, 4, 3), 300, "u2")})
    data: Any = zarr.open_group(path, mode="r+")["data"]
    rows = data["img"][:]
    layout: dict[str, Any] = {"chunks": (5, 4, 4, 3), **cut}
    data.create_array("img", shape=rows.shape, dtype=rows.dtype, overwrite=True, **layout)[:] = rows
    with DemoStore.open(path, "a") as store:
        for n in (4, 11):
            store.append_episode({"img": np.full((n, 4, 4, 3), n, "u2")})
    expected = np.repeat([300, 4, 11], [7, 4, 11])
    with DemoStore.open(path) as store:
        assert store.array_ends.tolist() == [7, 11, 22]
        assert (store.read("img", 0, 22) == expected[:, None, None, None]).all()
