"""The environments of toys.py as an installed suite. No tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from visuomotor.envs.suites import suites
from visuomotor.envs.suites.install import suite_folder
from visuomotor.envs.suites.suites import Suite

TOY = Suite(
    name="toy",
    summary="for tests",
    adapter=f"{Path(__file__).with_name('toy_suite.py')}:Toys",
    pip=(("toy==1.0",),),
    gl=None,
    limit=7,
    outcome="",
    observation="",
    cameras="",
    example="walk",
)


def install_toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The suite ``toy``, installed: its Python is this one, by way of a script. Returns the folder of suites."""
    monkeypatch.setitem(suites._SUITES, "toy", TOY)
    monkeypatch.setenv("VISUOMOTOR_SUITES", str(tmp_path / "suites"))
    python = suite_folder(TOY) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (suite_folder(TOY) / "visuomotor.json").write_text(json.dumps({"pip": [["toy==1.0"]]}))
    return tmp_path / "suites"
