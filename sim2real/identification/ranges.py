"""From a posterior to the randomisation that trains for it: each unknown varies as much as it is not known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import yaml

from visuomotor.envs.robots.model import RobotModel
from visuomotor.sim2real.identification.posterior import Estimate, Posterior
from visuomotor.sim2real.identification.unknowns import Block, Unknowns

__all__ = ["randomization", "write_model", "write_randomization"]

_CENTRED = ("center_of_mass", "inertia")  # their ranges lie about the identified model's values


def randomization(
    unknowns: Unknowns, posterior: Posterior, robot: RobotModel, prefix: str
) -> dict[str, dict[str, Any]]:
    """Settings of the terms, as ``randomization=<file>`` reads them.

    A normal distribution is cut off two standard deviations from its middle, where 95 % of the posterior end. Centres
    of mass and all of a body's inertia are given about their identified values: they go with the identified model.

    Args:
        unknowns, posterior: what was found.
        robot: whose.
        prefix: of its names in a scene.
    """
    by_name = {e.name: e for e in posterior.estimates}
    terms: dict[str, dict[str, Any]] = {}
    for block in unknowns.blocks:
        found = [by_name[n] for n in block.names]
        if block.quantity in _CENTRED:
            terms |= _about(block, found, robot, prefix)
        elif block.quantity == "actuator_delay":
            names = [prefix + a for a in robot.actuators]
            terms["actuator_delay"] = {"names": names, "shared": True, **_range("=", found[0].low, found[0].high)}
        elif block.quantity != "sensor_delay":
            terms[_key(block)] = {
                "term": block.quantity, "names": [prefix + block.thing], **_range("=", found[0].low, found[0].high),
            }  # fmt: skip
    return terms


def _about(block: Block, found: list[Estimate], robot: RobotModel, prefix: str) -> dict[str, dict[str, Any]]:
    """Of a centre of mass, or of all of a body's inertia: one width for all of its numbers, the largest."""
    names = [prefix + block.thing]
    if block.quantity == "center_of_mass":
        reach = 2 * max(e.std for e in found)
        return {_key(block): {"term": "center_of_mass", "names": names, **_range("+", -reach, reach)}}
    shares = [
        0.5 * found[0].std / found[0].value
    ]  # the term's mass changes by exp(2 x), its centre in radii of gyration
    shares += [e.std / _gyration(robot, block.thing) for e in found[1:4]]
    shares += [e.std / (e.value if log else 1.0) for e, log in zip(found[4:], block.log[4:], strict=True)]
    return {_key(block): {"term": "pseudo_inertia", "names": names, **_range("+", -2 * max(shares), 2 * max(shares))}}


def _gyration(robot: RobotModel, body: str) -> float:
    """Radius of gyration of a body, the root mean square over its axes [m]."""
    m = robot.spec().compile()
    i = m.body(body).id
    return float(np.sqrt(m.body_inertia[i].sum() / 2 / 3 / m.body_mass[i]))


def _key(block: Block) -> str:
    return re.sub(r"\W", "_", f"{block.quantity}_{block.thing}")


def _range(operation: str, low: float, high: float) -> dict[str, Any]:
    low, high = sorted(float(f"{x:.6g}") for x in (low, high))
    return {"operation": operation, "distribution": "normal", "low": low, "high": high}


def write_randomization(
    path: Path, unknowns: Unknowns, posterior: Posterior, robot: RobotModel, prefix: str, source: str
) -> None:
    """Write the terms as a YAML file, each unknown with what is known of it as a comment."""
    terms = randomization(unknowns, posterior, robot, prefix)
    lines = [
        f"# Physics of {robot.name} as identified from {source}: 95 % of the posterior.",
        "# The middle is the estimate. What the motion did not show keeps the width that it had before (prior.*).",
    ]
    if any(b.quantity in _CENTRED for b in unknowns.blocks):
        lines.append("# Centres of mass vary about those of the identified model: take it as the robot.")
    if any(b.quantity == "sensor_delay" for b in unknowns.blocks):
        lines.append("# The delay of the measurement is in report.html; no term of the physics has it.")
    said = {_key(b): [e for e in posterior.estimates if e.name in b.names] for b in unknowns.blocks}
    said["actuator_delay"] = [e for e in posterior.estimates if e.name == "actuator_delay"]
    lines.append("terms:")
    for name, term in terms.items():
        lines += [f"  # {e.name}: {e.value:.4g} +- {e.std:.2g} {e.unit}, {e.verdict}" for e in said.get(name, ())]
        text = yaml.safe_dump(term, default_flow_style=True, sort_keys=False, width=10_000).strip()
        lines.append(f"  {name}: {text}")
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def write_model(path: Path, robot: RobotModel, unknowns: Unknowns, z: np.ndarray) -> str | None:
    """Write the robot with its identified values as MJCF, and what ``robot=custom`` asks for beside it.

    Returns:
        Why there is none, or None.
    """
    spec = robot.spec()
    if spec.meshes or spec.textures or spec.hfields:
        return "the robot has meshes or textures, which a file elsewhere would not find"
    for body in spec.bodies:
        body.simple = False
    model = spec.compile()
    unknowns.write(model, mujoco.MjData(model), z)
    try:
        spec.copy_back(model)
        text = spec.to_xml()
    except ValueError as error:
        return f"MuJoCo cannot write it: {' '.join(str(error).split())}"
    path.write_text(text, encoding="utf-8")
    beside: dict[str, Any] = {"joints": list(robot.joints), "tcp": robot.tcp, "home": [float(x) for x in robot.home]}
    beside |= {"reach": float(robot.reach), "yaw": 0.0, "gravcomp": False}  # as the model itself has it
    path.with_suffix(".robot.yaml").write_text(yaml.safe_dump(beside, sort_keys=False), encoding="utf-8")
    return None
