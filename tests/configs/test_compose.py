"""Settings: groups, overrides, saved settings, and one sentence for every mistake."""

from __future__ import annotations

import re

import pytest

from visuomotor.configs.compose import compose_train, parse_plain, parse_words, restore_train
from visuomotor.configs.help import eval_help, train_help
from visuomotor.configs.schema import EvalConfig
from visuomotor.data.errors import ConfigError
from visuomotor.envs.tasks.pusht import PushTConfig
from visuomotor.policies.heads.diffusion import DiffusionConfig
from visuomotor.policies.nets.unet1d import UnetConfig


def test_words_choose_and_values_override():
    c = compose_train(
        [
            "task=pusht",
            "data=my data.zarr",
            "backbone=unet",
            "backbone.dims=[64,128]",
            "policy.solver=ddpm",
            "env.workers=0",
        ]
    ).config
    assert c.data.path == "my data.zarr"
    assert isinstance(c.backbone, UnetConfig)
    assert c.backbone.dims == [64, 128]
    assert isinstance(c.policy, DiffusionConfig)
    assert c.policy.solver == "ddpm"
    assert isinstance(c.env, PushTConfig)
    assert (c.env.workers, c.task, c.obs.angles) == (0, "pusht", {"state": [4]})


def test_new_keys_go_into_plain_dicts():
    c = compose_train(
        [
            "data=x",
            "obs.keys=[qpos]",
            "obs.angles.qpos=[0,2]",
            "obs.norm_by_key.qpos={mode: zscore}",
            "obs.norm.dims.identity=[1]",
        ]
    ).config
    assert c.obs.angles == {"qpos": [0, 2]}
    assert c.obs.norm_by_key["qpos"].mode == "zscore"
    assert c.obs.norm.dims == {"identity": [1]}


def test_a_path_may_hold_what_the_grammar_gives_a_meaning_to():
    for path in ("/a (copy)/it's {1}.zarr", "/runs/a,b=c.zarr", "~/x", "a\\b"):
        assert compose_train([f"data={path}"]).config.data.path == path
        for key in ("hold.data", "demo_start.store"):
            assert parse_words([f"{key}={path}"])[0].value() == path
    assert compose_train(["data.path='quoted, already'"]).config.data.path == "quoted, already"
    assert compose_train(["data=x", "run_dir=null"]).config.run_dir is None


@pytest.mark.parametrize("text", ["put the cup, then stop", "don't push", "move (slowly) to {A}", "5"])
def test_a_text_is_taken_as_it_is_written(text):
    assert parse_plain(EvalConfig, ["checkpoint=x", f"text={text}", "goal=/a,b/g.npz"]).text == text
    config = compose_train(["data=x", f"eval.text={text}", "obs.image.augment.textures=/a, b(1)"]).config
    assert (config.eval.text, config.obs.image.augment.textures) == (text, "/a, b(1)")


def test_saved_settings_come_back_the_same():
    first = compose_train(
        ["task=pusht", "data=x", "backbone=unet", "backbone.groups=4", "seed=7", "obs.angles.state=[4]"]
    )
    second = restore_train(first.plain, ["data.path=y"])
    first.config.data.path = "y"
    assert second.config == first.config


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["polcy=diffusion"], r"unknown setting 'polcy'.*'policy'"),
        (["policy=difusion"], r"unknown policy 'difusion'.*Did you mean 'diffusion'"),
        (["task=push"], r"unknown task 'push'.*'pusht'"),
        (["backbone=resnet"], r"unknown backbone 'resnet'.*Known: dit, mlp, perceptron, transformer, unet"),
        (["train.stps=3"], r"unknown setting 'train.stps'.*'train.steps'"),
        (["policy.foo=3"], r"unknown setting 'policy.foo'"),
        (["+foo=3"], r"unknown setting 'foo'"),
        (["train.steps=abc"], r"train\.steps=abc.*[Ii]nteger"),
        (["train.steps=0"], r"train\.steps=0: expected at least 1"),
        (["train.steps"], r"cannot read 'train.steps': expected key=value"),
        (["seed=1,2"], r"'seed=1,2' names several values"),
        (["seed=-1"], r"seed=-1"),
        (["action.norm.mode=zscore"], r"policy\.clip=1 .*\['zscore'\].*policy\.clip=null"),
        (["device=tpu"], r"unknown device 'tpu'"),
        (["~seed=1"], r"'~seed=1': settings cannot be deleted"),
        (["data.fps=0"], r"data\.fps=0.*more than 0"),
        (["window.horizon=8"], r"horizon=8 is too short for n_obs=2 and n_exec=8"),
        (["obs.angles.qpos=[0]"], r"obs\.angles names 'qpos', which is not observed.*state"),
        (["policy=gaussian", "policy.squash=true", "action.norm.mode=zscore"], r"policy\.squash=false"),
        (["loss.max_delay=15"], r"loss\.max_delay=15: .*up to 16 of window\.horizon=16.*at most 14"),
        (["backbone=mlp", "backbone.time_dim=63"], r"time_dim 63: expected an even number"),
        (["backbone=unet", "backbone.time_dim=2"], r"time_dim 2: expected .*even number"),
        (["backbone=unet", "backbone.groups=0"], r"groups 0 .*at least 1"),
        (["backbone=unet", "backbone.kernel_size=-1"], r"kernel_size -1: expected odd and positive"),
        (["action.mode=relativ"], r"unknown action mode 'relativ'.*'relative'"),
        (["policy.sample_steps=200"], r"sample_steps 200: expected 1 to train_steps = 100"),
        (["policy.eta=0.5", "policy.solver=ddpm"], r"eta=0.5 belongs to solver 'ddim'"),
    ],
)
def test_mistakes_get_one_sentence(words, says):
    with pytest.raises(ConfigError, match=says) as e:
        compose_train(["data=x", *words])
    assert "\n" not in str(e.value)


def test_a_missing_dataset_is_named():
    with pytest.raises(ConfigError, match=r"data\.path is missing: give data\.path=<value>"):
        compose_train(["task=pusht"])


def test_commands_without_groups_take_the_same_words():
    c = parse_plain(EvalConfig, ["checkpoint=runs/a", "task=pusht", "env.workers=2", "episodes=5"])
    assert (c.checkpoint, c.task, c.env, c.episodes) == ("runs/a", "pusht", {"workers": 2}, 5)
    with pytest.raises(ConfigError, match=r"unknown setting 'episode'.*'episodes'"):
        parse_plain(EvalConfig, ["checkpoint=a", "episode=5"])
    with pytest.raises(ConfigError, match="not both"):
        parse_plain(EvalConfig, ["checkpoint=a", "task=pusht", "data=x"])


def test_help_names_every_setting_with_its_default_and_meaning():
    text = train_help()
    parts = ["policy=diffusion", "backbone=dit|mlp|perceptron|transformer|unet"]
    parts += ["train.steps=", "window.horizon=16"]
    for part in [*parts, "policy.solver=", "optim.lr=", "data.path=(must be given)", "env.max_episode_steps=300"]:
        assert part in text, part
    (tasks,) = re.findall(r"^  task=((?:.*\|\n)*.*)$", text, re.MULTILINE)
    assert {"lift", "none", "pusht", "walker"} <= set(re.sub(r"\s", "", tasks).split("|"))
    assert "action.norm.clip=null" in text  # what the owner set, not the default of its class
    assert "checkpoint=(must be given)" in eval_help()
    assert max(map(len, text.splitlines())) <= 124


def test_whole_numbers_are_welcome_in_lists_of_decimal_ones():
    words = ["data=x", "obs.keys=[depth]", "obs.points.keys=[depth]", "obs.points.intrinsics.depth=[610,610,320.5,240]"]
    assert compose_train(words).config.obs.points.intrinsics == {"depth": [610.0, 610.0, 320.5, 240.0]}
    with pytest.raises(ConfigError, match=r"obs\.keys"):
        compose_train(["data=x", "obs.keys=3"])
