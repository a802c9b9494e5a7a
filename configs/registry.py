"""Heads and backbones by name.

Another package adds its own by an entry point of the group ``visuomotor.heads`` or ``visuomotor.backbones``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from omegaconf import OmegaConf

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
from visuomotor.policies.heads.steered import SteeredConfig, SteeredHead
from visuomotor.policies.nets.dit import DiT, DiTConfig
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP
from visuomotor.policies.nets.perceptron import Perceptron, PerceptronConfig
from visuomotor.policies.nets.staged import StagedBackbone, StagedConfig
from visuomotor.policies.nets.transformer import Transformer, TransformerConfig
from visuomotor.policies.nets.unet1d import ConditionalUnet1d, UnetConfig

__all__ = ["BackboneEntry", "HeadEntry", "backbones", "every_backbone", "every_head", "heads", "name_of"]


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


E = TypeVar("E", HeadEntry, BackboneEntry)

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
    "perceptron": BackboneEntry(PerceptronConfig, Perceptron),
    "unet": BackboneEntry(UnetConfig, ConditionalUnet1d),
    "dit": BackboneEntry(DiTConfig, DiT),
    "transformer": BackboneEntry(TransformerConfig, Transformer),
}


@cache
def heads() -> dict[str, HeadEntry]:
    """Every head that ``policy=`` can choose."""
    return _with_outside(_HEADS, "visuomotor.heads", HeadEntry)


def every_head() -> dict[str, HeadEntry]:
    """Every head that a checkpoint can have: those of :func:`heads`, and what fine-tuning makes of them."""
    return {**heads(), "steered": HeadEntry(SteeredConfig, _steered)}


def _steered(config: SteeredConfig, sizes: ChunkSizes) -> SteeredHead:
    classes = {entry.config_class.__name__: entry for entry in heads().values()}
    if config.frozen not in classes:
        raise ConfigError(f"a steered policy has a frozen head {config.frozen!r}. {nearest(config.frozen, classes)}")
    entry = classes[config.frozen]
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(entry.config_class), config.settings))
    return SteeredHead(config, sizes, entry.build(settings, sizes))


@cache
def backbones() -> dict[str, BackboneEntry]:
    """Every backbone that ``backbone=`` can choose."""
    return _with_outside(_BACKBONES, "visuomotor.backbones", BackboneEntry)


def every_backbone() -> dict[str, BackboneEntry]:
    """Every backbone that a checkpoint can have: those of :func:`backbones`, and what fine-tuning makes of them."""
    return {**backbones(), "staged": BackboneEntry(StagedConfig, _staged)}


def _staged(config: StagedConfig, sizes: NetSizes) -> StagedBackbone:
    if config.backbone not in backbones():
        raise ConfigError(f"a staged backbone is made of {config.backbone!r}. {nearest(config.backbone, backbones())}")
    entry = backbones()[config.backbone]
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(entry.config_class), config.settings))
    first, last = entry.build(settings, sizes), entry.build(settings, sizes)
    return StagedBackbone(first, last, config.boundary)


def _with_outside(own: Mapping[str, E], group: str, kind: type[E]) -> dict[str, E]:
    """``own`` and what other packages offer.

    Raises:
        ConfigError: something that cannot be imported, is no entry, or has a name or a settings class that is taken:
            settings are what tells which part a policy is made of.
    """
    known = dict(own)
    for point in entry_points(group=group):
        where = f"the entry point {point.name!r} of group {group} ({point.value})"
        try:
            entry = point.load()
        except Exception as e:  # whatever a module of another package does when it is imported
            raise ConfigError(f"{where} cannot be loaded: {type(e).__name__}: {e}") from e
        if not isinstance(entry, kind):
            raise ConfigError(f"{where} is {entry!r}; expected a {kind.__name__}")
        if point.name in known:
            raise ConfigError(f"{where} has a name that is taken")
        if taken := [n for n, e in known.items() if e.config_class is entry.config_class]:
            raise ConfigError(
                f"{where} has the settings class {entry.config_class.__name__} of {taken[0]!r}: derive one of its own"
            )
        known[point.name] = entry
    return known


def name_of(config: HeadConfig | BackboneConfig) -> str:
    """The name under which ``config``'s class is registered."""
    entries: list[tuple[str, HeadEntry | BackboneEntry]] = [*every_head().items(), *every_backbone().items()]
    for name, entry in entries:
        if type(config) is entry.config_class:
            return name
    known = [entry.config_class.__name__ for _, entry in entries]
    raise ConfigError(f"{type(config).__name__} is not registered. {nearest(type(config).__name__, known)}")
