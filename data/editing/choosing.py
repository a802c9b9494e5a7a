"""Operations that choose and cut episodes and set what is said of them: ``filter``, ``drop``, ``trim``, ``set``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.checks.duplicates import fingerprints, matches
from visuomotor.data.checks.motion import resting
from visuomotor.data.checks.rotation import find_quaternions
from visuomotor.data.checks.survey import survey
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.editing.demos import Demos, take, trimmed
from visuomotor.data.editing.words import as_value, numbers, options, where
from visuomotor.data.errors import ConfigError, DataError

__all__ = ["drop", "drop_duplicates", "drop_faulty", "keep_where", "set_column", "trim", "trim_idle"]

_KEEP_S, _KEEP_STEPS = 0.3, 3  # of a rest at either end, what stays: a policy must learn to begin and to stop


def keep_where(demos: Demos, words: Sequence[str]) -> Demos:
    """``filter <condition> ...``: the episodes that meet all conditions."""
    if not words:
        raise ConfigError("filter: give conditions, as in filter success=true 'length>50'")
    return take(demos, np.flatnonzero(where(demos, words)))


def drop(demos: Demos, words: Sequence[str]) -> Demos:
    """``drop faulty | duplicates | <episodes> ...``: leave episodes out."""
    if not words:
        raise ConfigError("drop: say what: faulty, duplicates, or episodes such as 3,7-9")
    gone = np.zeros(len(demos), bool)
    for word in words:
        if word == "faulty":
            gone[list(drop_faulty(demos))] = True
        elif word != "duplicates":
            gone[numbers(word, len(demos), "drop")] = True
    kept = np.flatnonzero(~gone)
    if "duplicates" in words:  # an episode may be sound, and its copy not
        sound = take(demos, kept)
        kept = np.delete(kept, list(drop_duplicates(sound)))
    return take(demos, kept)


def drop_faulty(demos: Demos) -> dict[int, str]:
    """Episodes that cannot be read, hold NaN or infinity, or a quaternion of length 0, each with the reason."""
    quaternions, out = find_quaternions(demos.specs), dict[int, str]()
    for episode in range(len(demos)):
        try:
            rows = demos.read(episode)
        except DataError as error:
            out[episode] = str(error)
            continue
        bad = [k for k, v in rows.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
        if bad:
            out[episode] = f"NaN or infinity in {', '.join(bad)}"
        elif any((np.linalg.norm(rows[q.key][:, q.dims], axis=1) < 1e-6).any() for q in quaternions):
            out[episode] = "a quaternion of length 0"
    return out


def drop_duplicates(demos: Demos) -> dict[int, str]:
    """Episodes whose vectors are, bit for bit, those of an episode before."""
    vectors = demos.vectors()
    if not vectors.specs:
        return {}
    prints = fingerprints(vectors)
    found = [m for m in matches(prints, prints, Thresholds()) if m.exact]
    return {m.episode: f"the same as episode {m.other}" for m in found}


def trim(demos: Demos, words: Sequence[str]) -> Demos:
    """``trim idle`` or ``trim start=<steps> end=<steps>`` or ``trim episode=<n> rows=<first>:<stop>``.

    ``trim idle keep=<steps>`` leaves that much of the rest; by default 0.3 s, or 3 steps.
    """
    if words and words[0] == "idle":
        given = options("trim idle", words[1:], {"keep": "steps of a rest that stay"})
        keep = int(as_value("keep", given["keep"], "int64")) if "keep" in given else None
        return trimmed(demos, *trim_idle(demos, keep))
    known = {"start": "steps", "end": "steps", "episode": "number", "rows": "first:stop"}
    given = options("trim", words, known)
    start, stop = np.zeros(len(demos), np.int64), demos.lengths.copy()
    if set(given) == {"episode", "rows"}:
        (episode,) = numbers(given["episode"], len(demos), "trim episode") or [0]
        first, sign, last = given["rows"].partition(":")
        if not sign:
            raise ConfigError(f"trim rows={given['rows']}: expected <first>:<stop>, as in rows=10:200")
        start[episode] = int(as_value("rows", first or "0", "int64"))
        stop[episode] = int(as_value("rows", last or str(stop[episode]), "int64"))
    elif given and not set(given) - {"start", "end"}:
        start += int(as_value("start", given.get("start", "0"), "int64"))
        stop -= int(as_value("end", given.get("end", "0"), "int64"))
    else:
        raise ConfigError("trim: say idle, or start= and end=, or episode= and rows=<first>:<stop>")
    bad = np.flatnonzero((start < 0) | (stop > demos.lengths) | (start >= stop))
    if len(bad):
        e = int(bad[0])
        raise ConfigError(
            f"trim: of episode {e}, which has {demos.lengths[e]} steps, the steps {start[e]} to {stop[e]} would stay "
            f"({len(bad)} such episodes): filter short episodes out first"
        )
    return trimmed(demos, start, stop)


def trim_idle(demos: Demos, keep: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where every episode begins and ends to move, ``keep`` steps of rest left on either side; all if it never does.

    Only rests that the checks report are cut: a second or longer.
    """
    limits, vectors = Thresholds(), demos.vectors()
    start, stop = np.zeros(len(demos), np.int64), demos.lengths.copy()
    if not vectors.specs:
        return start, stop
    if keep is None:
        keep = _KEEP_STEPS if demos.fps is None else max(1, round(_KEEP_S * demos.fps))
    seen, shortest = survey(vectors), limits.idle_length(demos.fps)
    for episode, x in vectors.episodes():
        moving = np.flatnonzero(~resting(x, seen, limits))
        if not len(moving):
            continue
        first, after = int(moving[0]), int(moving[-1]) + 2  # the step after the last move belongs to it
        if first >= shortest:
            start[episode] = max(0, first - keep)
        if len(x) - (after - 1) >= shortest:
            stop[episode] = min(len(x), after + keep)
    return start, stop


def set_column(demos: Demos, words: Sequence[str]) -> Demos:
    """``set <column>:=<value> [<condition> ...]``: give episodes a value: a task, success, a weight.

    A new column needs a value for every episode, except ``weight``, which is 1 elsewhere. Its type is the value's.
    """
    name, sign, text = (words[0] if words else "").partition(":=")
    if not sign or not name:
        raise ConfigError("set: expected <column>:=<value>, as in set weight:=0.5 success=false")
    if name in ("length", "episode", "duration"):
        raise ConfigError(f"set: {name} is computed, not set")
    kind = demos.column_types.get(name) or _kind(name, text)
    value, hit = as_value(name, text, kind), where(demos, words[1:])
    if name == "weight" and (isinstance(value, str) or value < 0):
        raise ConfigError(f"set: weight {text}: expected 0 or more")
    if name in demos.columns:
        values = demos.columns[name].copy()
    elif name == "weight":
        values = np.ones(len(demos))
    elif hit.all():
        values = np.empty(len(demos), object if kind == "str" else kind)
    else:
        raise ConfigError(
            f"set: there is no column {name!r} yet, and {int((~hit).sum())} episodes would have no value: "
            f"set {name}:=<value> for all first"
        )
    values[hit] = value
    return demos.with_column(name, kind, values)


def _kind(name: str, text: str) -> str:
    if name == "weight":
        return "float64"
    for kind in ("bool", "int64", "float64"):
        try:
            as_value(name, text, kind)
        except ConfigError:
            continue
        return kind
    return "str"
