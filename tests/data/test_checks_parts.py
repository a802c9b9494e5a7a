"""Parts of the checks by themselves, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from visuomotor.data.checks.duplicates import fingerprints, matches
from visuomotor.data.checks.motion import resting
from visuomotor.data.checks.rotation import find_quaternions
from visuomotor.data.checks.survey import survey
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.checks.vectors import Vectors, iter_episodes, runs
from visuomotor.data.errors import ConfigError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

STATE = ArraySpec(shape=(3,), dtype="float64", role="observation")


def test_quaternions_by_their_names():
    specs = {
        "pose": ArraySpec(shape=(7,), names=("x", "y", "z", "ee_qx", "ee_qy", "ee_qz", "ee_qw")),
        "two": ArraySpec(shape=(8,), names=tuple(f"{s}_quat_{c}" for s in ("left", "right") for c in "wxyz")),
        "obj_quat": ArraySpec(shape=(4,)),
        "xyzw": ArraySpec(shape=(4,), names=("x", "y", "z", "w")),
    }
    assert [(q.key, q.dims, q.order) for q in find_quaternions(specs)] == [
        ("pose", (3, 4, 5, 6), "xyzw"),
        ("two", (0, 1, 2, 3), "wxyz"),
        ("two", (4, 5, 6, 7), "wxyz"),
        ("obj_quat", (0, 1, 2, 3), None),
    ]


def test_episodes_come_in_groups_of_bounded_size(demo_store: Path) -> None:
    with DemoStore.open(demo_store) as store:
        whole = {e: rows["state"] for e, rows in iter_episodes(store, ["state"])}
        small = {e: rows["state"] for e, rows in iter_episodes(store, ["state"], block_bytes=80)}
        assert list(small) == [0, 1, 2]
        for e in range(3):
            assert np.array_equal(small[e], store.episode(e)["state"])
            assert np.array_equal(small[e], whole[e])


def test_runs_and_rest_by_hand():
    assert runs(np.array([True, False, True, True])) == [(0, 1), (2, 4)]
    assert runs(np.zeros(3, bool)) == []
    x = np.array([0.0, 0, 0, 1, 2, 2])[:, None]
    seen = survey(
        Vectors({"x": ArraySpec(shape=(1,), role="observation")}, None, np.array([6]), lambda k: iter([(0, {"x": x})]))
    )
    assert seen.speed == [1.0]
    assert resting(x, seen, Thresholds()).tolist() == [True, True, False, False, True, True]


def test_thresholds_are_positive():
    with pytest.raises(ConfigError, match=r"thresholds.gap=-1"):
        Thresholds(gap=-1)


def test_types_do_not_hide_a_copy():
    arrays = {"state": np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32).astype(np.float64)}
    wide = {"state": STATE}
    a = Vectors(wide, 20.0, np.array([120]), lambda keys: iter([(0, arrays)]))
    single = {"state": arrays["state"].astype(np.float32)}
    b = Vectors({"state": replace(STATE, dtype="float32")}, 20.0, np.array([120]), lambda keys: iter([(0, single)]))
    (match,) = matches(fingerprints(a), fingerprints(b), Thresholds())
    assert match.exact
