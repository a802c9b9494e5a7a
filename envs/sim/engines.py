"""Engines by name: one config word chooses who does the physics."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import torch

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.sim.simulator import Simulator

__all__ = ["ENGINES", "EngineConfig", "engine_device", "make_simulator"]

ENGINES = ("batch", "warp", "isaac")


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """Who does the physics.

    Attributes:
        name: ``batch`` (MuJoCo on CPU threads), ``warp`` (MuJoCo Warp on a GPU; slow but right on the CPU), or
            ``isaac`` (Isaac Gym).
        device: of the tensors; ``auto`` takes the GPU for ``warp`` and ``isaac`` where there is one.
        threads: CPU threads of ``batch``; 0 takes one a core.
        contacts: contacts a world of ``warp`` has room for; 0 takes a guess from the model.
        constraints: constraint rows a world of ``warp`` has room for; 0 takes a guess from the model.
        graph: let ``warp`` record its steps (as a CUDA graph on a GPU) and replay them.
        isaac_python: Python of the Isaac Gym installation, for ``isaac``; empty takes the environment variable
            ``VISUOMOTOR_ISAAC_PYTHON``.
    """

    name: str = "batch"
    device: str = "auto"
    threads: int = 0
    contacts: int = 0
    constraints: int = 0
    graph: bool = True
    isaac_python: str = ""

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise ConfigError(f"unknown engine {self.name!r}. {nearest(self.name, ENGINES)}")
        for name in ("threads", "contacts", "constraints"):
            if getattr(self, name) < 0:
                raise ConfigError(f"engine.{name}={getattr(self, name)}: expected 0 or more")
        if self.name == "batch" and self.device not in ("auto", "cpu"):
            raise ConfigError(f"engine.device={self.device}: the engine batch runs on the CPU; choose engine.name=warp")


def make_simulator(model: mujoco.MjModel, num_envs: int, config: EngineConfig, *, outputs: bool = True) -> Simulator:
    """``num_envs`` worlds of ``model``. Without ``outputs`` mostly the state will be read: only speed depends on it.

    Raises:
        MissingExtraError: the engine is not installed.
        ConfigError: a device that is not there, or a model that the engine cannot run.
    """
    if config.name == "warp":
        from visuomotor.envs.sim.warp import WarpSimulator

        return WarpSimulator(
            model, num_envs, device=config.device, contacts=config.contacts, constraints=config.constraints,
            graph=config.graph,
        )  # fmt: skip
    if config.name == "isaac":
        from visuomotor.envs.sim.isaac import IsaacSimulator

        return IsaacSimulator(model, num_envs, device=config.device, python=config.isaac_python)
    from visuomotor.envs.sim.batch import BatchSimulator

    return BatchSimulator(model, num_envs, threads=config.threads, outputs=outputs)


def engine_device(name: str) -> torch.device:
    """Where an engine that can run on a GPU runs: ``auto`` takes one if there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"engine.device={name}: expected auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(f"engine.device={name}: torch sees {count} CUDA devices here")
        device = torch.device("cuda", device.index or 0)
    return device
