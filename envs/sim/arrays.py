"""Tensors as numpy arrays where that is faster: on the CPU.

For the few hundred worlds that fit there, what an operation costs is the call, and numpy's calls cost a third of
torch's. Code that uses this computes with either, by operators and functions that both have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Words", "namespace", "tensor", "words"]

Words = Any  # array of numpy or torch
_NUMPY = True  # tests drive the way of other devices on the CPU


def words(x: Tensor) -> Words:
    """On the CPU the numpy array of the same memory, else the tensor itself."""
    return x.numpy() if _NUMPY and x.device.type == "cpu" else x


def tensor(x: Words) -> Tensor:
    """Inverse of :func:`words`."""
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def namespace(x: Words) -> Any:
    """The module that has the functions for ``x``."""
    return np if isinstance(x, np.ndarray) else torch
