"""Checkpoints: folders of safetensors and JSON with checksums. Nothing is pickled, nothing half-written is linked.

``<run>/checkpoints/step_00012000/`` holds the files; ``last`` and ``best`` beside it are links that are moved only when
the folder is complete and on disk. A write that fails or is killed leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visuomotor.data.errors import CheckpointError, nearest

__all__ = ["FORMAT_VERSION", "Checkpoint", "CheckpointFolder", "resolve_checkpoint"]

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest was read; files are verified against their checksums when they are loaded."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the manifest.

        Raises:
            CheckpointError: no such folder, no manifest, or one of another format version.
        """
        manifest = path / _MANIFEST
        if not manifest.is_file():
            raise CheckpointError(f"{path} is not a checkpoint: it has no {_MANIFEST}")
        try:
            content = json.loads(manifest.read_text())
            version = content["format_version"]
        except (ValueError, KeyError, TypeError) as e:
            raise CheckpointError(f"{manifest} is damaged: {e}") from e
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{path} has checkpoint format {version}; this version reads format {FORMAT_VERSION}")
        return cls(path, content)

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.manifest["step"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors of ``<name>.safetensors``, verified, on the CPU."""
        return load_file(self._verified(f"{name}.safetensors"))

    def document(self, name: str) -> Any:
        """Content of ``<name>.json``, verified."""
        return json.loads(self._verified(f"{name}.json").read_text())

    def verify(self) -> None:
        """Check every file."""
        for name in self.manifest["files"]:
            self._verified(name)

    def _verified(self, name: str) -> Path:
        files = self.manifest["files"]
        if name not in files:
            raise CheckpointError(f"{self.path} has no {name}. {nearest(name, files)}")
        path = self.path / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: the checkpoint is incomplete")
        if (size := path.stat().st_size) != files[name]["bytes"] or _sha256(path) != files[name]["sha256"]:
            raise CheckpointError(
                f"{path} is damaged: {size} bytes, and its checksum is not the one recorded when it was saved "
                f"({files[name]['bytes']} bytes). Use another checkpoint of the run, or a copy of this one."
            )
        return path


class CheckpointFolder:
    """The checkpoints of one run: writes them, links ``last`` and ``best``, and deletes the ones no longer linked."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        documents: Mapping[str, Any],
        *,
        best: bool = False,
    ) -> Path:
        """Write ``<name>.safetensors`` and ``<name>.json`` files as the checkpoint of ``step`` and link it.

        Raises:
            CheckpointError: the disk is full or not writable; the previous checkpoint is intact.
        """
        final = self.root / f"step_{step:08d}"
        temporary = self.root / f".writing-{uuid.uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
            temporary.mkdir()
            _write_folder(temporary, step, tensors, documents)
            if final.exists():  # the same step again, after a resume: its content is the same
                shutil.rmtree(final)
            os.replace(temporary, final)
            if best:  # first: a run killed in between resumes from the older ``last`` and comes by here again
                self._link("best", final)
            self._link("last", final)
        except (OSError, SafetensorError) as e:  # safetensors reports a full disk in an exception of its own
            shutil.rmtree(temporary, ignore_errors=True)
            full = getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(e)
            why = "no space left on the disk" if full else str(e)
            kept = (
                f"the previous checkpoint {self._target('last')} is intact"
                if self._target("last")
                else "there is no earlier one"
            )
            raise CheckpointError(f"cannot write checkpoint {final}: {why}; {kept}") from e
        self._prune()
        return final

    def choose(self, step: int) -> None:
        """Link the checkpoint of ``step``, which was saved before, as ``best``."""
        self._link("best", self.root / f"step_{step:08d}")
        self._prune()

    def _link(self, name: str, target: Path) -> None:
        temporary = self.root / f".link-{uuid.uuid4().hex}"
        temporary.symlink_to(target.name)
        os.replace(temporary, self.root / name)
        _fsync(self.root)

    def _target(self, name: str) -> Path | None:
        link = self.root / name
        return link.resolve() if link.exists() else None

    def _prune(self) -> None:
        kept = {self._target("last"), self._target("best")}
        for folder in self.root.glob("step_*"):
            if folder.resolve() not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        for left in self.root.glob(".writing-*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in self.root.glob(".link-*"):
            left.unlink(missing_ok=True)


def resolve_checkpoint(path: str | Path) -> Path:
    """A checkpoint folder from itself, from a run folder (``best``, else ``last``), or from its ``checkpoints`` folder.

    Raises:
        CheckpointError: nothing there is a checkpoint; the message lists what is.
    """
    given = Path(path).expanduser()
    if not given.exists():
        raise CheckpointError(f"checkpoint {given} does not exist. {_siblings(given)}")
    for candidate in (given, *(given / sub / name for sub in ("checkpoints", ".") for name in ("best", "last"))):
        if (candidate / _MANIFEST).is_file():
            return candidate.resolve()
    inside = sorted(p.name for p in given.iterdir()) if given.is_dir() else []
    raise CheckpointError(
        f"{given} is neither a checkpoint (no {_MANIFEST}) nor a run (no checkpoints/last); "
        f"it holds {inside[:8] or 'nothing'}"
    )


def _siblings(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"Nor does {parent}."
    return f"In {parent}: {nearest(path.name, [p.name for p in parent.iterdir()])}"


def _write_folder(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]
) -> None:
    for name, group in tensors.items():
        save_file({k: v.detach().contiguous().cpu() for k, v in group.items()}, folder / f"{name}.safetensors")
    for name, content in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
    files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(folder.iterdir())}
    manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    for p in folder.iterdir():
        _fsync(p)
    _fsync(folder)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
