"""``visuomotor data replay``: recorded simulator states into poses and pictures, in a new store."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from visuomotor.configs.compose import parse_plain
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.store import DemoStore
from visuomotor.envs.replay_model import ReplayModel, read_replay_model
from visuomotor.envs.replay_states import ReplayConfig, StateReplay, replay_specs

__all__ = ["ReplayStatesConfig", "main"]


@dataclass(kw_only=True, slots=True)
class ReplayStatesConfig:
    """``visuomotor data replay <store> <new store> sites=[...] cameras=[...]``.

    Attributes:
        store: a store with the array ``states`` and the column ``model``, as imports of robosuite's recordings have.
        out: the store to make: everything of ``store``, and what is read of the states.
        bodies: bodies whose poses are read.
        sites: sites whose poses are read.
        cameras: cameras whose pictures are drawn.
        height: of the pictures [px].
        width: of the pictures [px].
        geom_groups: groups of geoms that are drawn; robosuite's own pictures show [1].
        assets: folder in which meshes and textures are looked for by name; null leaves them out, and says so.
    """

    store: str = MISSING
    out: str = MISSING
    bodies: list[str] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    cameras: list[str] = field(default_factory=list)
    height: int = 128
    width: int = 128
    geom_groups: list[int] = field(default_factory=lambda: [0, 1, 2])
    assets: str | None = None


def main(words: Sequence[str]) -> int:
    """Replay all episodes."""
    named = ["store=", "out="]
    words = [w if "=" in w else f"{named.pop(0)}{w}" if named else w for w in words]
    c = parse_plain(ReplayStatesConfig, words)
    config = ReplayConfig(
        bodies=c.bodies, sites=c.sites, cameras=c.cameras, height=c.height, width=c.width, geom_groups=c.geom_groups
    )
    assets = None if c.assets is None else Path(c.assets).expanduser()
    if assets is not None and not assets.is_dir():
        raise ConfigError(f"assets={assets}: there is no such folder")
    with DemoStore.open(c.store) as store:
        lost = _replay(store, Path(c.out).expanduser(), config, assets)
    for names in sorted(lost):
        some = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        print(f"{len(names)} meshes and textures were not found, so pictures lack them: {some}; give assets=<folder>")
    print(f"{c.out}: replayed, {', '.join(replay_specs(config))} added")
    return 0


def _replay(store: DemoStore, out: Path, config: ReplayConfig, assets: Path | None) -> set[tuple[str, ...]]:
    added = replay_specs(config)
    if taken := [key for key in added if key in store.specs]:
        raise DataError(f"{store.path} has an array {taken[0]!r} already")
    if "states" not in store.specs or "model" not in store.column_types:
        raise DataError(f"{store.path} lacks the array 'states' or the column 'model': it has no states to replay")
    origin: dict[str, Any] = {**store.origin, "replayed": list(added)}
    lost, columns = set(), store.episode_columns
    specs = {**store.specs, **added}
    with DemoStore.create(
        out, specs, fps=store.fps, episode_columns=store.column_types, origin=origin
    ) as new, _models(config, assets) as models:  # fmt: skip
        for i in range(store.n_episodes):
            replay, found = models(str(columns["model"][i]), i)
            lost |= {found.lost} if found.lost else set()
            arrays = store.episode(i)
            new.append_episode({**arrays, **replay.replay(arrays["states"])}, {k: v[i] for k, v in columns.items()})
            if sys.stderr.isatty():
                print(f"\r{i + 1} of {store.n_episodes} episodes", end="", file=sys.stderr, flush=True)
    return lost


@contextmanager
def _models(config: ReplayConfig, assets: Path | None) -> Iterator[Any]:
    """A function from MJCF text to its replay; the last model stays, because most recordings have one for all."""
    held: dict[str, tuple[StateReplay, ReplayModel]] = {}

    def get(text: str, episode: int) -> tuple[StateReplay, ReplayModel]:
        if text not in held:
            close()
            if not text:
                raise DataError(f"episode {episode} has no model: its states cannot be replayed")
            model = read_replay_model(text, assets)
            held[text] = (StateReplay(model.model, config), model)
        return held[text]

    def close() -> None:
        for replay, _ in held.values():
            replay.close()
        held.clear()

    try:
        yield get
    finally:
        close()
