"""Settings of the curricula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from visuomotor.data.errors import ConfigError, nearest

__all__ = ["KINDS", "ADRConfig", "CurriculumConfig", "DoraemonConfig", "LinearConfig"]

KINDS = ("fixed", "linear", "adr", "doraemon")
_BY = ("steps", "success")


@dataclass(kw_only=True, slots=True)
class LinearConfig:
    """Ranges that grow about the nominal values, all alike, from nothing to their full width.

    Attributes:
        by: ``steps``: in proportion to the environment steps of the run; ``success``: in equal strides, as the policy
            succeeds.
        steps: environment steps (control steps of all worlds of all processes) to the full width.
        stride: share of the full width by which it grows at once, by ``success``.
        threshold: share of successes at which it grows, by ``success``.
        episodes: over which that is judged, of all processes together.
    """

    by: str = "steps"
    steps: int = 500_000
    stride: float = 0.05
    threshold: float = 0.7
    episodes: int = 128

    def __post_init__(self) -> None:
        _one_of("linear.by", self.by, _BY)
        _above("linear", self, "steps", "episodes")
        _share("linear", self, "stride", "threshold")


@dataclass(kw_only=True, slots=True)
class ADRConfig:
    """Automatic domain randomisation (OpenAI et al. 2019, arXiv:1910.07113, section 5 and algorithm 1).

    Attributes:
        share: of the episodes that are spent at one end of one range, to judge it; the rest lie anywhere within them.
        step: by which an end moves, as a share of the whole range.
        episodes: at an end, of all processes together, before it is judged.
        widen: share of successes there at or above which the end moves outwards.
        narrow: share of successes there at or below which it moves back.
    """

    share: float = 0.5
    step: float = 0.05
    episodes: int = 32
    widen: float = 0.8
    narrow: float = 0.4

    def __post_init__(self) -> None:
        _above("adr", self, "episodes")
        _share("adr", self, "share", "step", "widen")
        if not 0.0 <= self.narrow < self.widen:
            raise ConfigError(
                f"randomization.curriculum.adr.narrow={self.narrow}: expected 0 or more, and less than {self.widen}"
            )


@dataclass(kw_only=True, slots=True)
class DoraemonConfig:
    """DORAEMON (Tiboni et al. 2024, arXiv:2311.01885): the widest distribution in which the policy still succeeds.

    Attributes:
        success: share of successes that the distribution has to leave (alpha of the paper).
        divergence: largest Kullback-Leibler divergence of a new distribution from the old one [nat].
        episodes: of all processes together, from which a new distribution is found.
        concentration: how narrow it begins: ``a + b`` of each Beta distribution, its mean at the nominal value.
        effective: least effective sample size of the importance weights, as a share of the episodes. Where a new
            distribution would fall below it, it stays nearer to the old one, and if that does not help more episodes
            are gathered.
        caution: by how many of its standard errors the expected success has to be above ``success``: with many
            parameters the weights flatter the distribution that was found with them.
        wait: nothing moves before ``success`` has been reached a first time.
    """

    success: float = 0.6
    divergence: float = 0.5
    episodes: int = 256
    concentration: float = 200.0
    effective: float = 0.4
    caution: float = 1.0
    wait: bool = True

    def __post_init__(self) -> None:
        _share("doraemon", self, "success", "effective")
        _above("doraemon", self, "divergence")
        if not 0.0 <= self.caution <= 5.0:
            raise ConfigError(f"randomization.curriculum.doraemon.caution={self.caution:g}: expected 0 to 5")
        if self.episodes < 8:
            raise ConfigError(f"randomization.curriculum.doraemon.episodes={self.episodes}: expected at least 8")
        if not 4.0 <= self.concentration <= 1000.0:
            raise ConfigError(
                f"randomization.curriculum.doraemon.concentration={self.concentration:g}: expected 4 to 1000"
            )


@dataclass(kw_only=True, slots=True)
class CurriculumConfig:
    """How the ranges of randomised quantities are used while a policy is trained.

    Attributes:
        kind: ``fixed`` (the whole ranges from the beginning), ``linear``, ``adr`` or ``doraemon``.
        observe: also observe the governed numbers of each world, as the privileged key ``randomization``; the critic
            reads it.
        linear, adr, doraemon: settings of the three.
    """

    kind: str = "fixed"
    observe: bool = False
    linear: LinearConfig = field(default_factory=LinearConfig)
    adr: ADRConfig = field(default_factory=ADRConfig)
    doraemon: DoraemonConfig = field(default_factory=DoraemonConfig)

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        for kind in KINDS[1:]:
            own = getattr(self, kind)
            given = [f.name for f in fields(own) if getattr(own, f.name) != f.default]
            if given and kind != self.kind:
                raise ConfigError(
                    f"randomization.curriculum.{kind}.{given[0]} does nothing with curriculum.kind={self.kind}"
                )


def _one_of(name: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise ConfigError(f"randomization.curriculum.{name}={value!r} is unknown. {nearest(value, options)}")


def _above(part: str, config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"randomization.curriculum.{part}.{name}={getattr(config, name)}: expected more than 0")


def _share(part: str, config: object, *names: str) -> None:
    for name in names:
        if not 0.0 < getattr(config, name) <= 1.0:
            raise ConfigError(
                f"randomization.curriculum.{part}.{name}={getattr(config, name)}: expected above 0 and up to 1"
            )
