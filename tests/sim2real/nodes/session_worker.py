"""A deployment without a network: the bridge in its process, here a source of chunks that swings the arm.

python session_worker.py MODE TOPIC SECONDS SPEED_RAD_S [INFERENCE_S]
prints the pid of the bridge, then the summary of the session.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from robot_arm import HOME, UR_JOINTS

from visuomotor.data.actions import ActionConfig
from visuomotor.data.errors import UserError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.remote.source import PlanRequest
from visuomotor.sim2real.robots.config import CommandConfig, JointLimits, RobotConfig, StateStream
from visuomotor.sim2real.runtime.build import PolicyFacts, RuntimeConfig, Setup, make_rhythm
from visuomotor.sim2real.runtime.episodes import EpisodeConfig
from visuomotor.sim2real.runtime.pilot import Pilot
from visuomotor.sim2real.runtime.session import Session
from visuomotor.sim2real.safety.config import SafetyConfig
from visuomotor.sim2real.transports.choose import TransportConfig

LIMITS = JointLimits(low=-3.1, high=3.1, velocity=2.0, acceleration=8.0, jerk=80.0)


class Swing:
    """Turns the first joint to and fro at a steady speed, seen from where the arm was when it began."""

    def __init__(self, speed: float, inference_s: float) -> None:
        self.spec = PolicySpec(
            obs={"joint_pos": ArraySpec(shape=(6,), unit="rad", names=UR_JOINTS)},
            action_key="action",
            action=ArraySpec(shape=(6,), role="action", names=UR_JOINTS, unit="rad"),
            fps=20.0,
            window=WindowConfig(n_obs=1, horizon=16, n_exec=4),
            action_config=ActionConfig(),
        )
        self._speed, self._inference_s = speed, inference_s
        self._began: float | None = None

    def plan(self, request: PlanRequest) -> np.ndarray:
        if request.plan == 0:
            self._began = time.monotonic()
        began = self._began if self._began is not None else time.monotonic()
        t = time.monotonic() - began + np.arange(16) / 20.0
        time.sleep(self._inference_s)
        chunk = np.tile(np.array(HOME, np.float32), (16, 1))
        chunk[:, 0] += self._speed * (2.0 - np.abs(t % 8.0 - 4.0) + 0.0) - self._speed * -2.0
        return chunk

    def close(self) -> None:
        pass


def main(mode: str, topic: str, seconds: float, speed: float, inference_s: float = 0.1) -> int:
    source = Swing(speed, inference_s)
    config = RobotConfig(
        name="ur",
        joints=list(UR_JOINTS),
        limits=dict.fromkeys(UR_JOINTS, LIMITS),
        state=StateStream(rate_hz=125.0, max_age_s=0.5),  # of a machine that is busy with other tests
        command=CommandConfig(mode=mode, topic=topic, rate_hz=50.0 if mode == "joint_trajectory" else 125.0),
    )
    setup = Setup(
        robot=config,
        policy=PolicyFacts(spec=source.spec, fps=20.0),
        safety=SafetyConfig(policy_timeout_s=1.0, tracking_error=10.0),
        episodes=EpisodeConfig(auto=True, count=1, seconds=seconds, home=False, end_on_fault=True),
        runtime=RuntimeConfig(action_time=0.0),
    )
    session = Session(setup, TransportConfig(name="dds", node="bridge"))
    print(json.dumps({"bridge": session.process.pid}), flush=True)
    rhythm = make_rhythm(setup, n_exec=4, delay=None, ensemble=False, decay=0.01)
    try:
        print(json.dumps(session.run(lambda: Pilot(source, rhythm))), flush=True)
    except UserError as e:
        print(json.dumps({"error": str(e)}), flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])))
