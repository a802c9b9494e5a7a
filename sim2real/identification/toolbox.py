"""The only door to ``mujoco.sysid``: box-constrained nonlinear least squares over named parameters.

Without its extra the package imports and is empty (its ``__init__`` swallows the ImportError), hence the check.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visuomotor.data.errors import MissingExtraError

__all__ = ["Solution", "minimise", "require"]

_STEP = 1e-3  # of finite differences; unknowns are measured in standard deviations of their prior
_CLOSE = 1e-3  # of the step, at which it has converged: squared steps are far below what data can tell


@dataclass(frozen=True)
class Solution:
    """A minimum: where ``[n]``, half the squared residual there, and the same of each iteration before."""

    z: np.ndarray
    cost: float
    trace: tuple[float, ...]


def require() -> Any:
    """The module ``mujoco.sysid``.

    Raises:
        MissingExtraError: it lacks what it needs.
    """
    import mujoco.sysid as sysid

    if not hasattr(sysid, "ParameterDict"):
        raise MissingExtraError("sysid needs mujoco.sysid with all it needs: pip install 'visuomotor[sysid]'")
    return sysid


def minimise(
    names: Sequence[str], start: np.ndarray, low: np.ndarray, high: np.ndarray,
    residual: Callable[[np.ndarray], np.ndarray], *, iterations: int,
) -> Solution:  # fmt: skip
    """Least squares within bounds (Gauss-Newton with adaptive damping, ``mujoco.minimize``).

    Args:
        names: of the ``n`` unknowns.
        start, low, high: ``[n]``.
        residual: of ``[n, m]`` points at once: float64 ``[R, m]``.
        iterations: at most.
    """
    sysid = require()
    parameters = sysid.ParameterDict()
    for name, z, a, b in zip(names, start, low, high, strict=True):
        parameters.add(sysid.Parameter(name, float(np.clip(z, a, b)), float(a), float(b)))

    def columns(x: np.ndarray, _: Any) -> tuple[list[np.ndarray], None, None]:
        return [residual(x.reshape(len(names), -1))], None, None

    # the log of iterations goes to nowhere: its own switch cannot be reached through optimize
    _, result = sysid.optimize(
        parameters,
        columns,
        optimizer="mujoco",
        verbose=False,
        max_iters=iterations,
        eps=_STEP,
        xtol=_CLOSE,
        output=io.StringIO(),
    )
    trace = tuple(float(y) for y in result.extras["objective"])
    return Solution(np.asarray(result.x, np.float64).reshape(-1), trace[-1], trace)
