"""What a user does, from the command line: train, be interrupted, resume, evaluate, look at the data, make mistakes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file

from visuomotor.configs.cli import main
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

PUSHT = Path(__file__).parents[1].parent / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"
SMALL = ["backbone.width=32", "backbone.depth=2", "train.batch_size=32", "train.log_every=5", "threads=1", "device=cpu"]


@pytest.fixture
def reach(tmp_path: Path) -> Path:
    """Six episodes of 40 steps of a point that moves to a goal: ``qpos [2]``, ``goal [2]``, action = next position."""
    specs = {
        "qpos": ArraySpec(shape=(2,), role="observation", unit="m"),
        "goal": ArraySpec(shape=(2,), role="observation", unit="m"),
        "action": ArraySpec(shape=(2,), role="action", unit="m", names=("x", "y")),
    }
    rng = np.random.default_rng(0)
    path = tmp_path / "reach.zarr"
    with DemoStore.create(path, specs, fps=20) as store:
        for _ in range(6):
            start, goal = rng.uniform(-1, 1, (2, 2))
            path_taken = start + (goal - start) * np.linspace(0, 1, 41)[:, None]
            arrays = {"qpos": path_taken[:-1], "goal": np.tile(goal, (40, 1)), "action": path_taken[1:]}
            store.append_episode({k: v.astype(np.float32) for k, v in arrays.items()})
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISUOMOTOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def _words(reach: Path, run: Path, *more: str) -> list[str]:
    return ["train", f"data={reach}", "obs.keys=[qpos,goal]", f"run_dir={run}", *SMALL, *more]


def _spawn(words: list[str]) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "visuomotor.configs.cli", *words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _output(process: subprocess.Popen[str]) -> str:
    """What the process writes until it ends."""
    return process.communicate()[0]


def _final(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint but the time that the run took."""
    files = (run / "checkpoints" / "last").resolve().glob("*.safetensors")
    found = {f"{f.stem}/{k}": v for f in files for k, v in load_file(f).items()}
    return {k: v for k, v in found.items() if k != "progress/seconds"}


def test_train_evaluate_and_report_without_a_task(reach, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(_words(reach, run, "train.steps=60", "train.val_every=20", "data.val_fraction=0.2")) == 0
    for name in ("report.html", "config.yaml", "dataset.json", "environment.json", "metrics.jsonl", "command.txt"):
        assert (run / name).stat().st_size > 0, name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val_loss" in line] == [20, 40, 60]
    assert json.loads((run / "dataset.json").read_text())["n_val_episodes"] == 1
    assert main(["eval", f"checkpoint={run}", f"data={reach}", "device=cpu"]) == 0
    assert "1 held-out episodes" in capsys.readouterr().out
    document = json.loads((run / "eval" / "step_00000060-open-loop" / "eval.json").read_text())
    assert len(document["mae"]) == 2
    assert main(["eval", f"checkpoint={run}"]) == 2  # it has no task
    assert "trained without a task" in capsys.readouterr().err


def test_a_finished_run_is_not_overwritten_and_a_resumed_one_keeps_its_settings(reach, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(_words(reach, run, "train.steps=10")) == 0
    assert main(_words(reach, run, "train.steps=10")) == 2
    assert "holds a run already: go on with resume=" in capsys.readouterr().err
    assert main(["train", f"resume={run}", "data.val_fraction=0.5"]) == 2
    assert main(["train", f"resume={run}", "train.steps=20"]) == 2
    assert "'train.steps=20' cannot change when a run is resumed" in capsys.readouterr().err
    other = tmp_path / "other.zarr"
    shutil.copytree(reach, other)
    action = zarr.open_group(str(other), mode="r+")["data/action"]
    assert isinstance(action, zarr.Array)
    action[3, 0] = 0.5
    assert main(["train", f"resume={run}", f"data={other}"]) == 2
    assert "signature" in capsys.readouterr().err
    with DemoStore.open(reach, "a") as store:
        episode = store.episode(0)
        store.append_episode(episode)
    assert main(["train", f"resume={run}"]) == 2
    assert "must see the same data" in capsys.readouterr().err


def test_a_run_that_diverges_stops_and_does_not_overwrite_its_checkpoint(reach, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    # The rate is harmless for 20 steps, then it is not: a checkpoint was made by then, and another would be due.
    monkeypatch.setattr(
        "visuomotor.policies.learn.imitation.learning_rate", lambda step, **_: 1e-4 if step < 20 else 1e30
    )
    assert main(_words(reach, run, "train.steps=60", "train.save_every=20", "train.log_every=60")) == 2
    assert "training diverged: loss nan" in (err := capsys.readouterr().err)
    assert "the checkpoint of step 20 is intact" in err
    assert not any(bool(v.isnan().any()) for v in _final(run).values())


def _kill_and_resume(words: Callable[[Path], list[str]], tmp_path: Path, kills: int) -> None:
    """A run of ``words(<its folder>)`` that is killed and resumed leaves what one leaves that is not."""
    assert main(words(tmp_path / "whole")) == 0
    run, rng = tmp_path / "killed", random.Random(kills)
    process = _spawn(words(run))
    for kill in range(kills):
        metrics, begun = run / "metrics.jsonl", time.monotonic()
        while not (run / "checkpoints" / "last").exists() or not metrics.exists():
            assert process.poll() is None, _output(process)
            assert time.monotonic() - begun < 120
            time.sleep(0.005)
        logged = metrics.stat().st_size
        while metrics.stat().st_size == logged and process.poll() is None and time.monotonic() - begun < 60:
            time.sleep(0.005)  # it trains now
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert kill or process.returncode == -signal.SIGKILL, "the first run ended before it could be killed"
        process = _spawn([words(run)[0], f"resume={run}"])
    output = _output(process)
    assert process.returncode == 0, output
    a, b = _final(tmp_path / "whole"), _final(run)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    steps_logged = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps_logged == sorted(steps_logged)


def _training(reach: Path, steps: int) -> Callable[[Path], list[str]]:
    settings = (f"train.steps={steps}", "train.save_every=5", "train.val_every=10", "data.val_fraction=0.2")
    return lambda run: _words(reach, run, *settings)


def test_killed_and_resumed_equals_uninterrupted(reach, tmp_path):
    _kill_and_resume(_training(reach, 150), tmp_path, kills=1)


def _ppo(run: Path, *more: str) -> list[str]:
    return ["rl", "task=cartpole", "env.max_episode_steps=60", "env.engine.threads=1", "ppo.num_envs=8",
            "ppo.decisions=8", "ppo.schedule=adaptive", "backbone.width=16", "critic.width=16", "threads=1",
            "save_every=2", "eval.episodes=8", "eval.selection_episodes=8", "eval.videos=0", f"run_dir={run}",
            *more]  # fmt: skip


def test_ppo_killed_and_resumed_equals_uninterrupted(tmp_path):
    _kill_and_resume(lambda run: _ppo(run, "budget.env_steps=6400"), tmp_path, kills=1)


@pytest.mark.slow
@pytest.mark.timeout(900)  # minutes where other work runs beside it
def test_ppo_killed_five_times_and_resumed_equals_uninterrupted(tmp_path):
    _kill_and_resume(lambda run: _ppo(run, "budget.env_steps=64000"), tmp_path, kills=5)


_TWO = ("eval.episodes=0", "ppo.schedule=constant", "ppo.stagger=false")


def test_ppo_in_two_processes_learns_what_one_does(tmp_path):
    words = (*_TWO, "budget.env_steps=512")
    assert main(_ppo(tmp_path / "one", *words)) == 0
    _torchrun(_ppo(tmp_path / "two", *words))
    a, b = _final(tmp_path / "one"), _final(tmp_path / "two")
    for name in (n for n in a if n.startswith("policy/")):
        assert torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-5), name
    assert {n.partition("/")[0] for n in b} >= {"worlds", "worlds.1", "collector.1"}
    assert main(["rl", f"resume={tmp_path / 'two'}"]) == 2  # with one process


@pytest.mark.slow
def test_ppo_in_two_processes_goes_on_bit_for_bit(tmp_path):
    _torchrun(_ppo(tmp_path / "whole", *_TWO, "budget.env_steps=1024"))
    _torchrun(_ppo(tmp_path / "parts", *_TWO, "budget.env_steps=512"))
    _torchrun(["rl", f"resume={tmp_path / 'parts'}", "budget.env_steps=1024"])
    whole, parts = _final(tmp_path / "whole"), _final(tmp_path / "parts")
    assert [k for k in whole if not torch.equal(whole[k], parts[k])] == []


def _torchrun(words: list[str]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "visuomotor.configs.cli", *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)  # minutes where other work runs beside it
def test_killed_five_times_and_resumed_equals_uninterrupted(reach, tmp_path):
    _kill_and_resume(_training(reach, 2000), tmp_path, kills=5)


@pytest.mark.parametrize("more", [(), ("window.mask_padding=true", "window.pad_after=15", "loss.max_delay=4")])
def test_two_processes_learn_what_one_does(more, reach, tmp_path):
    settings = ("train.steps=20", "data.val_fraction=0.2", "train.precision=fp32", "backbone.dropout=0", *more)
    assert main(_words(reach, tmp_path / "one", *settings)) == 0
    _torchrun(_words(reach, tmp_path / "two", *settings))
    a, b = _final(tmp_path / "one"), _final(tmp_path / "two")
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-5), name


def test_ctrl_c_leaves_a_checkpoint_to_resume_from(reach, tmp_path):
    run = tmp_path / "run"
    process = _spawn(_words(reach, run, "train.steps=100000", "train.save_every=0"))
    begun = time.monotonic()
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        assert process.poll() is None, _output(process)
        assert time.monotonic() - begun < 120
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output = _output(process)
    assert process.returncode == 130, output
    assert f"resume={run}" in output
    step = json.loads((run / "checkpoints" / "last" / "manifest.json").read_text())["step"]
    assert 0 < step < 100000
    assert (run / "report.html").exists()


def test_data_commands(reach, capsys, tmp_path):
    assert main(["data", "inspect", str(reach)]) == 0
    assert "6 episodes, 240 steps, 20 Hz" in capsys.readouterr().out
    assert main(["data", "inspect", str(reach), "json"]) == 0
    assert json.loads(capsys.readouterr().out)["keys"]["action"]["unit"] == "m"
    assert main(["data", "validate", str(reach)]) == 0
    assert "0 error(s)" in capsys.readouterr().out
    array = zarr.open_group(str(reach), mode="r+")["data/qpos"]
    assert isinstance(array, zarr.Array)
    array[85, 1] = np.nan
    assert main(["data", "validate", str(reach)]) == 1
    assert "array qpos, episode 2, row 5" in capsys.readouterr().out
    assert main(_words(reach, tmp_path / "run", "train.steps=5")) == 2
    error = capsys.readouterr().err
    assert "qpos" in error
    assert "episode 2" in error


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "unknown command 'trian'. Did you mean 'train'"),
        (["data", "inspekt", "x"], "unknown command 'data inspekt'. Did you mean 'inspect'"),
        (["data", "validate"], "give the path of a Zarr store"),
        (["data", "inspect", "/nowhere.zarr"], "/nowhere.zarr"),
        (["eval", "checkpoint=/nowhere"], "/nowhere does not exist"),
        (["train", "data=/nowhere.zarr"], "/nowhere.zarr"),
        (["info", "x"], "takes no settings"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(words, says, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("visuomotor: ")
    assert error.count("\n") == 1


def test_wrong_arrays_are_named(reach, tmp_path, capsys):
    base = ["train", f"data={reach}", f"run_dir={tmp_path / 'run'}"]
    for more, says in (
        (["obs.keys=[qpo]"], "'qpos'"),
        (["obs.keys=[qpos]", "action.key=actions"], "'action'"),
        (["obs.keys=[qpos]", "action.mode=relative", "action.reference_key=goal"], "not observed"),
        (["obs.keys=[qpos]", "data.fps=10"], "recorded at 20 Hz"),
        (["obs.keys=[qpos]", "window.horizon=400", "window.n_exec=8"], "none of"),
    ):
        assert main([*base, *more]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.skipif(not PUSHT.exists(), reason="the Push-T recording is not on this machine")
def test_push_t_from_demonstrations_to_an_evaluated_policy(tmp_path, capsys):
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed")
    run = tmp_path / "run"
    words = ["train", "task=pusht", f"data={PUSHT}", f"run_dir={run}", *SMALL, "env.workers=0", "train.steps=20",
             "train.eval_every=10", "eval.episodes=3", "eval.selection_episodes=2", "eval.videos=1"]  # fmt: skip
    assert main(words) == 0
    final = json.loads((run / "eval" / "final.json").read_text())
    assert final["n_episodes"] == 3
    assert [e["seed"] for e in final["episodes"]] == [100000, 100001, 100002]
    assert final["warnings"] == []
    assert all((run / v["path"]).stat().st_size > 1000 for v in final["videos"])
    assert "<video" in (run / "report.html").read_text()
    capsys.readouterr()
    assert main(["eval", f"checkpoint={run}", "task=pusht", "episodes=2", "videos=0", "env.workers=0"]) == 0
    assert "over 2 test seeds" in capsys.readouterr().out
    again = ["eval", f"checkpoint={run}", f"against={run}", "episodes=3", "videos=0", "env.workers=0"]
    assert main(again) == 0
    assert "difference over 3 paired seeds: score +0.000" in capsys.readouterr().out  # a policy against itself
    assert main(["eval", f"checkpoint={run}", "task=pusht", "env.obs=image", "env.workers=0"]) == 2
    assert "the policy observes 'state'" in capsys.readouterr().err


def test_lift_from_an_expert_to_an_evaluated_policy(tmp_path, capsys):
    demos, run = tmp_path / "lift.zarr", tmp_path / "run"
    quick = ["env.engine.threads=1", "env.max_episode_steps=90"]
    assert main(["data", "generate", "task=lift", "episodes=6", f"out={demos}", "workers=0", *quick]) == 0
    assert "6 kept of " in capsys.readouterr().out
    assert main(["data", "validate", str(demos)]) == 0
    words = ["train", "task=lift", "policy=flow", f"data={demos}", f"run_dir={run}", *SMALL, *quick, "train.steps=20",
             "train.eval_every=10", "eval.episodes=3", "eval.selection_episodes=2", "eval.videos=1"]  # fmt: skip
    assert main(words) == 0
    final = json.loads((run / "eval" / "final.json").read_text())
    assert final["n_episodes"] == 3
    assert all((run / v["path"]).stat().st_size > 1000 for v in final["videos"])  # none where nothing can be drawn
    capsys.readouterr()
    assert main(["eval", f"checkpoint={run}", "task=lift", "episodes=2", "videos=0", *quick]) == 0
    assert "over 2 test seeds" in capsys.readouterr().out
    again = ["eval", f"checkpoint={run}", "episodes=2", "videos=0", *quick]
    assert main([*again, "env.control.mode=joint_pos"]) == 2
    assert "action 'action': the policy expects shape (7,), task 'lift' gives (8,)" in capsys.readouterr().err
