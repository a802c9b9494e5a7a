"""``visuomotor export``: from a run to files that run without this package, as the documentation shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.configs.build import load_policy
from visuomotor.configs.cli import main
from visuomotor.configs.compose import parse_plain
from visuomotor.configs.export import ExportConfig
from visuomotor.configs.help import export_help
from visuomotor.data.errors import ConfigError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.policies.learn.checkpoint import Checkpoint

pytest.importorskip("onnxruntime", reason="extra 'export' is not installed")
pytest.importorskip("onnxscript", reason="extra 'export' is not installed")

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A flow policy that was trained for a few steps, with a goal that it sometimes did not see."""
    folder = tmp_path_factory.mktemp("reach")
    specs = {"qpos": ArraySpec(shape=(2,), role="observation"), "action": ArraySpec(shape=(2,), role="action")}
    with DemoStore.create(folder / "reach.zarr", specs, fps=20) as store:
        for start in np.random.default_rng(0).uniform(-1, 1, (4, 2)):
            path = (start * np.linspace(1, 0, 41)[:, None]).astype(np.float32)
            store.append_episode({"qpos": path[:-1], "action": path[1:]})
    words = [
        "train", f"data={folder / 'reach.zarr'}", "obs.keys=[qpos]", "obs.goal.keys=[qpos]", "obs.goal.dropout=0.2",
        "policy=flow", "backbone.width=16", "backbone.depth=1", "train.batch_size=16", "train.steps=8", "threads=1",
        "device=cpu", f"run_dir={folder / 'run'}",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISUOMOTOR_CACHE", str(folder / "cache"))
        assert main(words) == 0
    return folder / "run"


def test_the_example_of_the_documentation_runs_without_torch(run, tmp_path, capsys):
    assert main(["export", f"checkpoint={run}", "sample_steps=2", "guidance_scale=2.5"]) == 0
    out = capsys.readouterr().out
    (folder,) = (run / "export").iterdir()
    assert sorted(f.name for f in folder.iterdir()) == ["io.json", "policy.onnx", "policy.pt2"]
    for line in out.splitlines():
        assert line.startswith(f"written: {folder}")
    assert len(re.findall(r"\(0\.\d\d MB\), differs from PyTorch by \d\.\de[+-]\d+ in normalised units", out)) == 2

    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    shutil.copytree(folder, tmp_path / "export")
    blocked = "import sys\nsys.modules['torch'] = sys.modules['visuomotor'] = None\n"
    saved = "\nnp.savez('result.npz', chunk=chunk, noise=inputs['noise'])"
    done = subprocess.run(
        [sys.executable, "-c", blocked + example + saved], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 16, 2)"

    policy = load_policy(run, sample_steps=2).policy
    policy.guidance_scale = 2.5
    result = np.load(tmp_path / "result.npz")
    obs = {"qpos": torch.zeros(1, policy.spec.window.n_obs, 2), "goal/qpos": torch.zeros(1, 1, 2)}
    expected = policy.sample(obs, torch.from_numpy(result["noise"]))
    assert torch.allclose(torch.from_numpy(result["chunk"]), expected, atol=1e-4)
    assert not torch.allclose(
        expected, load_policy(run, sample_steps=2).policy.sample(obs, torch.from_numpy(result["noise"]))
    )


def test_where_and_what_is_written_is_chosen(run, tmp_path):
    words = [f"checkpoint={run}", f"out={tmp_path}/a", "formats=[pt2]", "batch=3", "solver=euler", "sample_steps=1"]
    assert main(["export", *words]) == 0
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == ["io.json", "policy.pt2"]
    io = json.loads((tmp_path / "a" / "io.json").read_text())
    assert [i["name"] for i in io["inputs"]] == ["obs.qpos", "obs.goal/qpos", "noise"]
    assert {i["shape"][0] for i in io["inputs"]} == {3}
    program = torch.export.load(tmp_path / "a" / "policy.pt2").module()
    assert program(*(torch.zeros(i["shape"]) for i in io["inputs"])).shape == (3, 16, 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "checkpoint is missing"),
        (["checkpoint=x", "format=[onnx]"], r"unknown setting 'format'. Did you mean 'formats'"),
        (["checkpoint=x", "formats=[tflite]"], r"unknown format 'tflite'. Known: onnx, pt2"),
        (["checkpoint=x", "formats=[]"], "formats is empty: expected some of onnx, pt2"),
        (["checkpoint=x", "weights=avg"], "unknown weights 'avg'"),
        (["checkpoint=x", "batch=0"], "batch=0: expected at least 1"),
        (["checkpoint=x", "guidance_scale=-1"], "guidance_scale=-1.0: expected 0"),
    ],
)
def test_settings_are_refused_with_what_exists(words, says):
    with pytest.raises(ConfigError, match=says):
        parse_plain(ExportConfig, words)


def test_a_solver_that_the_head_lacks_is_one_sentence(run, capsys):
    assert main(["export", f"checkpoint={run}", "solver=ddim"]) == 2
    assert capsys.readouterr().err.startswith("visuomotor: head flow: unknown solver 'ddim'")


def test_other_weights_than_two_are_refused(run):
    with pytest.raises(ConfigError, match=r"'emaa'.*'ema'"):
        load_policy(run, weights="emaa")


def test_weights_of_another_network_are_one_sentence(run, capsys, monkeypatch):
    monkeypatch.setattr(Checkpoint, "tensors", lambda *_: {})
    assert main(["export", f"checkpoint={run}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "is of another network than this version builds" in err


def test_help_lists_the_settings(capsys):
    assert main(["export", "--help"]) == main(["export"]) == 0
    assert capsys.readouterr().out == 2 * export_help()
    assert "sample_steps=null" in export_help()
