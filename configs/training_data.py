"""The demonstrations of a training run: opened, checked, cached, split into windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from visuomotor.configs.build import make_spec
from visuomotor.configs.mixed_data import load_mixture
from visuomotor.configs.schema import DataConfig, TrainConfig
from visuomotor.data.batches import BatchSource
from visuomotor.data.cache import TrainingCache, load_cache
from visuomotor.data.describe import describe
from visuomotor.data.errors import DataError, nearest
from visuomotor.data.ingest import plan_array
from visuomotor.data.mixture import MixtureOrder, slots, step_weights
from visuomotor.data.store import DemoStore
from visuomotor.data.streaming import EpisodeStream, StreamedRows, StreamingSource, is_streamed
from visuomotor.data.texts import encode_texts
from visuomotor.data.windows import WindowTable, split_episodes, window_table
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.spec import PolicySpec

__all__ = ["TrainingData", "load_training_data", "make_source", "text_tables", "training_split"]


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


@dataclass(frozen=True)
class _Loaded:
    """The store, or the stores of a mixture as one."""

    spec: PolicySpec
    cache: TrainingCache
    texts: dict[str, Tensor]
    document: dict[str, Any]
    first_episode: list[int]  # of each store
    names: list[str]
    masks: Tensor | None = None
    stream: EpisodeStream | None = None
    weights: np.ndarray | None = None  # [T]


def load_training_data(config: TrainConfig, accelerator: Accelerator, console: Console) -> TrainingData:
    """Open the stores of ``config.data``, bring their arrays into the cache and list the windows; prints what there is.

    Raises:
        DataError: a store or a value in it is not what it must be, or no episode is long enough.
        ConfigError: settings that contradict the data.
    """
    loaded = _load(config, accelerator, console)
    cache, document = loaded.cache, loaded.document
    train_episodes, val_episodes = _split(config, loaded)
    table = window_table(cache.episode_ends, config.window, train_episodes.tolist())
    val_table = _validation_table(cache, config, val_episodes)

    def source(t: WindowTable, rank: int, world_size: int, order: MixtureOrder | None = None) -> BatchSource:
        return make_source(
            config.obs, loaded.spec, cache, loaded.texts, t, batch_size=config.train.batch_size, seed=config.seed,
            rank=rank, world_size=world_size, order=order, masks=loaded.masks, stream=loaded.stream,
        )  # fmt: skip

    skipped = sorted({*table.skipped, *(val_table.skipped if val_table else val_episodes.tolist())})
    document |= {
        "fps": loaded.spec.fps,
        "windows": len(table),
        "n_train_episodes": len(train_episodes),
        "n_val_episodes": len(val_episodes),
        "skipped_episodes": skipped,
        "cache": {"placement": cache.placement, "bytes": cache.nbytes, "reason": cache.reason},
    }
    order = _order(config, loaded, table, document)
    console.print(
        f"{document['n_episodes']} episodes, {document['n_steps']} steps; {len(table)} training windows of "
        f"{len(train_episodes)} episodes, {len(val_episodes)} episodes held out; "
        f"arrays in {cache.placement} ({cache.reason})",
        highlight=False,
        soft_wrap=True,
    )
    if loaded.weights is not None:
        starts = np.concatenate([[0], cache.episode_ends[:-1]])
        used = np.maximum.reduceat(loaded.weights, starts)[train_episodes]
        console.print(
            f"windows are drawn by {config.data.weight_column}: at most {used.min():g} to {used.max():g} an episode, "
            f"{int((used == 0).sum())} training episodes never",
            highlight=False,
        )
    for member in document.get("mixture", []):
        console.print("{slots} windows a batch of {path}: {n_episodes} episodes".format(**member), highlight=False)
    if skipped:
        console.print(f"[yellow]{len(skipped)} episodes are too short for a window, left out: {skipped[:20]}[/yellow]")
    return TrainingData(
        loaded.spec, cache, loaded.texts, train_episodes,
        source(table, accelerator.process_index, accelerator.num_processes, order),
        source(val_table, 0, 1) if val_table else None, document,
    )  # fmt: skip


def _load(config: TrainConfig, accelerator: Accelerator, console: Console) -> _Loaded:
    def progress(key: str, done: int, rows: int) -> None:
        if done == rows:
            console.print(f"cached {key}: {rows} steps", highlight=False)

    store = _open(config.data)
    try:
        spec = make_spec(config, store)
        keys = [*config.obs.store_keys, spec.action_key]
        stream = _stream(config.data, store, keys) if config.data.cache.mode == "stream" else None
        cached = [k for k in keys if stream is None or k not in stream.keys]
        cache = load_cache(store, cached, config.data.cache, accelerator.device, progress)
        texts, document = text_tables(config.obs, store), describe(store)
        weights = None if config.data.weight_column is None else step_weights(store, config.data.weight_column)
    finally:
        if config.data.cache.mode != "stream":
            store.close()
    loaded = _Loaded(spec, cache, texts, document, [0], [config.data.path], None, stream, weights)
    if stream is not None:
        rows = {k: StreamedRows(stream, k) for k in stream.keys}
        reason = f"{', '.join(rows)} by a buffer of {2 * stream.group_bytes / 1e9:.3f} GB; {cache.reason}"
        loaded = replace(loaded, cache=replace(cache, placement="stream", reason=reason, rows=rows))
    if config.data.mixture:
        mixed = load_mixture(config, spec, cache, texts, document, weights, accelerator.device, progress)
        loaded = _Loaded(
            spec, mixed.cache, mixed.texts, mixed.document, mixed.first_episode, mixed.names, mixed.masks,
            weights=mixed.weights,
        )  # fmt: skip
    document = loaded.document
    document["signature"] = _signature(loaded.cache, document, keys, loaded.texts)
    if loaded.weights is not None:
        document["signature"] += f"-weights{hashlib.sha256(loaded.weights.tobytes()).hexdigest()[:8]}"
    if stream is not None:  # the buffer decides the order of the windows
        document["signature"] += f"-stream{config.data.cache.buffer_gb:g}"
    return loaded


def _open(data: DataConfig) -> DemoStore:
    store = DemoStore.open(data.path)
    for name, part in data.parts.items():
        store.add_part(name, part)
    return store


def _stream(data: DataConfig, store: DemoStore, keys: Sequence[str]) -> EpisodeStream:
    if store.n_steps == 0:
        raise DataError(f"{store.path} holds no episodes: there is nothing to train on")
    large = [k for k in dict.fromkeys(keys) if is_streamed(plan_array(k, store.specs[k], store.n_steps))]
    return EpisodeStream(store, large, data.cache.buffer_gb * 1e9)


def _split(config: TrainConfig, loaded: _Loaded) -> tuple[np.ndarray, np.ndarray]:
    """Episodes to train on and to hold out; of every store the same share is held out."""
    bounds = [*loaded.first_episode, len(loaded.cache.episode_ends)]
    train, val = [], []
    for first, stop in pairwise(bounds):
        mine, held = training_split(stop - first, config.data.val_fraction, config.data.episodes, config.seed)
        train.append(mine + first)
        val.append(held + first)
    return np.concatenate(train), np.concatenate(val)


def training_split(n: int, val_fraction: float, episodes: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of ``n`` episodes of a store those to train on, ``episodes`` (null: all that are left), and those held out.

    Raises:
        DataError: there are not so many to train on.
    """
    mine, held = split_episodes(n, val_fraction, seed)
    if episodes is not None:
        if episodes > len(mine):
            raise DataError(f"data.episodes={episodes}: there are {len(mine)} training episodes")
        order = np.random.default_rng([seed, 7]).permutation(len(mine))  # fewer are a part of more
        mine = np.sort(mine[order[:episodes]])
    return mine, held


def _order(config: TrainConfig, loaded: _Loaded, table: WindowTable, document: dict[str, Any]) -> MixtureOrder | None:
    if not config.data.mixture and loaded.weights is None:
        return None
    weights = [config.data.weight, *(m.weight for m in config.data.mixture)]
    count = slots(weights, config.train.batch_size, loaded.names)
    if config.data.mixture:
        for member, n in zip(document["mixture"], count.tolist(), strict=True):
            member["slots"] = n
    return MixtureOrder.of_table(
        table, loaded.first_episode, count, config.seed, loaded.names, loaded.weights, config.window.n_obs
    )


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
    batch_size: int, seed: int, rank: int = 0, world_size: int = 1, order: MixtureOrder | None = None,
    masks: Tensor | None = None, stream: EpisodeStream | None = None,
) -> BatchSource:  # fmt: skip
    """Batches of what a policy with the settings ``obs`` sees."""
    settings: dict[str, Any] = {
        "obs_keys": obs.step_keys, "action_key": spec.action_key, "n_obs": spec.window.n_obs,
        "horizon": spec.window.horizon, "batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size,
        "goal_keys": obs.goal.keys, "goal_strategy": obs.goal.strategy, "episode_tables": texts, "order": order,
        "action_masks": masks,
    }  # fmt: skip
    if stream is not None:
        return StreamingSource(stream, cache, table, **settings)
    return BatchSource(cache, table, **settings)


def _signature(cache: TrainingCache, document: dict[str, Any], keys: Sequence[str], texts: Mapping[str, Tensor]) -> str:
    """Tells datasets apart by what they hold, wherever they lie: episode ends, texts and statistics of used arrays."""
    stats: Any = {k: document["keys"][k].get("stats") for k in keys}
    if "mixture" in document:
        stats = [stats, *({k: m["keys"][k].get("stats") for k in keys} for m in document["mixture"][1:])]
    written = b"".join(texts[k].numpy().tobytes() for k in sorted(texts))
    text = json.dumps(stats, sort_keys=True)
    return hashlib.sha256(cache.episode_ends.tobytes() + text.encode() + written).hexdigest()[:16]


def _validation_table(cache: TrainingCache, config: TrainConfig, episodes: np.ndarray) -> WindowTable | None:
    starts = np.concatenate([[0], cache.episode_ends[:-1]])
    if not len(episodes) or (cache.episode_ends - starts)[episodes].max() < config.window.min_length:
        return None
    return window_table(cache.episode_ends, config.window, episodes.tolist())
