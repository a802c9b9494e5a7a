"""Randomisation from words and files: terms of their own classes, presets, checkpoints, and what a mistake says."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from visuomotor.configs.generate import GenerateConfig
from visuomotor.configs.randomize import (
    load_randomization,
    parse_randomized,
    plain_randomization,
    presets,
    trained_with_delays,
    typed_randomization,
)
from visuomotor.configs.rl_compose import compose_finetune, compose_rl, restore_run
from visuomotor.configs.schema import EvalConfig
from visuomotor.data.errors import ConfigError
from visuomotor.envs.registry import get_task, make_env
from visuomotor.policies.heads.flow import FlowHead
from visuomotor.sim2real.randomization.build import build_events
from visuomotor.sim2real.randomization.config import RandomizationConfig
from visuomotor.sim2real.randomization.registry import JointOffsetConfig, terms

WORDS = ["randomization=tabletop", "randomization.terms.object_friction.high=1.5"]


def test_words_stand_above_a_preset_and_a_term_may_be_taken_out_or_put_in() -> None:
    config = load_randomization(
        [
            *WORDS,
            "randomization.terms.armature=null",
            "randomization.terms.start.term=joint_offset",
            "randomization.terms.start.names=[robot/joint*]",
            "randomization.terms.start.low=-0.1",
            "randomization.terms.start.high=0.1",
        ]
    )
    assert "armature" not in config.terms
    assert (config.terms["object_friction"].low, config.terms["object_friction"].high) == (0.6, 1.5)
    start = config.terms["start"]
    assert type(start) is JointOffsetConfig
    assert start.operation == "+"  # the default of its class


def test_what_was_composed_is_restored_from_plain_values() -> None:
    config = load_randomization([*WORDS])
    assert OmegaConf.to_object(typed_randomization(plain_randomization(config))) == config
    composed = compose_rl(["task=lift", *WORDS])
    assert composed.config.randomization == config
    again = restore_run(composed.plain, [], Path("runs/x"))
    assert again.config.randomization == config
    older = {**composed.plain, "config": {k: v for k, v in composed.plain["config"].items() if k != "randomization"}}
    assert restore_run(older, [], Path("runs/x")).config.randomization == RandomizationConfig()


def test_every_command_takes_it() -> None:
    config = load_randomization([*WORDS])
    saved = {"task": "lift", "env": {}}
    assert compose_finetune([*WORDS, "checkpoint=x"], head=FlowHead, saved=saved).config.randomization == config
    assert parse_randomized(EvalConfig, ["checkpoint=x", *WORDS]).randomization == config
    assert parse_randomized(GenerateConfig, ["task=lift", *WORDS]).randomization == config
    with pytest.raises(ConfigError, match="does not go with data="):
        parse_randomized(EvalConfig, ["checkpoint=x", "data=a.zarr", *WORDS])


def test_a_file_serves_as_well_as_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "identified, arm 2.yaml"
    file.write_text("terms: {mass: {names: [cube], low: 0.9, high: 1.2}}")
    config = load_randomization([f"randomization={file}"])
    assert config.terms["mass"].high == 1.2
    file.write_text("terms: {mass: [")
    with pytest.raises(ConfigError, match=r"identified, arm 2\.yaml cannot be read as YAML"):
        load_randomization([f"randomization={file}"])
    file.write_text("- mass")
    with pytest.raises(ConfigError, match="holds a list; expected terms"):
        load_randomization([f"randomization={file}"])


def test_presets_and_files_are_joined(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text("terms: {armature: {low: 0.95}, mine: {term: mass, names: [cube]}}")
    config = load_randomization([f"randomization=tabletop+visual+{file}"])
    assert {"object_mass", "table_texture", "mine"} <= set(config.terms)
    assert (config.terms["armature"].low, config.terms["armature"].high) == (0.95, 1.2)
    with pytest.raises(ConfigError, match="visuel: there is no such file"):
        load_randomization(["randomization=tabletop+visuel"])


@pytest.mark.parametrize("name", [n for n in presets() if n != "none"])
@pytest.mark.parametrize("task", ["lift", "push_t_arm", "reach", "drawer"])
def test_presets_fit_every_task_with_an_arm(name: str, task: str) -> None:
    events = build_events(load_randomization([f"randomization={name}"]))
    events = pickle.loads(pickle.dumps(events))  # as they go to the processes that make demonstrations
    env = make_env(get_task(task).config_class(), 2, events)
    env.reset(seeds=[1, 2])
    env.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["randomization=tableto"], "no randomisation of that name. Did you mean 'tabletop'"),
        ([*WORDS, "randomization.terms.object_frictin.high=2"], "object_frictin is not among .*'object_friction'"),
        ([*WORDS, "randomization.terms.object_friction.hihg=2"], "unknown setting.*hihg'. Did you mean 'high'"),
        (["randomization.terms.mass.low=3"], r"terms\.mass: the range 3 \.\. 1"),
        (["randomization.terms.mass.low=abc"], r"terms\.mass: Value 'abc'"),
        (["randomization.terms.a.term=mas"], r"terms\.a: unknown term 'mas'.*mass"),
        (["randomization.term.mass.low=3"], "unknown setting 'randomization.term'. Did you mean 'terms'"),
        (["randomization.terms.mass=3"], "expected settings of a term"),
        (["randomization.terms.mass.when=rest"], "unknown time when='rest'.*reset"),
        (["randomization.terms.mass.when=interval"], "interval goes with when=interval"),
        (["randomization.terms.mass.interval=[1,2]"], "interval goes with when=interval"),
        (["randomization.terms.mass.when=interval", "randomization.terms.mass.interval=[2,1]"], "the shorter first"),
        (["randomization.curriculum.kid=adr"], "unknown setting 'randomization.curriculum.kid'. Did you mean 'kind'"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_randomization([*words])


def test_a_term_that_cannot_be_built_says_which_it_is() -> None:
    words = ["randomization.terms.bounce.term=restitution", "randomization.terms.bounce.names=[table]"]
    with pytest.raises(ConfigError, match=r"randomization\.terms\.bounce: restitution: operation '\*'; expected ="):
        build_events(load_randomization([*words]))


def test_every_registered_term_has_settings_with_defaults() -> None:
    assert {"mass", "friction", "gravity", "joint_offset"} <= set(terms())
    for entry in terms().values():
        assert entry.config_class().when in ("startup", "reset", "interval")


def test_whether_a_policy_knows_delays_is_read_from_its_training() -> None:
    late = plain_randomization(load_randomization(["randomization=interface"]))
    assert trained_with_delays({"randomization": late})
    mine = {"mine": {"term": "control_delay"}, "noise": {"term": "observation_noise"}}
    assert trained_with_delays({"randomization": {"terms": mine}})
    assert not trained_with_delays({"randomization": {"terms": {"noise": mine["noise"]}}})
    assert not trained_with_delays({})
    assert not trained_with_delays({"randomization": None})
