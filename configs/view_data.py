"""``visuomotor data view | report | video``: looking at demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from omegaconf import MISSING

from visuomotor.configs.compose import parse_plain
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.store import DemoStore
from visuomotor.data.viewing.pictures import Camera, camera_keys
from visuomotor.data.viewing.report import write_report

__all__ = ["ReportConfig", "VideoConfig", "ViewConfig", "report", "video", "view"]

T = TypeVar("T")
_FIRST = 5  # episodes that are shown when none are named


@dataclass(kw_only=True, slots=True)
class ViewConfig:
    """``visuomotor data view <store>``.

    Attributes:
        store: the Zarr store to look at.
        episodes: indices of the episodes to show; null shows the first 5.
        keys: arrays to show; empty shows all.
        save: file (.rrd) to write instead of opening the viewer; for machines without a display.
        jpeg: quality, 1 to 100, at which pictures are compressed for the viewer; null keeps every pixel.
        checkpoint: run or checkpoint whose predictions are drawn over the recorded actions.
        every: steps between two predictions; null takes the steps that the policy executes of each.
        weights: ``ema`` (the moving average) or ``raw``.
        solver, sample_steps: another solver or number of denoising steps than in training; null keeps them.
        seed: of the noise of the predictions.
        device: ``auto`` (the GPU where there is one), ``cpu`` or ``cuda``.
    """

    store: str = MISSING
    episodes: list[int] | None = None
    keys: list[str] = field(default_factory=list)
    save: str | None = None
    jpeg: int | None = 90
    checkpoint: str | None = None
    every: int | None = None
    weights: str = "ema"
    solver: str | None = None
    sample_steps: int | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ConfigError(f"every={self.every}: expected at least 1 step")


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """``visuomotor data report <store> [<out>]``.

    Attributes:
        store: the Zarr store to report on.
        out: the HTML file to write.
        check: decode everything and list what ``visuomotor data validate`` finds.
        episodes: episodes with pictures, at most.
        frames: pictures of each episode and camera.
    """

    store: str = MISSING
    out: str = "report.html"
    check: bool = True
    episodes: int = 24
    frames: int = 8

    def __post_init__(self) -> None:
        for name, low in (("episodes", 0), ("frames", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least {low}")


@dataclass(kw_only=True, slots=True)
class VideoConfig:
    """``visuomotor data video <store>``.

    Attributes:
        store: the Zarr store to take it from.
        episode: its index; negative numbers count from the last.
        camera: a picture array; null takes the only one.
        out: the mp4 file to write; null makes ``<camera>_<episode>.mp4``.
        fps: pictures per second; null takes the rate of the store.
    """

    store: str = MISSING
    episode: int = 0
    camera: str | None = None
    out: str | None = None
    fps: float | None = None


def view(words: Sequence[str]) -> int:
    """Open the viewer, or write a file for it."""
    if _asks_help(words):
        return _help(ViewConfig)
    c = _parse(ViewConfig, words, ("store",))
    from visuomotor.data.viewing.recording import record_episodes  # what it needs is an extra

    with DemoStore.open(c.store) as store:
        if not store.n_episodes:
            raise DataError(f"{store.path} has no episodes to show")
        episodes = list(range(min(_FIRST, store.n_episodes))) if c.episodes is None else c.episodes
        chosen = list(dict.fromkeys(e + store.n_episodes if e < 0 else e for e in episodes))
        done = record_episodes(
            store,
            chosen,
            save=c.save,
            keys=c.keys,
            jpeg=c.jpeg,
            predictor=_predictor(c, store) if c.checkpoint else None,
        )
    for key, why in done.left_out.items():
        print(f"not shown: {key}: {why}")
    shown = f"{len(chosen)} of {store.n_episodes} episodes, {done.n_steps} steps"
    if done.error is not None:
        shown += f"; mean absolute error of the predictions {done.error:.4g}"
    print(f"{done.path}: {shown}. Open it with: rerun {done.path}" if done.path else f"in the viewer: {shown}")
    return 0


def _predictor(c: ViewConfig, store: DemoStore) -> Any:
    from visuomotor.configs.predicted import load_predictor  # torch, which a look at the data alone does not need

    assert c.checkpoint is not None
    return load_predictor(
        store, c.checkpoint, every=c.every, keys=c.keys, seed=c.seed, device=c.device, weights=c.weights,
        solver=c.solver, sample_steps=c.sample_steps,
    )  # fmt: skip


def report(words: Sequence[str]) -> int:
    """Write the report of a store."""
    if _asks_help(words):
        return _help(ReportConfig)
    c = _parse(ReportConfig, words, ("store", "out"))
    with DemoStore.open(c.store) as store:
        made = write_report(store, c.out, check=c.check, episodes=c.episodes, frames=c.frames)
        found = "values not checked" if made.n_findings is None else f"{made.n_findings} finding(s)"
        print(
            f"{made.path}: {store.n_episodes} episodes, pictures of {len(made.pictured)}, {found}; "
            f"{made.n_bytes / 1e6:.1f} MB"
        )
    return 0


def video(words: Sequence[str]) -> int:
    """Write one camera of one episode as a film."""
    if _asks_help(words):
        return _help(VideoConfig)
    c = _parse(VideoConfig, words, ("store",))
    from visuomotor.envs.video import VideoWriter

    with DemoStore.open(c.store) as store:
        camera = Camera(store, _only_camera(store) if c.camera is None else c.camera)
        span, fps = store.episode_slice(c.episode), c.fps or store.fps
        if fps is None or not 0 < fps <= 1000:
            known = "the store does not say its rate" if fps is None else f"fps={fps:g}"
            raise ConfigError(f"{known}: give fps=<pictures per second>, up to 1000")
        index = c.episode % store.n_episodes
        path = Path(c.out or f"{camera.key}_{index}.mp4").expanduser()
        try:
            with VideoWriter(path, fps) as writer:
                for _, frames in camera.blocks(span.start, span.stop):
                    for frame in camera.rgb(frames):
                        writer.add(np.ascontiguousarray(frame))
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror or error}") from None
    print(f"{path}: episode {index}, {camera.key}, {span.stop - span.start} pictures at {fps:g} Hz")
    return 0


def _only_camera(store: DemoStore) -> str:
    cameras = camera_keys(store)
    if len(cameras) != 1:
        raise ConfigError(f"{store.path} has {len(cameras)} cameras, give camera=<name>. Known: {', '.join(cameras)}")
    return cameras[0]


def _asks_help(words: Sequence[str]) -> bool:
    return not words or any(w in ("-h", "--help", "help") for w in words)


def _help(schema: type) -> int:
    from visuomotor.configs.help import settings_help  # it reads the settings of every command

    print(settings_help(schema), end="")
    return 0


def _parse(schema: type[T], words: Sequence[str], positional: Sequence[str]) -> T:
    """Settings from ``words``; those without a name are ``positional`` ones, in their order."""
    left = list(positional)
    named = [w if "=" in w or not left else f"{left.pop(0)}={w}" for w in words]
    if not any(w.startswith("store=") for w in named):
        raise ConfigError("give the path of a Zarr store, as the first word or as store=<path>")
    return parse_plain(schema, named)
