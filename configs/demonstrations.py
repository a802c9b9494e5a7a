"""Demonstrations as a trained policy reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from visuomotor.configs.build import as_read
from visuomotor.configs.training_data import text_tables
from visuomotor.data.cache import CacheConfig, TrainingCache, load_cache
from visuomotor.data.parts import PartConfig
from visuomotor.data.store import DemoStore
from visuomotor.policies.policy import Policy

__all__ = ["Demonstrations", "read_demonstrations"]


@dataclass(frozen=True)
class Demonstrations:
    """What a policy observes and does in a store."""

    cache: TrainingCache
    texts: dict[str, Tensor]  # {key: [E, L]} uint8


def read_demonstrations(path: str, policy: Policy, parts: Mapping[str, PartConfig]) -> Demonstrations:
    """Open a store with the ``parts`` of arrays that the policy was trained on, and cache what it reads.

    Raises:
        DataError: no such store, or one that lacks an array.
        CheckpointError: an array that is another than the policy's.
    """
    spec, obs = policy.spec, policy.encoder.config
    keys = [*obs.store_keys, spec.action_key]
    with DemoStore.open(path) as store:
        for name, part in parts.items():
            store.add_part(name, part)
        store.require(keys)
        specs = {key: as_read(array) for key, array in store.specs.items()}
        spec.check_source(specs, specs[spec.action_key], store.fps, source=f"the store {store.path}")
        return Demonstrations(load_cache(store, keys, CacheConfig()), text_tables(obs, store))
