"""``visuomotor data validate``: what is wrong with a store, and the safe part of mending it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from omegaconf import MISSING

from visuomotor.configs.compose import parse_plain
from visuomotor.configs.edit_data import print_report, progress
from visuomotor.data.checks.finding import Finding
from visuomotor.data.checks.thresholds import Thresholds
from visuomotor.data.editing.edit import fix
from visuomotor.data.errors import ConfigError
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import validate

__all__ = ["ValidateConfig", "main"]

USAGE = """\
visuomotor data validate <store> [json] [fix=<out.zarr>] [against=<store>] [checkpoint=<run>] [thresholds.<name>=..]

  fix=<out.zarr>      write what can be mended without a decision to a new store, and say what was done
  json                findings as JSON, for programs
  against=<store>     training data, of which no episode may be in this store
  checkpoint=<run>    how well each episode agrees with the policy, and with other episodes in like states
  thresholds.*        above what a check speaks up: docs/checks.md

Exit status 1 if there is an error.
"""


@dataclass(kw_only=True, slots=True)
class ValidateConfig:
    """``visuomotor data validate <store>``.

    Attributes:
        store: Zarr store, or a view of one.
        fix: new store to write mended demonstrations to.
        json: print JSON.
        against: another store, whose episodes must not be in this one.
        checkpoint: run or checkpoint whose policy judges the episodes.
        thresholds: limits of the checks.
    """

    store: str = MISSING
    fix: str | None = None
    json: bool = False
    against: str | None = None
    checkpoint: str | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)


def main(words: Sequence[str]) -> int:
    """Print the findings; exit status 1 if there is an error."""
    if any(w in ("-h", "--help", "help") for w in words):
        print(USAGE, end="")
        return 0
    if not words:
        raise ConfigError("data validate: give the path of a Zarr store")
    store = words[0].removeprefix("path=").removeprefix("store=")
    if "--fix" in words:
        raise ConfigError("data validate: --fix writes a new store: say where, as in fix=mended.zarr")
    rest = ["json=true" if w == "json" else w for w in words[1:]]
    config = parse_plain(ValidateConfig, ["store=''", *(_quoted(w) for w in rest)])
    config.store = store
    with ExitStack() as opened:
        demos = opened.enter_context(DemoStore.open(store))
        other = None if config.against is None else opened.enter_context(DemoStore.open(config.against))
        findings = validate(demos, thresholds=config.thresholds, against=other)
        document = {"path": str(demos.path), "episodes": demos.n_episodes, "steps": demos.n_steps}
    if config.checkpoint is not None:
        from visuomotor.configs.compatibility import judge  # torch, which the checks do not need

        document["compatibility"], more = judge(config.checkpoint, store)
        findings += more
    _print(config, document, findings)
    if config.fix is not None:
        print_report(fix(store, Path(config.fix).expanduser(), progress()))
    return 1 if any(f.severity == "error" for f in findings) else 0


def _quoted(word: str) -> str:
    """A path as it is: it may hold what has a meaning in Hydra's grammar."""
    name, sign, value = word.partition("=")
    if not sign or name not in ("fix", "against", "checkpoint") or value == "null":
        return word
    escaped = value.replace("'", "\\'")
    return f"{name}='{escaped}'"


def _print(config: ValidateConfig, document: dict[str, object], findings: list[Finding]) -> None:
    if config.json:
        json.dump({**document, "findings": [asdict(f) for f in findings]}, sys.stdout, indent=1)
        print()
        return
    for finding in findings:
        print(finding)
    count = {s: sum(f.severity == s for f in findings) for s in ("error", "warning", "info")}
    print(
        f"{document['path']}: {document['episodes']} episodes, {document['steps']} steps, {count['error']} error(s), "
        f"{count['warning']} warning(s), {count['info']} note(s)"
    )
