"""Coarse-to-fine autoregressive action prediction (CARP, Gong et al., arXiv:2412.06782)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, Head, HeadConfig, NetFn
from visuomotor.policies.draws import Draws
from visuomotor.policies.heads.quantizer import ResidualQuantizer

__all__ = ["CarpConfig", "CarpHead", "draw_codes"]


@dataclass(kw_only=True, slots=True)
class CarpConfig(HeadConfig):
    """The code that chunks are written in, and how codes are drawn.

    Attributes:
        scales: segments of the chunk at each scale, coarsest first; every scale is one network pass.
        codes: entries of each scale's codebook.
        knots: most knots of the polyline that one code describes.
        width: values a step that the backbone gives to the choice of a code.
        corruption: size of the errors that training puts into the coarser scales, in units of their quantisation
            error, so that the finer ones learn to correct what sampling will get wrong.
        label_smoothing: probability that the cross-entropy's target spreads over all codes.
        temperature: of the choice of codes when acting; 1 is what was learnt, 0 always takes the likeliest. The finest
            codes are mostly the demonstrators' jitter, which a temperature below 1 leaves out.
        top_k: choose among this many likeliest codes; null among all.
    """

    scales: list[int] = field(default_factory=lambda: [1, 2, 4])
    codes: int = 256
    knots: int = 4
    width: int = 64
    corruption: float = 0.5
    label_smoothing: float = 0.0
    temperature: float = 0.5
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not self.scales or self.scales[0] < 1 or self.scales != sorted(set(self.scales)):
            raise ConfigError(f"head carp: scales={self.scales}: expected increasing numbers of segments, as [1, 2, 4]")
        for name, low in (("codes", 2), ("knots", 1), ("width", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"head carp: {name}={getattr(self, name)}: expected at least {low}")
        if self.corruption < 0.0 or self.temperature < 0.0 or not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(
                f"head carp: corruption={self.corruption:g} and temperature={self.temperature:g} must be 0 or more, "
                f"label_smoothing={self.label_smoothing:g} in [0, 1)"
            )
        if self.top_k is not None and not 1 <= self.top_k <= self.codes:
            raise ConfigError(f"head carp: top_k={self.top_k}: expected 1 to codes = {self.codes}, or null")


class CarpHead(Head):
    """Predicts the codes of one time scale after the other, then what the codes leave over.

    Pass ``k`` of ``K``: the network sees the chunk as the coarser scales have it (zeros at first) at time ``k``, and
    its output, averaged over each segment, gives the logits of that segment's code. The codes of a scale are drawn
    independently of each other, given all coarser ones. The last pass, at time ``K``, regresses the difference between
    the sum of all scales and the chunk, so that the size of the codebooks does not limit accuracy.

    Training evaluates one random pass of each chunk (teacher forcing, with errors: see ``corruption``): one network
    evaluation a step, whatever the number of scales. CARP has a transformer with a causal mask over scales; one pass a
    scale on a chunk-shaped input works with every backbone.
    """

    denoises = False

    residual_std: Tensor  # [Da] of what the codes leave over: the unit of the last pass
    _pool: Tensor  # [K, max L, H] mean over each segment
    _times: Tensor  # [K + 1]

    def __init__(self, config: CarpConfig, sizes: ChunkSizes) -> None:
        super().__init__(sizes)
        self.config = c = config
        self.passes = len(c.scales)  # K, without the last one
        self.clean_time, self.time_scale = float(self.passes), 100.0 / self.passes
        self.output_dim = c.width + sizes.action_dim
        self.quantizer = ResidualQuantizer(
            c.scales, n_codes=c.codes, knots=c.knots, horizon=sizes.horizon, action_dim=sizes.action_dim
        )
        self.register_buffer("residual_std", torch.ones(sizes.action_dim))
        self.choose = nn.ModuleList(nn.Sequential(nn.LayerNorm(c.width), nn.Linear(c.width, c.codes)) for _ in c.scales)
        pool = F.one_hot(self.quantizer.segment, max(c.scales)).transpose(1, 2).float()  # [K, max L, H]
        self.register_buffer("_pool", pool / pool.sum(-1, keepdim=True).clamp_min(1.0), persistent=False)
        self.register_buffer("_times", torch.arange(self.passes + 1), persistent=False)

    def fit(self, chunks: Tensor) -> None:
        """Codebooks, and the size of what is left to the last pass (with the errors that training will see)."""
        self.quantizer.fit(chunks)
        chunks = chunks.to(self.residual_std.device)
        noise = Draws(0).normal((len(chunks), self.quantizer.values)).to(chunks.device)
        sums = [self.quantizer.encode(c, self.config.corruption * n)[1][:, -1] for c, n in _parts(chunks, noise)]
        self.residual_std.copy_((chunks - torch.cat(sums)).square().mean((0, 1)).sqrt().clamp_min(1e-3))

    def loss(self, net: NetFn, action: Tensor, draws: Draws) -> Tensor:
        """``[B, H]``: cross-entropy of the code of each step's segment, or the squared error of the last pass."""
        rows = torch.arange(len(action), device=action.device)
        noise = draws.normal((len(action), self.quantizer.values))
        codes, sums = self.quantizer.encode(action, self.config.corruption * noise)
        which = draws.integers(0, self.passes + 1, (len(action),))
        x = sums[rows, which]
        out = net(x, which).float()
        rest = (out[..., self.config.width :] - (action - x) / self.residual_std).square().mean(-1)  # [B, H]
        scale = which.clamp(max=self.passes - 1)
        surprise = self._surprise(out, codes[rows, scale], scale, self.config.label_smoothing)
        surprise = surprise.gather(1, self.quantizer.segment[scale])  # [B, H]: every step, its segment's
        return torch.where((which == self.passes)[:, None], rest, surprise)

    def noise_count(self) -> int:
        return self.passes

    def sample(self, net: NetFn, noise: Tensor) -> Tensor:
        c = self.config
        *coarse, last = net.at(self.times)
        x = torch.zeros_like(noise[:, 0])
        for k, net_at_k in enumerate(coarse):
            logits = self.logits(net_at_k(x), k)
            z = noise[:, k].flatten(1)[:, : logits.shape[1]]
            x = x + self.quantizer.decode(draw_codes(logits, z, temperature=c.temperature, top_k=c.top_k), k)
        return x + self.rest(last(x))

    @property
    def times(self) -> Tensor:
        """Time of each pass, ``[K + 1]``: one for every scale and the last for what they leave over."""
        return self._times

    def logits(self, out: Tensor, k: int) -> Tensor:
        """Of the codes of scale ``k``, ``[B, lengths[k], V]``, of an output ``[B, H, Do]`` of the net in pass ``k``."""
        features = self._pool[k, : self.quantizer.lengths[k]] @ out[..., : self.config.width].float()
        logits: Tensor = self.choose[k](features)
        return logits.float()

    def rest(self, out: Tensor) -> Tensor:
        """What the codes leave over, ``[B, H, Da]``, from what the net put out in the last pass, ``[B, H, Do]``."""
        return self.residual_std * out[..., self.config.width :].float()

    def uncertainty(self, net: NetFn, action: Tensor) -> Tensor:
        """Negative log-likelihood of the chunk's codes [nat], and of the rest as a Gaussian (without its constant)."""
        codes, sums = self.quantizer.encode(action)
        total = action.new_zeros(len(action))
        for k, length in enumerate(self.quantizer.lengths):
            which = self.times[k].expand(len(action))
            surprise = self._surprise(net(sums[:, k], which).float(), codes[:, k], which, 0.0)
            total = total + surprise[:, :length].sum(1)
        rest = net(sums[:, -1], self.times[-1].expand(len(action)))[..., self.config.width :].float()
        return total + 0.5 * (rest - (action - sums[:, -1]) / self.residual_std).square().sum((1, 2))

    def _surprise(self, out: Tensor, codes: Tensor, scale: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy ``[B, max L]`` of ``codes [B, max L]`` of the scales ``[B]``."""
        features = self._pool[scale] @ out[..., : self.config.width]  # [B, max L, width]
        rows = torch.arange(len(out), device=out.device)
        # Logits of every scale, of which one is taken: a few small products, and no shape depends on the draws.
        logits = torch.stack([choose(features) for choose in self.choose], dim=1)[rows, scale]
        logits = logits.float().flatten(0, 1)
        surprise = F.cross_entropy(logits, codes.flatten(), reduction="none", label_smoothing=smoothing)
        return surprise.view_as(codes)


def draw_codes(logits: Tensor, noise: Tensor, *, temperature: float, top_k: int | None = None) -> Tensor:
    """Codes ``[B, L]`` from ``logits [B, L, V]`` by inverting their distribution at ``noise [B, L]``'s quantile."""
    if temperature == 0.0:
        return logits.argmax(-1)
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    u = (0.5 + 0.5 * torch.erf(noise.float() / math.sqrt(2.0))).clamp(max=1.0 - 1e-6)
    below = cumulative <= u[..., None] * cumulative[..., -1:]
    return below.sum(-1).clamp(max=logits.shape[-1] - 1)


def _parts(chunks: Tensor, noise: Tensor, size: int = 4096) -> list[tuple[Tensor, Tensor]]:
    return list(zip(chunks.split(size), noise.split(size), strict=True))
