"""Operations by name, and words on the command line as a chain of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from visuomotor.data.editing import arrays, choosing, rates
from visuomotor.data.editing.demos import Demos, take
from visuomotor.data.editing.merge import merge
from visuomotor.data.editing.split import split_by_column, split_by_share
from visuomotor.data.editing.words import as_value
from visuomotor.data.editing.write import write_store, write_view
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.store import DemoStore

__all__ = ["OPERATIONS", "EditReport", "edit", "fix"]

OPERATIONS: dict[str, Callable[[Demos, Sequence[str]], Demos]] = {
    "filter": choosing.keep_where,
    "drop": choosing.drop,
    "trim": choosing.trim,
    "set": choosing.set_column,
    "keys": arrays.choose_keys,
    "add": arrays.add,
    "resize": arrays.resize,
    "uint8": arrays.as_uint8,
    "quaternions": arrays.fix_quaternions,
    "rate": rates.set_rate,
    "resample": rates.resample,
}
_NAMES = (*OPERATIONS, "merge", "split")
FIXES = ("drop faulty duplicates", "filter length>1", "quaternions", "trim idle")


@dataclass
class EditReport:
    """What an edit did: one line for each operation, and the files that it wrote with their episodes and steps."""

    lines: list[str] = field(default_factory=list)
    written: list[tuple[Path, int, int]] = field(default_factory=list)


def edit(
    source: str | Path, out: str | Path, words: Sequence[str],
    on_progress: Callable[[int, int], None] | None = None,
) -> EditReport:  # fmt: skip
    """Apply operations to a store or view and write the result: a view if ``out`` ends with ``.json``, else a store.

    Args:
        source: store or view; never changed.
        out: what to write; for ``split``, which comes last, the folder of its parts.
        words: operations and their words, as in ``["filter", "success=true", "trim", "idle"]``.
        on_progress: called with (episodes written, episodes in all).

    Raises:
        ConfigError: an unknown operation or word.
        DataError: stores that do not go together, or that cannot be read or written.
    """
    out, report = Path(out).expanduser(), EditReport()
    chain = parse(words)
    with ExitStack() as opened:
        demos = _opened(source, opened)
        for i, (name, given) in enumerate(chain):
            if name == "split" and i + 1 < len(chain):
                raise ConfigError("split comes last: it makes several results")
            if name == "split":
                _split(demos, out, given, report, on_progress)
                return report
            demos = _apply(demos, name, given, Path(str(source)).name, opened, report)
        _write(demos, out, report, on_progress)
    return report


def parse(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """``[(operation, its words), ...]``: the name of an operation begins the next one.

    Raises:
        ConfigError: no operation, or one that does not exist.
    """
    chain: list[tuple[str, list[str]]] = []
    for word in words:
        if word in _NAMES:
            chain.append((word, []))
        elif chain:
            chain[-1][1].append(word)
        else:
            raise ConfigError(f"unknown operation {word!r}. {nearest(word, _NAMES)}")
    if not chain:
        raise ConfigError(f"say what to do. {nearest('', _NAMES)}")
    return chain


def fix(
    source: str | Path, out: str | Path, on_progress: Callable[[int, int], None] | None = None
) -> EditReport:  # fmt: skip
    """Write what can be mended without a decision, as :data:`FIXES`, to the new store ``out``.

    Raises:
        DataError: as :func:`edit`; nothing is written then.
    """
    return edit(source, out, [w for line in FIXES for w in line.split()], on_progress)


def _opened(source: str | Path, opened: ExitStack) -> Demos:
    return Demos.of(opened.enter_context(DemoStore.open(source)))


def _apply(
    demos: Demos, name: str, words: list[str], source: str, opened: ExitStack, report: EditReport
) -> Demos:  # fmt: skip
    after = _merge(demos, words, source, opened) if name == "merge" else OPERATIONS[name](demos, words)
    entry: dict[str, Any] = {"operation": " ".join([name, *words])}
    if not demos.history or report.lines == []:
        entry["source"] = source
    entry |= {"episodes": [len(demos), len(after)], "steps": [demos.n_steps, after.n_steps]}
    report.lines.append(
        f"{entry['operation']}: {len(demos)} to {len(after)} episodes, {demos.n_steps} to {after.n_steps} steps"
    )
    return replace(after, history=(*after.history, entry))


def _merge(demos: Demos, words: Sequence[str], source: str, opened: ExitStack) -> Demos:
    """``merge with=<b.zarr,c.json> [hz=<rate>] [common=true] [fill.<column>=<value>]``."""
    given = dict(w.partition("=")[::2] for w in words)
    fill = {k.removeprefix("fill."): v for k, v in given.items() if k.startswith("fill.")}
    unknown = [k for k in given if k not in ("with", "hz", "common") and not k.startswith("fill.")]
    if unknown or not given.get("with"):
        known = "with=<stores>, hz=<rate>, common=true, fill.<column>=<value>"
        raise ConfigError(f"merge {' '.join(words)}: expected {known}")
    others = given["with"].split(",")
    parts = [demos, *(_opened(p, opened) for p in others)]
    if "hz" in given:
        parts = [rates.resample(p, [f"hz={given['hz']}"]) for p in parts]
    common = bool(as_value("common", given.get("common", "false"), "bool"))
    return merge(parts, [source, *others], common=common, fill=fill)


def _split(
    demos: Demos, out: Path, words: Sequence[str], report: EditReport,
    on_progress: Callable[[int, int], None] | None,
) -> None:  # fmt: skip
    """``split <part>=<share> ... [seed=0] [together=<column>]`` or ``split by=<column>``; ``as=zarr`` writes stores."""
    given = dict(w.partition("=")[::2] for w in words)
    form = given.pop("as", "view" if demos.source is not None else "zarr")
    if form not in ("view", "zarr"):
        raise ConfigError(f"split as={form}: expected view or zarr")
    if "by" in given:
        if len(given) > 1:
            raise ConfigError("split by=<column> takes no shares")
        parts = split_by_column(demos, given["by"])
    else:
        seed, together = int(as_value("seed", given.pop("seed", "0"), "int64")), given.pop("together", None)
        shares = {k: float(as_value(k, v, "float64")) for k, v in given.items()}
        parts = split_by_share(demos, shares, seed, together)
    paths = {name: out / f"{name}.{'json' if form == 'view' else 'zarr'}" for name in parts}
    taken = [p for p in paths.values() if p.exists()]
    if taken:
        raise ConfigError(f"split: {taken[0]} exists already: remove it, or give another folder")
    for name, episodes in parts.items():
        part = take(demos, episodes)
        entry = {"operation": " ".join(["split", *words]), "part": name, "episodes": [len(demos), len(part)]}
        _write(replace(part, history=(*part.history, entry)), paths[name], report, on_progress)


def _write(
    demos: Demos, out: Path, report: EditReport, on_progress: Callable[[int, int], None] | None
) -> None:  # fmt: skip
    if out.suffix == ".json":
        write_view(demos, out)
    else:
        write_store(demos, out, on_progress)
    report.written.append((out, len(demos), demos.n_steps))
