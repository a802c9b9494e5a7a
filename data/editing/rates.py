"""``resample``: the same demonstrations at another rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from visuomotor.data.checks.rotation import find_quaternions
from visuomotor.data.editing.demos import Demos
from visuomotor.data.editing.words import as_value, options
from visuomotor.data.errors import ConfigError
from visuomotor.data.importing.resample import SECOND, angle, grid, hold_index, linear, slerp
from visuomotor.data.layout import check_fps
from visuomotor.data.spec import ArraySpec

__all__ = ["resample", "set_rate"]

Change = Callable[[np.ndarray], np.ndarray]
_JUMP = 1.5 * np.pi  # a step of an angle that is longer has wrapped round


def resample(demos: Demos, words: Sequence[str]) -> Demos:
    """``resample hz=<rate> [hold=<a,b>] [sum=<a,b>]``: steps at ``i / hz``, from the first step on.

    What does not vary continuously (images, depth, whole numbers, flags) is held: the latest step not after the new
    one. Real numbers are taken from the straight line between two steps, quaternions (by their names) from the arc,
    and angles, which are those with steps longer than 3/4 of a turn, the short way round. ``hold`` names arrays that
    are held all the same, ``sum`` those that are changes from step to step, such as delta actions: they are divided or
    added up so that the whole stays the same. Rewards are summed.
    """
    given = options("resample", words, {"hz": "rate", "hold": "arrays", "sum": "arrays"})
    if "hz" not in given:
        raise ConfigError("resample: give the new rate, as in hz=20")
    hz = check_fps(as_value("hz", given["hz"], "float64"))
    if demos.fps is None:
        raise ConfigError("resample: the store does not say its rate: give it first, as in rate hz=10")
    if hz == demos.fps:
        return demos
    held, summed = (given[k].split(",") if k in given else [] for k in ("hold", "sum"))
    demos.require([*held, *summed])
    for key in summed:
        if np.dtype(demos.specs[key].dtype).kind != "f":
            raise ConfigError(f"resample: sum={key}: it is {demos.specs[key].dtype}: expected real numbers")
    summed += [k for k, s in demos.specs.items() if s.role == "reward" and s.dtype.startswith("float")]
    changes = {k: _change(k, s, demos.fps, hz, k in held, k in summed) for k, s in demos.specs.items()}
    changed = demos.mapped(demos.specs, lambda episode, rows: {k: changes[k](v) for k, v in rows.items()})
    lengths = [len(_times(int(n), demos.fps, hz)[1]) for n in demos.lengths]
    return replace(changed, fps=hz, lengths=np.array(lengths, np.int64))


def _times(n: int, fps: float, hz: float) -> tuple[np.ndarray, np.ndarray]:
    """Times [ns] of ``n`` steps, and of those that they become."""
    old = np.round(np.arange(n) * (SECOND / fps)).astype(np.int64)
    return old, grid(0, int(old[-1]) + 1, hz)  # one nanosecond of grace for rounding


def _change(key: str, spec: ArraySpec, fps: float, hz: float, held: bool, summed: bool) -> Change:
    real = np.dtype(spec.dtype).kind == "f" and not spec.is_image and not spec.is_depth
    quaternions = [list(q.dims) for q in find_quaternions({key: spec})]
    clock = spec.role == "timestamp"

    def change(rows: np.ndarray) -> np.ndarray:
        old, new = _times(len(rows), fps, hz)
        if summed:
            return _summed(rows, fps, new, hz)
        if held or not (real or clock):
            return np.ascontiguousarray(rows[hold_index(old, new)])
        first = rows[0]  # stamps since 1970 in nanoseconds are too large for real numbers of 64 bit
        x = (rows - first if clock else rows).astype(np.float64)
        out = linear(old, x, new)
        flat_in, flat_out = x.reshape(len(x), -1), out.reshape(len(out), -1)
        for c in _angles(flat_in, spec) if real and not clock else []:
            flat_out[:, c] = angle(old, flat_in[:, [c]], new)[:, 0]
        for dims in quaternions:
            flat_out[:, dims] = slerp(old, flat_in[:, dims], new)
        if clock:
            out = (np.rint(out) if rows.dtype.kind in "iu" else out).astype(rows.dtype) + first
        return np.ascontiguousarray(out.astype(rows.dtype))

    return change


def _angles(x: np.ndarray, spec: ArraySpec) -> list[int]:
    """Components that wrap round in this episode: they lie in one turn and jump over most of it."""
    if len(x) < 2 or spec.unit not in (None, "rad"):
        return []
    low, high = x.min(axis=0), x.max(axis=0)
    one_turn = ((low >= -np.pi - 0.01) & (high <= np.pi + 0.01)) | ((low >= -0.01) & (high <= 2 * np.pi + 0.01))
    return np.flatnonzero(one_turn & (np.abs(np.diff(x, axis=0)).max(axis=0) > _JUMP)).tolist()


def _summed(rows: np.ndarray, fps: float, new: np.ndarray, hz: float) -> np.ndarray:
    """Every step is spread over its duration, and gathered over that of the new steps; the last ends it all."""
    n = len(rows)
    total = np.concatenate([np.zeros((1, *rows.shape[1:])), np.cumsum(rows.astype(np.float64), axis=0)])
    edges = np.round(np.arange(n + 1) * (SECOND / fps)).astype(np.int64)
    at = np.append(new, edges[-1])
    return np.ascontiguousarray(np.diff(linear(edges, total, at), axis=0).astype(rows.dtype))


def set_rate(demos: Demos, words: Sequence[str]) -> Demos:
    """``rate hz=<rate>``: say the rate of a store that does not say it. No step changes."""
    given = options("rate", words, {"hz": "steps per second"})
    if "hz" not in given:
        raise ConfigError("rate: give the rate, as in hz=10")
    hz = check_fps(as_value("hz", given["hz"], "float64"))
    if demos.fps not in (None, hz):
        raise ConfigError(f"rate: the store says {demos.fps:g} Hz. To change the steps themselves: resample hz={hz:g}")
    return replace(demos, fps=hz, source=None)
