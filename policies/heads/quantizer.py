"""Action chunks as discrete codes at several time scales: residual vector quantisation without a network.

Coarse-to-fine action prediction (CARP, Gong et al., arXiv:2412.06782) needs chunks as a few tokens, then more tokens
for what these leave over, and so on. CARP trains a convolutional autoencoder for that (VQ-VAE). Chunks are short and
smooth, so here every scale is a polyline that is fitted by least squares, and its knots are quantised with codebooks
from k-means (residual vector quantisation): nothing to train beside the policy, and the same for the same data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError, DataError

__all__ = ["ResidualQuantizer", "kmeans"]

_VECTORS = 1 << 14  # that a codebook is fitted to; more would cost time and change little
_ITERATIONS = 25


class ResidualQuantizer(nn.Module):
    """Chunks ``[B, H, Da]`` to codes of ``K`` scales and back.

    At scale ``k`` time is cut into ``lengths[k]`` segments. What the coarser scales leave over is approximated by a
    polyline with ``knots[k]`` knots in each segment, and the knots of a segment are one code: a vector of
    ``knots[k] * Da`` values from the codebook of that scale. With more than one knot the single code of the coarsest
    scale describes the shape of the whole chunk in all action dimensions, so which of several ways to go is decided
    there, by one draw.

    Before :meth:`fit` all codes are zero.

    Args:
        lengths: segments of each scale, coarsest first.
        n_codes: ``V``, entries of each codebook.
        knots: most knots in a segment; fewer where the horizon has fewer steps.
        horizon, action_dim: ``H`` and ``Da``.

    Raises:
        ConfigError: a scale with more segments than the horizon has steps.
    """

    segment: Tensor  # [K, H] which segment each step lies in
    error: Tensor  # [K] root mean square of what quantising at this scale left over, per value

    def __init__(self, lengths: Sequence[int], *, n_codes: int, knots: int, horizon: int, action_dim: int) -> None:
        super().__init__()
        if max(lengths) > horizon:
            raise ConfigError(
                f"head carp: scales={list(lengths)}: a chunk of {horizon} steps has no {max(lengths)} segments; "
                f"expected at most {horizon}"
            )
        self.lengths, self.n_codes = list(lengths), n_codes
        self.knots = [min(knots, horizon // length) for length in lengths]
        self.horizon, self.action_dim = horizon, action_dim
        steps = torch.arange(horizon)
        self.register_buffer("segment", torch.stack([steps * n // horizon for n in lengths]), persistent=False)
        self.register_buffer("error", torch.zeros(len(lengths)))
        for k, (length, n) in enumerate(zip(self.lengths, self.knots, strict=True)):
            self.register_buffer(f"codebook_{k}", torch.zeros(n_codes, n * action_dim))
            left, weight = _between(length * n, horizon)
            right = (left + 1).clamp(max=length * n - 1)
            up = torch.zeros(horizon, length * n).scatter_(1, left[:, None], 1.0 - weight)
            up = up.scatter_add_(1, right[:, None], weight)  # [H, G]: knots to steps
            for name, value in {"left": left, "right": right, "weight": weight, "down": torch.linalg.pinv(up)}.items():
                self.register_buffer(f"{name}_{k}", value, persistent=False)

    @property
    def values(self) -> int:
        """Quantised values of all scales together: the size of the noise that :meth:`encode` takes."""
        return sum(n * knots for n, knots in zip(self.lengths, self.knots, strict=True)) * self.action_dim

    @torch.no_grad()
    def encode(self, chunk: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes ``[B, K, max(lengths)]`` (0 beyond a scale's length) and what they mean, ``[B, K + 1, H, Da]``.

        Entry ``k`` of the second is the sum of the scales before ``k``, so entry 0 is zero and entry ``K`` everything.

        Args:
            chunk: ``[B, H, Da]``.
            noise: ``[B, values]``, in units of each scale's quantisation error. With noise the sums are built from
                neighbouring codes, as sampling builds them, and the codes that are returned are the best answer to
                the imperfect sum before them (bitwise self-correction, Han et al., arXiv:2412.04431).
        """
        with torch.autocast(chunk.device.type, enabled=False):
            chunk = chunk.float()
            sums, codes = [torch.zeros_like(chunk)], []
            sizes = [n * knots * self.action_dim for n, knots in zip(self.lengths, self.knots, strict=True)]
            noises = [None] * len(sizes) if noise is None else noise.float().split(sizes, dim=1)
            for k, z in enumerate(noises):
                vectors = self._vectors(chunk - sums[-1], k)
                code = used = _nearest(vectors, self._codebook(k))[0]
                if z is not None:
                    used = _nearest(vectors + self.error[k] * z.view_as(vectors), self._codebook(k))[0]
                sums.append(sums[-1] + self.decode(used, k))
                codes.append(torch.nn.functional.pad(code, (0, max(self.lengths) - self.lengths[k])))
            return torch.stack(codes, 1), torch.stack(sums, 1)

    def decode(self, codes: Tensor, k: int) -> Tensor:
        """What the codes ``[B, lengths[k]]`` of scale ``k`` add to the chunk, ``[B, H, Da]`` in float32."""
        knots = self._codebook(k)[codes].view(len(codes), -1, self.action_dim)  # [B, G, Da]
        a, b = (knots.index_select(1, getattr(self, f"{side}_{k}")) for side in ("left", "right"))
        return a + getattr(self, f"weight_{k}") * (b - a)

    @torch.no_grad()
    def fit(self, chunks: Tensor) -> None:
        """Fit the codebooks to ``chunks [n, H, Da]``, coarsest first, each to what the coarser ones leave over.

        Raises:
            DataError: no chunk, or values that are not finite.
        """
        if not len(chunks) or not bool(torch.isfinite(chunks).all()):
            raise DataError(
                f"codebooks need finite action chunks: got {tuple(chunks.shape)} with NaN, infinity or none"
            )
        rest = chunks.float().to(self.error.device)
        for k in range(len(self.lengths)):
            vectors = self._vectors(rest, k)
            flat = vectors.flatten(0, 1)
            spaced = torch.linspace(0, len(flat) - 1, min(len(flat), _VECTORS)).long()
            # On the CPU: a GPU's sums come in no fixed order, and codes are to be the same for the same data.
            self._codebook(k).copy_(kmeans(flat[spaced].cpu(), self.n_codes))
            code, distance = _nearest(vectors, self._codebook(k))
            self.error[k] = (distance.mean() / flat.shape[1]).sqrt()
            rest = rest - self.decode(code, k)

    def _vectors(self, chunk: Tensor, k: int) -> Tensor:
        """``[B, H, Da] -> [B, lengths[k], knots[k] * Da]``: least-squares knots, grouped by segment."""
        return (getattr(self, f"down_{k}") @ chunk).view(len(chunk), self.lengths[k], -1)

    def _codebook(self, k: int) -> Tensor:
        codebook: Tensor = getattr(self, f"codebook_{k}")
        return codebook


def kmeans(points: Tensor, k: int) -> Tensor:
    """``k`` centres ``[k, D]`` of ``points [n, D]`` (Lloyd 1982, begun by k-means++, Arthur and Vassilvitskii 2007).

    Deterministic. Of fewer than ``k`` different points each is a centre, and some centres are there twice.
    """
    centres = _spread(points, k)
    for _ in range(_ITERATIONS):
        index, distance = _nearest(points, centres)
        counts = torch.bincount(index, minlength=k)
        moved = torch.zeros_like(centres).index_add_(0, index, points) / counts.clamp_min(1)[:, None]
        empty = (counts == 0).nonzero()[:, 0][: len(points)]
        moved[counts == 0] = centres[counts == 0]
        moved[empty] = points[distance.topk(len(empty)).indices]  # where the centres fit worst
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _spread(points: Tensor, k: int) -> Tensor:
    """k-means++: each centre is a point drawn with a probability proportional to its distance from the others."""
    u = torch.rand(k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = [int(u[0] * len(points))]
    distance = torch.full((len(points),), torch.inf, dtype=torch.float64)
    for i in range(1, k):
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1).double())
        total = distance.cumsum(0)
        chosen.append(min(int(torch.searchsorted(total, u[i] * total[-1], right=True)), len(points) - 1))
    return points[chosen]


def _nearest(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Index of, and squared distance to, the nearest row of ``codebook [V, D]`` for ``vectors [..., D]``."""
    score = codebook.square().sum(1) - 2.0 * vectors @ codebook.t()
    smallest, index = score.min(-1)
    return index, (smallest + vectors.square().sum(-1)).clamp_min(0.0)


def _between(knots: int, steps: int) -> tuple[Tensor, Tensor]:
    """The knot before each step ``[steps]``, and how far the step is on the way to the next knot ``[steps, 1]``.

    The first and the last knot are at the first and the last step.
    """
    place = torch.arange(steps) * ((knots - 1) / max(steps - 1, 1))
    left = place.floor().long().clamp(max=max(knots - 2, 0))
    return left, (place - left)[:, None]
