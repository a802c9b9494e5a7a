"""Quaternions: where they are, their length, jumps of sign, and which component is the real one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from visuomotor.data.checks.finding import Finding, located
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.checks.vectors import FloatArray, Vectors
from visuomotor.data.spec import ArraySpec

__all__ = ["Quaternion", "check_rotations", "find_quaternions", "is_axis_angle"]

_NAME = re.compile(r"(.*(?:q|quat|quaternion|orientation|rotation|rot))[._-]?([wxyz])", re.IGNORECASE)
_SAMPLE = 20_000


@dataclass(frozen=True)
class Quaternion:
    """Four components of an array. ``dims``: as they lie; ``order``: ``wxyz`` or ``xyzw`` if the names say it."""

    key: str
    dims: tuple[int, int, int, int]
    order: str | None


def find_quaternions(specs: Mapping[str, ArraySpec]) -> list[Quaternion]:
    """Quaternions by their names (``qw qx qy qz``, any prefix), or by that of an array of four (``..._quat``)."""
    found = []
    for key, spec in specs.items():
        if len(spec.shape) != 1 or np.dtype(spec.dtype).kind != "f":
            continue
        named = list(_by_names(key, spec))
        if not named and spec.shape == (4,) and "quat" in key.lower():
            order = next((o for o in ("wxyz", "xyzw") if o in key.lower()), None)
            letters = "".join(spec.names or ()).lower()
            named = [Quaternion(key, (0, 1, 2, 3), letters if letters in ("wxyz", "xyzw") else order)]
        found += named
    return found


def _by_names(key: str, spec: ArraySpec) -> Iterator[Quaternion]:
    groups: dict[str, dict[str, int]] = {}
    for i, name in enumerate(spec.names or ()):
        if match := _NAME.fullmatch(name):
            groups.setdefault(match[1].lower(), {})[match[2].lower()] = i
    for letters in groups.values():
        dims = sorted(letters.values())
        order = "".join(sorted(letters, key=lambda c: letters[c]))
        if len(letters) == 4 and order in ("wxyz", "xyzw"):
            yield Quaternion(key, (dims[0], dims[1], dims[2], dims[3]), order)


def is_axis_angle(key: str) -> bool:
    """Whether the name says that steps are rotation vectors, which jump by nature where the angle passes pi."""
    return any(word in key.lower() for word in ("axis_angle", "axisangle", "rotvec", "rot_vec"))


def check_rotations(vectors: Vectors, limits: Thresholds) -> Iterator[Finding]:
    """Every quaternion of the vectors; an unnamed array of four whose length is always 1 counts as one."""
    known = find_quaternions(vectors.specs)
    taken = {q.key for q in known}
    guess = [
        Quaternion(key, (0, 1, 2, 3), None)
        for key, spec in vectors.specs.items()
        if spec.shape == (4,) and key not in taken and spec.names is None
    ]
    for q in [*known, *guess]:
        first = vectors.columns([q.key])[0]
        yield from _check(vectors, q, [first + d for d in q.dims], limits, named=q in known)


def _check(
    vectors: Vectors, q: Quaternion, columns: list[int], limits: Thresholds, *, named: bool
) -> Iterator[Finding]:
    off: dict[int, tuple[int | None, str]] = {}
    flips: dict[int, tuple[int | None, str]] = {}
    zero: dict[int, tuple[int | None, str]] = {}
    sample, stride = [np.empty((0, 4))], max(1, vectors.n_steps // _SAMPLE)
    for episode, x in vectors.episodes():
        rows = x[:, columns]
        norm = np.linalg.norm(rows, axis=1)
        bad = np.abs(norm - 1) > limits.quaternion_norm
        if not named and (bad.any() or np.ptp(rows, axis=0).max() == 0):
            return  # four numbers that are no quaternion
        sample.append(rows[::stride])
        if (norm < 1e-6).any():
            zero[episode] = (int(np.argmin(norm)), "a quaternion of length 0 is no rotation")
        elif bad.any():
            row = int(np.argmax(bad))
            off[episode] = (row, f"a quaternion has length {norm[row]:.4g} ({int(bad.sum())} such steps): expected 1")
        turned = np.flatnonzero((rows[1:] * rows[:-1]).sum(axis=1) < 0) + 1
        if len(turned):
            flips[episode] = (int(turned[0]), f"a quaternion changes its sign at {len(turned)} steps: same rotation")
    place = {"severity": "warning", "array": q.key, "fix": "quaternions"}
    yield from located(zero, severity="error", array=q.key, what="quaternions of length 0", fix="drop faulty")
    yield from located(off, what="quaternions whose length is not 1", **place)
    yield from located(flips, what="quaternions that change their sign", **place)
    yield from _order(q, np.concatenate(sample))


def _order(q: Quaternion, rows: FloatArray) -> Iterator[Finding]:
    """Turning about the vertical moves w and z alone: the two components that move tell the order.

    The first and the last one may also be x and w, turning about x; the last two are hardly anything else than z and w.
    """
    size = np.abs(rows).max(axis=0, initial=0)
    active = set(np.flatnonzero(size > 0.05).tolist())
    known = {frozenset({0, 3}): "wxyz (or about x stored as xyzw)", frozenset({2, 3}): "xyzw"}
    hint = known.get(frozenset(active))
    moves = [d for d in sorted(active) if np.ptp(rows[:, d]) > 0.05]
    if q.order is None:
        about = (
            f"; only components {sorted(active)} differ from 0, as in turns about z stored as {hint}" if hint else ""
        )
        message = f"the names do not say the order of the quaternion (wxyz or xyzw){about}"
        yield Finding(severity="info", array=q.key, message=message)
    elif hint == "xyzw" and hint != q.order and len(moves) == 2:
        message = (
            f"named as {q.order}, but only components {moves} move, as in turns about z stored as {hint}: "
            "check the order"
        )
        yield Finding(severity="warning", array=q.key, message=message)
