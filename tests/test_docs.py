"""What the documents say runs: the code in them, the files that they point to, the targets that they name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from visuomotor.configs.bench import BenchConfig
from visuomotor.configs.bench_table import replace_block
from visuomotor.configs.calibrate import CameraCalibrationConfig, LatencyConfig
from visuomotor.configs.cli import main
from visuomotor.configs.compose import compose_train, groups, parse_plain
from visuomotor.configs.deploy_config import DeployConfig
from visuomotor.configs.distill import DistillCommand
from visuomotor.configs.doctor import DoctorConfig
from visuomotor.configs.export import ExportConfig
from visuomotor.configs.help import (
    bench_help,
    eval_help,
    export_help,
    rl_help,
    robustness_help,
    settings_help,
    train_help,
)
from visuomotor.configs.randomize import parse_randomized
from visuomotor.configs.record import RecordConfig
from visuomotor.configs.registry import backbones, heads
from visuomotor.configs.replay_motion import ReplayConfig
from visuomotor.configs.rl_compose import compose_finetune, compose_rl, head_class
from visuomotor.configs.robots import take_robot, transport_words
from visuomotor.configs.schema import EvalConfig
from visuomotor.configs.serve import ServeConfig
from visuomotor.configs.sysid import ExciteConfig, SysidConfig
from visuomotor.configs.twin import TwinCommand
from visuomotor.data.store import DemoStore
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.base import ChunkSizes, Head, NetSizes, Observed
from visuomotor.policies.conditioned import ConditionedNet
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.diffusion import DiffusionConfig
from visuomotor.policies.heads.shortcut import ShortcutHead
from visuomotor.policies.iterative import IterativeHead
from visuomotor.policies.likelihoods.registry import LIKELIHOODS, likelihoods_for
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP
from visuomotor.sim2real.remote.config import TOKEN_VARIABLE

ROOT = Path(__file__).parents[1]
ROBOT_COMMANDS: dict[str, type] = {
    "deploy": DeployConfig,
    "record": RecordConfig,
    "replay": ReplayConfig,
    "twin": TwinCommand,
    "doctor": DoctorConfig,
    "calibrate-latency": LatencyConfig,
    "calibrate-camera": CameraCalibrationConfig,
}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_named_in_the_text_exist(page: Path) -> None:
    for path in re.findall(r"`([\w.-]+/[\w/.-]+\.(?:py|yaml))`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


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


def commands(page: Path, verb: str) -> list[list[str]]:
    """The words after every ``visuomotor <verb>`` at the beginning of a line; ``<...>`` stands for anything."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    lines = re.findall(rf"^visuomotor {verb} ([^#\n]*)", text, re.MULTILINE)
    found = [shlex.split(re.sub(r"<[^>]*>", "anything", line)) for line in lines]
    return [words for words in found if "--help" not in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_settings_of_written_commands_are_accepted(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "as-the-page-exports-one")
    for verb, check in (("train", compose_train), ("rl", compose_rl)):
        for words in commands(page, verb):
            check(words)
    for words in commands(page, "finetune"):
        compose_finetune(words, head=ShortcutHead, saved={"task": "lift", "env": {}})
    for words in commands(page, "eval"):
        parse_randomized(EvalConfig, words)
    for words in commands(page, "sysid"):
        exciting = words[0] == "excite"
        parse_plain(ExciteConfig if exciting else SysidConfig, words[exciting:])
    for words in commands(page, "distill"):
        its = [w for w in words if w.startswith(("teacher=", "distill."))]
        parse_plain(DistillCommand, its)
        compose_train(["data.path=labels.zarr", *(w for w in words if w not in its and "randomization" not in w)])
    for verb, schema in (("export", ExportConfig), ("serve", ServeConfig)):
        for words in commands(page, verb):
            parse_plain(schema, words)
    for verb, kind in ROBOT_COMMANDS.items():
        for words in commands(page, verb):
            parse_plain(kind, transport_words(take_robot(words)[1]))
    own = {f.name for f in fields(BenchConfig)}
    for task, *words in commands(page, "bench"):
        config = parse_plain(BenchConfig, [w for w in words if w.partition("=")[0] in own])
        compose_train([f"task={task}", f"data={config.data}", *(w for w in words if w.partition("=")[0] not in own)])


def helped(text: str) -> dict[str, dict[str, str]]:
    """``{section: {setting: default}}`` of a command's help; the section before the first named one is ``""``."""
    out: dict[str, dict[str, str]] = {"": {}}
    section = ""
    for line in text.splitlines():
        if heading := re.match(r"Settings of (\w+=\w+)", line):
            section = heading[1]
            out[section] = {}
        elif re.match(r"  [a-z][\w.]*=", line):
            setting = line[2:] if line[43:44].strip() else line[2:44]  # a long one has a line of its own
            name, _, default = setting.partition("=")
            out[section][name] = default.strip()
    return out


TRAIN = helped(train_help())
OTHERS = helped(eval_help())[""] | helped(bench_help())[""] | helped(export_help())[""]
OF_PAGE = {  # what commands with settings of the same names as others' have in their own pages
    "identification.md": helped(settings_help(SysidConfig))[""] | helped(settings_help(ExciteConfig))[""],
    "adaptation.md": helped(settings_help(DistillCommand))[""],
    "robustness.md": helped(robustness_help())[""],
}
RL = helped(rl_help("rl"))[""] | helped(rl_help("finetune"))[""]
KNOWN = set(RL) | {key for section in TRAIN.values() for key in section} | set(OTHERS)
KNOWN |= {key for settings in OF_PAGE.values() for key in settings}


def tables(page: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """Heading and rows of every table of settings; its first column is headed ``setting``, or ``setting of ...``."""
    pattern = r"^\| (setting[^|]*?) \| default \|.*\n\|[-|]+\n((?:\|.*\n)+)"
    for heading, rows in re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE):
        yield heading, [[cell.strip(" `") for cell in line.split("|")[1:3]] for line in rows.splitlines()]


def same(shown: str, default: str) -> bool:
    """Whether a table says the default; null and an empty text are explained in words."""
    if default in ("null", ""):
        return True
    try:
        return abs(float(shown) - float(default)) < 5e-4 * max(abs(float(default)), 1e-12)
    except ValueError:
        return shown == default


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_defaults_in_tables_are_those_of_the_code(page: Path) -> None:
    for heading, rows in tables(page):
        section = re.search(r"`(\w+=\w+)`", heading)
        group = section[1].partition("=")[0] + "." if section else ""
        where = TRAIN[section[1]] if section else RL if page.name == "ppo.md" else TRAIN[""] | OTHERS
        where = where | OF_PAGE.get(page.name, {})
        if page.name == "data.md":
            group = "window."
        for name, shown in rows:
            assert group + name in where, f"{page.name}: {group}{name} is no setting"
            assert same(shown, where[group + name]), f"{page.name}: {group}{name} is {where[group + name]}"


def test_tables_of_windows_and_of_the_default_head_are_whole() -> None:
    (windows,) = (rows for _, rows in tables(ROOT / "docs" / "data.md"))
    assert {name for name, _ in windows} == {f.name for f in fields(WindowConfig)}
    (diffusion,) = (rows for h, rows in tables(ROOT / "docs" / "policies.md") if "policy=diffusion" in h)
    assert {name for name, _ in diffusion} == {f.name for f in fields(DiffusionConfig)}


def test_every_head_and_backbone_has_a_table_of_settings() -> None:
    named = set(re.findall(r"setting of `(\w+=\w+)`", (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")))
    assert named == {f"policy={h}" for h in heads()} | {f"backbone={b}" for b in backbones()}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_settings_named_in_the_text_exist(page: Path) -> None:
    """Everything in backticks that looks like ``obs.image.crop`` or ``train.compile=true``."""
    first = {k.partition(".")[0] for k in KNOWN if "." in k}
    parents = {k.rsplit(".", n)[0] for k in KNOWN for n in range(1, k.count(".") + 1)}
    for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        for word in code.split():
            key = word.partition("=")[0].removesuffix(".*").removesuffix(".")
            if re.fullmatch(r"[a-z]\w*(\.\w+)+", key) and key.partition(".")[0] in first and "/" not in word:
                known = key in KNOWN or key in parents or key.endswith((".py", ".json", ".onnx", ".pt2", ".yaml"))
                assert known, f"{page.name}: {key}"


def table_of(page: str, first: str) -> dict[str, list[str]]:
    """Rows of the table whose first column is headed ``first``, by that column."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (rows,) = re.findall(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    cells = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in rows.splitlines()]
    return {row[0]: row[1:] for row in cells}


class CountingNet:
    """A net that answers zeros and counts how often it is asked."""

    def __init__(self, head: Head) -> None:
        self.seen, self.calls, self._size = Observed(torch.zeros(1, 2, 3)), 0, head.output_dim

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return 0.0 * x.sum() + x.new_zeros(*x.shape[:2], self._size)

    def at(self, times: Tensor) -> list[Callable[[Tensor], Tensor]]:
        return [partial(self, t=t) for t in times]

    def rows(self, index: Tensor) -> CountingNet:
        return self


def test_the_table_of_heads_is_that_of_the_code() -> None:
    shown = table_of("policies.md", "`policy=`")
    assert set(shown) == set(heads())
    for name, (_, evaluations, _, steps, guidance, rates, _) in shown.items():
        entry = heads()[name]
        sizes = ChunkSizes(action_dim=2, horizon=8, n_obs=2, feature_dim=3)
        head = entry.build(entry.config_class(), sizes).eval()
        net = CountingNet(head)
        head.sample(net, torch.zeros(1, head.noise_count(), 8, 2))  # type: ignore[arg-type]
        rated = type(head).uncertainty is not Head.uncertainty
        expected = (str(net.calls), isinstance(head, IterativeHead), head.is_field, rated)
        assert (evaluations, *(cell == "yes" for cell in (steps, guidance, rates))) == expected, name


def test_the_table_of_backbones_is_that_of_the_code() -> None:
    shown = table_of("policies.md", "`backbone=`")
    assert set(shown) == set(backbones())
    for name, (_, tokens, times, _) in shown.items():
        build = backbones()[name].build
        assert (tokens == "yes", times == "yes") == (build.takes_tokens, build.per_step_time), name  # type: ignore[attr-defined]


def test_the_table_of_likelihoods_is_that_of_the_code() -> None:
    shown = table_of("ppo.md", "likelihood")
    assert list(shown) == list(LIKELIHOODS)
    for name, (of, _) in shown.items():
        assert set(of.split(", ")) == {h for h in heads() if name in likelihoods_for(head_class(h))}, name


def test_the_groups_name_every_choice() -> None:
    for group, (names, _) in table_of("configuration.md", "group").items():
        assert {*re.findall(r"\w+", names.partition(", tasks")[0])} == set(groups()[group.rstrip("=")])


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for page in ("../README.md", "configuration.md"):
        assert set(table_of(page, "extra")) == set(project["optional-dependencies"])


def test_the_head_of_the_example_learns() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "policies.md").read_text(), re.DOTALL)
    made: dict[str, Any] = {"__name__": __name__}  # slots=True looks its module up
    exec(example, made)
    head = made["LOG_COSH"].build(made["LogCoshConfig"](), ChunkSizes(action_dim=2, horizon=4, n_obs=1, feature_dim=3))
    sizes = NetSizes(input_dim=2, output_dim=2, horizon=4, n_obs=1, feature_dim=3)
    torch.manual_seed(0)
    net = ResidualMLP(MLPConfig(width=16, depth=1, dropout=0.0), sizes)
    bound = ConditionedNet(net, head, Observed(torch.randn(8, 1, 3)))
    loss = head.loss(bound, torch.full((8, 4, 2), 0.5), Draws(0))
    assert loss.shape == (8, 4)
    loss.mean().backward()
    assert all(p.grad is not None for p in net.out.parameters())
    assert head.sample(bound, torch.zeros(8, 0, 4, 2)).shape == (8, 4, 2)
    assert head.loss(bound, torch.full((8, 4, 2), 100.0), Draws(0)).isfinite().all()


def test_the_table_of_the_bench_has_its_place() -> None:
    replace_block(ROOT / "docs" / "benchmarks.md", "pusht", None)  # refuses a file without the lines


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=30, env=_clean()).stdout
    assert set(re.findall(r"^  make ([a-z-]+) ", shown, re.MULTILINE)) == set(phony.split()) - {"check-data", "no-data"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo-pusht"], "make demo-pusht DATA="),
        (["demo-pusht", "DATA=/no/such.zarr"], "/no/such.zarr"),
        (["demo", "DATA=pusht.zarr"], "make demo-pusht DATA='pusht.zarr'"),
    ],
)
def test_demo_says_what_data_to_give(arguments: list[str], said: str) -> None:
    done = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, env=_clean())
    assert done.returncode == 2
    assert said in done.stdout


def _clean() -> dict[str, str]:
    """The environment without what an outer make hands down."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS")) and k not in ("DATA", "ARGS")}
