"""Fitting the normaliser of a policy to its training episodes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from visuomotor.data.actions import ActionTransform
from visuomotor.data.batches import BatchSource
from visuomotor.data.cache import TrainingCache
from visuomotor.data.normalize import KeyNorm, Normalizer, compute_stats
from visuomotor.policies.base import Head
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.policy import Policy
from visuomotor.policies.spec import PolicySpec

__all__ = ["fit_head", "fit_normalizer"]

_ROWS = 1 << 16
_WINDOWS = 1 << 12
_CHUNKS = 1 << 14


def fit_normalizer(
    spec: PolicySpec,
    *,
    encoder: ObservationEncoder,
    cache: TrainingCache,
    source: BatchSource,
    episodes: NDArray[np.int64],
    action_norm: KeyNorm,
) -> Normalizer:
    """Statistics of observations over every step of ``episodes``, of actions as the policy will see them.

    Offsets from the present depend on the window, so those of a relative or delta action are taken over all windows of
    ``source``; absolute actions over the steps.

    Raises:
        DataError: NaN or infinity in the data.
    """
    stats = {f"obs/{k}": compute_stats(_observations(encoder, k, cache, episodes)) for k in encoder.vector_keys}
    if spec.action_config.mode == "absolute":
        stats["action"] = compute_stats(b.cpu().numpy() for b in _rows(cache, spec.action_key, episodes))
    else:
        stats["action"] = compute_stats(_action_offsets(spec, source))
    norms = {f"obs/{k}": encoder.config.norm_of(k) for k in encoder.vector_keys} | {"action": action_norm}
    return Normalizer(stats, norms)


def fit_head(policy: Policy, source: BatchSource) -> None:
    """Show the head up to 16384 evenly spaced training chunks, normalised (see :meth:`Head.fit`)."""
    if type(policy.head).fit is Head.fit:  # nothing to fit
        return
    windows = torch.linspace(0, len(source) - 1, min(len(source), _CHUNKS), dtype=torch.float64).long()
    chunks = []
    for part in windows.split(_WINDOWS):
        batch = source.gather_actions(part, beside=_reference_key(policy.spec)).to(policy.device)
        chunks.append(policy.normalize_action(batch.action, batch.obs))
    policy.head.fit(torch.cat(chunks))


def _reference_key(spec: PolicySpec) -> str | None:
    """The observation that actions are relative to."""
    return None if spec.action_config.mode == "absolute" else spec.action_config.reference_key


def _rows(cache: TrainingCache, key: str, episodes: NDArray[np.int64]) -> Iterator[torch.Tensor]:
    """Steps of ``episodes`` in blocks ``[n, ...]``."""
    starts = np.concatenate([[0], cache.episode_ends[:-1]])
    for e in episodes:
        for start in range(int(starts[e]), int(cache.episode_ends[e]), _ROWS):
            yield cache.arrays[key][start : min(start + _ROWS, int(cache.episode_ends[e]))]


def _observations(
    encoder: ObservationEncoder, key: str, cache: TrainingCache, episodes: NDArray[np.int64]
) -> Iterator[NDArray[np.float32]]:
    for block in _rows(cache, key, episodes):
        yield encoder.unroll(key, block.float()).cpu().numpy()


def _action_offsets(spec: PolicySpec, source: BatchSource) -> Iterator[NDArray[np.float32]]:
    key = _reference_key(spec)
    assert key is not None
    transform = ActionTransform(
        spec.action_config,
        action_size=spec.action.size,
        n_obs=spec.window.n_obs,
        reference_size=spec.obs[key].size,
    )
    for windows in torch.arange(len(source)).split(_WINDOWS):
        batch = source.gather_actions(windows, beside=key)
        reference = batch.obs[key][:, spec.window.n_obs - 1].float().flatten(1)
        yield transform.forward(batch.action, reference).flatten(0, 1).cpu().numpy()
