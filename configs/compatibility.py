"""``visuomotor data validate checkpoint=``: demonstrations judged by a policy and by each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from visuomotor.configs.build import as_read, load_policy, pick_device
from visuomotor.configs.training_data import make_source, text_tables
from visuomotor.data.cache import CacheConfig, TrainingCache, load_cache
from visuomotor.data.checks.finding import Finding, listed
from visuomotor.data.parts import PartConfig
from visuomotor.data.store import DemoStore
from visuomotor.data.windows import window_table
from visuomotor.policies.learn.compatibility import Disagreement, EpisodeLoss, disagreement, episode_losses
from visuomotor.policies.spec import PolicySpec

__all__ = ["judge"]

_FAR = 6.0  # robust standard deviations above the median loss
_OPERATOR = "operator"


def judge(checkpoint: str, path: str) -> tuple[dict[str, Any], list[Finding]]:
    """Loss of every episode under the policy of ``checkpoint``, and how far episodes differ in like states.

    Returns a JSON-ready document and the findings.

    Raises:
        CheckpointError: no such policy.
        DataError: the store lacks what the policy observes, or has it in another form.
    """
    loaded = load_policy(checkpoint, device=pick_device("auto"))
    policy = loaded.policy
    spec, obs = policy.spec, policy.encoder.config
    saved = loaded.checkpoint.document("config")["config"]["data"]
    with DemoStore.open(path) as store:
        for name, part in saved.get("parts", {}).items():
            store.add_part(name, PartConfig(**part))
        store.require([*obs.store_keys, spec.action_key])
        specs = {key: as_read(array) for key, array in store.specs.items()}
        spec.check_source(specs, specs[spec.action_key], store.fps, source=f"the store {store.path}")
        cache = load_cache(store, [*obs.store_keys, spec.action_key], CacheConfig())
        texts, columns = text_tables(obs, store), store.episode_columns
    table = window_table(cache.episode_ends, spec.window)
    source = make_source(obs, spec, cache, texts, table, batch_size=256, seed=0)
    losses = episode_losses(policy, source, table.episode, len(cache.episode_ends))
    spread = _spread(spec, cache, columns.get(_OPERATOR))
    return _document(checkpoint, losses, spread), [*_losses(checkpoint, losses), *_differences(spread)]


def _spread(spec: PolicySpec, cache: TrainingCache, operators: np.ndarray | None) -> Disagreement | None:
    """Of the vectors that the policy observes; None where it sees pictures alone, or there is one episode."""
    keys = [k for k, s in spec.obs.items() if k in cache.arrays and not s.is_image and not s.is_depth]
    if not keys or len(cache.episode_ends) < 2:
        return None
    states = torch.cat([cache.arrays[k].reshape(len(cache.arrays[k]), -1).float().cpu() for k in keys], 1)
    lengths = np.diff(cache.episode_ends, prepend=0)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    return disagreement(states, cache.arrays[spec.action_key].cpu(), episode, operators)


def _document(checkpoint: str, losses: EpisodeLoss, spread: Disagreement | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "checkpoint": checkpoint,
        "loss": [_number(v) for v in losses.loss],
        "deviation": [_number(v) for v in losses.deviation],
        "ranking": losses.ranking,
    }
    if spread is not None:
        document["disagreement"] = {
            "overall": spread.overall,
            "by_episode": [_number(v) for v in spread.by_episode],
            "within": spread.within,
            "between": spread.between,
        }
    return document


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _losses(checkpoint: str, losses: EpisodeLoss) -> list[Finding]:
    middle = float(np.nanmedian(losses.loss))
    worst = losses.ranking[:5]
    told = ", ".join(f"{e} ({losses.loss[e]:.3g})" for e in worst)
    message = f"least compatible with {checkpoint}: episodes {told}; the median loss is {middle:.3g}"
    out = [Finding(severity="info", message=message)]
    far = [e for e in losses.ranking if losses.deviation[e] > _FAR and losses.loss[e] > 2 * middle]
    if far:
        message = (
            f"{len(far)} episodes ({listed(far)}) have more than twice the usual loss under {checkpoint}: they do "
            "something that it has not learnt"
        )
        out.append(Finding(severity="warning", episode=far[0], message=message))
    return out


def _differences(spread: Disagreement | None) -> list[Finding]:
    if spread is None:
        return []
    parts = [f"actions of different episodes in like states differ by {100 * spread.overall:.0f} % of their variance"]
    parts += [f"{100 * v:.0f} % within {_OPERATOR} {name}" for name, v in spread.within.items()]
    if spread.between is not None:
        parts.append(f"{100 * spread.between:.0f} % between operators")
    return [Finding(severity="info", message="; ".join(parts))]
