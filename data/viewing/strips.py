"""Thumbnails: one strip of pictures for each episode and camera, as JPEG, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from visuomotor.data.errors import DataError
from visuomotor.data.store import DemoStore
from visuomotor.data.viewing.pictures import Camera, camera_keys

__all__ = ["Strip", "choose_episodes", "make_strips"]

_HEIGHT = 84  # px of a thumbnail
_MAX_WIDTH = 160
_GAP = 2
_QUALITY = 82


@dataclass(frozen=True)
class Strip:
    """Pictures of one camera over one episode, side by side; ``problem`` says why there are none."""

    episode: int
    camera: str
    steps: tuple[int, ...]
    jpeg: bytes = b""
    size: tuple[int, int] = (0, 0)  # width, height [px]
    problem: str = ""


def choose_episodes(n_episodes: int, limit: int, flagged: Collection[int] = ()) -> list[int]:
    """At most ``limit`` episodes, sorted: up to a third of them flagged ones, the others evenly spread."""
    if n_episodes <= limit:
        return list(range(n_episodes))
    if limit < 1:
        return []
    marked = sorted(e for e in flagged if 0 <= e < n_episodes)[: limit // 3]
    rest = np.setdiff1d(np.arange(n_episodes), marked)
    spread = rest[np.linspace(0, len(rest) - 1, limit - len(marked)).round().astype(int)]
    return sorted({*marked, *spread.tolist()})


def make_strips(
    store: DemoStore, *, limit: int, frames: int, budget_bytes: int, flagged: Collection[int] = ()
) -> list[Strip]:
    """Strips of ``frames`` pictures for up to ``limit`` episodes, fewer where they would exceed ``budget_bytes``.

    A damaged picture costs its strip only.
    """
    cameras = [Camera(store, key) for key in camera_keys(store)]
    if not cameras or not store.n_episodes or limit < 1:
        return []
    chosen = choose_episodes(store.n_episodes, limit, flagged)
    probe = [_strip(store, camera, chosen[len(chosen) // 2], frames) for camera in cameras]
    each = max(1, sum(len(s.jpeg) for s in probe))
    if len(chosen) * each > budget_bytes:
        chosen = choose_episodes(store.n_episodes, max(1, budget_bytes // each), flagged)
    out: list[Strip] = []
    used = 0
    for episode in chosen:
        strips = [_strip(store, camera, episode, frames) for camera in cameras]
        used += sum(len(s.jpeg) for s in strips)
        if out and used > budget_bytes:
            break
        out += strips
    return out


def _strip(store: DemoStore, camera: Camera, episode: int, frames: int) -> Strip:
    span = store.episode_slice(episode)
    rows = np.unique(np.linspace(span.start, span.stop - 1, frames).round().astype(int)).tolist()
    steps = tuple(row - span.start for row in rows)
    try:
        pictures = camera.pick(rows)
    except DataError as error:
        return Strip(episode, camera.key, steps, problem=str(error))
    joined = _side_by_side([_small(p) for p in pictures])
    done, code = cv2.imencode(".jpg", joined[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        return Strip(episode, camera.key, steps, problem="the pictures could not be encoded")
    return Strip(episode, camera.key, steps, code.tobytes(), (joined.shape[1], joined.shape[0]))


def _small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    scale = min(1.0, _HEIGHT / height, _MAX_WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return picture if scale == 1 else np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _side_by_side(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    height, width = pictures[0].shape[:2]
    out = np.full((height, len(pictures) * (width + _GAP) - _GAP, 3), 128, np.uint8)
    for i, picture in enumerate(pictures):
        out[:, i * (width + _GAP) : i * (width + _GAP) + width] = picture
    return out
