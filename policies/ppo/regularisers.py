"""What holds a policy near the demonstrations or near where it began, besides the clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from visuomotor.policies.draws import Draws
from visuomotor.policies.likelihoods.base import Evaluation, Likelihood, Record

__all__ = ["Regulariser"]


class Regulariser(Protocol):
    """A term of the policy's loss, already weighted.

    Attributes:
        name: under which it is reported.
    """

    name: str

    def __call__(
        self, likelihood: Likelihood, obs: Mapping[str, Tensor], record: Record, found: Evaluation, draws: Draws
    ) -> Tensor:
        """A scalar for one minibatch: its observations ``{key: [B, To, ...]}``, record and evaluation."""
