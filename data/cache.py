"""Flat training cache: every array of a store as one contiguous block, in device memory, RAM or a mapped file.

Small random reads of chunked, compressed storage are about a hundred times slower than of a flat array, so a store is
ingested once: ``<cache dir>/<key>-<store>-<content>/array.npy`` with a ``manifest.json``. Images become uint8, all else
float32, and every value is verified on the way. An entry is built in a temporary folder under a lock, and renamed when
it is whole and on disk: two processes may build at once, and a killed build is never used. Entries of an earlier
content of the same store are removed when a new one is built.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.ingest import FORMAT_VERSION, ArrayPlan, plan_array, read_blocks
from visuomotor.data.memory import free_ram
from visuomotor.data.remote import is_url
from visuomotor.data.store import DemoStore

__all__ = ["CACHE_MODES", "CacheConfig", "Rows", "TrainingCache", "load_cache"]

CACHE_MODES = ("auto", "ram", "mmap", "device", "stream")
Progress = Callable[[str, int, int], None]  # (key, rows done, rows in all)

_GB = 1e9
_NO_ROOM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOLCK,
    errno.ENOTDIR,
    errno.EFBIG,
)
_log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class CacheConfig:
    """Where the training arrays live.

    Attributes:
        mode: ``device``: memory of the training device; ``ram``; ``mmap``: a file mapped into memory; ``auto``: the
            first of these whose budget the arrays fit (``mmap`` needs none); ``stream``: images pass through a buffer,
            decoded anew each epoch, all else as by ``auto``.
        ram_budget_gb: RAM that the arrays of this process may take [1e9 bytes]; None is half of what is free at start,
            divided among the processes that torchrun has started on this machine.
        device_budget_gb: likewise on the device.
        buffer_gb: with ``stream``, RAM for decoded episodes [1e9 bytes]; the order of the windows depends on it.
        dir: cache directory; None is ``$VISUOMOTOR_CACHE``, else ``~/.cache/visuomotor``.

    Raises:
        ConfigError: unknown mode or a negative budget.
    """

    mode: str = "auto"
    ram_budget_gb: float | None = None
    device_budget_gb: float | None = None
    buffer_gb: float = 4.0
    dir: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in CACHE_MODES:
            raise ConfigError(f"unknown cache mode {self.mode!r}. {nearest(self.mode, CACHE_MODES)}")
        for name in ("ram_budget_gb", "device_budget_gb", "buffer_gb"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name}={value}: expected 0 or more, or null for half of what is free")

    @property
    def root(self) -> Path:
        """The cache directory."""
        default = os.environ.get("VISUOMOTOR_CACHE") or "~/.cache/visuomotor"
        return Path(self.dir or default).expanduser()


class Rows(Protocol):
    """Steps of one array that lie elsewhere than in one tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one step."""

    def take(self, rows: Tensor) -> Tensor:
        """Rows ``[n]`` of the store as ``[n, *shape]``."""


@dataclass(frozen=True)
class TrainingCache:
    """The arrays of a store, ready to be gathered from."""

    arrays: dict[str, Tensor]  # {key: [T, ...]}, uint8 for images, float32 for all else; read only when mapped
    episode_ends: NDArray[np.int64]  # [E]
    placement: str  # "device", "ram" or "mmap"
    nbytes: int
    reason: str  # why this placement: sizes against budgets
    rows: Mapping[str, Rows] = field(default_factory=dict)  # arrays that are no single tensor


def load_cache(
    store: DemoStore,
    keys: Sequence[str],
    config: CacheConfig,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> TrainingCache:
    """Bring the arrays ``keys`` of ``store`` where training can gather from them, ingesting what is not cached yet.

    Args:
        store: an open store.
        keys: arrays to load; duplicates are loaded once.
        config: placement and budgets.
        device: the training device.
        progress: called as ``progress(key, rows_done, rows)`` after every block that is ingested.

    Raises:
        DataError: an empty store, or an array that is missing, holds NaN or infinity, or looks like an image of no
            known convention.
        ConfigError: a placement that its budget does not allow, or no disk space for a mapped file.
    """
    device = torch.device(device)
    keys = list(dict.fromkeys(keys))
    store.require(keys)
    if store.n_steps == 0:
        raise DataError(f"{store.path} holds no episodes: there is nothing to train on")
    plans = {k: plan_array(k, store.specs[k], store.n_steps) for k in keys}
    nbytes = sum(p.nbytes for p in plans.values())
    placement, reason = _place(nbytes, config, device)
    arrays: dict[str, Tensor] = {}
    for key, plan in plans.items():
        try:
            path = _ensure(store, plan, config.root, progress)
        except OSError as e:
            if e.errno not in _NO_ROOM:
                raise
            array = _without_disk(store, plan, nbytes, config, placement, e, progress)
            reason += f"; {key!r} is not kept on disk ({config.root}: {e.strerror})"
        else:
            array = np.load(path, mmap_mode="r" if placement == "mmap" else None)
        with warnings.catch_warnings():  # torch cannot mark a tensor read only; nobody writes to the cache
            warnings.filterwarnings("ignore", message=".*not writable.*")
            tensor = torch.from_numpy(array)
        arrays[key] = tensor.to(device) if placement == "device" else tensor
    return TrainingCache(arrays, np.asarray(store.episode_ends, np.int64), placement, nbytes, reason)


def _place(nbytes: int, config: CacheConfig, device: torch.device) -> tuple[str, str]:
    size = f"the arrays take {nbytes / _GB:.3f} GB"
    if config.mode == "mmap":
        return "mmap", f"{size}; mode=mmap"
    if config.mode == "device" and device.type == "cpu":
        raise ConfigError(
            "cache mode 'device' needs an accelerator, and training runs on the cpu: use 'auto', 'ram' or 'mmap'"
        )
    budgets = []
    for name in ("device", "ram"):
        if config.mode not in ("auto", "stream", name) or (name == "device" and device.type == "cpu"):
            continue
        limit = _device_budget(config, device) if name == "device" else _ram_budget(config)
        budgets.append(f"{name} budget {limit / _GB:.3f} GB")
        if nbytes <= limit:
            return name, f"{size}, within the {budgets[-1]}"
    reason = f"{size}, over the {' and the '.join(budgets)}"
    if config.mode not in ("auto", "stream"):
        raise ConfigError(f"cache mode {config.mode!r}: {reason}. Raise the budget or use mode 'mmap'.")
    return "mmap", reason


def _ram_budget(config: CacheConfig) -> float:
    if config.ram_budget_gb is not None:
        return config.ram_budget_gb * _GB
    return free_ram() / 2 / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes on this machine


def _device_budget(config: CacheConfig, device: torch.device) -> float:
    if config.device_budget_gb is not None:
        return config.device_budget_gb * _GB
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else 0.0


def _ensure(store: DemoStore, plan: ArrayPlan, root: Path, progress: Progress | None) -> Path:
    """Path of the cached array, built first when it is not there."""
    origin = f"{quote(plan.key, safe='')}-{_digest(str(store.path if is_url(store.path) else store.path.resolve()), 8)}"
    content = json.dumps([store.fingerprint([plan.key]), plan.describe(), FORMAT_VERSION])
    folder = root / f"{origin}-{_digest(content, 16)}"
    if _complete(folder):
        return folder / "array.npy"
    root.mkdir(parents=True, exist_ok=True)
    # One lock for all versions of this array: who waited finds it built, and leftovers under it have no living owner.
    with _locked(root / f"{origin}.lock"):
        if not _complete(folder):
            for stale in root.glob(f"{origin}-*"):  # of an earlier content of this store, or of a build that was killed
                if not (is_url(store.path) and stale.name == f"{folder.name}.tmp"):
                    shutil.rmtree(stale, ignore_errors=True)
            _build(store, plan, folder, progress)
    return folder / "array.npy"


def _build(store: DemoStore, plan: ArrayPlan, folder: Path, progress: Progress | None) -> None:
    temporary = folder.with_name(f"{folder.name}.tmp")
    temporary.mkdir(exist_ok=True)
    _log.info("caching %r of %s in %s", plan.key, store.path, folder)
    remote = is_url(store.path)  # a download that breaks off goes on where it was
    try:
        # Plain writes, not a memory map: on a full disk a map kills the process with SIGBUS instead of raising.
        first = _rows_done(temporary)
        with open(temporary / "array.npy", "r+b" if first else "wb") as f:
            header = {"descr": np.dtype(plan.dtype).str, "fortran_order": False, "shape": plan.shape}
            np.lib.format.write_array_header_2_0(f, header)
            f.truncate(f.tell() + first * (plan.nbytes // plan.shape[0]))
            f.seek(0, os.SEEK_END)
            for start, block in read_blocks(store, plan, first):
                f.write(block.reshape(-1).view(np.uint8).data)
                if remote:
                    f.flush()
                    os.fsync(f.fileno())
                    _replace(temporary / "rows", str(start + len(block)))
                if progress is not None:
                    progress(plan.key, start + len(block), plan.shape[0])
            f.flush()
            os.fsync(f.fileno())
        size = (temporary / "array.npy").stat().st_size
        manifest = {"store": str(store.path), **plan.describe(), "file_bytes": size}
        (temporary / "manifest.json").write_text(json.dumps(manifest))
        os.replace(temporary, folder)
    except BaseException as error:
        if not remote or isinstance(error, OSError):  # no room: what is there is not worth keeping
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _rows_done(temporary: Path) -> int:
    """Rows of an unfinished download that are on disk."""
    try:
        return int((temporary / "rows").read_text())
    except (OSError, ValueError):
        return 0


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    os.replace(fresh, path)


def _complete(folder: Path) -> bool:
    """True for a finished entry; one whose file was cut short since does not count."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return bool((folder / "array.npy").stat().st_size == manifest["file_bytes"])
    except (OSError, json.JSONDecodeError):
        return False


def _without_disk(
    store: DemoStore,
    plan: ArrayPlan,
    nbytes: int,
    config: CacheConfig,
    placement: str,
    cause: OSError,
    progress: Progress | None,
) -> NDArray[Any]:
    """The array in RAM, for a cache directory that cannot be written."""
    budget = _ram_budget(config)
    if placement == "mmap" or nbytes > budget:
        raise ConfigError(
            f"cannot write the training cache in {config.root} ({cause.strerror}), and the arrays"
            f" ({nbytes / _GB:.3f} GB) are to be mapped or exceed the RAM budget ({budget / _GB:.3f} GB). Free disk"
            " space, set VISUOMOTOR_CACHE or the cache dir to another disk, or raise ram_budget_gb."
        ) from cause
    _log.warning(
        "cannot write the training cache in %s (%s): %r stays in RAM only", config.root, cause.strerror, plan.key
    )
    array = np.empty(plan.shape, plan.dtype)
    for start, block in read_blocks(store, plan):
        array[start : start + len(block)] = block
        if progress is not None:
            progress(plan.key, start + len(block), plan.shape[0])
    return array


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file; it is released when the process dies, and never removed (a waiter may have it open)."""
    with open(path, "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
