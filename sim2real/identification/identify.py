"""Identification from end to end: a recording in; the estimates, a randomisation, a model and a report out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from visuomotor.data.errors import ConfigError, nearest
from visuomotor.envs.robots.model import RobotModel
from visuomotor.sim2real.identification.fit import FitConfig, Fitted, fit
from visuomotor.sim2real.identification.page import write_page
from visuomotor.sim2real.identification.plant import Plant
from visuomotor.sim2real.identification.posterior import Posterior, examine, profile
from visuomotor.sim2real.identification.ranges import write_model, write_randomization
from visuomotor.sim2real.identification.recording import Recording
from visuomotor.sim2real.identification.toolbox import require
from visuomotor.sim2real.identification.unknowns import Unknowns, choose

__all__ = ["Identified", "identify", "write_results"]

_PROFILED = 3  # unknowns at the ends of their ranges whose profile is drawn unasked
_WORSE = 1.5  # error of episodes that were not fitted against those that were, from which it is said


@dataclass(frozen=True, kw_only=True)
class Identified:
    """All that was found. ``profiles`` are {unknown: (value, rise of the cost)}; ``notes`` are sentences."""

    fitted: Fitted
    posterior: Posterior
    unknowns: Unknowns
    profiles: dict[str, list[tuple[float, float]]]
    notes: tuple[str, ...]


def identify(
    plant: Plant, recording: Recording, wanted: Sequence[str], config: FitConfig, *,
    prior: Mapping[str, float] | None = None, tolerance: float = 0.1, profiled: Sequence[str] = (),
    on_progress: Callable[[str], None] = lambda text: None,
) -> Identified:  # fmt: skip
    """Fit, and say what is known.

    Args:
        plant: the arm in simulation.
        recording: of the real one.
        wanted: as :func:`~visuomotor.sim2real.identification.unknowns.choose` takes it.
        config: how.
        prior: widths of priors that differ from the defaults.
        tolerance: share of its value within which an unknown counts as identified.
        profiled: patterns of unknowns whose profile is computed; those at the ends of their ranges are anyway.
        on_progress: called with a line of text now and then.

    Raises:
        ConfigError: unknown quantities or names.
        MissingExtraError: ``mujoco.sysid`` lacks what it needs.
    """
    require()
    unknowns = choose(wanted, plant.model, plant.robot, dict(prior or {}))
    for pattern in profiled:
        if not any(fnmatchcase(n, pattern) for n in unknowns.names):
            raise ConfigError(f"profile: there is no unknown {pattern!r}. {nearest(pattern, unknowns.names)}")
    fitted = fit(plant, unknowns, recording, config, on_progress)
    posterior = examine(fitted, tolerance)
    asked = [n for n in unknowns.names if any(fnmatchcase(n, p) for p in profiled)]
    at_bound = [e.name for e in posterior.estimates if e.at_bound]
    profiles = {}
    for name in dict.fromkeys([*asked, *at_bound[:_PROFILED]]):
        on_progress(f"profile of {name}")
        std = next(e.shrunk for e in posterior.estimates if e.name == name)
        profiles[name] = profile(fitted, name, std)
    notes = (*recording.notes, *_notes(fitted, at_bound))
    return Identified(fitted=fitted, posterior=posterior, unknowns=unknowns, profiles=profiles, notes=notes)


def _notes(fitted: Fitted, at_bound: list[str]) -> list[str]:
    notes = []
    if fitted.validation is None:
        notes.append("There is a single episode: nothing was left to validate on.")
    else:
        train, other = fitted.train.rms(fitted.z), fitted.validation.rms(fitted.z)
        if (ratio := float(np.median(other / train))) > _WORSE:
            notes.append(
                f"Episodes that were not fitted are predicted {ratio:.1f} times worse than those that were: they "
                "differ in something that is not identified, or there is too little motion."
            )
    if at_bound:
        notes.append(
            f"{', '.join(at_bound)}: at the end of the range; the model lacks something, or prior.* is too narrow."
        )
    return notes


def write_results(
    out: Path, robot: RobotModel, found: Identified, recording: Recording, *, prefix: str, source: str, command: str
) -> dict[str, Path]:
    """Write ``randomization.yaml``, ``<robot>_identified.xml``, ``sysid.json`` and ``report.html`` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    files = {"randomization": out / "randomization.yaml", "numbers": out / "sysid.json", "report": out / "report.html"}
    write_randomization(files["randomization"], found.unknowns, found.posterior, robot, prefix, source)
    model = out / f"{robot.name}_identified.xml"
    why = write_model(model, robot, found.unknowns, found.fitted.z)
    notes = [*found.notes, *([f"No model was written: {why}."] if why else [])]
    files |= {} if why else {"model": model}
    files["numbers"].write_text(json.dumps(_numbers(robot, found, recording, notes), indent=1), encoding="utf-8")
    title = f"Identification of {robot.name} from {source}"
    write_page(files["report"], title, found.fitted, found.posterior, recording, found.profiles, notes, command)
    return files


def _numbers(robot: RobotModel, found: Identified, recording: Recording, notes: list[str]) -> dict[str, object]:
    f, p = found.fitted, found.posterior
    sets = {"train": f.train, **({"validation": f.validation} if f.validation else {})}
    joints = recording.joints
    return {
        "robot": robot.name,
        "estimates": [asdict(e) for e in p.estimates],
        "condition": p.condition,
        "directions": [asdict(d) for d in p.directions],
        "independent_samples": p.samples,
        "rms": {
            name: {
                when: {f"{kind}/{joints[j]}": float(x) for (kind, j), x in zip(s.channels, s.rms(z), strict=True)}
                for when, z in (("before", 0 * f.z), ("after", f.z))
            }
            for name, s in sets.items()
        },
        "covariance_z": p.covariance.tolist(),
        "costs": list(f.cost),
        "episodes": {name: [e.index for e in s.episodes] for name, s in sets.items()},
        "notes": notes,
    }
