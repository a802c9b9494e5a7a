from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_short_soak_with_a_hostile_client(tmp_path):
    script, out = str(ROOT / "benchmarks" / "serve_soak.py"), tmp_path / "soak.json"
    command = [sys.executable, script, "--minutes", "0.34", "--hostile", "--jpeg", "85"]
    subprocess.run([*command, "--out", str(out)], check=True, timeout=200, capture_output=True)
    found = json.loads(out.read_text())
    assert found["hostile"]["connections"] > 10
    assert found["hostile"]["admitted without the token"] == 0
    assert found["memory_mb"]["last"] - found["memory_mb"]["first"] < 40
    for client in found["clients"]:
        assert client["connections"] == 1  # none was disturbed
        assert client["refused"] == 0
        assert client["answered"] > 50
    assert found["server"]["rejected"] > 5
