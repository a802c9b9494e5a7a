"""The safety filter: time of one tick, and what it does to the target that it follows.

    python benchmarks/safety.py [--ticks 4000] [--out FILE]

Seven joints (the Panda's model, 2 rad/s, 6 rad/s^2, 120 rad/s^3) at 125 Hz. The time is that of the processor: median
of ticks that follow a moving target, with joint limits alone, and with a table, a sphere and the arm's own links too.
The lag is by least squares against a sine of 0.5 Hz and 0.2 rad; the settling time that of a step of 1 rad.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.safety.config import ArmLimits, KeepOutConfig, PlaneConfig, SafetyConfig
from visuomotor.sim2real.safety.filter import SafetyFilter

DT = 0.008


def make(arm: Kinematics, geometry: bool) -> SafetyFilter:
    one = np.ones(arm.n)
    limits = ArmLimits(low=arm.low, high=arm.high, velocity=2 * one, acceleration=6 * one, jerk=120 * one)
    config = SafetyConfig(
        velocity_share=1.0, ramp_in_s=0.0, first_command=2.0, jump=2.0,
        planes=[PlaneConfig(offset=-0.05)] if geometry else [],
        keep_out=[KeepOutConfig(centre=[0.5, 0.6, 0.5], radius=0.1)] if geometry else [],
    )  # fmt: skip
    filter = SafetyFilter(limits, DT, config, arm if geometry else None)
    assert arm.home is not None
    filter.start(arm.home)
    return filter


def tick_us(arm: Kinematics, geometry: bool, ticks: int) -> float:
    """Processor time of a tick [us]: median over blocks of fifty."""
    assert arm.home is not None
    filter = make(arm, geometry)
    t = np.arange(ticks)[:, None] * DT
    targets = arm.home + 0.2 * np.sin(2 * np.pi * 0.5 * t + np.arange(arm.n)) - 0.2 * np.sin(np.arange(arm.n))
    blocks = []
    for block in np.split(targets, range(50, ticks, 50)):
        start = time.process_time()
        for target in block:
            filter.step(target)
        blocks.append((time.process_time() - start) / len(block) * 1e6)
    return statistics.median(blocks)


def lag_ms(arm: Kinematics) -> float:
    assert arm.home is not None
    filter = make(arm, geometry=False)
    t = np.arange(1000) * DT
    targets = arm.home + 0.2 * np.sin(2 * np.pi * 0.5 * t)[:, None]
    sent = np.array([filter.step(target).position for target in targets])
    error, slope = (sent - targets)[250:], np.gradient(targets, DT, axis=0)[250:]
    return -1e3 * float((error * slope).sum() / (slope * slope).sum())


def settling_s(arm: Kinematics) -> float:
    """Until a step of 1 rad is reached to 1e-6 rad. The shortest possible: 1/2 + 2/6 + 6/120 s."""
    assert arm.home is not None
    filter, goal = make(arm, geometry=False), arm.home - np.eye(arm.n)[0]
    ticks = 0
    while np.abs(filter.position - goal).max() > 1e-6:
        filter.step(goal)
        ticks += 1
    return ticks * DT


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ticks", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    arm = Kinematics.load("panda")
    rounds = [[tick_us(arm, geometry, args.ticks // 4) for geometry in (False, True)] for _ in range(4)]
    joints, geometry = (statistics.median(column) for column in zip(*rounds, strict=True))
    result: dict[str, Any] = {
        "tick_us": {"joint limits": round(joints, 1), "with geometry": round(geometry, 1)},
        "lag_ms": round(lag_ms(arm), 4),
        "settling_s": round(settling_s(arm), 3),
        "shortest_s": round(1 / 2 + 2 / 6 + 6 / 120, 3),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
