"""Checkpoints: whole or not there, verified when read, and safe on a full disk."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
import torch

from visuomotor.data.errors import CheckpointError
from visuomotor.policies.learn import checkpoint as module
from visuomotor.policies.learn.checkpoint import Checkpoint, CheckpointFolder, resolve_checkpoint


@pytest.fixture
def run(tmp_path):
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    folder.save(10, {"policy": {"w": torch.arange(1000.0)}}, {"spec": {"a": 1}}, best=True)
    folder.save(20, {"policy": {"w": torch.ones(1000)}}, {"spec": {"a": 2}})
    return folder


def test_round_trip_and_links(run):
    best, last = (Checkpoint.open(run.root / name) for name in ("best", "last"))
    assert (best.step, last.step) == (10, 20)
    assert torch.equal(best.tensors("policy")["w"], torch.arange(1000.0))
    assert last.document("spec") == {"a": 2}
    last.verify()
    assert resolve_checkpoint(run.root.parent) == best.path.resolve()


def test_checkpoints_without_a_link_are_deleted(run):
    run.save(30, {"policy": {"w": torch.ones(1)}}, {})
    assert sorted(p.name for p in run.root.iterdir()) == ["best", "last", "step_00000010", "step_00000030"]


@pytest.mark.parametrize("name", ["policy.safetensors", "spec.json"])
def test_every_flipped_byte_is_noticed(run, name):
    path = (run.root / "last" / name).resolve()
    content = bytearray(path.read_bytes())
    for at in (0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[at] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            Checkpoint.open(run.root / "last").verify()


def test_a_damaged_manifest_and_missing_files_are_named(run):
    folder = (run.root / "last").resolve()
    (folder / "spec.json").unlink()
    with pytest.raises(CheckpointError, match=r"spec\.json is missing"):
        Checkpoint.open(folder).document("spec")
    with pytest.raises(CheckpointError, match=r"no policy_em\.safetensors.*policy\.safetensors"):
        Checkpoint.open(folder).tensors("policy_em")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        Checkpoint.open(folder)


def test_another_format_version_is_refused(run):
    manifest = (run.root / "last").resolve() / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 7'))
    with pytest.raises(CheckpointError, match="format 7"):
        Checkpoint.open(run.root / "last")


def test_a_full_disk_leaves_the_previous_checkpoint(run, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match=r"no space left.*previous checkpoint .*step_00000020 is intact"):
        run.save(30, {"policy": {"w": torch.ones(1000)}}, {})
    assert not list(run.root.glob(".writing-*"))
    Checkpoint.open(run.root / "last").verify()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root, to mount a tiny disk")
def test_a_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=300k tmpfs {disk}") != 0:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        folder = CheckpointFolder(disk / "checkpoints")
        folder.save(1, {"policy": {"w": torch.zeros(30_000)}}, {})
        with pytest.raises(CheckpointError, match="no space left"):
            folder.save(2, {"policy": {"w": torch.zeros(60_000)}}, {})
        assert Checkpoint.open(folder.root / "last").step == 1
        Checkpoint.open(folder.root / "last").verify()
        assert not list(folder.root.glob(".writing-*"))
    finally:
        os.system(f"umount {disk}")


def test_leftovers_of_a_killed_write_are_cleared(run):
    (run.root / ".writing-dead").mkdir()
    (run.root / ".writing-dead" / "policy.safetensors").write_bytes(b"half")
    run.save(30, {"policy": {"w": torch.ones(1)}}, {})
    assert not list(run.root.glob(".writing-*"))


def test_paths_that_are_no_checkpoint_say_what_is_there(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"runn does not exist.*Did you mean 'run'"):
        resolve_checkpoint(tmp_path / "runn")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"neither a checkpoint.*notes\.txt"):
        resolve_checkpoint(tmp_path / "other")


def test_killed_between_the_links_a_resumed_run_finds_its_best_again(run, monkeypatch):
    class Killed(BaseException):
        pass

    linked = []

    def link(self, name, target):
        linked.append(name)
        if len(linked) == 2:
            raise Killed
        real(self, name, target)

    real = CheckpointFolder._link
    monkeypatch.setattr(CheckpointFolder, "_link", link)
    with pytest.raises(Killed):
        run.save(30, {"policy": {"w": torch.ones(1)}}, {}, best=True)
    # The best is never behind what `last` remembers as the best so far.
    assert [Checkpoint.open(run.root / name).step for name in ("best", "last")] == [30, 20]
