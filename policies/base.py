"""The policy contract: what a policy is asked, and how its parts (encoder, backbone, head) meet.

Shapes: ``B`` batch, ``To`` observed steps, ``H`` predicted steps (horizon), ``Da`` action size, ``F`` features an
observed step, ``L`` observation tokens of ``E`` values, ``M`` noise tensors that one sample needs. A net maps chunks of
``Di`` values a step to chunks of ``Do`` values a step; for most heads both are ``Da``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.draws import Draws

__all__ = [
    "Backbone",
    "BackboneConfig",
    "ChunkSizes",
    "Condition",
    "Head",
    "HeadConfig",
    "Known",
    "LossOutput",
    "NetFn",
    "NetSizes",
    "Observed",
    "masked_mean",
]


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    """Settings of a head; each head's own class derives from it."""


@dataclass(kw_only=True, slots=True)
class BackboneConfig:
    """Settings of a backbone; each backbone's own class derives from it."""


@dataclass(frozen=True, kw_only=True)
class ChunkSizes:
    """What the data fix: a head is built from its settings and these."""

    action_dim: int  # Da
    horizon: int  # H
    n_obs: int  # To
    feature_dim: int  # F, at least 1


@dataclass(frozen=True, kw_only=True)
class NetSizes:
    """What the data and the head fix: a backbone is built from its settings and these."""

    input_dim: int  # Di, with the channels of a known prefix where there are any
    output_dim: int  # Do
    horizon: int  # H
    n_obs: int  # To
    feature_dim: int  # F, at least 1
    token_dim: int = 0  # E; 0: the observations have no tokens
    n_times: int = 1  # times that the head conditions on (2: from when to when)
    time_scale: float = 1.0  # multiply times by this before a sinusoidal embedding made for 0..100


@dataclass(frozen=True)
class LossOutput:
    """Loss of one batch.

    ``loss`` is the scalar to minimise; ``per_step [B, H]`` is the same before masking and averaging (detached).
    ``count`` is how many steps it is the mean of, where some are left out: processes that share a batch differ in it.
    """

    loss: Tensor
    per_step: Tensor
    count: Tensor | None = None


class Observed(NamedTuple):
    """Encoded observations. Parts that have a place of their own (image patches, points, words) may come as tokens."""

    features: Tensor  # [B, To, F]
    tokens: Tensor | None = None  # [B, L, E]

    def repeat(self, n: int) -> Observed:
        """Every row ``n`` times in succession, ``[n * B, ...]``."""
        return Observed(*(None if v is None else v.repeat_interleave(n, 0) for v in self))  # type: ignore[arg-type]


class Condition(NamedTuple):
    """What a backbone made of the observations; every time and every denoising step uses the same."""

    vector: Tensor  # [B, C]
    memory: Tensor | None = None  # [B, L', E'], to attend to


class Known(NamedTuple):
    """Steps of the chunk that are known already, with the modulation that belongs to a clean chunk."""

    mask: Tensor  # [B, H] bool
    modulation: Tensor  # [B, M]


class NetFn(Protocol):
    """A backbone that has seen the observations: ``net(x [B, H, Di], t [B] or [B, n_times]) -> [B, H, Do]``."""

    @property
    def seen(self) -> Observed:
        """The encoded observations."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor: ...

    def at(self, times: Tensor) -> Sequence[Callable[[Tensor], Tensor]]:
        """One function ``x -> net(x, t)`` for each ``t`` of ``times [S]`` or ``[S, n_times]``, alike for all rows."""

    def with_hidden(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``net(x, t)`` and what the backbone's middle computed on the way, ``[B, D]``."""

    def rows(self, index: Tensor) -> NetFn:
        """The net of the observations ``index [n]`` alone, which are float32: it also runs without autocast."""


class Backbone(nn.Module, ABC):
    """Predicts a chunk-shaped tensor from a chunk-shaped one, a time and a condition. Knows no head.

    In three parts, by what each depends on: :meth:`condition` on the observations, :meth:`modulation` on these and the
    time, :meth:`denoise` on these and the noisy chunk. Sampling visits known times, so only the last one is repeated.

    A head may differentiate a backbone by its chunk and its time in forward mode (``torch.func.jvp``), and by a chunk
    that requires gradients as often as it likes (``create_graph``): attention then takes a form that has these
    derivatives. torch.compile has neither (PyTorch 2.13): such a loss is not compiled (``Head.compiles``).
    """

    takes_tokens = False  # otherwise observation tokens are refused
    takes_chunk = True  # otherwise only for heads that make the chunk in one pass from the observations
    per_step_time = False  # whether ``denoise`` can treat the known steps of a chunk as being at another time

    @property
    @abstractmethod
    def middle(self) -> nn.Module:
        """The submodule whose output ``with_hidden`` shows. A property: an attribute would be saved a second time."""

    @abstractmethod
    def condition(self, seen: Observed) -> Condition:
        """``features [B, To, F]`` and ``tokens [B, L, E]`` to what :meth:`modulation` and :meth:`denoise` need."""

    @abstractmethod
    def modulation(self, t: Tensor, vector: Tensor) -> Tensor:
        """``t [n]`` or ``[n, n_times]`` in the head's own units, ``vector [n, C] -> [n, M]``."""

    @abstractmethod
    def denoise(
        self, x: Tensor, modulation: Tensor, memory: Tensor | None = None, known: Known | None = None
    ) -> Tensor:
        """``x [B, H, Di], modulation [B, M], memory [B, L', E'] -> [B, H, Do]``. ``known`` only if per_step_time."""

    def forward(self, x: Tensor, t: Tensor, condition: Condition, known: Known | None = None) -> Tensor:
        """``x [B, H, Di], t [B] or [B, n_times] -> [B, H, Do]``."""
        return self.denoise(x, self.modulation(t, condition.vector), condition.memory, known)


class Head(nn.Module, ABC):
    """Decides what the backbone regresses and how its output is integrated. Works on normalised actions only.

    Attributes:
        time_scale: multiply t by this before a sinusoidal embedding made for 0..100.
        n_times: times that the net is given: 1, or 2 (then ``t`` is ``[B, 2]``).
        clean_time: the time of a chunk without noise, in the head's own units (repeated for both of two times).
        needs_chunk: whether the net's input chunk and time say anything; where not, the observations alone decide.
        denoises: whether the net's input is a noisy chunk of actions, so that known actions can stand in it.
        is_field: whether the net's output is a field over chunks (noise, velocity, clean estimate), so that weighted
            sums of several outputs mean something: classifier-free guidance, composition.
        needs_gradient: whether sampling differentiates the net.
        compiles: whether torch.compile can compile the loss, which it cannot where that differentiates the net.
        input_dim: ``Di``, without the channels of a known prefix.
        output_dim: ``Do``.
    """

    time_scale: float = 1.0
    n_times: int = 1
    clean_time: float = 0.0
    needs_chunk: bool = True
    denoises: bool = True
    is_field: bool = False
    needs_gradient: bool = False
    compiles: bool = True

    def __init__(self, sizes: ChunkSizes) -> None:
        super().__init__()
        self.input_dim = self.output_dim = sizes.action_dim

    @abstractmethod
    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        """Unreduced loss ``[B, H]`` of ``action [B, H, Da]``."""

    @abstractmethod
    def noise_count(self) -> int:
        """``M``: how many standard-normal chunks one sample consumes."""

    @abstractmethod
    def sample(self, net: NetFn, noise: Tensor) -> Tensor:
        """Integrate from ``noise [B, M, H, Da]`` to a normalised chunk ``[B, H, Da]``. Deterministic."""

    def set_solver(self, solver: str | None = None, steps: int | None = None) -> None:
        """Choose another solver or number of sampling steps for a trained policy; None keeps what there is.

        Raises:
            ConfigError: a solver or a number of steps that the head does not have.
        """
        raise ConfigError(f"{type(self).__name__} has no solver: it makes a chunk in a fixed number of passes")

    def fit(self, chunks: Tensor) -> None:
        """Take what the head needs of the data before training (codebooks, ...) into buffers.

        ``chunks [n, H, Da]`` are normalised; the same for the same data and seed, so that a resumed run fits the same.
        """

    def uncertainty(self, net: NetFn, action: Tensor) -> Tensor:
        """How unlikely the normalised ``action [B, H, Da]`` is to the policy: ``[B]``, larger is less likely.

        Raises:
            ConfigError: the head has no density or energy.
        """
        raise ConfigError(f"{type(self).__name__} has no density or energy, so it cannot rate a chunk")


def masked_mean(per_step: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``per_step [B, H]`` over the steps where ``mask`` is true (all of them without a mask)."""
    if mask is None:
        return per_step.mean()
    weight = mask.to(per_step.dtype)
    return (per_step * weight).sum() / weight.sum().clamp_min(1.0)
