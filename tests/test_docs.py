"""What the documents say runs: the code in them, the files that they point to, the targets that they name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from visuomotor.configs.cli import main
from visuomotor.configs.compose import compose_train
from visuomotor.data.store import DemoStore
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.heads.diffusion import DiffusionConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_the_dataset_example_of_the_readme_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with DemoStore.open(tmp_path / "demos.zarr") as store:
        assert store.episode_ends.tolist() == [40, 95]
        assert store.fps == 10.0
        assert store.episode_columns["success"].tolist() == [True, True]


def test_the_task_example_steps(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "configuration.md").read_text(), re.DOTALL)
    use = (
        "from visuomotor.envs.registry import make_env, register_task\n"
        "register_task('pendulum', PENDULUM.config_class, PENDULUM.factory)\n"
        "env = make_env(PendulumConfig(), 2)\n"
        "import torch\n"
        "assert env.reset(seeds=[0, 1])['state'].shape == (2, 3)\n"
        "assert env.step(torch.zeros(2, 1)).reward.shape == (2,)\n"
    )
    # from a file: a class made in `-c` has no module to be found in
    (tmp_path / "example.py").write_text(example + use)
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    known = set(re.findall(r"^  visuomotor (data \w+|\w+)", capsys.readouterr().out, re.MULTILINE))
    named = set(re.findall(r"`visuomotor (data \w+|\w+)", page.read_text(encoding="utf-8")))
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_settings_of_written_train_commands_are_accepted(page: Path) -> None:
    for line in re.findall(r"^visuomotor train ([^#\n]*)", page.read_text(encoding="utf-8"), re.MULTILINE):
        words = shlex.split(line)
        if "--help" not in words:
            compose_train(words)


@pytest.mark.parametrize(("page", "schema"), [("policies.md", DiffusionConfig), ("data.md", WindowConfig)])
def test_defaults_in_tables_are_those_of_the_code(page: str, schema: type) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| setting \| default \|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [[cell.strip(" `") for cell in line.split("|")[1:3]] for line in table.splitlines()[1:]]
    defaults = {f.name: f.default for f in fields(schema)}
    assert {name for name, _ in rows} == set(defaults)
    for name, shown in rows:
        default = defaults[name]
        if default is not None:  # such a default is explained in words
            assert shown == (f"{default:g}" if type(default) is float else str(default).lower()), name


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=30, env=_clean()).stdout
    assert set(re.findall(r"^  make ([a-z-]+) ", shown, re.MULTILINE)) == set(phony.split()) - {"check-data"}


@pytest.mark.parametrize(("arguments", "said"), [([], "make demo DATA="), (["DATA=/no/such.zarr"], "/no/such.zarr")])
def test_demo_without_data_says_what_to_give(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        ["make", "demo", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, env=_clean()
    )
    assert done.returncode == 2
    assert said in done.stdout


def _clean() -> dict[str, str]:
    """The environment without what an outer make hands down."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS")) and k not in ("DATA", "ARGS")}
