"""Heads and backbones by name.

Another package adds its own by an entry point of the group ``visuomotor.heads`` or ``visuomotor.backbones``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.base import Backbone, BackboneConfig, ChunkSizes, Head, HeadConfig, NetSizes
from visuomotor.policies.heads.act import ActConfig, ActHead
from visuomotor.policies.heads.carp import CarpConfig, CarpHead
from visuomotor.policies.heads.diffusion import DiffusionConfig, DiffusionHead
from visuomotor.policies.heads.edm import EDMConfig, EDMHead
from visuomotor.policies.heads.energy import EnergyConfig, EnergyHead
from visuomotor.policies.heads.flow import FlowConfig, FlowHead
from visuomotor.policies.heads.gaussian import GaussianConfig, GaussianHead
from visuomotor.policies.heads.gmm import GMMConfig, GMMHead
from visuomotor.policies.heads.meanflow import MeanFlowConfig, MeanFlowHead
from visuomotor.policies.heads.mip import MIPConfig, MIPHead
from visuomotor.policies.heads.regression import RegressionConfig, RegressionHead
from visuomotor.policies.heads.shortcut import ShortcutConfig, ShortcutHead
from visuomotor.policies.nets.dit import DiT, DiTConfig
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP
from visuomotor.policies.nets.transformer import Transformer, TransformerConfig
from visuomotor.policies.nets.unet1d import ConditionalUnet1d, UnetConfig

__all__ = ["BackboneEntry", "HeadEntry", "backbones", "heads", "name_of"]


@dataclass(frozen=True)
class HeadEntry:
    """Settings class of a head, and what builds the head from them: ``build(config, ChunkSizes)``."""

    config_class: type[HeadConfig]
    build: Callable[[Any, ChunkSizes], Head]


@dataclass(frozen=True)
class BackboneEntry:
    """Settings class of a backbone, and what builds the backbone from them: ``build(config, NetSizes)``."""

    config_class: type[BackboneConfig]
    build: Callable[[Any, NetSizes], Backbone]


_HEADS = {
    "act": HeadEntry(ActConfig, ActHead),
    "carp": HeadEntry(CarpConfig, CarpHead),
    "diffusion": HeadEntry(DiffusionConfig, DiffusionHead),
    "edm": HeadEntry(EDMConfig, EDMHead),
    "energy": HeadEntry(EnergyConfig, EnergyHead),
    "flow": HeadEntry(FlowConfig, FlowHead),
    "gaussian": HeadEntry(GaussianConfig, GaussianHead),
    "gmm": HeadEntry(GMMConfig, GMMHead),
    "meanflow": HeadEntry(MeanFlowConfig, MeanFlowHead),
    "mip": HeadEntry(MIPConfig, MIPHead),
    "regression": HeadEntry(RegressionConfig, RegressionHead),
    "shortcut": HeadEntry(ShortcutConfig, ShortcutHead),
}
_BACKBONES = {
    "mlp": BackboneEntry(MLPConfig, ResidualMLP),
    "unet": BackboneEntry(UnetConfig, ConditionalUnet1d),
    "dit": BackboneEntry(DiTConfig, DiT),
    "transformer": BackboneEntry(TransformerConfig, Transformer),
}


@cache
def heads() -> dict[str, HeadEntry]:
    """Every head that ``policy=`` can choose."""
    return {**_outside("visuomotor.heads", HeadEntry), **_HEADS}


@cache
def backbones() -> dict[str, BackboneEntry]:
    """Every backbone that ``backbone=`` can choose."""
    return {**_outside("visuomotor.backbones", BackboneEntry), **_BACKBONES}


def _outside(group: str, kind: type) -> dict[str, Any]:
    found = {point.name: point.load() for point in entry_points(group=group)}
    for name, entry in found.items():
        if not isinstance(entry, kind):
            raise ConfigError(f"the entry point {name!r} of group {group} is {entry!r}; expected a {kind.__name__}")
    return found


def name_of(config: HeadConfig | BackboneConfig) -> str:
    """The name under which ``config``'s class is registered."""
    entries: dict[str, Any] = {**heads(), **backbones()}
    for name, entry in entries.items():
        if type(config) is entry.config_class:
            return name
    raise ConfigError(f"{type(config).__name__} is not registered. {nearest(type(config).__name__, entries)}")
