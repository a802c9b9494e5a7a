"""Recording what is done in one world into a store of demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from visuomotor.data.errors import DataError
from visuomotor.data.recorder import EpisodeRecorder
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.envs.base import Obs, VecEnv
from visuomotor.envs.generate import COLUMNS

__all__ = ["INTERVENTION", "DemoTape"]

INTERVENTION = "is_intervention"


class DemoTape:
    """Records episodes of ``env`` into a store laid out as by ``visuomotor data generate``.

    A row holds the observations and the action and reward of the step taken from them. A store that is made here also
    has the per-step array ``is_intervention`` if ``interventions`` is set: true where a person acted.

    Args:
        path: the store; one that exists is added to.
        env: what is recorded; the store's own arrays decide which of its observations.
        text: what a person would say to ask for the task; the column ``task``.
        interventions: see above.

    Raises:
        DataError: a store of other arrays, shapes or frame rate.
    """

    def __init__(self, path: Path, env: VecEnv, *, text: str, interventions: bool) -> None:
        reward = ArraySpec(shape=(), role="reward")
        specs = {**env.obs_spec, "action": env.action_spec, "reward": reward}
        mark = {INTERVENTION: ArraySpec(shape=(), dtype="bool", role="intervention")}
        if path.exists():
            store = DemoStore.open(path, "a")
        else:
            made = specs | (mark if interventions else {})
            store = DemoStore.create(path, made, fps=env.fps, episode_columns=COLUMNS)
        try:
            _check(store, specs | mark, env.fps)
        except BaseException:
            store.close()
            raise
        self._store, self._recorder, self._text = store, EpisodeRecorder(store), text

    def next_seed(self, seeds: range) -> int:
        """The first of ``seeds`` after those of the episodes that are recorded already."""
        recorded = self._store.episode_columns["seed"].tolist() if "seed" in self._store.column_types else []
        return max((s + 1 for s in recorded if s in seeds), default=seeds.start)

    def start(self, seed: int) -> None:
        """Begin an episode."""
        known = {"seed": seed, "task": self._text}
        self._recorder.start({k: v for k, v in known.items() if k in self._store.column_types})

    def add(self, obs: Obs, action: Tensor, reward: Tensor, human: bool) -> None:
        """Record a step; all tensors ``[1, ...]``."""
        row: dict[str, Any] = {k: v[0].cpu().numpy() for k, v in obs.items()}
        row |= {"action": action[0].cpu().numpy(), "reward": np.float32(reward[0].item()), INTERVENTION: human}
        self._recorder.step({k: row[k] for k in self._store.specs})

    def keep(self, success: bool) -> int:
        """Make the episode part of the store; returns its index."""
        return self._recorder.end({"success": success} if "success" in self._store.column_types else {})

    def drop(self) -> None:
        """Throw the episode away."""
        self._recorder.discard()

    def close(self) -> None:
        """Throw an unfinished episode away and close the store."""
        self._recorder.close()
        self._store.close()


def _check(store: DemoStore, specs: dict[str, ArraySpec], fps: float) -> None:
    if store.fps is not None and store.fps != fps:
        raise DataError(f"{store.path} has {store.fps:g} steps per second, the task {fps:g}: record into another store")
    for key, spec in store.specs.items():
        if key not in specs:
            raise DataError(
                f"{store.path} has the array {key!r}, which the task does not give as it is set; it gives "
                f"{', '.join(sorted(specs))}: change env.* or record into another store"
            )
        ours = specs[key]
        if (spec.shape, spec.names) != (ours.shape, ours.names):
            raise DataError(
                f"{store.path} has {key!r} of shape {list(spec.shape)} ({spec.names}), the task gives "
                f"{list(ours.shape)} ({ours.names}): change env.* or record into another store"
            )
    unknown = sorted(set(store.column_types) - set(COLUMNS))
    if unknown:
        raise DataError(f"{store.path} has the episode column {unknown[0]!r}, which play does not know")
