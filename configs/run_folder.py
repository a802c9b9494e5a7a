"""The folder of a run: what describes it, written before anything is trained."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from omegaconf import OmegaConf

from visuomotor.configs.info import info
from visuomotor.data.errors import ConfigError

__all__ = ["INTERRUPTED", "open_run"]

INTERRUPTED = 130  # exit status of a run that was stopped by Ctrl-C, as shells have it


def open_run(
    run_dir: str | None, what: str, *, plain: Mapping[str, Any], command: Sequence[str], resumed: bool,
    n_parameters: int, accelerator: Accelerator, documents: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Make the folder of a run and write what describes it; of several processes the first one does.

    Args:
        run_dir: its name; null makes ``runs/<date>_<what>``.
        what: is done in it.
        plain: resolved settings, for ``config.yaml``.
        command: the words after ``visuomotor``.
        resumed: whether the run goes on, with the command that it began with.
        n_parameters: of the network.
        accelerator: the processes.
        documents: further files, ``{name: content}`` as JSON.

    Raises:
        ConfigError: the folder holds another run, or cannot be made.
    """
    folder = Path(run_dir or f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}_{what}").expanduser()
    if not resumed and (folder / "checkpoints" / "last").exists():
        raise ConfigError(f"{folder} holds a run already: go on with resume={folder}, or choose another run_dir")
    if not accelerator.is_main_process:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"run_dir={folder} cannot be made: {e.strerror}") from e
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(dict(plain))))
    found = info()
    environment = {
        **found["versions"],
        **{k: str(v) for k, v in found["devices"].items()},
        "host": platform.platform(),
        "device": accelerator.device.type,
        "n_parameters": n_parameters,
    }
    for name, content in {**(documents or {}), "environment.json": environment}.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    if not resumed:
        (folder / "command.txt").write_text("visuomotor " + " ".join(shlex.quote(w) for w in command) + "\n")
    return folder
