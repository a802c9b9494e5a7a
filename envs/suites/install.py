"""A Python environment for each suite, made only on request. Imports without torch."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.envs.suites.suites import Suite

__all__ = ["FOLDER_VARIABLE", "install", "install_commands", "is_installed", "suite_folder", "suite_python"]

FOLDER_VARIABLE = "VISUOMOTOR_SUITES"
_DONE = "visuomotor.json"  # written last: a half-made environment is not taken for a whole one


def suite_folder(suite: Suite) -> Path:
    """``$VISUOMOTOR_SUITES/<name>``; by default below ``$XDG_CACHE_HOME/visuomotor/suites`` (``~/.cache``)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "visuomotor" / "suites"
    return Path(os.environ.get(FOLDER_VARIABLE) or cache).expanduser().absolute() / suite.name


def is_installed(suite: Suite) -> bool:
    """Whether the environment of the suite is there, whole, and of the versions that the table asks for."""
    try:
        done = json.loads((suite_folder(suite) / _DONE).read_text())
    except (OSError, ValueError):
        return False
    return bool(done == _record(suite)) and _python(suite).exists()


def suite_python(suite: Suite) -> Path:
    """The interpreter that runs the suite.

    Raises:
        ConfigError: the suite is not installed, with the command that installs it.
    """
    if not is_installed(suite):
        raise ConfigError(
            f"the suite {suite.name!r} is not installed in {suite_folder(suite)}. "
            f"Install it with: visuomotor envs install {suite.name}"
        )
    return _python(suite)


def install_commands(suite: Suite) -> list[list[str]]:
    """The commands that make the suite's environment, in order.

    Raises:
        ConfigError: no Python of a version that the suite has wheels for.
    """
    pip = [str(_python(suite)), "-m", "pip", "install", "--disable-pip-version-check"]
    return [[_base_python(suite), "-m", "venv", str(suite_folder(suite))], *([*pip, *words] for words in suite.pip)]


def install(suite: Suite, show: Callable[[str], None]) -> None:
    """Run :func:`install_commands`, each announced to ``show``; what is installed already is left in place.

    Raises:
        UserError: a command failed.
        ConfigError: no Python that fits.
    """
    folder = suite_folder(suite)
    (folder / _DONE).unlink(missing_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for command in install_commands(suite):
        show(shlex.join(command))
        status = subprocess.run(command, check=False).returncode
        if status:
            raise UserError(
                f"{shlex.join(command)} ended with status {status} (its messages stand above). "
                f"The suite {suite.name!r} is not installed; repeat visuomotor envs install {suite.name} to go on"
            )
    (folder / _DONE).write_text(json.dumps(_record(suite), indent=1))


def _record(suite: Suite) -> dict[str, list[list[str]]]:
    return {"pip": [list(words) for words in suite.pip]}


def _python(suite: Suite) -> Path:
    return suite_folder(suite) / "bin" / "python"


def _base_python(suite: Suite) -> str:
    """This Python without its virtual environment, or one of the path, of a version that the suite supports."""
    low, high = suite.python
    if low <= sys.version_info.minor <= high:
        return str(getattr(sys, "_base_executable", None) or sys.executable)
    for minor in range(high, low - 1, -1):
        if found := shutil.which(f"python3.{minor}"):
            return found
    raise ConfigError(
        f"the suite {suite.name!r} needs Python 3.{low} to 3.{high}; this is 3.{sys.version_info.minor}, and no "
        f"python3.{low} ... python3.{high} is on the path"
    )
