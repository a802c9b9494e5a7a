"""Passivity of contact tasks: the policy may work on the hand's surroundings only with energy that it has.

The virtual energy tank of Franken et al. 2011 ("Bilateral Telemanipulation With Time Delays: A Two-Layer Approach
Combining Passivity and Transparency") and Ferraguti, Secchi and Fantuzzi 2013 ("A Tank-based Approach to Impedance
Control with Variable Stiffness"), at the port of the commands: a commanded motion against the measured force is paid
out of the tank, one that gives way flows back. A policy that pushes on and on, or oscillates against something stiff,
runs out of energy and stops pushing; it can always let go.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

import numpy as np

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.messages import Wrench
from visuomotor.sim2real.safety.config import TankConfig
from visuomotor.sim2real.transports.base import Transport

__all__ = ["Contact", "Cost", "EnergyTank", "Steps", "make_contact"]


_WINDOW_S = 0.05  # over which the growth of the force is measured: noise of one sample would count a hundredfold


class Cost(NamedTuple):
    """What a motion works on its surroundings in one tick, and from now until it is at rest [J]."""

    now: float
    all: float


class Steps(NamedTuple):
    """How far the joints go in one tick, and from there to rest, ``[n]`` each [rad or m]."""

    now: np.ndarray
    rest: np.ndarray


class EnergyTank:
    """What is left to work with.

    Attributes:
        energy: in the tank [J].
    """

    def __init__(self, config: TankConfig) -> None:
        self._config = config
        self.energy = config.start

    def refill(self) -> None:
        """As at the beginning."""
        self.energy = self._config.start

    def share(self, braking: Cost, wanted: Cost, dt_s: float) -> float:
        """How much of a wanted motion there is energy and power for, 0 to 1; the rest is braking.

        Args:
            braking, wanted: what either motion works on the surroundings in ``dt_s`` [s], and until it is at rest [J].
        """
        left = max(0.0, self.energy - self._config.least)
        return min(_part(braking.now, wanted.now, self._config.power * dt_s), _part(braking.all, wanted.all, left))

    def pay(self, work: float) -> None:
        """Take out what a motion worked on its surroundings [J]; negative: it flows back."""
        self.energy = min(self._config.most, self.energy - work)


class Contact:
    """The hand's measured force, and the tank that pays for motions against it.

    Args:
        config: topic and limits.
        kinematics: turns motions of the joints into motions of the hand.
        transport: brings the wrench: of the surroundings on the hand, free of the hand's own weight.
    """

    def __init__(self, config: TankConfig, kinematics: Kinematics, transport: Transport) -> None:
        self.tank, self._config, self._arm, self._transport = EnergyTank(config), config, kinematics, transport
        self._lock = threading.Lock()
        self._wrench, self._came_ns = np.zeros(6), 0
        self._past: deque[tuple[np.ndarray, np.ndarray]] = deque()
        transport.subscribe(config.topic, Wrench, self._take)

    def trouble(self) -> str:
        """Why the force is not known; empty: it is."""
        age = (self._transport.now_ns() - self._came_ns) * 1e-9
        if self._came_ns == 0:
            return f"{self._config.topic}: no message yet"
        if age > self._config.max_age_s:
            return f"{self._config.topic}: no message for {age:.3f} s; limit {self._config.max_age_s:.3f} s"
        return ""

    def share(self, q: np.ndarray, braking: Steps, wanted: Steps, dt_s: float) -> float:
        """See :meth:`EnergyTank.share`, for steps of the joints from ``q [n]``.

        On the way to rest the force is taken to grow as it did along the last 50 ms: surroundings that are a spring.
        """
        effort = self._effort(q)
        return self.tank.share(self._cost(q, effort, braking), self._cost(q, effort, wanted), dt_s)

    def pay(self, q: np.ndarray, step: np.ndarray, dt_s: float) -> None:
        """See :meth:`EnergyTank.pay`, for a step of the joints ``[n]`` that was commanded."""
        effort = self._effort(q)
        self.tank.pay(float(effort @ step))
        self._past.append((q, effort))
        while len(self._past) > 1 and (len(self._past) - 1) * dt_s > _WINDOW_S:
            self._past.popleft()

    def _cost(self, q: np.ndarray, effort: np.ndarray, steps: Steps) -> Cost:
        now = float(effort @ steps.now)
        both = steps.now + steps.rest
        total = float(effort @ both)
        if self._past:
            q0, effort0 = self._past[0]
            went = q - q0
            if (length := float(went @ went)) > 1e-12:
                times = max(0.0, float(both @ went) / length)
                total += 0.5 * times * times * max(0.0, float((effort - effort0) @ went))
        return Cost(now, max(total, now))

    def _effort(self, q: np.ndarray) -> np.ndarray:
        """Work on the surroundings per motion of each joint ``[n]`` [N m or N]."""
        with self._lock:
            wrench = self._wrench
        jacobian = self._arm.jacobian(q)
        if self._config.frame == "hand":
            rot = self._arm.pose(q)[1]
            wrench = np.concatenate([rot @ wrench[:3], rot @ wrench[3:]])
        effort: np.ndarray = -wrench @ jacobian
        return effort

    def _take(self, message: Wrench, received_ns: int) -> None:
        wrench = np.concatenate([message.force, message.torque])
        if np.isfinite(wrench).all():  # else the stream grows old
            with self._lock:
                self._wrench, self._came_ns = wrench, received_ns


def make_contact(config: TankConfig | None, kinematics: Kinematics | None, transport: Transport) -> Contact | None:
    """Where a tank is configured.

    Raises:
        ConfigError: for an arm without a model.
    """
    if config is None:
        return None
    if kinematics is None:
        raise ConfigError("safety.tank needs the motion of the hand: give robot.model=, a registered robot or a file")
    return Contact(config, kinematics, transport)


def _part(braking: float, wanted: float, budget: float) -> float:
    """Share of what is wanted that keeps the budget, between what both cost."""
    if wanted <= budget:
        return 1.0
    return max(0.0, (budget - braking) / (wanted - braking)) if wanted > braking else 0.0
