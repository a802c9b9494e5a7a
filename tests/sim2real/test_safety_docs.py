"""What ``docs/safety.md`` says of settings and states is what the code does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from visuomotor.sim2real.runtime.types import Request, State
from visuomotor.sim2real.safety.config import PlaneConfig, SafetyConfig, TankConfig
from visuomotor.sim2real.safety.supervisor import TRANSITIONS

TEXT = (Path(__file__).parents[2] / "docs" / "safety.md").read_text(encoding="utf-8")


def shown(value: object) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(
        str(value), f"{value:g}" if isinstance(value, float) else str(value)
    )


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", TEXT.split("## Settings")[1], re.MULTILINE))
    config = SafetyConfig()
    assert rows == {f.name: shown(getattr(config, f.name)) for f in fields(SafetyConfig)}
    tank, plane = TankConfig(), PlaneConfig()
    assert (
        f"`start` {tank.start:g}, `most` {tank.most:g}, `least` {tank.least:g} [J], `power` {tank.power:g} [W]" in TEXT
    )
    assert f"`max_age_s` {tank.max_age_s:g} |" in TEXT
    assert f"`offset` {plane.offset:g}, `hand` {shown(plane.hand)}" in TEXT


def test_every_transition_is_in_the_table() -> None:
    table = TEXT.split("## The state machine")[1].split("## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE))
    assert set(rows) == {str(s) for s in State}
    for state, row in rows.items():
        said = {}
        for part in row.split(";"):
            left, _, right = part.partition("→")
            for request in re.findall(r"\b[A-Z_]{4,}\b", left):
                said[Request[request]] = re.findall(r"`(\w+)`", right)[:1]
        meant = {request: [str(after)] for request, after in TRANSITIONS[State(state)].items()}
        if state == State.HOLD:  # START goes on with what was paused; an episode that ends there stays until at rest
            assert said.pop(Request.START) == []
            del meant[Request.START], meant[Request.SUCCESS], meant[Request.FAILURE]
        assert said == meant, state
