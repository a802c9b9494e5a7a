"""kill -9 and a full disk: whatever the instant, the store opens clean with all finished episodes and no half one."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visuomotor.data.store import DemoStore
from visuomotor.data.validate import validate

_SCRIPT = Path(__file__).with_name("crash_worker.py")
_spec = importlib.util.spec_from_file_location("crash_worker", _SCRIPT)
assert _spec is not None
assert _spec.loader is not None
crash_worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(crash_worker)

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Send one command to the process that forks and kills."""
    worker = subprocess.Popen([sys.executable, str(_SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdin is not None
    assert worker.stdout is not None
    stdin, stdout = worker.stdin, worker.stdout

    def send(**command: Any) -> dict[str, Any]:
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    yield send
    stdin.close()
    worker.wait(timeout=30)


@pytest.fixture
def empty() -> Iterator[Path]:
    """An empty store, in memory where there is such a folder: a kill does not ask what a disk has flushed."""
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    path = Path(folder) / "a.zarr"
    DemoStore.create(path, crash_worker.SPECS, episode_columns=crash_worker.COLUMNS).close()
    yield path
    shutil.rmtree(folder)


def check(path: Path, first_unseen: int) -> int:
    """Assert that the store is clean and holds exactly the episodes that were appended; return how many."""
    with DemoStore.open(path) as store:
        assert [str(f) for f in validate(store) if f.severity == "error" and "0 episodes" not in f.message] == []
        columns = store.episode_columns
        for i in range(max(0, first_unseen - 1), store.n_episodes):
            arrays, told = crash_worker.episode(i)
            read = store.episode(i)
            assert all(np.array_equal(read[key], rows) for key, rows in arrays.items())
            assert (columns["task"][i], columns["seed"][i]) == (told["task"], told["seed"])
        return store.n_episodes


def check_leftovers(path: Path) -> None:
    """Assert that the next writer leaves only the Zarr: no journal, no staging, no partial file."""
    DemoStore.open(path, "a").close()
    assert {p.name for p in path.iterdir()} == {"zarr.json", "data", "meta"}
    assert not [p for p in path.rglob("*") if "partial" in p.name or "staging" in p.name]


def random_kills(ask: Ask, path: Path, work: str, journal_bytes: int, trials: int) -> None:
    rng, have = random.Random(f"{work} {journal_bytes}"), 0
    for _ in range(trials):
        acks, delay = rng.randrange(4), rng.uniform(0, 0.02)
        answer = ask(work=work, path=str(path), journal_bytes=journal_bytes, n=10_000, at=0, acks=acks, delay=delay)
        assert answer["killed"], answer
        now = check(path, have)
        assert have + answer["acked"] <= now <= have + answer["acked"] + 1, "at most the episode in flight"
        have = now
    check_leftovers(path)
    assert check(path, 0) == have > 0


WORKS = [("append", 1 << 30), ("append", 0), ("append", 300_000), ("record", 0), ("record", 1 << 30)]


@pytest.mark.parametrize(("work", "journal_bytes"), WORKS)
def test_killed_at_random_moments(ask: Ask, empty: Path, work: str, journal_bytes: int) -> None:
    random_kills(ask, empty, work, journal_bytes, trials=8)


@pytest.mark.slow
@pytest.mark.parametrize(("work", "journal_bytes"), WORKS)
def test_killed_at_fifty_random_moments(ask: Ask, empty: Path, work: str, journal_bytes: int) -> None:
    random_kills(ask, empty, work, journal_bytes, trials=50)


@pytest.mark.parametrize("work", ["append", "record"])
def test_killed_at_every_single_step_of_an_append_with_compaction(ask: Ask, empty: Path, work: str) -> None:
    """From the lock to the last deletion: die at the first call that touches the disk, then at the second, ..."""
    have = at = 0
    while True:
        at += 1
        answer = ask(work=work, path=str(empty), journal_bytes=0, n=1, at=at, acks=0, delay=0)
        now = check(empty, have)
        assert have + answer["acked"] <= now <= have + 1
        have = now
        if not answer["killed"]:
            assert answer["code"] == 0
            break
    assert at > 30, "the calls of an append, a compaction and a close were all visited"
    check_leftovers(empty)
    assert check(empty, 0) == have


def test_a_full_disk_leaves_the_store_as_it_was_and_says_so_once(ask: Ask, empty: Path) -> None:
    told = ask(work="fill", path=str(empty), limit=4096)
    assert "the episode could not be written: File too large. The store is unchanged, with 1 episodes" in told["append"]
    assert "the recording was lost after" in told["record"]
    assert "File too large. The store is unchanged, with 1 episodes" in told["record"]
    assert "episodes 0 to 0 are safe in the journal but could not be moved into the arrays" in told["compact"]
    assert (told["append_kept"], told["record_kept"], told["compact_kept"]) == (1, 1, 1)
    assert told["left"] == [".lock", "00000000"], "no staging folder, no partial file"
    assert check(empty, 0) == 2
    check_leftovers(empty)


def test_readers_always_see_a_whole_prefix_while_a_writer_appends_and_compacts(empty: Path) -> None:
    code = f"from crash_worker import *; append({str(empty)!r}, 20_000, lambda: None, 10_000)"
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=_SCRIPT.parent)
    try:
        have, looks = 0, 0
        while looks < 25:
            now = check(empty, have)
            assert now >= have
            looks, have = looks + (now > 0), now
            assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    assert have > 1
