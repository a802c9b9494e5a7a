"""From settings to a bridge. Imports without torch: it runs in the bridge's process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from visuomotor.data.errors import ConfigError
from visuomotor.policies.spec import PolicySpec
from visuomotor.sim2real.robots.config import RobotConfig
from visuomotor.sim2real.robots.limits import arm_limits, load_kinematics
from visuomotor.sim2real.runtime.actions import ActionMap, Arm, Control, control_of
from visuomotor.sim2real.runtime.board import RequestBox, StatusBoard
from visuomotor.sim2real.runtime.bridge import Bridge, Parts
from visuomotor.sim2real.runtime.dry import DryTransport
from visuomotor.sim2real.runtime.episodes import Conductor, EpisodeConfig
from visuomotor.sim2real.runtime.gripper import Gripper
from visuomotor.sim2real.runtime.link import PolicyLink
from visuomotor.sim2real.runtime.observer import Observer
from visuomotor.sim2real.runtime.pilot import Rhythm
from visuomotor.sim2real.runtime.scene import Scene
from visuomotor.sim2real.runtime.scheduler import Scheduler
from visuomotor.sim2real.runtime.streamer import lead_ns, limits_share, loop_hz, make_streamer
from visuomotor.sim2real.runtime.teleop import Teleop
from visuomotor.sim2real.runtime.types import Listener
from visuomotor.sim2real.runtime.watch import Rivals, Watch
from visuomotor.sim2real.safety.config import ArmLimits, SafetyConfig
from visuomotor.sim2real.safety.filter import SafetyFilter
from visuomotor.sim2real.safety.monitors import TrackingMonitor
from visuomotor.sim2real.safety.supervisor import Supervisor
from visuomotor.sim2real.safety.tank import make_contact
from visuomotor.sim2real.transports.base import Transport

__all__ = ["PolicyFacts", "RuntimeConfig", "Setup", "check_policy", "describe_arm", "make_bridge", "make_rhythm"]

_FADE_S, _FADE_CHANGES_S, _FADE_DAMPED_S = 0.2, 0.1, 0.35


@dataclass(kw_only=True, slots=True)
class RuntimeConfig:
    """Timing of the runtime.

    Attributes:
        fade_s: a new chunk takes over within this time; null: 0.2 s for targets, 0.1 s for changes, 0.35 s for damped
            ones.
        damped: for changes of the target: what has not been taken up of a correction when the next chunk comes is left
            out. An arm follows corrections late; a policy that does not know delays corrects again meanwhile, and
            begins to swing. null: unless the policy was trained with delays.
        lead: a new chunk goes on from targets that are no further ahead of the arm than this [rad or m].
        patience_s: without an action to execute for so long, the policy counts as stalled.
        action_time: when in its control step an action is meant to be reached, as a share of the step: 0.5 for
            policies that learnt from commands held for a step each, 0 for those that learnt from measured poses.
        dry_run: everything but commands.
        decode_threads: decode pictures in threads of their own.
    """

    fade_s: float | None = None
    damped: bool | None = None
    lead: float = 0.1
    patience_s: float = 2.0
    action_time: float = 0.5
    dry_run: bool = False
    decode_threads: bool = True

    def __post_init__(self) -> None:
        if not 0 <= (self.fade_s or 0.0) < 10 or not 0 < self.patience_s < 1e6:
            raise ConfigError(f"runtime: fade_s={self.fade_s}, patience_s={self.patience_s}: expected 0.1, 2 or so")
        if not self.lead > 0:
            raise ConfigError(f"runtime.lead={self.lead}: expected more than 0")
        if not 0 <= self.action_time <= 1:
            raise ConfigError(f"runtime.action_time={self.action_time}: expected 0 to 1, a share of a control step")


@dataclass(frozen=True, kw_only=True)
class PolicyFacts:
    """What the bridge is told of a policy.

    Attributes:
        spec: observations, actions, rate, window.
        saved_control: ``env.control`` of the simulated task that it was trained in, if it was.
        fps: control steps per second.
        sources: for observations that the robot does not have by name: the keys that make them, end to end.
        knows_delays: it was trained in worlds whose commands or observations come late.
        acts: False: nobody acts but a person; what a policy will see and do is recorded in these terms.
    """

    spec: PolicySpec
    fps: float
    saved_control: Mapping[str, Any] | None = None
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)
    knows_delays: bool = False
    acts: bool = True

    @property
    def step_obs(self) -> dict[str, Any]:
        """Observations of every step, without goals and texts."""
        return {k: s for k, s in self.spec.obs.items() if k not in self.spec.constant_keys}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that decides what a bridge does. ``policy`` None: a person moves the arm."""

    robot: RobotConfig
    policy: PolicyFacts | None
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def describe_arm(robot: RobotConfig) -> tuple[Arm, ArmLimits]:
    """The arm as policies and as the safety filter know it.

    Raises:
        ConfigError: see :func:`~visuomotor.sim2real.robots.limits.arm_limits`.
    """
    robot.check_ready()
    kinematics = load_kinematics(robot)
    limits = arm_limits(robot, kinematics)
    share = limits_share(robot)
    limits = replace(
        limits,
        velocity=share * limits.velocity,
        acceleration=share * limits.acceleration,
        jerk=share * limits.jerk,
    )
    names = tuple(robot.model_joints) or (tuple(robot.joints) if kinematics is None else kinematics.joints)
    rest = np.array(robot.home, np.float64) if robot.home else None
    if rest is None and kinematics is not None:
        rest = kinematics.home
    if rest is None:
        rest = np.clip(np.zeros(len(names)), limits.low, limits.high)
    arm = Arm(
        joints=names,
        driver_joints=tuple(robot.joints),
        low=limits.low if kinematics is None else kinematics.low,
        high=limits.high if kinematics is None else kinematics.high,
        rest=rest,
        gripper=robot.gripper is not None,
        kinematics=kinematics,
    )
    return arm, limits


def check_policy(policy: PolicyFacts, arm: Arm) -> tuple[Control, ActionMap]:
    """What the policy's actions do to this arm.

    Raises:
        CheckpointError: actions that are not of this arm.
    """
    control = control_of(policy.spec.action, policy.saved_control, arm)
    return control, ActionMap(policy.spec.action, control, arm, dt_s=1.0 / policy.fps)


def make_rhythm(setup: Setup, *, n_exec: int, delay: int | None, ensemble: bool, decay: float) -> Rhythm:
    """When the policy is asked for chunks, in agreement with the bridge of the same ``setup``."""
    robot, policy = setup.robot, setup.policy
    assert policy is not None
    return Rhythm(
        fps=policy.fps,
        n_exec=n_exec,
        delay=delay,
        ensemble=ensemble,
        decay=decay,
        lead_s=setup.runtime.action_time / policy.fps,
        ahead_s=lead_ns(robot) * 1e-9 + robot.command.latency_s,
    )


def make_bridge(
    setup: Setup, transport: Transport, *, link: PolicyLink | None, board: StatusBoard, requests: RequestBox,
    listeners: Sequence[Listener] = (),
) -> Bridge:  # fmt: skip
    """A bridge on ``transport``.

    Raises:
        UserError: a robot and a policy that do not go together, with the reason.
    """
    robot, policy, runtime = setup.robot, setup.policy, setup.runtime
    arm, limits = describe_arm(robot)
    outward = DryTransport(transport) if runtime.dry_run else transport
    dt_s = 1.0 / loop_hz(robot)
    scheduler = None
    if policy is not None and policy.acts:
        actions = check_policy(policy, arm)[1]
        damped = not policy.knows_delays if runtime.damped is None else runtime.damped
        own = _FADE_S if actions.absolute else _FADE_DAMPED_S if damped else _FADE_CHANGES_S
        fade_s = own if runtime.fade_s is None else runtime.fade_s
        scheduler = Scheduler(actions, fade_s=fade_s, lead=runtime.lead, damped=damped)
    observer = Observer(
        robot,
        arm,
        {} if policy is None else policy.step_obs,
        limits.velocity,
        transport,
        sources=None if policy is None else policy.sources,
        threaded=runtime.decode_threads,
    )
    teleop = Teleop(robot, transport)
    scene = Scene(robot, transport)
    streamer = make_streamer(robot, outward, arm.kinematics, limits.velocity, limits.acceleration)
    watch = Watch(
        observer=observer,
        teleop=teleop,
        link=link,
        tracking=TrackingMonitor(tuple(robot.joints), setup.safety),
        rivals=Rivals(robot, outward),
        command=streamer.publisher,
        topic=robot.command.topic,
        patience_s=runtime.patience_s,
        dry_run=runtime.dry_run,
    )
    contact = make_contact(setup.safety.tank, arm.kinematics, transport)
    parts = Parts(
        robot=robot,
        transport=transport,
        observer=observer,
        teleop=teleop,
        scene=scene,
        filter=SafetyFilter(limits, dt_s, setup.safety, arm.kinematics, contact),
        supervisor=Supervisor(setup.safety),
        watch=watch,
        streamer=streamer,
        gripper=Gripper(robot.gripper, outward, dt_s),
        scheduler=scheduler,
        link=link,
        conductor=Conductor(setup.episodes, can_reset=scene.can_reset),
        board=board,
        requests=requests,
        fps=20.0 if policy is None else policy.fps,
        home=_home(robot, arm) if setup.episodes.home else None,
        listeners=listeners,
    )
    return Bridge(parts, transport.now_ns())


def _home(robot: RobotConfig, arm: Arm) -> np.ndarray | None:
    """Where episodes begin; None where nobody says."""
    known = bool(robot.home) or (arm.kinematics is not None and arm.kinematics.home is not None)
    return arm.rest if known else None
