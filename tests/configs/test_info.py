"""What `visuomotor info` says about versions, devices and extras."""

from __future__ import annotations

import importlib.metadata
import json
import os

import pytest
import torch

from visuomotor.configs import info as info_module
from visuomotor.configs.info import format_info, info, main
from visuomotor.data.errors import ConfigError


def test_versions_and_devices_are_those_of_this_process() -> None:
    found = info()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["versions"]["visuomotor"] == importlib.metadata.version("visuomotor")
    assert found["devices"]["cores"] == len(os.sched_getaffinity(0))
    assert found["devices"]["threads"] == torch.get_num_threads()
    assert len(found["devices"]["gpus"]) == torch.cuda.device_count()
    assert found["devices"]["ram_gb"] > 0.5


def test_every_declared_extra_is_listed() -> None:
    assert {"pusht", "dev"} <= set(info()["extras"])


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = info_module.version

    def version(name: str) -> str:
        if name in ("pymunk", "gym-pusht"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(info_module, "version", version)
    found = info()
    pusht = found["extras"]["pusht"]
    assert not pusht["present"]
    assert set(pusht["missing"]) >= {"pymunk", "gym-pusht"}
    assert pusht["install"] == "pip install 'visuomotor[pusht]' && pip install --no-deps gym-pusht"
    assert pusht["install"] in format_info(found)


def test_an_extra_lacking_only_gym_pusht_asks_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"gym-pusht"}

    def installed(name: str) -> str | None:
        return None if name in absent else "1.0"

    monkeypatch.setattr(info_module, "_installed", installed)
    assert info()["extras"]["pusht"]["install"] == "pip install --no-deps gym-pusht"
    absent.clear()
    assert info()["extras"]["pusht"] == {"present": True, "missing": [], "install": None}


def test_two_opencvs_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dist:
        def __init__(self, name: str) -> None:
            self.name = name

    monkeypatch.setattr(
        info_module, "distributions", lambda: [Dist("opencv-python"), Dist("opencv-python-headless"), Dist("x")]
    )
    (warning,) = info()["warnings"]
    assert "opencv-python and opencv-python-headless" in warning
    assert "pip uninstall -y opencv-python" in warning


def test_text_has_the_three_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith((" ", "warning"))] == ["versions", "devices", "extras"]


def test_help_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "versions" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="takes no settings, got 'gpu=1'"):
        main(["gpu=1"])
