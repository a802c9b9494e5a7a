"""Deep check of a demonstration store: every chunk decoded, every value looked at, each fault located."""

from __future__ import annotations

from collections.abc import Iterator

from visuomotor.data.checks.alignment import check_alignment
from visuomotor.data.checks.components import check_components
from visuomotor.data.checks.duplicates import check_duplicates, check_leakage
from visuomotor.data.checks.files import check_journal, check_structure, missing_chunks, short_chunks
from visuomotor.data.checks.finding import SEVERITIES, Finding
from visuomotor.data.checks.frames import FrameWatch, check_frames
from visuomotor.data.checks.motion import check_idle, check_jumps
from visuomotor.data.checks.outliers import check_outliers
from visuomotor.data.checks.rotation import check_rotations
from visuomotor.data.checks.stamps import check_stamps
from visuomotor.data.checks.survey import survey
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.checks.values import check_values
from visuomotor.data.checks.vectors import Vectors, low_dim
from visuomotor.data.editing.view import StoreView
from visuomotor.data.store import DemoStore

__all__ = ["Finding", "validate"]


def validate(
    store: DemoStore, *, values: bool = True, thresholds: Thresholds | None = None, against: DemoStore | None = None
) -> list[Finding]:
    """Check a store that could be opened; opening itself refuses wrong episode ends and arrays that are too short.

    Images are decoded once, block by block; vectors several times. Memory: one chunk file of an array, 32 MB of
    vectors or one episode of them, and per step some bytes for every camera.

    Args:
        store: an open store.
        values: decode all data and look at it. Without it only names, shapes, lengths and file sizes are checked,
            which is quick for any size.
        thresholds: above what a check speaks up.
        against: another store, whose episodes must not be in this one (training and test data).

    Returns:
        The findings, errors first, then warnings, then notes (``info``). A store without fault may have notes.

    Raises:
        DataError: ``against`` has nothing that could be compared.
    """
    limits = thresholds or Thresholds()
    findings = [*check_structure(store)]
    watches = {k: FrameWatch(s, store.n_steps) for k, s in store.specs.items() if s.is_image or s.is_depth}
    own_files = not isinstance(store, StoreView)
    for key in store.keys:
        if own_files and not store.ours:  # zarr writers leave out chunks that equal the fill value; we never do
            findings += missing_chunks(store, key)
        if values:
            findings += check_values(store, key, watches.get(key), own_files=own_files)
        elif own_files:
            findings += short_chunks(store, key)
    if values:
        findings += check_journal(store)
        findings += _contents(store, watches, limits, findings)
        if against is not None:
            findings += check_leakage(store, against, limits)
    return sorted(findings, key=lambda f: SEVERITIES.index(f.severity))


def _contents(
    store: DemoStore, watches: dict[str, FrameWatch], limits: Thresholds, findings: list[Finding]
) -> Iterator[Finding]:
    """What the values say, of arrays that can be read; episodes with NaN are left out of it."""
    damaged = {f.array for f in findings if f.severity == "error" and f.row is None}
    skip = frozenset(
        f.episode for f in findings if f.severity == "error" and f.row is not None and f.episode is not None
    )
    for key, spec in store.specs.items():
        if spec.role == "timestamp" and not any(f.array == key for f in findings):
            yield from check_stamps(store, key, limits)
    vectors = Vectors.of(store, [k for k in low_dim(store.specs) if k not in damaged], skip)
    seen = survey(vectors)
    yield from check_components(vectors, seen, limits)
    yield from check_idle(vectors, seen, limits)
    yield from check_jumps(vectors, seen, limits)
    yield from check_rotations(vectors, limits)
    yield from check_alignment(vectors, seen, limits)
    yield from check_duplicates(vectors, limits)
    columns = store.episode_columns
    yield from check_outliers(vectors, seen, limits, columns.get("task"))
    yield from check_frames(watches, store.episode_ends, vectors, seen.spread, limits)
