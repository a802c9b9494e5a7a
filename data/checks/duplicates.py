"""Episodes that are in the set twice, or in another set too."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visuomotor.data.checks.finding import Finding, located
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.checks.vectors import FloatArray, Vectors, low_dim
from visuomotor.data.errors import DataError
from visuomotor.data.store import DemoStore

__all__ = ["Fingerprints", "Match", "check_duplicates", "check_leakage", "fingerprints", "matches"]

_POINTS = 16
_SHINGLE = 4  # consecutive steps that are hashed together
_MOST_HASHES = 2_000_000
_BLOCK = 512
_MIXERS = np.random.default_rng(0).integers(1, 2**63, 4096, dtype=np.uint64) | np.uint64(1)


@dataclass(frozen=True)
class Fingerprints:
    """What episodes are recognised by."""

    content: dict[int, str]  # {episode: hash of all its vectors}
    shingles: dict[int, NDArray[np.uint64]]  # {episode: hashes of its runs of four steps}
    paths: NDArray[np.float32]  # [E', 16 * C] resampled
    episodes: NDArray[np.int64]  # [E'] of paths


@dataclass(frozen=True)
class Match:
    """Episode ``episode`` is, as far as ``share`` of its steps, or up to ``distance``, episode ``other``."""

    episode: int
    other: int
    exact: bool
    share: float = 0.0
    distance: float = 0.0

    def __str__(self) -> str:
        if self.exact:
            return "the same"
        if self.share:
            return f"the same in {100 * self.share:.0f} % of its steps"
        return f"nearly the same (they differ by {100 * self.distance:.2g} % of the range)"


def fingerprints(vectors: Vectors) -> Fingerprints:
    """One pass. Types do not matter: float64 and float32 of the same recording have the same fingerprint."""
    every = max(1, vectors.n_steps // _MOST_HASHES)
    content, shingles, paths, episodes = {}, {}, [], []
    for episode, x in vectors.episodes():
        rows = np.ascontiguousarray(x, np.float32) + np.float32(0)  # -0 is 0
        content[episode] = hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest()
        shingles[episode] = _hashes(rows, every)
        at = np.linspace(0, len(x) - 1, _POINTS)
        paths.append(np.stack([np.interp(at, np.arange(len(x)), c) for c in x.T], axis=1).ravel())
        episodes.append(episode)
    width = _POINTS * len(vectors.components)
    stacked = np.asarray(paths, np.float32) if paths else np.empty((0, width), np.float32)
    return Fingerprints(content, shingles, stacked, np.array(episodes, np.int64))


def _hashes(rows: NDArray[np.float32], every: int) -> NDArray[np.uint64]:
    """Distinct hashes of runs of four steps in which something moves; of very many, those divisible by ``every``."""
    words = rows.view(np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):
        row = (words * _MIXERS[: words.shape[1]]).sum(axis=1, dtype=np.uint64)
        row ^= row >> np.uint64(29)
        n = len(row) - _SHINGLE + 1
        if n < 1:
            return np.empty(0, np.uint64)
        mixed = sum((row[i : i + n] * _MIXERS[-1 - i] for i in range(_SHINGLE)), np.zeros(n, np.uint64))
    moving = np.any([row[i : i + n] != row[0:n] for i in range(1, _SHINGLE)], axis=0)
    mixed ^= mixed >> np.uint64(32)
    return np.unique(mixed[moving & (mixed % np.uint64(every) == 0)])


def matches(of: Fingerprints, among: Fingerprints, limits: Thresholds) -> list[Match]:
    """For each episode of ``of`` its best match in ``among``; within one set, only with episodes before it."""
    same_set = of is among
    found: dict[int, Match] = {}
    owner: dict[str, int] = {}
    if not same_set:
        owner = {h: e for e, h in sorted(among.content.items(), reverse=True)}
    for episode, h in sorted(of.content.items()):
        if h in owner:
            found[episode] = Match(episode, owner[h], exact=True)
        elif same_set:
            owner[h] = episode
    _overlaps(of, among, limits, found, same_set)
    _near(of, among, limits, found, same_set)
    return [found[e] for e in sorted(found)]


def _overlaps(
    of: Fingerprints, among: Fingerprints, limits: Thresholds, found: dict[int, Match], same_set: bool
) -> None:
    seen: dict[int, int] = {}
    if not same_set:
        seen = {h: e for e, hashes in among.shingles.items() for h in hashes.tolist()}
    for episode, hashes in sorted(of.shingles.items()):
        if episode in found:
            continue
        known = hashes.tolist()
        owners = [seen[h] for h in known if h in seen]
        if owners:
            others, counts = np.unique(owners, return_counts=True)
            best = int(np.argmax(counts))
            smaller = min(len(known), len(among.shingles[int(others[best])]))
            if counts[best] >= limits.duplicate_share * max(1, smaller):
                found[episode] = Match(episode, int(others[best]), False, share=float(counts[best]) / len(known))
        if same_set:
            for h in known:
                seen.setdefault(h, episode)


def _near(of: Fingerprints, among: Fingerprints, limits: Thresholds, found: dict[int, Match], same_set: bool) -> None:
    """Noisy copies: whole paths compared, in units of each component's range over both sets."""
    if not len(of.paths) or not len(among.paths):
        return
    both = np.concatenate([of.paths, among.paths]).reshape(len(of.paths) + len(among.paths), _POINTS, -1)
    low, span = both.min(axis=(0, 1)), np.ptp(both, axis=(0, 1))
    moving = span > 0
    if not moving.any():
        return

    def scaled(paths: NDArray[np.float32]) -> FloatArray:
        x = (paths.reshape(len(paths), _POINTS, -1) - low)[:, :, moving] / span[moving]
        return np.asarray(x.reshape(len(paths), -1), np.float64)

    a, b = scaled(of.paths), scaled(among.paths)
    for start in range(0, len(a), _BLOCK):
        block = a[start : start + _BLOCK]
        squared = np.square(block).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * block @ b.T
        distance = np.sqrt(np.maximum(squared, 0) / a.shape[1])
        for i, j in np.argwhere(distance < limits.duplicate_distance):
            episode, other = int(of.episodes[start + i]), int(among.episodes[j])
            if episode not in found and not (same_set and other >= episode):
                found[episode] = Match(episode, other, False, distance=float(distance[i, j]))


def check_duplicates(vectors: Vectors, limits: Thresholds) -> Iterator[Finding]:
    """Episodes that are there more than once: recorded once, weighted twice, and a leak when they are split."""
    if not vectors.specs:
        return
    prints = fingerprints(vectors)
    found = matches(prints, prints, limits)
    for exact in (True, False):
        told: dict[int, tuple[int | None, str]] = {
            m.episode: (None, f"this episode and episode {m.other} are {m}") for m in found if m.exact is exact
        }
        what = "duplicates" if exact else "near duplicates"
        fix = "drop duplicates" if exact else None
        yield from located(told, severity="warning", array=None, what=what, fix=fix)


def check_leakage(store: DemoStore, against: DemoStore, limits: Thresholds) -> Iterator[Finding]:
    """Episodes of ``store`` that are in ``against`` too, by the vectors that both have.

    Raises:
        DataError: they have no such array in common, or a chunk is damaged.
    """
    shared = [
        k
        for k in low_dim(store.specs)
        if k in low_dim(against.specs) and store.specs[k].shape == against.specs[k].shape
    ]
    if not shared:
        raise DataError(
            f"{store.path} and {against.path} have no vectors of the same name and size: {', '.join(store.specs)}; "
            f"{', '.join(against.specs)}"
        )
    prints, others = fingerprints(Vectors.of(store, shared)), fingerprints(Vectors.of(against, shared))
    told: dict[int, tuple[int | None, str]] = {
        m.episode: (None, f"this episode and episode {m.other} of {against.path} are {m}: leakage")
        for m in matches(prints, others, limits)
    }
    yield from located(told, severity="error", array=None, what=f"episodes of {against.path}")
