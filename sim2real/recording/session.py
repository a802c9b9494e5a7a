"""Everything that a session records, started and ended together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.recording.bag_process import BagProcess
from visuomotor.sim2real.recording.tape import EpisodeTape
from visuomotor.sim2real.runtime.build import Setup, check_policy, describe_arm
from visuomotor.sim2real.runtime.types import Listener
from visuomotor.sim2real.transports.choose import TransportConfig

__all__ = ["SessionRecording", "recorded_lines"]


class SessionRecording:
    """Episodes into a store and all topics into a bag, whichever is asked for.

    Args:
        setup: what the bridge does.
        transport: how it reaches the robot.
        record: store for the episodes; None: none.
        bag: MCAP file, or folder of a bag; None: none.
        task: text that is recorded with the episodes.

    Attributes:
        listeners: for the bridge.

    Raises:
        UserError: a store that does not fit, or a bag that cannot be written.
    """

    def __init__(
        self, setup: Setup, transport: TransportConfig, *, record: str | None, bag: str | None, task: str
    ) -> None:
        self._tape = None if record is None else _tape(setup, Path(record).expanduser(), task)
        self.listeners: list[Listener] = [] if self._tape is None else [self._tape]
        try:
            self._bag = None if bag is None else BagProcess(Path(bag), transport, _commands(setup))
        except BaseException:
            if self._tape is not None:
                self._tape.close()
            raise

    def close(self) -> dict[str, Any]:
        """Finish both; what was recorded, JSON-ready: ``episodes`` and ``bag``, as far as there are."""
        found: dict[str, Any] = {}
        if self._tape is not None:
            found["episodes"] = self._tape.close().to_dict()
        if self._bag is not None:
            found["bag"] = self._bag.close()
        return found


def recorded_lines(found: Mapping[str, Any], record: str | None, bag: str | None) -> list[str]:
    """What :meth:`SessionRecording.close` found, for people."""
    lines = []
    if (tape := found.get("episodes")) is not None:
        text = f"  {record}: {tape['episodes']} episodes, {tape['steps']} steps, {tape['interventions']} interventions"
        lines.append(f"{text}, {tape['dropped']} steps dropped" + (f": {tape['trouble']}" if tape["trouble"] else ""))
    if (topics := found.get("bag")) is not None:
        if "error" in topics:
            return [*lines, f"  {bag}: {topics['error']}"]
        n = topics["messages"]
        trouble = f": {topics['trouble']}" if topics["trouble"] else ""
        lines.append(f"  {bag}: {sum(n.values())} messages of {len(n)} topics{trouble}")
        lines += [f"    left out: {topic}, of type {kind}" for topic, kind in topics["left_out"].items()]
    return lines


def _tape(setup: Setup, path: Path, task: str) -> EpisodeTape:
    policy = setup.policy
    if policy is None:
        raise ConfigError("without a policy nobody says which observations and actions are to be recorded")
    arm, _ = describe_arm(setup.robot)  # of the tape's own: a model's data is no place for two threads
    actions = check_policy(policy, arm)[1]
    joints, gripper = tuple(setup.robot.joints), setup.robot.gripper is not None
    return EpisodeTape(path, policy.spec, policy.fps, joints, actions, gripper=gripper, task=task)


def _commands(setup: Setup) -> list[str]:
    robot = setup.robot
    gripper = [robot.gripper.topic] if robot.gripper is not None and robot.gripper.topic else []
    return [robot.command.topic, *gripper]
