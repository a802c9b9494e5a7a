"""What MuJoCo Warp needs before it runs: its modules, a model it takes, and sizes of its buffers."""

from __future__ import annotations

import copy
import os
from typing import Any

import mujoco
import numpy as np

from visuomotor.data.cache import CacheConfig
from visuomotor.data.errors import ConfigError, MissingExtraError

__all__ = ["guess_sizes", "load_warp", "warp_model"]

_EQUALITY_ROWS = {mujoco.mjtEq.mjEQ_CONNECT.value: 3, mujoco.mjtEq.mjEQ_WELD.value: 6}


def load_warp() -> tuple[Any, Any]:
    """Modules ``warp`` and ``mujoco_warp``, quiet, with their compiled kernels in our cache folder.

    The folder is ``$VISUOMOTOR_CACHE/warp`` (else ``~/.cache/visuomotor/warp``), unless ``WARP_CACHE_PATH`` or
    ``warp.config.kernel_cache_dir`` says otherwise.

    Raises:
        MissingExtraError: they are not installed.
    """
    try:
        import warp
    except ImportError as error:
        raise MissingExtraError("engine.name=warp needs: pip install 'visuomotor[warp]'") from error
    warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)
    if warp.config.kernel_cache_dir is None and "WARP_CACHE_PATH" not in os.environ:
        warp.config.kernel_cache_dir = str(CacheConfig().root / "warp")
    try:
        import mujoco_warp
    except ImportError as error:
        raise MissingExtraError("engine.name=warp needs: pip install 'visuomotor[warp]'") from error
    return warp, mujoco_warp


def guess_sizes(model: mujoco.MjModel) -> tuple[int, int]:
    """Contacts and constraint rows a world is given where the settings say nothing.

    Four contacts for each moving geom that collides, at least 32; rows for as many contacts, for limits, friction and
    equalities. Too few are reported by :meth:`WarpSimulator.overflow`; memory grows with both.
    """
    moving = np.asarray(model.body_weldid)[np.asarray(model.geom_bodyid)] > 0
    colliding = (np.asarray(model.geom_contype) | np.asarray(model.geom_conaffinity)) > 0
    contacts = max(32, 4 * int((moving & colliding).sum()))
    condim = int(max([1, *model.geom_condim, *model.pair_dim]))
    rows = condim if model.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC else max(1, 2 * (condim - 1))
    others = int(np.sum(model.jnt_limited)) + int(np.sum(model.tendon_limited))
    others += int(np.sum(np.asarray(model.dof_frictionloss) > 0) + np.sum(np.asarray(model.tendon_frictionloss) > 0))
    others += sum(_EQUALITY_ROWS.get(int(kind), 1) for kind in model.eq_type)
    return contacts, contacts * rows + others


def warp_model(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy without the flags that mean nothing to MuJoCo Warp.

    Raises:
        ConfigError: bodies that sleep: how long they have is not part of the state that is kept.
    """
    if model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP:
        raise ConfigError('engine.name=warp does not let bodies sleep: remove <flag sleep="enable"/> from the scene')
    model = copy.copy(model)
    model.opt.disableflags &= ~(mujoco.mjtDisableBit.mjDSBL_AUTORESET | mujoco.mjtDisableBit.mjDSBL_MIDPHASE)
    return model
