"""``visuomotor info``: what is installed, what it runs on, and which extras are missing.

Packages are looked up by their metadata, not imported, so the command answers quickly; torch alone is imported, because
only it knows the GPUs.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path
from typing import Any

from visuomotor.data.errors import ConfigError

__all__ = ["format_info", "info", "main"]

PACKAGES = (
    "torch", "numpy", "zarr", "diffusers", "mujoco", "gymnasium", "hydra-core", "opencv-python-headless", "safetensors",
    "accelerate", "tensorboard", "av",
)  # fmt: skip
# What an extra needs beyond its own requirements, and how that gets in. gym-pusht pins the OpenCV that has a GUI; its
# files would overwrite those of the headless one.
BESIDE_EXTRAS = {"pusht": ("gym-pusht", "pip install --no-deps gym-pusht")}


def info() -> dict[str, Any]:
    """Versions, devices, extras and warnings, ready for JSON.

    Returns:
        ``versions`` {package: version or None}, ``devices`` {cpu, cores, threads, ram_gb, gpus}, ``extras``
        {extra: {present, missing, install}} and ``warnings``, a list of sentences.
    """
    return {
        "versions": _versions(),
        "devices": _devices(),
        "extras": {name: _extra(name, needs) for name, needs in _requirements_of_extras().items()},
        "warnings": _warnings(),
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    found = {"visuomotor": _installed("visuomotor"), "python": platform.python_version()}
    return {**found, **{name: _installed(name) for name in PACKAGES}}


def _devices() -> dict[str, Any]:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        gpus.append({"name": gpu.name, "memory_gb": round(gpu.total_memory / 2**30, 1)})
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _requirements_of_extras() -> dict[str, list[str]]:
    """Names of the distributions that each extra of the installed package asks for."""
    extras: dict[str, list[str]] = {}
    for line in requires("visuomotor") or ():
        found = re.match(r"([A-Za-z0-9._-]+).*;.*extra\s*==\s*[\"']([^\"']+)", line)
        if found:
            extras.setdefault(found[2], []).append(found[1])
    return extras


def _extra(name: str, needs: list[str]) -> dict[str, Any]:
    missing = [n for n in needs if _installed(n) is None]
    commands = [f"pip install 'visuomotor[{name}]'"] if missing else []
    beside, command = BESIDE_EXTRAS.get(name, (None, ""))
    if beside and _installed(beside) is None:
        missing.append(beside)
        commands.append(command)
    return {"present": not missing, "missing": missing, "install": " && ".join(commands) or None}


def _warnings() -> list[str]:
    opencvs = sorted({d.name for d in distributions() if (d.name or "").lower().startswith("opencv")})
    if len(opencvs) < 2:
        return []
    return [
        f"{' and '.join(opencvs)} are both installed and overwrite each other's files. Keep the headless one: "
        "pip uninstall -y opencv-python opencv-contrib-python && "
        "pip install --force-reinstall --no-deps opencv-python-headless"
    ]


def format_info(found: dict[str, Any]) -> str:
    """The result of :func:`info` as text for a terminal."""
    lines = ["versions"]
    lines += [f"  {name:<24}{number or 'not installed'}" for name, number in found["versions"].items()]
    d = found["devices"]
    lines += ["devices", f"  cpu                     {d['cpu']}"]
    lines.append(f"  cores                   {d['cores']} usable, torch uses {d['threads']} threads")
    lines.append(f"  memory                  {d['ram_gb']} GiB")
    lines += [f"  cuda:{i:<19}{gpu['name']}, {gpu['memory_gb']} GiB" for i, gpu in enumerate(d["gpus"])]
    if not d["gpus"]:
        lines.append("  cuda                    none")
    lines.append("extras")
    for name, extra in found["extras"].items():
        state = "present" if extra["present"] else f"missing {', '.join(extra['missing'])}: {extra['install']}"
        lines.append(f"  {name:<24}{state}")
    return "\n".join(lines + [f"warning: {sentence}" for sentence in found["warnings"]])


def main(words: Sequence[str]) -> int:
    """``visuomotor info``: print :func:`info`; returns the exit status.

    Raises:
        ConfigError: the command takes no settings.
    """
    if any(w in ("-h", "--help", "help") for w in words):
        print("visuomotor info: versions, devices, and extras present or missing. It takes no settings.")
        return 0
    if words:
        raise ConfigError(f"visuomotor info takes no settings, got {words[0]!r}")
    print(format_info(info()))
    return 0
