"""Chunks of a policy over recorded episodes, for the viewer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from visuomotor.configs.build import LoadedPolicy, as_read, load_policy, pick_device
from visuomotor.configs.training_data import make_source, text_tables
from visuomotor.data.angles import wrap
from visuomotor.data.cache import TrainingCache
from visuomotor.data.errors import ConfigError
from visuomotor.data.ingest import image_gain, plan_array, read_rows
from visuomotor.data.parts import PartConfig
from visuomotor.data.store import DemoStore
from visuomotor.data.viewing.recording import PredictedChunk, Predictor
from visuomotor.data.windows import WindowConfig, window_table

__all__ = ["load_predictor"]

_BATCH = 64


def load_predictor(
    store: DemoStore, checkpoint: str, *, every: int | None = None, keys: Sequence[str] = (), seed: int = 0,
    device: str = "auto", weights: str = "ema", solver: str | None = None, sample_steps: int | None = None,
) -> Predictor:  # fmt: skip
    """A policy that predicts a chunk at every ``every``-th step of an episode from what was recorded there.

    Parts of arrays that the policy was trained on are added to ``store``.

    Raises:
        CheckpointError: the store has other observations or actions than the policy.
        ConfigError: the array of the actions is not among ``keys``, if some are named.
    """
    loaded = load_policy(
        checkpoint, weights=weights, device=pick_device(device), solver=solver, sample_steps=sample_steps
    )
    spec, obs = loaded.policy.spec, loaded.policy.encoder.config
    if keys and spec.action_key not in keys:
        raise ConfigError(
            f"keys={list(keys)}: predictions are drawn over {spec.action_key!r}, which must be one of them"
        )
    saved = loaded.checkpoint.document("config")["config"]["data"]
    for name, part in saved.get("parts", {}).items():
        store.add_part(name, PartConfig(**part))
    store.require([*obs.store_keys, spec.action_key])
    specs = {key: as_read(array) for key, array in store.specs.items()}
    spec.check_source(specs, specs[spec.action_key], store.fps, source=f"the store {store.path}")
    return Predictor(spec.action_key, _Chunks(store, loaded, every or spec.window.n_exec, seed))


class _Chunks:
    """``chunks(episode)``; one episode at a time is in memory."""

    def __init__(self, store: DemoStore, loaded: LoadedPolicy, every: int, seed: int) -> None:
        self._store, self._policy, self._every, self._seed = store, loaded.policy, every, seed
        spec, self._obs = loaded.policy.spec, loaded.policy.encoder.config
        self._spec, w = spec, spec.window
        # windows that begin so early and end so late that each step of an episode is the present one once
        self._window = WindowConfig(
            n_obs=w.n_obs, horizon=w.horizon, n_exec=w.n_exec, pad_before=w.n_obs - 1, pad_after=w.horizon - 1
        )
        self._texts = text_tables(self._obs, store)
        self._plans = {
            key: plan_array(key, store.specs[key], store.n_steps) for key in {*self._obs.store_keys, spec.action_key}
        }
        floats = [k for k, plan in self._plans.items() if plan.kind == "float_image"]
        self._gain = {key: image_gain(store, key) for key in floats}

    def __call__(self, episode: int) -> list[PredictedChunk]:
        span, spec, w = self._store.episode_slice(episode), self._spec, self._window
        length = span.stop - span.start
        rows = {
            k: read_rows(self._store, p, span.start, span.stop, self._gain.get(k, 1)) for k, p in self._plans.items()
        }
        cache = TrainingCache(
            arrays={k: torch.from_numpy(v) for k, v in rows.items()}, episode_ends=np.array([length]), placement="ram",
            nbytes=sum(v.nbytes for v in rows.values()), reason="one episode",
        )  # fmt: skip
        texts = {k: v[episode : episode + 1] for k, v in self._texts.items()}
        source = make_source(
            self._obs, spec, cache, texts, window_table(cache.episode_ends, w), batch_size=_BATCH, seed=0
        )
        generator = torch.Generator().manual_seed(self._seed)
        angles = list(spec.action_config.angle_dims)
        out: list[PredictedChunk] = []
        for steps in torch.arange(0, length, self._every).split(_BATCH):  # window i has step i as the present one
            batch = source.gather(steps).to(self._policy.device)
            chunk = self._policy.sample(batch.obs, self._policy.draw_noise(len(steps), generator))
            error = (chunk - batch.action).double().cpu()
            error[..., angles] = wrap(error[..., angles])
            executed = slice(w.n_obs - 1, w.n_obs - 1 + w.n_exec)
            for step, actions, wrong in zip(steps.tolist(), chunk.double().cpu(), error[:, executed], strict=True):
                future = actions[w.n_obs - 1 :][
                    : length - step
                ]  # what lies past the end has nothing to be compared with
                out.append(PredictedChunk(step, future.numpy(), float(wrong[: length - step].abs().mean())))
        return out
