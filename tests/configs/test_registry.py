"""Heads and backbones of other packages."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from visuomotor.configs import registry
from visuomotor.configs.registry import HeadEntry, backbones, heads, name_of
from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import HeadConfig
from visuomotor.policies.heads.flow import FlowConfig, FlowHead


@dataclass(kw_only=True, slots=True)
class MineConfig(HeadConfig):
    """Settings of a head of another package."""


MINE = HeadEntry(MineConfig, FlowHead)
SAME_SETTINGS = HeadEntry(FlowConfig, FlowHead)


@pytest.fixture
def offer(monkeypatch):
    """``offer(name, value)``: another package has that entry point."""

    def make(name, value, group="visuomotor.heads"):
        points = [EntryPoint(name, value, group)]
        monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
        heads.cache_clear()

    yield make
    heads.cache_clear()


def test_a_head_of_another_package_is_found(offer):
    offer("mine", f"{__name__}:MINE")
    assert heads()["mine"] is MINE
    assert name_of(MineConfig()) == "mine"


def test_a_head_may_be_called_as_a_backbone_is(offer):
    offer("mlp", f"{__name__}:MINE")
    assert name_of(MineConfig()) == "mlp"
    assert {name_of(entry.config_class()) for entry in backbones().values()} == set(backbones())


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("mine", "no_such_module:MINE", r"'mine'.*no_such_module:MINE.*cannot be loaded: ModuleNotFoundError"),
        ("mine", "math:pi", r"is 3.14.*expected a HeadEntry"),
        ("flow", "MINE", r"'flow' of group visuomotor.heads.*name that is taken"),
        ("mine", "SAME_SETTINGS", r"settings class FlowConfig of 'flow'"),
    ],
)
def test_what_cannot_be_told_apart_or_loaded_is_refused(offer, name, value, says):
    offer(name, value if ":" in value else f"{__name__}:{value}")
    with pytest.raises(ConfigError, match=says):
        heads()
