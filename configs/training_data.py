"""The demonstrations of a training run: opened, checked, cached, split into windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from visuomotor.configs.build import make_spec
from visuomotor.configs.schema import TrainConfig
from visuomotor.data.batches import BatchSource
from visuomotor.data.cache import TrainingCache, load_cache
from visuomotor.data.describe import describe
from visuomotor.data.errors import DataError, nearest
from visuomotor.data.store import DemoStore
from visuomotor.data.texts import encode_texts
from visuomotor.data.windows import WindowTable, split_episodes, window_table
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.spec import PolicySpec

__all__ = ["TrainingData", "load_training_data", "make_source", "text_tables"]


@dataclass(frozen=True)
class TrainingData:
    """Everything that comes from the demonstrations."""

    spec: PolicySpec
    cache: TrainingCache
    texts: dict[str, Tensor]  # {key: [E, L]} uint8
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
        for name, part in config.data.parts.items():
            store.add_part(name, part)
        spec = make_spec(config, store)
        keys = [*config.obs.store_keys, spec.action_key]

        def progress(key: str, done: int, rows: int) -> None:
            if done == rows:
                console.print(f"cached {key}: {rows} steps", highlight=False)

        cache = load_cache(store, keys, config.data.cache, accelerator.device, progress)
        texts = text_tables(config.obs, store)
        document = describe(store)
    train_episodes, val_episodes = split_episodes(len(cache.episode_ends), config.data.val_fraction, config.seed)
    table = window_table(cache.episode_ends, config.window, train_episodes.tolist())
    val_table = _validation_table(cache, config, val_episodes)

    def source(t: WindowTable, rank: int, world_size: int) -> BatchSource:
        return make_source(
            config.obs, spec, cache, texts, t, batch_size=config.train.batch_size, seed=config.seed, rank=rank,
            world_size=world_size,
        )  # fmt: skip

    skipped = sorted({*table.skipped, *(val_table.skipped if val_table else val_episodes.tolist())})
    document |= {
        "fps": spec.fps,
        "windows": len(table),
        "n_train_episodes": len(train_episodes),
        "n_val_episodes": len(val_episodes),
        "skipped_episodes": skipped,
        "signature": _signature(cache, document, keys, texts),
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
        spec, cache, texts, train_episodes, source(table, accelerator.process_index, accelerator.num_processes),
        source(val_table, 0, 1) if val_table else None, document,
    )  # fmt: skip


def text_tables(obs: ObservationConfig, store: DemoStore) -> dict[str, Tensor]:
    """The text of every episode as bytes: ``{key: [E, L]}`` uint8.

    Raises:
        DataError: a column that the store does not have, or a text that is too long.
    """
    columns = store.episode_columns if obs.text.keys else {}
    for key in obs.text.keys:
        if key not in columns:
            raise DataError(f"{store.path} has no column meta/{key}. {nearest(key, columns)}")
    try:
        return {k: torch.from_numpy(encode_texts(columns[k], obs.text.length)) for k in obs.text.keys}
    except DataError as e:
        raise DataError(f"{store.path}, meta: {e}; obs.text.length sets the limit") from None


def make_source(
    obs: ObservationConfig, spec: PolicySpec, cache: TrainingCache, texts: Mapping[str, Tensor], table: WindowTable, *,
    batch_size: int, seed: int, rank: int = 0, world_size: int = 1,
) -> BatchSource:  # fmt: skip
    """Batches of what a policy with the settings ``obs`` sees."""
    return BatchSource(
        cache, table, obs_keys=obs.step_keys, action_key=spec.action_key, n_obs=spec.window.n_obs,
        horizon=spec.window.horizon, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size,
        goal_keys=obs.goal.keys, goal_strategy=obs.goal.strategy, episode_tables=texts,
    )  # fmt: skip


def _signature(cache: TrainingCache, document: dict[str, Any], keys: Sequence[str], texts: Mapping[str, Tensor]) -> str:
    """Tells datasets apart by what they hold, wherever they lie: episode ends, texts and statistics of used arrays."""
    stats = json.dumps({k: document["keys"][k].get("stats") for k in keys}, sort_keys=True)
    written = b"".join(texts[k].numpy().tobytes() for k in sorted(texts))
    return hashlib.sha256(cache.episode_ends.tobytes() + stats.encode() + written).hexdigest()[:16]


def _validation_table(cache: TrainingCache, config: TrainConfig, episodes: np.ndarray) -> WindowTable | None:
    starts = np.concatenate([[0], cache.episode_ends[:-1]])
    if not len(episodes) or (cache.episode_ends - starts)[episodes].max() < config.window.min_length:
        return None
    return window_table(cache.episode_ends, config.window, episodes.tolist())
