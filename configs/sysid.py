"""``visuomotor sysid``: the physics of a real arm from recordings of it; ``sysid excite``: the motion to record."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING
from rich.console import Console
from rich.table import Table

from visuomotor.configs.compose import parse_plain
from visuomotor.data.errors import ConfigError
from visuomotor.data.importing.registry import detect, open_source
from visuomotor.data.importing.run import import_demos
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.envs.robots.model import RobotModel
from visuomotor.envs.robots.registry import get_robot
from visuomotor.sim2real.identification.excitation import Excitation, ExcitationConfig, excite
from visuomotor.sim2real.identification.fit import FitConfig
from visuomotor.sim2real.identification.identify import Identified, identify, write_results
from visuomotor.sim2real.identification.plant import Plant
from visuomotor.sim2real.identification.recording import KeysConfig, read_recording
from visuomotor.sim2real.identification.toolbox import require

__all__ = ["ExciteConfig", "SysidConfig", "main"]

USAGE = """\
visuomotor sysid data=<zarr or bag> robot=<robot>   fit the simulator to recordings of the real arm
visuomotor sysid excite robot=<robot>               a motion to record, as a store of joint commands
visuomotor sysid --help | sysid excite --help       the settings of each
"""
_FILES = (".xml", ".urdf", ".mjcf")
_EXTRA = 0.5  # of motion after the part of an episode that is not compared [s]


@dataclass(kw_only=True, slots=True)
class SysidConfig:
    """``visuomotor sysid``: fit the simulator to recordings of the real arm.

    Attributes:
        data: Zarr store of recorded motions, or a ROS bag, which is imported into the folder ``out`` first.
        robot: name of a robot, or its MJCF or URDF file.
        out: folder for randomization.yaml, the identified model, sysid.json and report.html; null is sysid_<robot>.
        fit: what is identified: mass, center_of_mass, inertia, damping, friction_loss, armature, position_gain,
            velocity_gain, force_limit, actuator_delay, sensor_delay; for some things only as quantity:pattern.
        prior: standard deviations of what is believed before, as prior.<quantity>=: of the logarithm of a factor, [m]
            of centres, [s] of delays; of what is 0 in the model as a share of the joint's force limit or inertia.
        keys: which arrays hold what.
        joints: joints.<joint of the robot>=<its name in the data>, where they differ.
        timestep: of the physics [s]: take that of the simulation in which policies will train.
        prefix: of the robot's names in a task's scene.
        tolerance: an unknown is called identified if three standard deviations are within this share of its value.
        profile: patterns of unknowns whose profile of the cost is drawn.
        solver: how the fit is made.
        options: settings of the bag's import, such as options.mapping=<yaml> (docs/importing.md).
        threads: that simulate; 0 takes one a core.
    """

    data: str = MISSING
    robot: str = MISSING
    out: str | None = None
    fit: list[str] = field(default_factory=lambda: ["damping", "friction_loss", "armature", "actuator_delay"])
    prior: dict[str, float] = field(default_factory=dict)
    keys: KeysConfig = field(default_factory=KeysConfig)
    joints: dict[str, str] = field(default_factory=dict)
    timestep: float = 0.005
    prefix: str = "robot/"
    tolerance: float = 0.1
    profile: list[str] = field(default_factory=list)
    solver: FitConfig = field(default_factory=FitConfig)
    options: dict[str, Any] = field(default_factory=dict)
    threads: int = 0

    def __post_init__(self) -> None:
        for name in ("timestep", "tolerance"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected more than 0, and less than 1")
        if self.threads < 0:
            raise ConfigError(f"threads={self.threads}: expected 0 (one a core) or more")


@dataclass(kw_only=True, slots=True)
class ExciteConfig(ExcitationConfig):
    """``visuomotor sysid excite``: a motion that shows an arm's physics, as a store of joint commands.

    Attributes:
        robot: name of a robot, or its MJCF or URDF file.
        out: the store to write; null is excite_<robot>.zarr.
    """

    robot: str = MISSING
    out: str | None = None


def main(words: Sequence[str]) -> int:
    """Run as ``words`` say; returns the exit status."""
    rest = list(words)
    exciting = bool(rest) and rest[0] == "excite"
    rest = rest[1:] if exciting else rest
    if any(w in ("-h", "--help", "help") for w in rest):
        from visuomotor.configs.help import settings_help

        print(settings_help(ExciteConfig if exciting else SysidConfig), end="")
        return 0
    if not rest:
        print(USAGE, end="")
        return 0
    return _excite(rest) if exciting else _identify(rest)


def _identify(words: list[str]) -> int:
    c = parse_plain(SysidConfig, words)
    require()
    robot = _robot(c.robot)
    out = Path(c.out or f"sysid_{robot.name}").expanduser()
    console = Console()
    plant = Plant(robot, timestep=c.timestep, threads=c.threads)
    with DemoStore.open(_store(c, out)) as store:
        recording = read_recording(
            store, robot.joints, plant.limits, c.keys, c.joints, shortest=c.solver.settle + _EXTRA
        )
    found = identify(
        plant, recording, c.fit, c.solver, prior=c.prior, tolerance=c.tolerance, profiled=c.profile,
        on_progress=lambda text: console.print(text, highlight=False),
    )  # fmt: skip
    command = shlex.join(["visuomotor", "sysid", *words])
    source = Path(c.data).name
    files = write_results(out, robot, found, recording, prefix=c.prefix, source=source, command=command)
    _print(console, found)
    for path in files.values():
        console.print(f"written: {path}", highlight=False, soft_wrap=True)
    return 0


def _robot(name: str) -> RobotModel:
    return get_robot("custom", name) if name.lower().endswith(_FILES) else get_robot(name)


def _store(c: SysidConfig, out: Path) -> str | Path:
    """The store of the recording; a bag is imported first."""
    path = Path(c.data).expanduser()
    if not path.exists() or path.suffix == ".json" or detect(path) != "bag":
        if c.options:
            raise ConfigError(f"options.{next(iter(c.options))}: settings of a bag's import; {c.data} is none")
        return c.data
    out.mkdir(parents=True, exist_ok=True)
    imported = out / "recording.zarr"
    import_demos(open_source(path, "bag", c.options), imported, options=c.options)
    return imported


def _print(console: Console, found: Identified) -> None:
    if not console.is_terminal:
        console.width = 140
    table = Table("unknown", "model", "found", "±", "unit", "verdict")
    for e in found.posterior.estimates:
        verdict = e.verdict + (f", confused with {e.partner[0]}" if e.partner else "")
        table.add_row(e.name, f"{e.nominal:.4g}", f"{e.value:.4g}", f"{e.std:.2g}", e.unit, verdict)
    console.print(table)
    for note in found.notes:
        console.print(note, highlight=False, soft_wrap=True)


def _excite(words: list[str]) -> int:
    c = parse_plain(ExciteConfig, words)
    robot = _robot(c.robot)
    out = Path(c.out or f"excite_{robot.name}.zarr").expanduser()
    motions = excite(robot, c)
    spec = ArraySpec(
        shape=(len(robot.joints),), dtype="float64", role="action", unit="rad", names=robot.joints, source=robot.name
    )
    with DemoStore.create(out, {"action": spec}, fps=c.rate_hz, episode_columns={"text": "str"}) as store:
        for motion in motions:
            store.append_episode({"action": motion.command}, {"text": "excitation"})
    _tell(robot, motions, out)
    return 0


def _tell(robot: RobotModel, motions: Sequence[Excitation], out: Path) -> None:
    console = Console()
    reach, velocity, acceleration = (
        np.max([getattr(m, name) for m in motions], axis=0) for name in ("reach", "velocity", "acceleration")
    )
    for row in zip(robot.joints, reach, velocity, acceleration, strict=True):
        console.print("{}: at most {:.2f} rad from home, {:.2f} rad/s, {:.2f} rad/s^2".format(*row), highlight=False)
    if (size := min(m.shrunk for m in motions)) < 1:
        console.print(f"made smaller, to {size:.0%}, to stay clear of the arm itself and the table", highlight=False)
    seconds = sum(m.time[-1] for m in motions)
    console.print(f"written: {out}, {len(motions)} episodes, {seconds:.0f} s in all", highlight=False, soft_wrap=True)
