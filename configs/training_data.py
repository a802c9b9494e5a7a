"""The demonstrations of a training run: opened, checked, cached, split into windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from rich.console import Console

from visuomotor.configs.build import make_spec
from visuomotor.configs.schema import TrainConfig
from visuomotor.data.batches import BatchSource
from visuomotor.data.cache import TrainingCache, load_cache
from visuomotor.data.describe import describe
from visuomotor.data.store import DemoStore
from visuomotor.data.windows import WindowTable, split_episodes, window_table
from visuomotor.policies.spec import PolicySpec

__all__ = ["TrainingData", "load_training_data"]


@dataclass(frozen=True)
class TrainingData:
    """Everything that comes from the demonstrations."""

    spec: PolicySpec
    cache: TrainingCache
    train_episodes: np.ndarray
    source: BatchSource
    validation: BatchSource | None
    document: dict[str, Any]  # dataset.json


def load_training_data(config: TrainConfig, accelerator: Accelerator, console: Console) -> TrainingData:
    """Open the store of ``config.data``, bring its arrays into the cache and list the windows; prints what there is.

    Raises:
        DataError: the store or a value in it is not what it must be, or no episode is long enough.
        ConfigError: settings that contradict the data.
    """
    with DemoStore.open(config.data.path) as store:
        spec = make_spec(config, store)
        keys = [*spec.obs, spec.action_key]

        def progress(key: str, done: int, rows: int) -> None:
            if done == rows:
                console.print(f"cached {key}: {rows} steps", highlight=False)

        cache = load_cache(store, keys, config.data.cache, accelerator.device, progress)
        document = describe(store)
    train_episodes, val_episodes = split_episodes(len(cache.episode_ends), config.data.val_fraction, config.seed)
    table = window_table(cache.episode_ends, config.window, train_episodes.tolist())
    val_table = _validation_table(cache, config, val_episodes)

    def source(t: WindowTable, rank: int, world_size: int) -> BatchSource:
        return BatchSource(
            cache, t, obs_keys=list(spec.obs), action_key=spec.action_key, n_obs=config.window.n_obs,
            horizon=config.window.horizon, batch_size=config.train.batch_size, seed=config.seed, rank=rank,
            world_size=world_size,
        )  # fmt: skip

    skipped = sorted({*table.skipped, *(val_table.skipped if val_table else val_episodes.tolist())})
    document |= {
        "fps": spec.fps,
        "windows": len(table),
        "n_train_episodes": len(train_episodes),
        "n_val_episodes": len(val_episodes),
        "skipped_episodes": skipped,
        "signature": _signature(cache, document, keys),
        "cache": {"placement": cache.placement, "bytes": cache.nbytes, "reason": cache.reason},
    }
    console.print(
        f"{document['n_episodes']} episodes, {document['n_steps']} steps; {len(table)} training windows of "
        f"{len(train_episodes)} episodes, {len(val_episodes)} episodes held out; "
        f"arrays in {cache.placement} ({cache.reason})",
        highlight=False,
        soft_wrap=True,
    )
    if skipped:
        console.print(f"[yellow]{len(skipped)} episodes are too short for a window, left out: {skipped[:20]}[/yellow]")
    return TrainingData(
        spec, cache, train_episodes, source(table, accelerator.process_index, accelerator.num_processes),
        source(val_table, 0, 1) if val_table else None, document,
    )  # fmt: skip


def _signature(cache: TrainingCache, document: dict[str, Any], keys: Sequence[str]) -> str:
    """Tells datasets apart by what they hold, wherever they lie: episode ends and the statistics of the used arrays."""
    stats = json.dumps({k: document["keys"][k].get("stats") for k in keys}, sort_keys=True)
    return hashlib.sha256(cache.episode_ends.tobytes() + stats.encode()).hexdigest()[:16]


def _validation_table(cache: TrainingCache, config: TrainConfig, episodes: np.ndarray) -> WindowTable | None:
    starts = np.concatenate([[0], cache.episode_ends[:-1]])
    if not len(episodes) or (cache.episode_ends - starts)[episodes].max() < config.window.min_length:
        return None
    return window_table(cache.episode_ends, config.window, episodes.tolist())
