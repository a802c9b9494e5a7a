"""``visuomotor data weigh``, and training by what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from visuomotor.configs.compose import compose_train
from visuomotor.configs.data import main
from visuomotor.configs.training_data import load_training_data
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

FAST = ["value.steps=200", "value.width=32", "temperature=0.5"]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str = "mixed.zarr", *, success: bool = True, human: bool = False) -> Path:
        """Forty episodes: a quarter goes right (action 1) and reaches the goal, the others go left (-1) and do not."""
        specs = {
            "state": ArraySpec(shape=(2,), role="observation"),
            "action": ArraySpec(shape=(1,), role="action"),
        }
        specs |= {"is_intervention": ArraySpec(shape=(), dtype="bool", role="intervention")} if human else {}
        rng, path = np.random.default_rng(0), tmp_path / name
        columns = {"success": "bool"} if success else {}
        with DemoStore.create(path, specs, fps=10, episode_columns=columns) as store:
            for e in range(40):
                good = e % 4 == 0
                action = np.full((20, 1), 1.0 if good else -1.0, np.float32)
                t = np.arange(20)
                state = np.stack([rng.normal(size=20), t / 20], 1).astype(np.float32)
                rows = {"state": state, "action": action} | ({"is_intervention": t >= 15} if human else {})
                store.append_episode(rows, {"success": good} if success else {})
        return path

    return write


def drawn(store: Path, tmp_path: Path, *words: str) -> torch.Tensor:
    """First actions of 40 training batches, ``[n]``."""
    config = compose_train(
        ["policy=flow", "backbone=mlp", "device=cpu", "obs.keys=[state]", "window.horizon=4", "window.n_exec=2",
         f"data={store}", f"data.cache.dir={tmp_path / 'cache'}", "train.batch_size=50", "data.val_fraction=0", *words]
    ).config  # fmt: skip
    source = load_training_data(config, Accelerator(cpu=True), Console(quiet=True)).source
    return torch.cat([source.batch(i).action[:, 0, 0] for i in range(40)])


@pytest.mark.parametrize("out", ["weighed.zarr", "weighed.json"])
def test_the_better_of_two_behaviours_is_drawn_more_often(
    write: Write, tmp_path: Path, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store, weighed = write(), tmp_path / out
    assert main(["weigh", str(store), str(weighed), *FAST]) == 0
    assert "successful episodes: 25% of the steps" in capsys.readouterr().out
    plain = float((drawn(store, tmp_path) > 0).float().mean())
    better = float((drawn(weighed, tmp_path, "data.weight_column=weight") > 0).float().mean())
    assert plain == pytest.approx(0.25, abs=0.02)
    assert better > 0.75
    with DemoStore.open(weighed) as found:
        np.testing.assert_array_equal(found.read("action", 0, 40), DemoStore.open(store).read("action", 0, 40))


def test_interventions_are_drawn_half_of_the_time(write: Write, tmp_path: Path) -> None:
    store, weighed = write(human=True), tmp_path / "weighed.zarr"
    assert main(["weigh", str(store), str(weighed), "method=interventions", "before=5"]) == 0
    with DemoStore.open(weighed) as found:
        weight = found.read("weight", 0, found.n_steps).reshape(40, 20)
    np.testing.assert_allclose(weight[:, 15:].sum() / weight.sum(), 0.5, rtol=1e-5)
    assert not weight[:, 10:15].any()
    assert (weight[:, :10] > 0).all()


def test_what_cannot_be_weighed_is_refused(write: Write, tmp_path: Path) -> None:
    store, out = write(success=False), tmp_path / "weighed.zarr"
    with pytest.raises(DataError, match="neither failures in a column success nor an array of rewards"):
        main(["weigh", str(store), str(out)])
    with pytest.raises(DataError, match="role intervention"):
        main(["weigh", str(store), str(out), "method=interventions"])
    with pytest.raises(ConfigError, match="advantage"):
        main(["weigh", str(store), str(out), "method=advantages"])
    with pytest.raises(ConfigError, match="already"):
        main(["weigh", str(store), str(out), "name=state"])
    with pytest.raises(ConfigError, match="expected <store> <out>"):
        main(["weigh", str(store), "method=advantage"])
    assert not out.exists()
