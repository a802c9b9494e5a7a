"""``visuomotor serve``: a checkpoint for robots on other machines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING

from visuomotor.configs.build import LoadedPolicy, load_policy, pick_device, set_threads
from visuomotor.configs.compose import parse_plain
from visuomotor.configs.randomize import trained_with_delays
from visuomotor.data.errors import ConfigError
from visuomotor.policies.execution.config import ExecuteConfig
from visuomotor.sim2real.remote.config import ServerConfig, is_loopback
from visuomotor.sim2real.remote.policy_source import PolicySource
from visuomotor.sim2real.remote.server import PolicyServer

__all__ = ["ServeConfig", "about_policy", "main"]


@dataclass(kw_only=True, slots=True)
class ServeConfig(ServerConfig):
    """``visuomotor serve``: chunks of a trained policy over the network, for one robot or several at once.

    Attributes:
        checkpoint: a checkpoint folder, or a run.
        weights: ``ema`` (the moving average) or ``raw``.
        solver, sample_steps: another solver or number of denoising steps than in training.
        guidance_scale: weight of goal and texts; 1 is the plain policy.
        device: ``auto``, ``cuda`` or ``cpu``.
        threads: of torch on the CPU.
        execute: the mode of execution: ``rtc``, ``rtc_guided`` and ``warm`` make chunks that go on from the robot's
            last one.
        minutes: end after so long; null: serve until Ctrl-C.
    """

    checkpoint: str = MISSING
    weights: str = "ema"
    solver: str | None = None
    sample_steps: int | None = None
    guidance_scale: float = 1.0
    device: str = "auto"
    threads: int | None = None
    execute: ExecuteConfig = field(default_factory=ExecuteConfig)
    minutes: float | None = None

    def __post_init__(self) -> None:
        ServerConfig.__post_init__(self)
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device={self.device!r}: expected auto, cpu or cuda")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes={self.minutes:g}: expected more than 0")


def main(words: Sequence[str]) -> int:
    """Serve as ``words`` say (``key=value ...``) until it is stopped; returns the exit status."""
    config = parse_plain(ServeConfig, words)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    set_threads(config.threads)
    loaded = load_policy(
        config.checkpoint,
        weights=config.weights,
        device=pick_device(config.device),
        solver=config.solver,
        sample_steps=config.sample_steps,
    )
    loaded.policy.guidance_scale = config.guidance_scale
    source = PolicySource(loaded.policy, config.execute)
    source.warm_up()
    server = PolicyServer(source, config, about_policy(loaded, config.execute))
    asyncio.run(_serve(server, config, loaded))
    counts = server.metrics()
    print(
        f"{counts['answered']:g} chunks, {counts['planned_ms_p50']:.1f} ms each (median), {counts['rejected']} refused"
    )
    return 0


def about_policy(loaded: LoadedPolicy, execute: ExecuteConfig) -> dict[str, Any]:
    """What a robot needs to know of a policy beside its specification, as plain data.

    Returns:
        ``checkpoint`` (its path), ``task`` (that it was trained in, or None), ``robot`` and ``control`` (``env.robot``
        and ``env.control`` of that task, or None), ``delays`` (whether it was trained with some) and ``execute`` (the
        settings of the execution).
    """
    saved = loaded.checkpoint.document("config")["config"]
    env = saved.get("env") or {}
    return {
        "checkpoint": str(loaded.checkpoint.path),
        "task": saved.get("task"),
        "robot": env.get("robot"),
        "control": env.get("control"),
        "delays": trained_with_delays(saved),
        "execute": asdict(execute),
    }


async def _serve(server: PolicyServer, config: ServeConfig, loaded: LoadedPolicy) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with server:
        scheme = "ws" if config.tls_cert is None else "wss"
        host = f"[{config.host}]" if ":" in config.host else config.host
        print(f"{loaded.checkpoint.path} on {loaded.policy.device} at {scheme}://{host}:{server.port}", flush=True)
        if config.tls_cert is None and not is_loopback(config.host):
            print("without tls_cert= and tls_key= the token and the pictures cross the network readable", flush=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), None if config.minutes is None else 60.0 * config.minutes)
