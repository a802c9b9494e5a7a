"""What a parent process tells the bridge's process: settings as plain data, and descriptors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from omegaconf import OmegaConf

from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.runtime.build import PolicyFacts, RuntimeConfig, Setup
from visuomotor.sim2real.runtime.episodes import EpisodeConfig
from visuomotor.sim2real.safety.config import SafetyConfig
from visuomotor.sim2real.transports.choose import TransportConfig

__all__ = ["Assignment"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Everything that the bridge's process needs.

    Attributes:
        setup: what the bridge does.
        transport: how it reaches the robot.
        board, requests: descriptors of the operator's board and box.
        link: descriptors of the policy's memory and bell; None: there is no policy.
        policy_pid: of the policy's process.
        result: descriptor of a file for the summary, JSON.
        keyboard: read keys from the terminal.
        record: store that the episodes are recorded into; None: none.
        bag: MCAP file that all topics are recorded into; None: none.
        task: text that is recorded with the episodes.
    """

    setup: Setup
    transport: TransportConfig
    board: int
    requests: tuple[int, int]
    link: tuple[int, int] | None
    policy_pid: int
    result: int
    keyboard: bool = False
    record: str | None = None
    bag: str | None = None
    task: str = ""

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that the process inherits."""
        return (self.board, *self.requests, *(self.link or ()), self.result)

    def write(self) -> int:
        """Descriptor of an anonymous file with all of it, for ``pass_fds``."""
        policy = self.setup.policy
        document = {
            "robot": asdict(self.setup.robot),
            "policy": None
            if policy is None
            else {
                "spec": policy.spec.to_dict(),
                "fps": policy.fps,
                "saved_control": None if policy.saved_control is None else dict(policy.saved_control),
                "sources": {k: list(v) for k, v in policy.sources.items()},
                "knows_delays": policy.knows_delays,
                "acts": policy.acts,
            },
            "safety": asdict(self.setup.safety),
            "episodes": asdict(self.setup.episodes),
            "runtime": asdict(self.setup.runtime),
            "transport": asdict(self.transport),
            "plain": {
                k: getattr(self, k)
                for k in ("board", "requests", "link", "policy_pid", "result", "keyboard", "record", "bag", "task")
            },
        }
        fd = os.memfd_create("visuomotor", os.MFD_CLOEXEC)
        os.write(fd, json.dumps(document).encode())
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    @classmethod
    def read(cls, fd: int) -> Assignment:
        """Inverse of :meth:`write`."""
        with os.fdopen(fd, "rb") as f:
            document = json.loads(f.read())
        policy, plain = document["policy"], document["plain"]
        setup = Setup(
            robot=_typed(RobotConfig, document["robot"]),
            policy=None if policy is None else PolicyFacts(**{**policy, "spec": PolicySpec.from_dict(policy["spec"])}),
            safety=_typed(SafetyConfig, document["safety"]),
            episodes=_typed(EpisodeConfig, document["episodes"]),
            runtime=_typed(RuntimeConfig, document["runtime"]),
        )
        plain["requests"] = tuple(plain["requests"])
        plain["link"] = None if plain["link"] is None else tuple(plain["link"])
        return cls(setup=setup, transport=_typed(TransportConfig, document["transport"]), **plain)


def _typed(schema: type[T], values: Mapping[str, Any]) -> T:
    made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    assert isinstance(made, schema)
    return made
