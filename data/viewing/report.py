"""The report of a store: one HTML file that needs no network. Imports without torch.

Style, script, charts and pictures are inline. A Content-Security-Policy in the page allows its own script by hash and
nothing else, so that a text from the store could not run even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from visuomotor.data.errors import DataError
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import validate
from visuomotor.data.viewing import sections
from visuomotor.data.viewing.strips import make_strips
from visuomotor.data.viewing.survey import survey

__all__ = ["StoreReport", "write_report"]

_PICTURE_BYTES = 9_000_000  # of JPEG; base64 makes a third more of it


@dataclass(frozen=True)
class StoreReport:
    """What was written: the file, its size, the episodes with pictures, and how many findings (None: not checked)."""

    path: Path
    n_bytes: int
    pictured: tuple[int, ...]
    n_findings: int | None


def write_report(
    store: DemoStore, path: str | Path, *, check: bool = True, episodes: int = 24, frames: int = 8
) -> StoreReport:
    """Write the report of an open store; an existing file is replaced in one step.

    Args:
        store: what to report on. Damaged chunks cost what they hold, and are named.
        path: the HTML file to make.
        check: run :func:`~visuomotor.data.validate.validate`, which decodes everything.
        episodes: episodes with pictures, at most; fewer when they would exceed some megabytes.
        frames: pictures of each.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path).expanduser()
    found = validate(store) if check else None
    flagged = sorted({f.episode for f in found or () if f.episode is not None})
    figures = survey(store)
    strips = make_strips(store, limit=episodes, frames=frames, budget_bytes=_PICTURE_BYTES, flagged=flagged)
    pictured = {s.episode for s in strips}
    table, linked = sections.episodes(store, figures, found, pictured)
    template = (files(__package__) / "report.html").read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    page = Template(template).substitute(
        title=escape(store.path.name),
        path=escape(str(store.path)),
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        cards=sections.cards(store, found),
        findings=sections.findings(found, linked),
        pictures=sections.pictures(strips, store),
        distributions=sections.distributions(figures),
        coverage=sections.coverage(figures),
        episodes=table,
        arrays=sections.arrays(store),
        origin=sections.origin(store),
    )
    code = page.encode("utf-8", "replace")  # a name that is no Unicode becomes a question mark
    _replace(path, code)
    return StoreReport(path, len(code), tuple(sorted(pictured)), None if found is None else len(found))


def _replace(path: Path, code: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(code)
        os.replace(draft, path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise DataError(f"the report cannot be written to {path}: {error.strerror or error}") from None
