"""Isaac Gym's process: where it is found, how its failures are told, and that it ends."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.envs.isaac_stand_in import scene, stand_in  # noqa: F401  (a fixture for all of this file)
from visuomotor.data.errors import ConfigError
from visuomotor.envs.sim import isaac_server
from visuomotor.envs.sim.isaac import IsaacSimulator
from visuomotor.envs.sim.isaac_process import IsaacError
from visuomotor.envs.tasks.cartpole import Cartpole
from visuomotor.envs.tasks.lift import Lift


def test_a_task_with_motors_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="position servos"):
        IsaacSimulator(scene(Cartpole), 1, device="cpu")


def test_the_server_is_of_old_python_and_sees_nothing_of_ours() -> None:
    source = Path(isaac_server.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 7))
    imported = {
        (n.module or "").split(".")[0] if isinstance(n, ast.ImportFrom) else n.names[0].name.split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
    }
    assert imported <= {*sys.stdlib_module_names, "numpy", "isaacgym", "torch"}


def test_where_isaac_gym_is_has_to_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scene(Lift)
    monkeypatch.delenv("VISUOMOTOR_ISAAC_PYTHON")
    with pytest.raises(ConfigError, match=r"engine\.isaac_python=.*VISUOMOTOR_ISAAC_PYTHON"):
        IsaacSimulator(model, 1, device="cpu")
    with pytest.raises(ConfigError, match="no such program"):
        IsaacSimulator(model, 1, device="cpu", python="/no/python3.8")
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda"):
        IsaacSimulator(model, 1, device="tpu", python=sys.executable)
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(IsaacError, match="No module named 'isaacgym'") as caught:
        IsaacSimulator(model, 1, device="cpu", python=sys.executable)
    assert "Traceback" in "".join(caught.value.__notes__)


def test_a_crash_is_one_clear_error_with_the_end_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ISAACGYM_CRASH", "1")
    sim = IsaacSimulator(scene(Lift), 1, device="cpu")
    with pytest.raises(IsaacError, match="SIGSEGV") as caught:
        sim.step(1)
    assert "segmentation fault of the stand-in" in "".join(caught.value.__notes__)
    with pytest.raises(IsaacError, match="closed"):
        sim.step(1)


def test_the_process_goes_with_its_parent() -> None:
    code = (
        "import os, signal, sys\n"
        "from visuomotor.envs.sim.isaac_process import IsaacProcess\n"
        "p = IsaacProcess(sys.executable, {})\n"
        "print(p._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the server outlived its parent")
