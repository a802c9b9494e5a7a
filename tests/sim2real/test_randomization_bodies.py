"""Inertia, size and shape of objects: against models compiled with the same numbers, and by hand."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import quat_to_matrix
from visuomotor.envs.sim.engines import EngineConfig, make_simulator
from visuomotor.envs.sim.events import Event, EventSchedule
from visuomotor.envs.sim.random import WorldRandom
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.spread import Spread
from visuomotor.envs.sim.terms import ModelTerm
from visuomotor.envs.sim.world import World
from visuomotor.sim2real.randomization.object_size import ObjectSize
from visuomotor.sim2real.randomization.pseudo_inertia import (
    PseudoInertia,
    _jacobi,
    perturbed,
    principal_axes,
)
from visuomotor.sim2real.randomization.shape import Shape

XML = """
<mujoco>
  <option timestep="0.002"/>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 .1"/>
    <body name="arm" pos="0 0 1">
      <joint name="shoulder" axis="0 1 0" armature=".1"/>
      <geom name="upper" type="capsule" fromto="0 0 0 .3 0 .1" size=".03" mass="2"/>
      <geom name="knob" type="sphere" pos=".3 .1 .1" size=".05" mass=".5"/>
    </body>
    <body name="cube" pos="0 .5 .03"><freejoint/><geom name="cube" type="box" size=".05 .04 .03" mass=".3"/></body>
    <body name="t" pos="0 -.5 .02" quat="0 1 0 0"><freejoint/>
      <geom type="box" pos="0 .05 0" size=".1 .02 .02" mass=".2"/><geom type="box" size=".02 .06 .02" mass=".1"/>
    </body>
  </worldbody>
</mujoco>
"""
N = 3
DERIVED = ("body_subtreemass", "body_invweight0", "dof_invweight0", "geom_rbound", "geom_aabb")
ENGINES = [("batch", 1e-6), ("warp", 1e-3)]


def world_of(event: Event, engine: str = "batch", n: int = N) -> World:
    scene = mujoco.MjSpec.from_string(XML)
    event.prepare(scene)
    sim = make_simulator(scene.compile(), n, EngineConfig(name=engine, device="cpu", threads=engine == "batch"))
    return World(sim, WorldRandom(n, sim.device))


def run(event: Event, engine: str = "batch", mask: list[bool] | None = None, *, times: int = 1) -> World:
    world = world_of(event, engine)
    schedule = EventSchedule([event], world, dt=0.05)
    for _ in range(times):
        worlds = Selection(torch.tensor(mask or [True] * N))
        world.sim.reset(worlds)
        schedule.reset(worlds, world.random.begin_episode(worlds))
    return world


def field(world: World, name: str) -> np.ndarray:
    return world.sim.model_field(name).numpy()


def check_constants(world: World, compiled: mujoco.MjModel, i: int, tolerance: float) -> None:
    for name in DERIVED:
        if hasattr(world.sim.model, name):
            ours, theirs = field(world, name)[i], getattr(compiled, name)
            np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, rtol=tolerance, atol=1e-6, err_msg=name)


@pytest.mark.timeout(900)  # compiles MuJoCo Warp's kernels
@pytest.mark.parametrize(("engine", "tolerance"), ENGINES)
def test_a_perturbed_body_is_that_of_a_model_compiled_with_the_same_numbers(engine: str, tolerance: float) -> None:
    world = run(PseudoInertia(["arm", "cube"], Spread(operation="+", low=-0.4, high=0.4)), engine)
    names = ("body_mass", "body_ipos", "body_iquat", "body_inertia")
    assert np.unique(field(world, "body_mass")[:, 1:3].round(6)).size == 2 * N
    for i in range(N):
        spec = mujoco.MjSpec.from_string(XML)
        for name in ("arm", "cube"):
            body, index = spec.body(name), world.sim.model.body(name).id
            mass, ipos, iquat, inertia = (field(world, f)[i, index] for f in names)
            body.explicitinertial, body.simple = True, False
            body.mass, body.ipos, body.iquat, body.inertia = float(mass), ipos, iquat, inertia
        check_constants(world, spec.compile(), i, tolerance)


moments = st.floats(0.1, 3.0)
numbers = st.lists(st.floats(-0.8, 0.8), min_size=10, max_size=10)


@given(st.floats(0.1, 20.0), moments, moments, moments, numbers)
@settings(max_examples=60, deadline=None)
def test_the_pseudo_inertia_is_that_of_the_paper_and_positive(
    m: float, x: float, y: float, z: float, theta: list[float]
) -> None:
    second = np.array([x, y, z]) * m  # of the mass along the axes
    inertia = second.sum() - second
    mass, centre, quat, principal = perturbed(*(np.array(v) for v in (m, inertia, theta)))
    assert mass > 0
    assert (principal > 0).all()
    assert (principal <= principal.sum() - principal + 1e-9).all()  # the triangle inequality
    turn = quat_to_matrix(quat)
    covariance = turn @ np.diag(principal.sum() / 2 - principal) @ turn.T
    pseudo = np.block([[covariance + mass * np.outer(centre, centre), mass * centre[:, None]], [mass * centre, mass]])
    a, d1, d2, d3, s12, s13, s23, *t = theta
    upper = np.exp(a) * np.array(
        [[np.exp(d1), s12, s13, t[0]], [0, np.exp(d2), s23, t[1]], [0, 0, np.exp(d3), t[2]], [0, 0, 0, 1.0]]
    )
    unit = np.diag([*np.sqrt([x, y, z]), 1.0])
    np.testing.assert_allclose(pseudo, m * unit @ upper @ upper.T @ unit, rtol=1e-9, atol=1e-9)


def test_axes_without_the_library_are_those_with_it() -> None:
    torch.manual_seed(0)
    a = torch.randn(50, 3, 3, dtype=torch.float64)
    a = torch.cat([a @ a.mT, torch.diag(torch.tensor([2.0, 2.0, 1.0])).double()[None]])
    values, axes = _jacobi(a)
    torch.testing.assert_close(values.sort(-1).values, torch.linalg.eigvalsh(a), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(axes @ torch.diag_embed(values) @ axes.mT, a, rtol=1e-10, atol=1e-12)
    theirs, quat = principal_axes(a.numpy())
    np.testing.assert_allclose(np.sort(theirs), values.sort(-1).values, atol=1e-9)
    turn = quat_to_matrix(quat)
    np.testing.assert_allclose(turn * theirs[:, None] @ np.swapaxes(turn, 1, 2), a, atol=1e-8)
    assert torch.linalg.det(axes).allclose(torch.ones(51, dtype=torch.float64))


def tensor_of(model: Any, i: int = 2) -> np.ndarray:
    turn = quat_to_matrix(np.asarray(model["body_iquat"][i], float))
    return turn @ np.diag(model["body_inertia"][i]) @ turn.T


@pytest.mark.parametrize("part", ["scale", "stretch", "shear", "shift"])
def test_parts_vary_alone(part: str) -> None:
    names = ("body_mass", "body_ipos", "body_iquat", "body_inertia")
    m = mujoco.MjSpec.from_string(XML).compile()
    old = {n: getattr(m, n) for n in names}
    world = run(PseudoInertia(["cube"], Spread(operation="+", low=0.2, high=0.2), parts=[part]))
    new = {n: field(world, n)[0] for n in names}
    radii = np.array([0.05, 0.04, 0.03]) / np.sqrt(3)
    assert new["body_mass"][2] == pytest.approx(0.3 * (np.exp(0.4) if part == "scale" else 1.0))
    np.testing.assert_allclose(new["body_ipos"][2], 0.2 * radii if part == "shift" else 0.0, atol=1e-8)
    before, after = tensor_of(old), tensor_of(new)
    factor = {"scale": np.exp(0.4), "stretch": np.exp(0.4), "shift": 1.0}
    if part in factor:  # all three axes are stretched alike
        np.testing.assert_allclose(after, before * factor[part], rtol=1e-6, atol=1e-12)
    else:
        assert abs(after[0, 1]) > 0.1 * before[1, 1]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("engine", "tolerance"), ENGINES)
def test_a_larger_object_is_that_of_a_model_compiled_larger_and_lies_on_the_floor(
    engine: str, tolerance: float
) -> None:
    world = run(ObjectSize(["@objects"], Spread(low=0.5, high=2.0)), engine)
    scene = world.sim.model
    for i in range(N):
        spec = mujoco.MjSpec.from_string(XML)
        for name in ("cube", "t"):
            body = spec.body(name)
            geoms = [g for g in range(scene.ngeom) if scene.geom_bodyid[g] == scene.body(name).id]
            factor = float(field(world, "geom_size")[i, geoms[0], 0] / scene.geom_size[geoms[0], 0])
            for g in body.geoms:
                g.size, g.pos, g.mass = np.array(g.size) * factor, np.array(g.pos) * factor, g.mass * factor**3
            height = {"cube": 0.03, "t": 0.02}[name]
            adr = scene.jnt_qposadr[scene.body(name).jntadr[0]]
            lowest = float(world.sim.field("qpos")[i, adr + 2]) - height * factor
            assert lowest == pytest.approx(0.0, abs=1e-6)
        compiled = spec.compile()
        for name in ("body_mass", "body_inertia", "body_ipos", "geom_pos", "geom_size"):
            np.testing.assert_allclose(field(world, name)[i], getattr(compiled, name), rtol=tolerance, atol=1e-7)
        check_constants(world, compiled, i, tolerance)


def test_sizes_do_not_compound_and_a_mass_may_be_kept() -> None:
    size = ObjectSize(["cube"], Spread(low=2.0, high=2.0), density=False)
    world = run(size, mask=[True, False, True], times=3)
    m = world.sim.model
    np.testing.assert_allclose(field(world, "geom_size")[0, -3], 2 * m.geom_size[-3])
    np.testing.assert_allclose(field(world, "body_inertia")[2, 2], 4 * m.body_inertia[2])
    np.testing.assert_allclose(field(world, "body_mass")[2], m.body_mass)
    np.testing.assert_array_equal(field(world, "geom_size")[1], m.geom_size)


@pytest.mark.parametrize("engine", ["batch", "warp"])
@pytest.mark.timeout(900)
def test_every_world_has_one_of_the_shapes_and_its_inertia(engine: str) -> None:
    shapes = ["cylinder", "box", "sphere", "ellipsoid", "capsule"]
    event = Shape(["cube"], shapes)
    world = world_of(event, engine, 16)
    schedule = EventSchedule([event], world, dt=0.05)
    everyone = Selection.all(16, world.sim.device)
    schedule.reset(everyone, world.random.begin_episode(everyone))
    m = world.sim.model
    ids = [m.geom(f"cube@{s}" if s != "box" else "cube").id for s in shapes]
    seen = field(world, "geom_rgba")[:, ids, 3] > 0
    assert (seen.sum(1) == 1).all()
    assert len(set(seen.argmax(1))) >= 3
    for i, k in enumerate(seen.argmax(1)):
        size = field(world, "geom_size")[i]
        assert size[ids[k], 0] == pytest.approx(m.geom_size[ids[k], 0])
        assert max(size[j].max() for j in ids if j != ids[k]) < 1e-3
        spec = mujoco.MjSpec.from_string(XML)
        geom = spec.geom("cube")
        geom.type, geom.size = m.geom_type[ids[k]], m.geom_size[ids[k]]
        compiled = spec.compile()
        np.testing.assert_allclose(field(world, "body_inertia")[i, 2], compiled.body_inertia[2], rtol=1e-5)
        half = compiled.geom_aabb[compiled.geom("cube").id, 3:]
        assert (half <= np.array([0.05, 0.04, 0.03]) * (1 + 1e-9)).all()


def test_a_point_changes_nothing_bit_for_bit() -> None:
    spread = {"+": Spread(operation="+", low=0.0, high=0.0), "*": Spread()}
    for event in (PseudoInertia(["*m", "cube"], spread["+"]), ObjectSize(["cube", "t"], spread["*"])):
        world, still = run(event, times=2), world_of(event)
        for w in event.written() or ():
            np.testing.assert_array_equal(field(world, w.field), field(still, w.field))
        torch.testing.assert_close(world.sim.field("qpos"), still.sim.field("qpos"), rtol=0, atol=0)


def test_a_mass_multiplies_with_what_a_size_makes_of_it() -> None:
    heavier = ModelTerm("mass", ["cube"], Spread(low=3.0, high=3.0))
    events: list[Event] = [ObjectSize(["cube"], Spread(low=2.0, high=2.0)), heavier]
    world = world_of(events[0])
    schedule = EventSchedule(events, world, dt=0.05)
    everyone = Selection.all(N, world.sim.device)
    for _ in range(2):
        schedule.reset(everyone, world.random.begin_episode(everyone))
    m = world.sim.model
    np.testing.assert_allclose(field(world, "body_mass")[0, 2], 24 * m.body_mass[2])
    np.testing.assert_allclose(field(world, "body_inertia")[0, 2], 96 * m.body_inertia[2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PseudoInertia(["cube"], Spread()), r"operation '\*'; expected '\+'"),
        (lambda: PseudoInertia(["cube"], Spread(operation="+"), parts=["stretsh"]), "unknown part 'stretsh'.*stretch"),
        (lambda: PseudoInertia(["world"], Spread(operation="+")), "world have no mass"),
        (lambda: PseudoInertia(["cub"], Spread(operation="+")), "no body 'cub'.*cube"),
        (lambda: ObjectSize(["cube"], Spread(operation="+")), "expected the operation"),
        (lambda: ObjectSize(["world"], Spread()), "expected bodies made of primitive geoms"),
        (lambda: Shape(["cube"], ["box"]), "expected two different ones"),
        (lambda: Shape(["cube"], ["box", "ball"]), "unknown shape 'ball'"),
        (lambda: Shape(["cube"], ["sphere", "capsule"]), "'cube' is made of box; expected one geom, of sph"),
        (lambda: Shape(["t"], ["box", "capsule"]), "'t' is made of box, box"),
        (lambda: Shape(["cub"], ["box", "capsule"]), "no body cub.*cube"),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(make())
