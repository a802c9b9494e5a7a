"""Episodes in the rerun viewer, or in a file for it (rerun.io). The one file that imports rerun.

Each episode is an entity ``episode_0003`` of one recording, with its steps counted from 0, and a tab of its own in the
viewer. Below it lie an entity for each camera and for each component of the other arrays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from visuomotor.data.errors import DataError, MissingExtraError, UserError
from visuomotor.data.store import DemoStore
from visuomotor.data.viewing.pictures import Camera, metres_per_unit, picture_kind
from visuomotor.data.viewing.survey import component_names

__all__ = ["PredictedChunk", "Predictor", "Recorded", "record_episodes"]

_COMPONENTS = 64  # values in a step up to which an array is drawn as curves
_CLOUD = 32  # points from which [N, 3] is a cloud
_BLUE, _ORANGE = (47, 111, 237), (217, 130, 43)


@dataclass(frozen=True)
class PredictedChunk:
    """Actions ``[n, Da]`` that a policy predicts from step ``step`` of an episode on, in the unit of the store.

    ``error`` is the mean absolute difference to the recorded ones over the steps that would be executed.
    """

    step: int
    actions: NDArray[np.float64]
    error: float | None = None


@dataclass(frozen=True)
class Predictor:
    """A policy as the viewer knows it: which array it predicts, and its chunks for an episode."""

    key: str
    chunks: Callable[[int], Sequence[PredictedChunk]]


@dataclass(frozen=True)
class Recorded:
    """What was shown: steps, the file if one was written, mean error of predictions, what was left out and why."""

    n_steps: int
    path: Path | None
    error: float | None
    left_out: dict[str, str]


@dataclass
class _Log:
    """Where an episode goes: the stream, what is in view, what is left out."""

    rr: Any
    stream: Any
    jpeg: int | None
    left_out: dict[str, str] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)


def record_episodes(
    store: DemoStore, episodes: Sequence[int], *, save: str | Path | None = None, keys: Sequence[str] = (),
    jpeg: int | None = 90, predictor: Predictor | None = None,
) -> Recorded:  # fmt: skip
    """Show episodes in the viewer, or write them to the file ``save`` (``.rrd``), which appears when it is complete.

    Args:
        store: an open store.
        episodes: indices, each once.
        save: file to write instead of opening the viewer.
        keys: arrays to show; empty shows all.
        jpeg: quality (1 to 100) at which pictures are compressed; None keeps every pixel. Depth and segmentation are
            never compressed with loss.
        predictor: chunks of a policy, drawn over the recorded actions.

    Raises:
        MissingExtraError: rerun is not installed.
        DataError: an episode or array that does not exist, damaged chunks, a file that cannot be written.
        UserError: no display to open a window on.
    """
    store.require(keys)
    spans = [store.episode_slice(e) for e in episodes]
    if jpeg is not None and not 1 <= jpeg <= 100:
        raise UserError(f"jpeg={jpeg}: expected a quality from 1 to 100, or null for every pixel")
    rr = _rerun()
    stream = rr.RecordingStream("visuomotor")
    path = None if save is None else Path(save).expanduser()
    draft = None if path is None else path.with_name(f".{path.name}.{os.getpid()}")
    _open(stream, path, draft)
    stream.send_recording_name(store.path.name)
    log = _Log(rr, stream, jpeg)
    try:
        shown = [k for k in store.keys if not keys or k in keys]
        tabs = [_episode(log, store, e, shown, predictor) for e in episodes]
        stream.send_blueprint(_blueprint(tabs))
        stream.flush()
        stream.disconnect()
        if path is not None and draft is not None:
            os.replace(draft, path)
    finally:
        if draft is not None:
            stream.disconnect()
            draft.unlink(missing_ok=True)
    error = float(np.mean(log.errors)) if log.errors else None
    return Recorded(sum(s.stop - s.start for s in spans), path, error, log.left_out)


def _rerun() -> Any:
    try:
        import rerun
    except ImportError as error:
        raise MissingExtraError(f"data view needs rerun: pip install 'visuomotor[view]' ({error})") from None
    return rerun


def _open(stream: Any, path: Path | None, draft: Path | None) -> None:
    if path is None:
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise UserError(
                "there is no display to open the viewer on (neither DISPLAY nor WAYLAND_DISPLAY is set): write a file "
                "with save=<name>.rrd, and open it where there is one with: rerun <name>.rrd"
            )
        try:
            stream.spawn()
        except Exception as error:  # of several types: no program, no port
            raise UserError(f"the rerun viewer could not be started: {error}") from None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream.save(str(draft))
    except Exception as error:
        raise DataError(f"{path} cannot be written: {error}") from None


def _episode(log: _Log, store: DemoStore, episode: int, keys: Sequence[str], predictor: Predictor | None) -> Any:
    """Send one episode; returns its tab."""
    rrb, name = log.rr.blueprint, f"episode_{episode % store.n_episodes:04d}"
    span = store.episode_slice(episode)
    seconds = _seconds(store, span)
    pictures, curves = [_about(log, store, episode, name)], []
    for key in keys:
        spec = store.specs[key]
        path = log.rr.new_entity_path([name, key])
        if picture_kind(key, spec):
            _pictures(log, Camera(store, key), path, span, seconds)
            pictures.append(rrb.Spatial2DView(origin=path, name=key))
        elif np.dtype(spec.dtype).kind in "fiub" and spec.size <= _COMPONENTS:
            values = store.read(key, span.start, span.stop).reshape(span.stop - span.start, spec.size)
            parts = {c: log.rr.new_entity_path([name, key, c]) for c in _distinct(component_names(spec))}
            predicted = predictor is not None and predictor.key == key
            _curves(log, parts, values.astype(np.float64), seconds, _BLUE if predicted else None)
            views = {f"{key} {c}": part for c, part in parts.items()} if predicted else {key: path}
            curves += [rrb.TimeSeriesView(origin=origin, name=title) for title, origin in views.items()]
        elif np.dtype(spec.dtype).kind == "f" and len(spec.shape) == 2 and spec.shape[1] == 3 <= _CLOUD < spec.shape[0]:
            _clouds(log, store, key, path, span, seconds)
            pictures.append(rrb.Spatial3DView(origin=path, name=key))
        else:
            log.left_out[key] = f"{spec.size} values of {spec.dtype} a step: neither curves, a picture nor points"
    if predictor is not None:
        path = log.rr.new_entity_path([name, "prediction error"])
        _predictions(log, predictor, episode, name, store, path, seconds)
        curves.append(rrb.TimeSeriesView(origin=path, name="prediction error"))
    return rrb.Vertical(rrb.Grid(*pictures), rrb.Grid(*curves), name=name)


def _blueprint(tabs: Sequence[Any]) -> Any:
    import rerun.blueprint as rrb

    return rrb.Blueprint(rrb.Tabs(*tabs), collapse_panels=False)


def _seconds(store: DemoStore, span: slice) -> NDArray[np.float64] | None:
    """Time of each step since the first [s]: by the rate of the store, else by its timestamps, else unknown."""
    if store.fps:
        return np.arange(span.stop - span.start) / store.fps
    for key, spec in store.specs.items():
        if spec.role == "timestamp" and spec.size == 1 and spec.unit in (None, "s"):
            stamps = store.read(key, span.start, span.stop).reshape(-1).astype(np.float64)
            return stamps - stamps[0]
    return None


def _times(log: _Log, steps: NDArray[np.int64], seconds: NDArray[np.float64] | None) -> list[Any]:
    columns = [log.rr.TimeColumn("step", sequence=steps)]
    if seconds is not None:
        inside = np.clip(steps, 0, len(seconds) - 1)  # the end of a curve lies one step past the last
        columns.append(log.rr.TimeColumn("seconds", duration=seconds[inside] + (steps - inside) * _period(seconds)))
    return columns


def _period(seconds: NDArray[np.float64]) -> float:
    return float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0


def _distinct(names: Sequence[str]) -> list[str]:
    """Names for entities: none empty, none twice."""
    out: list[str] = []
    for i, name in enumerate(names):
        plain = name.strip() or str(i)
        out.append(plain if plain not in out else f"{plain} {i}")
    return out


def _about(log: _Log, store: DemoStore, episode: int, name: str) -> Any:
    lines = [f"{store.path.name}, episode {episode}"]
    lines += [f"{column}: {values[episode]}" for column, values in store.episode_columns.items()]
    path = log.rr.new_entity_path([name, "about"])
    log.stream.log(path, log.rr.TextDocument("\n".join(lines), media_type="text/plain"), static=True)
    return log.rr.blueprint.TextDocumentView(origin=path, name="about")


def _curves(
    log: _Log, parts: Mapping[str, str], values: NDArray[np.float64], seconds: NDArray[np.float64] | None,
    colour: tuple[int, int, int] | None,
) -> None:  # fmt: skip
    times = _times(log, np.arange(len(values)), seconds)
    for (name, path), column in zip(parts.items(), values.T, strict=True):
        log.stream.log(path, log.rr.SeriesLines(names=[name], colors=None if colour is None else [colour]), static=True)
        log.stream.send_columns(path, times, log.rr.Scalars.columns(scalars=column))


def _pictures(log: _Log, camera: Camera, path: str, span: slice, seconds: NDArray[np.float64] | None) -> None:
    for first, frames in camera.blocks(span.start, span.stop):
        steps = np.arange(len(frames)) + (first - span.start)
        columns = _picture_columns(log, camera, frames)
        log.stream.send_columns(path, _times(log, steps, seconds), columns)


def _picture_columns(log: _Log, camera: Camera, frames: NDArray[np.generic]) -> Any:
    rr, n = log.rr, len(frames)
    if camera.kind == "depth":
        exact = frames.dtype == np.uint16
        depth = frames.reshape(n, *frames.shape[1:3]) if exact else camera.metres(frames)
        scale = metres_per_unit(camera.spec) if exact else 1.0
        made = _buffers(rr, depth, "U16" if exact else "F32", None)
        return rr.DepthImage.columns(**made, meter=[1 / scale] * n)
    if camera.kind == "segmentation":  # identifiers of rerun have no sign: -1, nothing, becomes the largest
        return rr.SegmentationImage.columns(**_buffers(rr, frames.astype(np.uint16), "U16", None))
    rgb = camera.rgb(frames)
    if log.jpeg is None:
        return rr.Image.columns(**_buffers(rr, rgb, "U8", "RGB"))
    blobs = list(_jpegs(rgb, log.jpeg))
    return rr.EncodedImage.columns(blob=blobs, media_type=["image/jpeg"] * n)


def _buffers(rr: Any, frames: NDArray[np.generic], datatype: str, model: str | None) -> dict[str, Any]:
    height, width = frames.shape[1:3]
    form = rr.components.ImageFormat(width=width, height=height, channel_datatype=datatype, color_model=model)
    data = np.ascontiguousarray(frames).view(np.uint8).reshape(len(frames), -1)
    return {"buffer": data, "format": [form] * len(frames)}


def _jpegs(rgb: NDArray[np.uint8], quality: int) -> Iterator[bytes]:
    for picture in rgb:
        done, code = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not done:
            raise DataError("a picture could not be encoded as JPEG: give jpeg=null")
        yield code.tobytes()


def _clouds(log: _Log, store: DemoStore, key: str, path: str, span: slice, seconds: NDArray[np.float64] | None) -> None:
    points = store.read(key, span.start, span.stop).astype(np.float32)  # [L, N, 3]
    columns = log.rr.Points3D.columns(positions=points.reshape(-1, 3)).partition([points.shape[1]] * len(points))
    log.stream.send_columns(path, _times(log, np.arange(len(points)), seconds), columns)


def _predictions(
    log: _Log, predictor: Predictor, episode: int, name: str, store: DemoStore, error_path: str,
    seconds: NDArray[np.float64] | None,
) -> None:  # fmt: skip
    """Chunks as curves over the recorded ones. Those that overlap in time lie in different entities."""
    chunks = predictor.chunks(episode)
    parts = _distinct(component_names(store.specs[predictor.key]))
    lanes = _lanes(chunks)
    for lane in sorted(set(lanes)):
        mine = [c for c, k in zip(chunks, lanes, strict=True) if k == lane]
        # an empty value one step after the last one of a chunk ends its line, so that chunks are not joined
        steps = np.concatenate([np.arange(c.step, c.step + len(c.actions) + 1) for c in mine])
        lengths = [n for c in mine for n in [1] * len(c.actions) + [0]]
        times = _times(log, steps, seconds)
        for i, part in enumerate(parts):
            path = log.rr.new_entity_path([name, predictor.key, part, "predicted", str(lane)])
            log.stream.log(path, log.rr.SeriesLines(names=["predicted"], colors=[_ORANGE], widths=[1.0]), static=True)
            values = np.concatenate([c.actions[:, i] for c in mine])
            log.stream.send_columns(path, times, log.rr.Scalars.columns(scalars=values).partition(lengths))
    known = [(c.step, c.error) for c in chunks if c.error is not None]
    if known:
        log.errors += [error for _, error in known]
        values = np.array([error for _, error in known])
        times = _times(log, np.array([step for step, _ in known]), seconds)
        log.stream.send_columns(error_path, times, log.rr.Scalars.columns(scalars=values))


def _lanes(chunks: Sequence[PredictedChunk]) -> list[int]:
    """A lane for each chunk: the first whose last chunk has ended, the empty value after it included."""
    free: list[int] = []  # step from which each lane is free
    out = []
    for chunk in chunks:
        lane = next((i for i, step in enumerate(free) if step <= chunk.step), len(free))
        free[lane : lane + 1] = [chunk.step + len(chunk.actions) + 1]
        out.append(lane)
    return out
