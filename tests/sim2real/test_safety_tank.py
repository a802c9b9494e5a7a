"""The energy tank: arithmetic by hand, and a policy that pushes against a spring."""

from __future__ import annotations

import numpy as np
import pytest

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.messages import Wrench
from visuomotor.sim2real.safety.config import ArmLimits, SafetyConfig, TankConfig
from visuomotor.sim2real.safety.filter import SafetyFilter
from visuomotor.sim2real.safety.tank import Contact, Cost, EnergyTank, make_contact
from visuomotor.sim2real.transports.inproc import Bus, InprocTransport

TICK = 0.01
STIFFNESS = 1500.0  # N/m


def share(tank: EnergyTank, braking: float, wanted: float) -> float:
    """Of motions that end with the tick."""
    return tank.share(Cost(braking, braking), Cost(wanted, wanted), TICK)


def test_energy_is_paid_and_flows_back() -> None:
    tank = EnergyTank(TankConfig(start=1.0, most=1.5, least=0.2, power=1e9))
    assert share(tank, 0.0, 0.5) == 1.0
    assert share(tank, 0.0, 1.6) == pytest.approx(0.5)  # 0.8 J above the least
    assert share(tank, 0.4, 1.2) == pytest.approx(0.5)  # braking takes 0.4 of it
    assert share(tank, 2.0, 3.0) == 0.0
    assert share(tank, 2.0, 1.0) == 0.0  # braking takes more than going on: so it brakes
    assert share(tank, 0.0, -1.0) == 1.0  # giving way is free
    assert tank.share(Cost(0.0, 0.0), Cost(0.1, 1.6), TICK) == pytest.approx(0.5)  # its way to rest counts
    tank.pay(0.9)
    assert tank.energy == pytest.approx(0.1)
    assert share(tank, 0.0, 0.5) == 0.0
    tank.pay(-9.0)
    assert tank.energy == 1.5
    tank.refill()
    assert tank.energy == 1.0


def test_power_is_limited() -> None:
    tank = EnergyTank(TankConfig(power=10.0))
    assert share(tank, 0.0, 0.2) == pytest.approx(0.5)  # 0.1 J in 10 ms


def test_a_tank_that_makes_no_sense_is_refused() -> None:
    for bad in ({"start": 3.0}, {"least": -1.0}, {"power": 0.0}, {"frame": "tool"}, {"max_age_s": 0.0}):
        with pytest.raises(ConfigError, match=r"safety\.tank"):
            TankConfig(**bad)


class Wall:
    """A slow panda before a springy wall; the force is published in the frame of the hand, as sensors do."""

    def __init__(self) -> None:
        self.arm = k = Kinematics.load("panda")
        assert k.home is not None
        bus = Bus()
        self.bus, bridge, robot = bus, InprocTransport(bus, "bridge"), InprocTransport(bus, "robot")
        config = TankConfig(start=0.5, power=1e9)
        self.contact = Contact(config, k, bridge)
        self.sensor = robot.advertise(config.topic, Wrench)
        one = np.ones(7)
        limits = ArmLimits(low=k.low, high=k.high, velocity=one / 4, acceleration=6 * one, jerk=600 * one)
        settings = SafetyConfig(first_command=9.0, jump=9.0, ramp_in_s=0.0, tank=config)
        self.filter = SafetyFilter(limits, TICK, settings, k, self.contact)
        self.filter.start(k.home)
        self.surface = float(k.pose(k.home)[0][0]) + 0.01
        self.work = 0.0

    def depth(self) -> float:
        return max(0.0, float(self.arm.pose(self.filter.position)[0][0]) - self.surface)

    def step(self, target: np.ndarray) -> list[str]:
        rot = self.arm.pose(self.filter.position)[1]
        force = np.array([-STIFFNESS * self.depth(), 0.0, 0.0])
        self.sensor.publish(Wrench(force=rot.T @ force, torque=np.zeros(3)))
        self.bus.advance(round(TICK * 1e9))
        before = self.arm.pose(self.filter.position)[0][0]
        said = [event.text for event in self.filter.step(target).events]
        self.work -= float(force[0]) * float(self.arm.pose(self.filter.position)[0][0] - before)
        return said


def test_a_policy_cannot_push_with_more_energy_than_it_has() -> None:
    wall = Wall()
    k = wall.arm
    assert k.home is not None
    rot = k.pose(k.home)[1]
    inside = k.home
    for _ in range(40):  # 0.1 m into the wall: 7.5 J
        inside = k.solve(inside, k.pose(k.home)[0] + [0.11, 0.0, 0.0], rot, k.home)
    said = [text for _ in range(400) for text in wall.step(inside)]
    assert any(text.startswith("the policy pushes: ") for text in said)
    assert 0.2 < wall.work <= 0.45  # 0.05 J are to be left
    assert wall.work == pytest.approx(STIFFNESS * wall.depth() ** 2 / 2, abs=0.05)
    for _ in range(400):
        wall.step(k.home)
    np.testing.assert_allclose(wall.filter.position, k.home, atol=1e-6)  # it can let go
    assert wall.contact.tank.energy == pytest.approx(0.5 - wall.work, abs=0.02)


def test_without_the_force_the_arm_brakes() -> None:
    wall = Wall()
    assert wall.arm.home is not None
    assert wall.filter.step(wall.arm.home).events[0].text.endswith("wrench: no message yet")
    assert not wall.step(wall.arm.home + 0.1)
    for _ in range(20):
        wall.step(wall.arm.home + 0.1)
    wall.bus.advance(200_000_000)
    event = wall.filter.step(wall.arm.home + 0.1).events[0]
    assert event.fatal
    assert event.text.endswith("wrench: no message for 0.210 s; limit 0.100 s")


def test_a_tank_needs_a_model_of_the_arm() -> None:
    transport = InprocTransport(Bus(), "bridge")
    assert make_contact(None, None, transport) is None
    with pytest.raises(ConfigError, match=r"give robot\.model="):
        make_contact(TankConfig(), None, transport)
    assert make_contact(TankConfig(), Kinematics.load("ur5e"), transport) is not None
