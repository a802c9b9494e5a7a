"""Episodes drawn in proportion to a weight: how often, from what, and in a run that goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from visuomotor.configs.compose import compose_train
from visuomotor.configs.train import main as train
from visuomotor.configs.training_data import TrainingData, load_training_data
from visuomotor.data.batches import BatchSource
from visuomotor.data.cache import TrainingCache
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.mixture import MixtureOrder
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.windows import WindowConfig, window_table
from visuomotor.policies.learn.checkpoint import Checkpoint, CheckpointFolder, resolve_checkpoint

ENDS = np.array([20, 29, 50])  # windows of the default shape: 13, 2 and 14
TABLE = window_table(ENDS, WindowConfig())


def order(weights: list[float], batch: int = 8, seed: int = 3) -> MixtureOrder:
    of_steps = np.repeat(weights, np.diff(ENDS, prepend=0))
    return MixtureOrder.of_table(TABLE, [0], np.array([batch]), seed, ["demos"], of_steps)


def test_windows_come_in_proportion_to_the_weight_of_their_episode() -> None:
    steps, weights = 500, np.array([0.5, 3.0, 1.0])
    drawn = np.concatenate([order(weights.tolist())(i) for i in range(steps)])
    mass = weights[TABLE.episode]
    expected = steps * 8 * mass / mass.sum()  # 6.5, 6 and 14 of 26.5: of a batch of 8, 1.96, 1.81 and 4.23
    by_episode = np.bincount(TABLE.episode[drawn], minlength=3)
    np.testing.assert_allclose(by_episode / (steps * 8), np.array([6.5, 6, 14]) / 26.5, atol=0.01)
    seen = np.bincount(drawn, minlength=len(TABLE))
    assert np.abs(seen - expected).max() < 6 * np.sqrt(expected.max())


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=3, max_size=3).filter(any),
    st.integers(1, 40), st.integers(0, 5), st.integers(0, 1000),
)  # fmt: skip
def test_a_batch_is_stratified_and_weight_0_never_comes(weights: list[float], batch: int, seed: int, step: int) -> None:
    drawn = order(weights, batch, seed)(step)
    assert drawn.shape == (batch,)
    counted = np.bincount(TABLE.episode[drawn], minlength=3)
    mass = np.array([13, 2, 14]) * weights
    assert (counted[np.array(weights) == 0] == 0).all()
    assert (np.abs(counted - batch * mass / mass.sum()) < 2).all()


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    one, other = order([1, 2, 3]), order([1, 2, 3])
    steps = [one(i).tolist() for i in range(6)]
    assert [other(i).tolist() for i in (5, 0, 3)] == [steps[5], steps[0], steps[3]]
    assert order([1, 2, 3], seed=4)(0).tolist() != steps[0]
    assert len({tuple(s) for s in steps}) == 6


def source(batch: int, weights: list[float] | None = None, rank: int = 0, world_size: int = 1) -> BatchSource:
    rows = torch.arange(50).float()[:, None]
    cache = TrainingCache({"action": rows, "state": rows}, ENDS, "ram", 0, "test")
    drawn = None if weights is None else order(weights, batch)
    return BatchSource(
        cache, TABLE, obs_keys=["state"], action_key="action", n_obs=2, horizon=16, batch_size=batch, seed=3,
        order=drawn, rank=rank, world_size=world_size,
    )  # fmt: skip


def test_windows_may_have_weights_of_their_own_by_their_present_step() -> None:
    weights = np.zeros(50)
    weights[[0, 5, 30]] = [1.0, 2.0, 1.0]
    drawn = MixtureOrder.of_table(TABLE, [0], np.array([400]), 3, ["demos"], weights, n_obs=2)
    windows = np.concatenate([drawn(i) for i in range(10)])
    present = np.clip(TABLE.start + 1, TABLE.ep_start, TABLE.ep_stop - 1)
    rows, counts = np.unique(present[windows], return_counts=True)
    assert rows.tolist() == [0, 5, 30]
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.01)


def test_ranks_slice_the_global_batch() -> None:
    for step in (0, 7):
        whole = source(12, [1, 0, 2]).batch(step).action
        parts = [source(12, [1, 0, 2], rank=r, world_size=3).batch(step).action for r in range(3)]
        assert torch.equal(torch.cat(parts), whole)


def test_without_weights_batches_are_what_they_always_were() -> None:
    """Runs that were begun before there were weights go on: the numbers are of the version before."""
    uniform = source(8)
    assert [uniform.window_indices(i).tolist() for i in (0, 3, 20)] == UNIFORM


UNIFORM = [[25, 27, 28, 3, 26, 12, 20, 15], [22, 5, 21, 19, 24, 11, 2, 23], [3, 5, 24, 16, 4, 9, 17, 23]]


# ---------------------------------------------------------------- settings of a run


def write(path: Path, first: int, values: dict[str, list[Any]], n: int = 20) -> None:
    """Every number of episode ``e`` is ``first + e``."""
    kinds = {str: "str", bool: "bool", int: "int64", float: "float64"}
    specs = {
        "state": ArraySpec(shape=(2,), role="observation"),
        "action": ArraySpec(shape=(2,), role="action"),
    }
    columns = {name: kinds[type(v[0])] for name, v in values.items()}
    with DemoStore.create(path, specs, fps=10, episode_columns=columns) as store:
        for e in range(len(next(iter(values.values())))):
            rows = np.full((n, 2), first + e, np.float32) + np.arange(n, dtype=np.float32)[:, None] / 1000
            store.append_episode({"state": rows, "action": rows}, {name: v[e] for name, v in values.items()})


COMMON = ["policy=flow", "backbone=mlp", "device=cpu", "obs.keys=[state]", "window.horizon=8", "window.n_exec=4"]
Load = Callable[..., TrainingData]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(*words: str) -> TrainingData:
        given = [f"data={tmp_path / 'demos.zarr'}", f"data.cache.dir={tmp_path / 'cache'}", "train.batch_size=20"]
        config = compose_train([*COMMON, *given, "data.val_fraction=0", *words]).config
        return load_training_data(config, Accelerator(cpu=True), Console(quiet=True))

    return load


def episodes(data: TrainingData, steps: int = 30) -> np.ndarray:
    """How often each level is in the batches."""
    levels = torch.cat([data.source.batch(i).action[:, 4, 0] for i in range(steps)])
    return np.bincount(levels.long().numpy(), minlength=4) / (steps * 20)


def test_the_column_decides(tmp_path: Path, load: Load) -> None:
    write(tmp_path / "demos.zarr", 0, {"weight": [1.0, 0.0, 2.0, 1.0], "success": [True, False, False, True]})
    np.testing.assert_allclose(episodes(load("data.weight_column=weight")), [0.25, 0, 0.5, 0.25], atol=0.02)
    np.testing.assert_allclose(episodes(load("data.weight_column=success")), [0.5, 0, 0, 0.5], atol=0.02)
    uniform = load()
    np.testing.assert_allclose(episodes(uniform), [0.25] * 4, atol=0.02)
    words: tuple[list[str], ...] = ([], ["data.weight_column=weight"], ["data.weight_column=success"])
    assert len({load(*w).document["signature"] for w in words}) == 3  # other batches: a run must not go on with them


def test_within_the_stores_of_a_mixture(tmp_path: Path, load: Load) -> None:
    write(tmp_path / "demos.zarr", 0, {"weight": [1.0, 3.0]})
    write(tmp_path / "more.zarr", 2, {"quality": [1, 0]})
    more = f"data.mixture=[{{path: '{tmp_path / 'more.zarr'}', rename: {{quality: weight}}}}]"
    np.testing.assert_allclose(episodes(load("data.weight_column=weight", more)), [0.125, 0.375, 0.5, 0], atol=0.02)
    with pytest.raises(DataError, match=r"more\.zarr has no column meta/weight"):
        load("data.weight_column=weight", f"data.mixture=[{{path: '{tmp_path / 'more.zarr'}'}}]")


@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("weigth", [1.0, 2.0], "has no column meta/weigth. Did you mean 'weight'"),
        ("task", [1.0, 2.0], "the column 'task' holds texts"),
        ("weight", [1.0, -0.5], "the weight 'weight' of episode 1 is -0.5: expected 0 or more"),
        (
            "weight",
            [0.0, 0.0],
            r"demos\.zarr: all training episodes that are long enough for a window have the weight 0",
        ),
    ],
)
def test_weights_that_cannot_be_are_refused(
    tmp_path: Path, load: Load, column: str, values: list[float], why: str
) -> None:
    write(tmp_path / "demos.zarr", 0, {"weight": values, "task": ["a", "b"]})
    with pytest.raises(DataError, match=why):
        load(f"data.weight_column={column}")


def test_nan_is_refused(tmp_path: Path, load: Load) -> None:
    write(tmp_path / "demos.zarr", 0, {"weight": [1.0, 2.0]})
    with DemoStore.open(tmp_path / "demos.zarr", "a") as store:
        store.columns["weight"][1] = np.nan  # as another program might
    with pytest.raises(DataError, match="of episode 1 is nan: expected 0 or more"):
        load("data.weight_column=weight")


def test_streaming_has_no_weights(tmp_path: Path, load: Load) -> None:
    write(tmp_path / "demos.zarr", 0, {"weight": [1.0, 2.0]})
    with pytest.raises(ConfigError, match="mode=stream reads every episode once an epoch"):
        load("data.weight_column=weight", "data.cache.mode=stream")


def test_a_resumed_run_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "demos.zarr", 0, {"weight": [1.0, 0.0, 2.0, 1.0]})
    run, half, save = tmp_path / "run", tmp_path / "half", CheckpointFolder.save

    def copied(self: CheckpointFolder, *args: Any, **settings: Any) -> None:
        save(self, *args, **settings)
        if not half.exists():  # the run as a kill after its first checkpoint would leave it
            shutil.copytree(run, half, symlinks=True)

    monkeypatch.setattr(CheckpointFolder, "save", copied)
    words = [
        f"data={tmp_path / 'demos.zarr'}", f"data.cache.dir={tmp_path / 'cache'}", "data.weight_column=weight",
        "threads=1", "train.precision=fp32", "train.save_every=2", "train.steps=4", "train.batch_size=8",
    ]  # fmt: skip
    assert train([*COMMON, *words, f"run_dir={run}"]) == 0
    assert train([f"resume={half}"]) == 0
    whole, again = (Checkpoint.open(resolve_checkpoint(r / "checkpoints" / "last")) for r in (run, half))
    assert whole.step == again.step == 4
    before, after = whole.tensors("policy"), again.tensors("policy")
    assert all(torch.equal(before[k], after[k]) for k in before)
