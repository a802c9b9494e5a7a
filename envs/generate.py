"""Stores of demonstrations by experts: in parallel processes, resumable, failures left out.

Attempts are made with consecutive seeds and taken in their order, so the store is a function of the settings alone:
not of the number of processes, nor of how often it was interrupted. A store says in its attribute ``origin``
what it was made from; whoever goes on with it must ask for the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count, cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from visuomotor.data.errors import ConfigError, DataError, UserError
from visuomotor.data.store import DemoStore
from visuomotor.data.writers import add_episode, discard_staged
from visuomotor.envs.demonstrate import Attempt, Demonstrator, DemoPlan, block_size
from visuomotor.envs.retarget import digest
from visuomotor.envs.workers import resolve_workers

__all__ = ["COLUMNS", "FIRST_PLAYED", "Tally", "first_seed", "generate"]

_SEEDS = 1_000_000  # of one `seed`; evaluation takes seeds from 50000 up, which demonstrations must never have
FIRST_PLAYED = 500_000_000  # where the seeds of `visuomotor play` begin
_SHOWN = 4  # settings that differ, in a message
_PATIENCE, _LEAST = 100, 0.05  # give up after this many attempts if fewer than this share succeeded
COLUMNS = {"success": "bool", "seed": "int64", "task": "str"}  # of every store of demonstrations


@dataclass(frozen=True)
class Tally:
    """How far a store is: ``kept`` episodes out of ``tried`` attempts."""

    kept: int
    tried: int

    @property
    def hopeless(self) -> bool:
        """So many attempts failed that one gives up."""
        return self.tried >= _PATIENCE and self.kept < _LEAST * self.tried

    def __str__(self) -> str:
        share = f" ({self.kept / self.tried:.0%})" if self.tried else ""
        return f"{self.kept} kept of {self.tried} tried{share}"


def first_seed(seed: int) -> int:
    """First seed of the attempts of ``seed``: apart from every evaluation seed, and from those of other ``seed``.

    Raises:
        ConfigError: beyond ``seed=498`` they would be those of ``visuomotor play``.
    """
    most = FIRST_PLAYED // _SEEDS - 2
    if not 0 <= seed <= most:
        raise ConfigError(f"seed={seed}: expected 0 to {most}")
    return (1 + seed) * _SEEDS


def generate(
    path: Path,
    plan: DemoPlan,
    *,
    task: str,
    text: str,
    episodes: int,
    seed: int = 0,
    workers: int = 0,
    on_progress: Callable[[Tally], None] | None = None,
) -> Tally:
    """Write ``episodes`` successful demonstrations into the store ``path``, or go on where an earlier call was stopped.

    Args:
        path: the store; made if nothing is there.
        plan: what is demonstrated.
        task: name of the task.
        text: what a person would say to ask for it; the column ``task``.
        episodes: number of demonstrations that the store shall hold.
        seed: other seeds give other demonstrations.
        workers: processes; 0 runs in this one, -1 takes one a core.
        on_progress: called when an attempt is done.

    Raises:
        ConfigError: the store was made with other settings, the task has no expert, or a ``seed`` beyond 498.
        DataError: something else is at ``path``.
        UserError: the expert hardly ever succeeds.
    """
    first, size = first_seed(seed), block_size(plan)
    workers = resolve_workers(workers, math.ceil(episodes / size))
    local = Demonstrator(plan)
    try:
        with _open(path, local, _origin(plan, local, task, text, seed)) as store:
            tally = _progress(store, first)
            if tally.kept >= episodes:
                return tally
            blocks = _blocks(first, tally.tried, size)
            source = _in_processes(plan, store, blocks, workers) if workers else _here(local, blocks)
            with source as attempts:
                for attempt in attempts:
                    episode = attempt.arrays or attempt.staged
                    tally = Tally(tally.kept + (episode is not None), tally.tried + 1)
                    if episode is not None:
                        add_episode(store, episode, {"success": True, "seed": attempt.seed, "task": text})
                    if on_progress is not None:
                        on_progress(tally)
                    if tally.kept == episodes:
                        break
                    if tally.hopeless:
                        raise UserError(
                            f"{tally}: the expert of task {task!r} hardly ever succeeds with these settings, so no "
                            f"demonstrations can be made. The store {path} keeps what there is"
                        )
            return tally
    finally:
        local.close()


def _open(path: Path, demonstrator: Demonstrator, origin: dict[str, Any]) -> DemoStore:
    if not path.exists():
        return DemoStore.create(
            path, demonstrator.specs, fps=demonstrator.env.fps, episode_columns=COLUMNS, origin=origin
        )
    store = DemoStore.open(path, "a")
    try:
        theirs = store.origin
        if "settings" not in theirs:
            raise DataError(f"{path} was not made by `visuomotor data generate`: give another out=")
        _compare(path, theirs["settings"], origin["settings"])
    except BaseException:
        store.close()
        raise
    return store


def _origin(plan: DemoPlan, demonstrator: Demonstrator, task: str, text: str, seed: int) -> dict[str, Any]:
    """What a store says of how it was made. ``settings`` decide every number in it."""
    settings = {"task": task, "text": text, "seed": seed, **_flat({"env": asdict(plan.env)})}
    settings |= {"diversity": plan.diversity, "noise": plan.noise, "slips": plan.slips, "hold": plan.hold}
    settings |= {"from": None if plan.source is None else digest(plan.source)}
    settings |= {"states": True} if plan.states else {}  # stores from before this setting do not name it
    settings |= _flat({"randomization": plan.randomization})
    if settings.get("env.model") is not None:  # a file that may be edited: a path does not say what is in it
        settings["content of env.model"] = _scene_digest(demonstrator.env.sim.model)
    for name in ("env.engine.threads", "env.end_on_success", "env.seed"):  # no number depends on them
        settings.pop(name, None)
    return {"settings": json.loads(json.dumps(settings)), "versions": {"mujoco": mujoco.__version__}}


def _scene_digest(model: mujoco.MjModel) -> str:
    """Hash of a compiled scene: of everything that files, those they include, and meshes bring into it."""
    data = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, data)
    return hashlib.sha256(data.tobytes()).hexdigest()[:16]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def _compare(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    names = [n for n in {**theirs, **ours} if theirs.get(n) != ours.get(n)]
    if names:
        was, now = (", ".join(f"{n}={of.get(n)}" for n in names[:_SHOWN]) for of in (theirs, ours))
        more = f" ({len(names) - _SHOWN} more settings differ)" if len(names) > _SHOWN else ""
        raise ConfigError(f"{path} was generated with {was}; this command says {now}{more}: give another out=")


def _progress(store: DemoStore, first: int) -> Tally:
    """Where the last call stopped: attempts after the last kept one are made again, with the same result.

    Episodes with seeds of another range were added by somebody else (``visuomotor play``) and do not count.
    """
    tried = [s + 1 - first for s in store.episode_columns["seed"].tolist()]
    ours = [t for t in tried if 0 < t <= _SEEDS]
    return Tally(len(ours), max(ours, default=0))


def _blocks(first: int, tried: int, size: int) -> Iterator[tuple[int, int]]:
    """First seed of every block that is not through, without end, and how many of its attempts are done already."""
    done = tried % size
    for start in count(first + tried - done, size):
        yield start, done
        done = 0


@contextmanager
def _here(demonstrator: Demonstrator, blocks: Iterator[tuple[int, int]]) -> Iterator[Iterator[Attempt]]:
    yield (attempt for block in blocks for attempt in demonstrator.run(*block))


@contextmanager
def _in_processes(
    plan: DemoPlan, store: DemoStore, blocks: Iterator[tuple[int, int]], workers: int
) -> Iterator[Iterator[Attempt]]:
    pool = [_Worker(plan, store.path) for _ in range(workers)]
    try:
        yield _in_turn(pool, blocks, block_size(plan))
    finally:
        for worker in pool:
            worker.end()
        discard_staged(store)


def _in_turn(pool: Sequence[_Worker], blocks: Iterator[tuple[int, int]], size: int) -> Iterator[Attempt]:
    """Attempts in the order of their seeds; the processes take turns, and whoever is ahead waits for its next block."""
    due: deque[tuple[_Worker, int]] = deque()
    for worker in cycle([*pool, *pool]):  # each has the next block at hand when it is done with one
        if len(due) == 2 * len(pool):
            current, done = due.popleft()
            yield from (current.receive() for _ in range(size - done))
        block = next(blocks)
        worker.send(block)
        due.append((worker, block[1]))


class _Worker:
    """Parent's end of a process that makes attempts."""

    def __init__(self, plan: DemoPlan, store: Path) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        environ = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "visuomotor.envs.demonstrate", str(theirs.fileno())]
        self.process = subprocess.Popen(command, env=environ, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        theirs.close()
        self.pipe = Connection(ours.detach())
        self.send((plan, store))

    def send(self, message: Any) -> None:
        try:
            self.pipe.send_bytes(pickle.dumps(message))
        except OSError:
            raise self._death() from None

    def receive(self) -> Attempt:
        try:
            answer = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(answer, UserError):
            raise answer
        assert isinstance(answer, Attempt)
        return answer

    def end(self) -> None:
        """Stop it at once: it holds nothing that could get lost."""
        self.process.kill()
        self.process.wait()
        self.pipe.close()

    def _death(self) -> UserError:
        code = self.process.wait(timeout=10)
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"
        return UserError(f"a process that generates demonstrations died with {how}")
