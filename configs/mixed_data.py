"""The further stores of a training run (``data.mixture``), joined to the first one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visuomotor.configs.build import as_read
from visuomotor.configs.schema import TrainConfig
from visuomotor.data.cache import TrainingCache, load_cache
from visuomotor.data.describe import describe
from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.mixture import MixtureConfig, check_member, join_caches, step_weights
from visuomotor.data.store import DemoStore
from visuomotor.data.texts import encode_texts
from visuomotor.policies.spec import PolicySpec

__all__ = ["Mixed", "load_mixture"]


@dataclass(frozen=True)
class Mixed:
    """All stores as one: episodes end to end."""

    cache: TrainingCache
    texts: dict[str, Tensor]
    document: dict[str, Any]
    first_episode: list[int]
    names: list[str]
    masks: Tensor | None
    weights: np.ndarray | None


def load_mixture(
    config: TrainConfig, spec: PolicySpec, cache: TrainingCache, texts: Mapping[str, Tensor],
    document: Mapping[str, Any], weights: np.ndarray | None, device: torch.device,
    progress: Callable[[str, int, int], None],
) -> Mixed:  # fmt: skip
    """Add the stores of ``data.mixture`` to the first one, of which the other arguments are.

    Raises:
        DataError: a store without one of the arrays or texts, or with other shapes, units or rate.
        ConfigError: settings that contradict the stores.
    """
    keys = list(dict.fromkeys([*config.obs.store_keys, spec.action_key]))
    specs = {k: spec.obs[k] if k in spec.obs else spec.obs[f"goal/{k}"] for k in keys if k != spec.action_key}
    specs[spec.action_key] = spec.action
    caches, tables, documents, drawn = [cache], [dict(texts)], [dict(document)], [weights]
    for member in config.data.mixture:
        with DemoStore.open(member.path) as store:
            for theirs, ours in member.rename.items():
                if theirs in store.specs:
                    store.add_name(ours, theirs)
                elif theirs not in store.column_types:
                    known = [*store.specs, *store.column_types]
                    raise DataError(f"data.mixture: {store.path} has no array {theirs!r}. {nearest(theirs, known)}")
            store.require(keys)
            if spec.fps is not None and store.fps is not None and abs(store.fps - spec.fps) > 1e-6 * spec.fps:
                raise DataError(
                    f"{store.path} was recorded at {store.fps:g} Hz, {config.data.path} at {spec.fps:g} Hz: "
                    "resample one of them"
                )
            check_member(specs, {k: as_read(store.specs[k]) for k in keys}, member)
            caches.append(load_cache(store, keys, config.data.cache, device, progress))
            tables.append({k: _texts(k, store, member, config.obs.text.length) for k in texts})
            documents.append(describe(store))
            drawn.append(_weights(config, store, member))
    joint, masks = join_caches(caches, specs, [None, *config.data.mixture], spec.action_key)
    whole = {
        **document,
        "n_episodes": sum(d["n_episodes"] for d in documents),
        "n_steps": sum(d["n_steps"] for d in documents),
        "mixture": documents,
    }
    first = np.concatenate([[0], np.cumsum([len(c.episode_ends) for c in caches])[:-1]])
    merged = {k: torch.cat([t[k] for t in tables]) for k in texts}
    names = [config.data.path, *(m.path for m in config.data.mixture)]
    given = [w for w in drawn if w is not None]
    return Mixed(joint, merged, whole, first.tolist(), names, masks, np.concatenate(given) if given else None)


def _weights(config: TrainConfig, store: DemoStore, member: MixtureConfig) -> np.ndarray | None:
    column = config.data.weight_column
    return None if column is None else step_weights(store, _theirs(column, member))


def _theirs(name: str, member: MixtureConfig) -> str:
    return {ours: theirs for theirs, ours in member.rename.items()}.get(name, name)


def _texts(key: str, store: DemoStore, member: MixtureConfig, length: int) -> Tensor:
    """The text of every episode, ``[E, L]`` uint8."""
    columns = store.episode_columns
    name = _theirs(key, member)
    if name in columns:
        values = [str(v) for v in columns[name]]
    elif key in member.texts:
        values = [member.texts[key]] * store.n_episodes
    else:
        raise ConfigError(
            f"data.mixture: {store.path} has no column meta/{name}: rename one, or give texts.{key}. "
            f"{nearest(name, columns)}"
        )
    return torch.from_numpy(encode_texts(values, length))
