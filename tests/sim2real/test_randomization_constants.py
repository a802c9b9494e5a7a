"""Randomised model fields on both engines: derived constants are those of a model compiled with the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from visuomotor.envs.sim.engines import EngineConfig, make_simulator
from visuomotor.envs.sim.events import Event, EventSchedule
from visuomotor.envs.sim.quantities import QUANTITIES
from visuomotor.envs.sim.random import WorldRandom
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.spread import Spread
from visuomotor.envs.sim.terms import ModelTerm
from visuomotor.envs.sim.world import World

XML = """
<mujoco>
  <worldbody>
    <camera name="eye" pos="0 -1 1"/><light name="lamp" pos="0 0 2" dir=".1 .2 -1"/>
    <geom name="floor" type="plane" size="1 1 .1"/>
    <body name="upper" pos="0 0 1">
      <inertial pos=".1 0 .02" mass="2" diaginertia=".02 .03 .04"/>
      <joint name="shoulder" axis="0 1 0" armature=".1"/>
      <geom name="upper" type="capsule" pos=".1 0 0" size=".03 .1"/>
      <body name="lower" pos=".3 0 0">
        <inertial pos=".1 0 .01" mass="1" diaginertia=".01 .02 .02"/>
        <joint name="elbow" axis="0 1 0" armature=".05"/>
        <geom name="lower" type="box" pos=".1 0 0" size=".1 .02 .03"/>
      </body>
    </body>
    <body name="cube" pos="0 .5 .05"><freejoint/>
      <inertial pos="0 0 0" mass=".3" diaginertia="1e-4 2e-4 2e-4"/><geom name="cube" type="box" size=".05 .04 .03"/>
    </body>
  </worldbody>
  <actuator><motor name="shoulder" joint="shoulder" gear="2"/><motor name="elbow" joint="elbow"/></actuator>
</mujoco>
"""
N = 3
DERIVED = ("body_subtreemass", "body_invweight0", "dof_invweight0", "actuator_acc0", "geom_rbound", "geom_aabb",
           "cam_pos0", "cam_poscom0", "cam_mat0", "light_pos0", "light_poscom0", "light_dir0")  # fmt: skip
Write = Callable[[Any, np.ndarray], None]  # a thing of a spec, its row of the main field


def set_to(name: str, columns: int | slice | None = None) -> Write:
    def write(thing: Any, row: np.ndarray) -> None:
        if columns is None:
            setattr(thing, name, float(row) if np.ndim(row) == 0 else np.asarray(row, float))
        else:
            value = np.array(getattr(thing, name), float)
            value[columns] = row
            setattr(thing, name, value)

    return write


def heavier(body: Any, mass: np.ndarray) -> None:
    body.inertia = np.array(body.inertia) * float(mass) / body.mass
    body.mass = float(mass)


SETTERS: dict[str, tuple[str, list[str], Write]] = {
    "mass": ("bodies", ["upper", "lower", "cube"], heavier),
    "center_of_mass": ("bodies", ["upper", "lower", "cube"], set_to("ipos")),
    "body_position": ("bodies", ["upper", "lower"], set_to("pos")),
    "gravity_compensation": ("bodies", ["upper"], set_to("gravcomp")),
    "geom_size": ("geoms", ["upper", "lower", "cube"], set_to("size")),
    "geom_position": ("geoms", ["upper", "lower"], set_to("pos")),
    "armature": ("joints", ["shoulder", "elbow"], set_to("armature")),
    "gear": ("actuators", ["shoulder", "elbow"], set_to("gear", 0)),
    "camera_position": ("cameras", ["eye"], set_to("pos")),
    "light_position": ("lights", ["lamp"], set_to("pos")),
    "light_direction": ("lights", ["lamp"], set_to("dir")),
}


def randomised(event: Event, engine: str) -> tuple[World, EventSchedule]:
    scene = mujoco.MjSpec.from_string(XML)
    event.prepare(scene)
    sim = make_simulator(scene.compile(), N, EngineConfig(name=engine, device="cpu", threads=engine == "batch"))
    world = World(sim, WorldRandom(N, sim.device))
    schedule = EventSchedule([event], world, dt=0.05)
    everyone = Selection.all(N, sim.device)
    for _ in range(2):
        schedule.reset(everyone, world.random.begin_episode(everyone))
    return world, schedule


def test_every_quantity_that_constants_depend_on_is_here() -> None:
    assert set(SETTERS) == {name for name, q in QUANTITIES.items() if q.constants}


@pytest.mark.timeout(900)  # compiles MuJoCo Warp's kernels
@pytest.mark.parametrize("quantity", sorted(SETTERS))
@pytest.mark.parametrize(("engine", "tolerance"), [("batch", 1e-6), ("warp", 2e-4)])
def test_derived_constants_are_those_of_a_compiled_model(engine: str, tolerance: float, quantity: str) -> None:
    kind, names, write = SETTERS[quantity]
    vector = QUANTITIES[quantity].vector
    spread = Spread(operation="+", low=-0.02, high=0.02) if vector else Spread(low=0.5, high=2.0)
    world, _ = randomised(ModelTerm(quantity, names, spread), engine)
    field, part = QUANTITIES[quantity].main
    things = labels_of(world.sim.model, QUANTITIES[quantity].kind)
    live = world.sim.model_field(field)
    values = (live if part is None else live[..., part]).numpy()
    for i in range(N):
        scene = mujoco.MjSpec.from_string(XML)
        if quantity == "center_of_mass":
            scene.body("cube").simple = False
        for name in names:
            thing = next(t for t in getattr(scene, kind) if t.name == name)
            write(thing, values[i, things.index(name)])
        compiled = scene.compile()
        for name in DERIVED:
            theirs = getattr(compiled, name)
            ours = world.sim.model_field(name)[i].numpy().reshape(theirs.shape)
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=1e-5, err_msg=name)


def labels_of(model: mujoco.MjModel, kind: str) -> list[str]:
    if kind == "joint":  # rows are degrees of freedom
        return [model.joint(int(j)).name for j in model.dof_jntid]
    count = {"body": model.nbody, "geom": model.ngeom, "actuator": model.nu, "camera": model.ncam}
    return [getattr(model, kind)(i).name for i in range(count.get(kind, model.nlight))]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["batch", "warp"])
def test_snapshots_hold_what_was_drawn(engine: str) -> None:
    world, schedule = randomised(ModelTerm("mass", ["upper", "cube"], Spread(low=0.5, high=2.0)), engine)
    sim = world.sim
    before = {name: sim.model_field(name).clone() for name in ("body_mass", "body_inertia", "dof_invweight0")}
    snapshot = sim.snapshot()
    some = Selection(torch.tensor([True, False, True]))
    schedule.reset(some, world.random.begin_episode(some))
    changed = (sim.model_field("body_mass") != before["body_mass"]).any(1)
    assert changed.tolist() == [True, False, True]
    sim.restore(snapshot)
    for name, value in before.items():
        torch.testing.assert_close(sim.model_field(name), value, rtol=1e-6, atol=0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["batch", "warp"])
def test_a_ball_bounces_by_its_restitution(engine: str) -> None:
    ball = (
        '<mujoco><option timestep="0.0005"/><worldbody><geom name="floor" type="plane" size="1 1 .1"/><body name="ball"'
    )
    ball += ' pos="0 0 .05"><freejoint/><geom name="ball" size=".05" mass="1"/></body></worldbody></mujoco>'
    sim = make_simulator(
        mujoco.MjModel.from_xml_string(ball), 2, EngineConfig(name=engine, device="cpu", threads=engine == "batch")
    )
    world = World(sim, WorldRandom(2, sim.device))
    values = Spread(operation="=", low=0.2, high=0.8)
    schedule = EventSchedule([ModelTerm("restitution", ["floor", "ball"], values, shared=True)], world, dt=0.05)
    everyone = Selection.all(2, sim.device)
    schedule.reset(everyone, world.random.begin_episode(everyone))
    ratio = sim.model_field("geom_solref")[:, 1, 1]
    expected = torch.exp(-torch.pi * ratio / (1 - ratio**2).sqrt())
    sim.field("qpos")[:, 2], sim.field("qvel")[:, 2] = 0.06, -2.0
    sim.model_field("opt.gravity").zero_()
    sim.forward(everyone)
    sim.step(400)
    rebound = sim.field("qvel")[:, 2] / 2.0
    torch.testing.assert_close(rebound, expected.to(rebound.dtype), rtol=0, atol=0.12)
    assert (rebound[0] > rebound[1]) == (expected[0] > expected[1])
