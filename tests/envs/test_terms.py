"""Physics terms: what they write, against models compiled with the same numbers; pushes and schedules."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.errors import ConfigError
from visuomotor.envs.sim.batch import BatchSimulator
from visuomotor.envs.sim.events import Event, EventSchedule
from visuomotor.envs.sim.quantities import QUANTITIES
from visuomotor.envs.sim.random import Draws, WorldRandom
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.spread import Spread
from visuomotor.envs.sim.terms import JointOffset, ModelTerm, Push
from visuomotor.envs.sim.world import World

XML = """
<mujoco>
  <compiler angle="radian"/>
  <asset><material name="wood" rgba=".5 .4 .3 1" texrepeat="2 2"/></asset>
  <worldbody>
    <camera name="eye" pos="0 -1 1"/>
    <light name="lamp" pos="0 0 2" ambient=".1 .1 .1"/>
    <geom name="floor" type="plane" size="1 1 .1"/>
    <body name="arm/upper" pos="0 0 1">
      <joint name="shoulder" axis="0 1 0" damping="1" frictionloss=".2" armature=".1" range="-2 2"/>
      <geom name="upper" type="capsule" fromto="0 0 0 .3 0 0" size=".03" mass="2"/>
      <body name="arm/lower" pos=".3 0 0">
        <joint name="elbow" axis="0 1 0" damping=".5" frictionloss=".1" armature=".05" range="-1 1"/>
        <geom name="lower" type="capsule" fromto="0 0 0 .2 0 .02" size=".02" mass="1"/>
      </body>
    </body>
    <body name="cube" pos="0 .5 .05"><freejoint/><geom name="cube" type="box" size=".05 .04 .03" mass=".3"/></body>
  </worldbody>
  <actuator>
    <position name="shoulder" joint="shoulder" kp="50" kv="5" forcerange="-40 40"/>
    <position name="elbow" joint="elbow" kp="30" kv="3" forcerange="-20 20"/>
  </actuator>
  <sensor><jointpos name="angle" joint="elbow"/></sensor>
</mujoco>
"""
N = 4
# What set_const derives from masses, inertias, armature and positions.
DERIVED = ("body_subtreemass", "body_invweight0", "dof_invweight0", "actuator_acc0", "dof_M0")


def world_of(n: int = N, *events: Event) -> World:
    scene = mujoco.MjSpec.from_string(XML)
    for event in events:
        event.prepare(scene)
    sim = BatchSimulator(scene.compile(), n, threads=1)
    return World(sim, WorldRandom(n, sim.device))


def run(world: World, *events: Event, mask: list[bool] | None = None) -> EventSchedule:
    schedule = EventSchedule(events, world, dt=0.05)
    n = world.sim.num_envs
    worlds = Selection(torch.tensor(mask if mask is not None else [True] * n))
    schedule.reset(worlds, world.random.begin_episode(worlds))
    return schedule


def field(world: World, name: str) -> np.ndarray:
    return world.sim.model_field(name).numpy()


def test_mass_scales_inertia_and_the_derived_constants_are_those_of_a_compiled_model() -> None:
    world = world_of()
    run(world, ModelTerm("mass", ["arm/*", "cube"], Spread(low=0.5, high=2.0)))
    mass = field(world, "body_mass")
    nominal = world.sim.model.body_mass
    factor = mass[:, 1:] / nominal[1:]
    assert factor.min() >= 0.5
    assert factor.max() <= 2.0
    assert len(np.unique(factor.round(9))) == N * 3
    np.testing.assert_allclose(
        field(world, "body_inertia")[:, 1:], world.sim.model.body_inertia[1:] * factor[..., None], rtol=1e-12
    )
    derived = {k: field(world, k) for k in DERIVED if hasattr(world.sim.model, k)}
    assert len(derived) >= 4
    for i in range(N):
        spec = mujoco.MjSpec.from_string(XML)
        for j, name in enumerate(("upper", "lower", "cube")):
            geom = spec.geom(name)
            geom.mass *= factor[i, j]
        compiled = spec.compile()
        for name, values in derived.items():
            np.testing.assert_allclose(values[i], getattr(compiled, name), rtol=1e-6, err_msg=name)


def test_armature_changes_the_derived_constants_too() -> None:
    world = world_of(2)
    run(world, ModelTerm("armature", ["shoulder", "elbow"], Spread(operation="=", low=0.2, high=0.6)))
    spec = mujoco.MjSpec.from_string(XML)
    for j, name in enumerate(("shoulder", "elbow")):
        spec.joint(name).armature = field(world, "dof_armature")[1, j]
    np.testing.assert_allclose(field(world, "dof_invweight0")[1], spec.compile().dof_invweight0, rtol=1e-6)


def test_gains_enter_both_sides_of_the_servo() -> None:
    world = world_of()
    run(
        world,
        ModelTerm("position_gain", ["shoulder", "elbow"], Spread(low=0.8, high=1.2)),
        ModelTerm("velocity_gain", ["elbow"], Spread(low=2.0, high=2.0)),
        ModelTerm("force_limit", ["elbow"], Spread(low=0.5, high=0.5)),
    )
    gain, bias = field(world, "actuator_gainprm"), field(world, "actuator_biasprm")
    np.testing.assert_allclose(gain[:, :, 0], -bias[:, :, 1], rtol=1e-12)
    assert (gain[:, 0, 0] / 50).std() > 0.01
    np.testing.assert_allclose(bias[:, :, 2], [[-5.0, -6.0]] * N)
    np.testing.assert_allclose(field(world, "actuator_forcerange")[:, 1], [[-10.0, 10.0]] * N)
    np.testing.assert_allclose(field(world, "actuator_forcerange")[:, 0], [[-40.0, 40.0]] * N)


def test_each_operation_and_component_by_hand() -> None:
    events = [
        ModelTerm("gravity", [], Spread(operation="+", low=0.5, high=0.5)),
        ModelTerm("friction", ["cube"], Spread(operation="=", low=0.25, high=0.25)),
        ModelTerm("damping", ["elbow"], Spread(operation="+", low=0.25, high=0.25)),
        ModelTerm("friction_loss", ["elbow"], Spread(low=0.25, high=0.25)),
        ModelTerm("contact_time", ["floor"], Spread(low=2.0, high=2.0)),
        ModelTerm("center_of_mass", ["arm/lower"], Spread(operation="+", low=0.01, high=0.01)),
        ModelTerm("actuator_delay", ["elbow"], Spread(operation="=", low=0.004, high=0.004)),
    ]
    world = world_of(1, *events)
    run(world, *events)
    m = world.sim.model
    np.testing.assert_allclose(field(world, "opt.gravity")[0], [0.5, 0.5, -9.31])
    np.testing.assert_allclose(field(world, "geom_friction")[0, -1], [0.25, *m.geom_friction[-1, 1:]])
    np.testing.assert_allclose(field(world, "geom_friction")[0, 0], m.geom_friction[0])
    np.testing.assert_allclose(field(world, "dof_damping")[0, :2], [1.0, 0.75])
    np.testing.assert_allclose(field(world, "dof_frictionloss")[0, :2], [0.2, 0.025])
    np.testing.assert_allclose(field(world, "geom_solref")[0, 0], [0.04, 1.0])
    np.testing.assert_allclose(field(world, "body_ipos")[0, 2], m.body_ipos[2] + 0.01)
    np.testing.assert_allclose(field(world, "actuator_delay")[0], [0.0, 0.004])


@pytest.mark.parametrize("quantity", sorted(QUANTITIES))
def test_nothing_compounds_a_point_changes_nothing_and_others_are_left_alone(quantity: str) -> None:
    names = {
        "body": ["cube"], "geom": ["cube"], "joint": ["elbow"], "actuator": ["elbow"], "option": [], "camera": ["eye"],
        "light": ["lamp"], "material": ["wood"], "sensor": ["angle"],
    }  # fmt: skip
    q = QUANTITIES[quantity]
    if q.operations == "=":
        pytest.skip("has no nominal value that could be scaled")
    term = ModelTerm(quantity, names[q.kind], Spread(low=1.03125, high=1.03125))
    world = world_of(N, term)
    parts = [q.main[0], *(f for f, _ in q.follow)]
    before = {p: field(world, p).copy() for p in parts}
    run(world, ModelTerm(quantity, names[q.kind], Spread(low=1.0, high=1.0)))
    for p in parts:
        np.testing.assert_array_equal(field(world, p), before[p])
    for _ in range(3):
        run(world, term, mask=[True, False, True, False])
    once = {p: field(world, p).copy() for p in parts}
    for p in parts:
        np.testing.assert_array_equal(once[p][[1, 3]], before[p][[1, 3]])
        ratio = once[p][0][before[p][0] != 0] / before[p][0][before[p][0] != 0]
        assert set(ratio.round(9)) <= {1.0, 1.03125}


def test_one_number_for_all_things_or_one_each() -> None:
    world = world_of()
    run(world, ModelTerm("damping", ["shoulder", "elbow"], Spread(low=0.5, high=2.0), shared=True))
    factor = field(world, "dof_damping")[:, :2] / np.array([1.0, 0.5])
    np.testing.assert_allclose(factor[:, 0], factor[:, 1])
    assert factor[:, 0].std() > 0.01


def test_the_same_numbers_whatever_the_neighbours() -> None:
    term = lambda: ModelTerm("mass", ["cube"], Spread(low=0.5, high=2.0))  # noqa: E731
    alone, together = world_of(1), world_of(5)
    run_seeded(alone, term(), [7])
    run_seeded(together, term(), [1, 2, 3, 7, 5])
    assert field(alone, "body_mass")[0, 3] == field(together, "body_mass")[3, 3]


def run_seeded(world: World, event: Event, seeds: list[int]) -> None:
    schedule = EventSchedule([event], world, dt=0.05)
    everyone = Selection.all(world.sim.num_envs, world.sim.device)
    schedule.reset(everyone, world.random.begin_episode(everyone, torch.tensor(seeds)))


def test_dense_and_sparse_selections_write_the_same() -> None:
    values = []
    for dense in (False, True):
        term = ModelTerm("center_of_mass", ["cube", "arm/*"], Spread(operation="+", low=-0.1, high=0.1))
        world = world_of(N, term)
        schedule = EventSchedule([term], world, dt=0.05)
        worlds = Selection(torch.tensor([True, False, True, True]), dense=dense)
        schedule.reset(worlds, world.random.begin_episode(worlds))
        values.append(field(world, "body_ipos").copy())
    np.testing.assert_array_equal(values[0], values[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelTerm("mas", ["cube"], Spread()), r"unknown quantity 'mas'.*mass"),
        (lambda: ModelTerm("mass", ["cub"], Spread()), r"no body 'cub'.*cube"),
        (lambda: ModelTerm("mass", ["leg/*"], Spread()), r"no body 'leg/\*'"),
        (lambda: ModelTerm("mass", [], Spread()), "no names"),
        (lambda: ModelTerm("gravity", ["cube"], Spread()), "whole world"),
        (lambda: ModelTerm("mass", "cube", Spread()), r"names='cube'; expected a list .*: \['cube'\]"),
        (lambda: JointOffset([], Spread(operation="+")), "no names"),
        (lambda: ModelTerm("damping", ["elbow"], Spread(low=-1.0)), r"reach -0\.5 N s/m .*; expected 0 or more"),
        (lambda: ModelTerm("actuator_delay", ["elbow"], Spread(operation="=", low=-0.1)), "expected 0 or more"),
        (
            lambda: ModelTerm("mass", ["cube"], Spread(low=-1.0)),
            r"cube would reach -0\.3 kg; expected more than 0",
        ),
        (lambda: ModelTerm("mass", ["cube"], Spread(operation="+", low=-0.4, high=0.0)), "would reach -0.1 kg"),
        (lambda: ModelTerm("damping", ["cube*"], Spread()), "no joint 'cube"),
        (lambda: Spread(low=2.0, high=1.0), "range 2 .. 1"),
        (lambda: Spread(distribution="loguniform", low=0.0), "log-uniform"),
        (lambda: Spread(distribution="unifrom"), "unknown distribution 'unifrom'.*uniform"),
        (lambda: Spread(distribution="choice"), "no values"),
        (lambda: Spread(operation="/"), "unknown operation"),
        (lambda: Push("arm/upper", linear=1.0, interval=(1.0, 2.0)), "no free joint"),
        (lambda: Push("cube", linear=1.0, interval=(0.0, 2.0)), "interval"),
        (lambda: JointOffset(["elbow"], Spread(operation="*")), "expected '\\+'"),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(world_of(1), make())


def test_a_force_limit_that_is_not_there_cannot_vary() -> None:
    sim = BatchSimulator(mujoco.MjModel.from_xml_string(XML.replace(' forcerange="-20 20"', "")), 1, threads=1)
    with pytest.raises(ConfigError, match="force_limit: elbow have none"):
        run(World(sim, WorldRandom(1, sim.device)), ModelTerm("force_limit", ["*o*"], Spread()))


@given(
    st.sampled_from(["uniform", "loguniform", "normal"]), st.floats(0.01, 10), st.floats(0, 10), st.integers(0, 2**40)
)
@settings(max_examples=50, deadline=None)
def test_draws_stay_in_range(distribution: str, low: float, width: float, seed: int) -> None:
    spread = Spread(distribution=distribution, low=low, high=low + width)
    x = spread.draw(Draws(torch.tensor([seed, seed + 1])), (50,))
    assert x.shape == (2, 50)
    assert float(x.min()) >= low * (1 - 1e-6)
    assert float(x.max()) <= (low + width) * (1 + 1e-6)


def test_distributions_have_their_moments() -> None:
    draws = Draws(torch.arange(2000))
    normal = Spread(operation="+", distribution="normal", low=-2.0, high=2.0).draw(draws, (10,))
    assert abs(float(normal.mean())) < 0.02
    assert float(normal.std()) == pytest.approx(0.95, abs=0.03)  # a normal of 1 cut off at 2 sigma keeps 0.96
    choice = Spread(distribution="choice", values=(1.0, 3.0)).draw(draws, (10,))
    assert set(choice.unique().tolist()) == {1.0, 3.0}
    assert float((choice == 3.0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_pushes_come_at_intervals_and_only_where_due() -> None:
    world = world_of(50)
    schedule = run(world, Push("cube", linear=0.5, angular=0.2, interval=(0.5, 1.0)))
    qvel = world.sim.field("qvel")
    first = torch.full((50,), -1)
    for k in range(25):
        schedule.interval(torch.full((50,), k))
        moved = (qvel[:, 2:].abs().sum(1) > 0) & (first < 0)
        first[moved] = k
    assert int(first.min()) >= 10  # 0.5 s at 20 Hz
    assert int(first.max()) <= 20
    assert len(first.unique()) > 3
    assert float(qvel[:, 2:5].abs().max()) <= 1.0  # two pushes at most
    assert float(qvel[:, :2].abs().max()) == 0.0


def test_joint_offsets_stay_within_limits() -> None:
    world = world_of(20)
    run(world, JointOffset(["elbow"], Spread(operation="+", low=-3.0, high=3.0)))
    elbow = world.joints(["elbow"]).pos()[:, 0]
    assert float(elbow.abs().max()) == pytest.approx(1.0)
    assert float(elbow.std()) > 0.3
    assert float(world.joints(["shoulder"]).pos().abs().max()) == 0.0


def test_a_delay_makes_room_for_its_longest_value_and_delays_motion() -> None:
    term = ModelTerm(
        "actuator_delay", ["shoulder"], Spread(operation="=", distribution="choice", values=(0.0, 0.02, 0.04))
    )
    world = world_of(30, term)
    run(world, term)
    world.sim.model_field("opt.gravity").zero_()
    world.sim.field("ctrl")[:, 0] = 1.0
    first = np.full(30, -1)
    speed = world.joints(["shoulder"])
    for k in range(40):
        world.sim.step()
        moving = (speed.vel()[:, 0].abs() > 1e-7).numpy() & (first < 0)
        first[moving] = k
    np.testing.assert_allclose(first * 0.002, field(world, "actuator_delay")[:, 0], atol=1e-9)
    assert len(set(first)) == 3


def test_terms_that_set_the_same_numbers_multiply_and_still_do_not_compound() -> None:
    light, heavy = Spread(low=0.5, high=0.5), Spread(low=4.0, high=4.0)
    terms = [ModelTerm("mass", ["cube"], light), ModelTerm("mass", ["cube", "arm/lower"], heavy)]
    gains = [ModelTerm("position_gain", ["*"], light), ModelTerm("position_gain", ["elbow"], heavy)]
    world = world_of(2)
    schedule = EventSchedule([*terms, *gains], world, dt=0.05)
    for _ in range(3):
        everyone = Selection.all(2, world.sim.device)
        schedule.reset(everyone, world.random.begin_episode(everyone))
    m = world.sim.model
    factor = np.array([1.0, 1.0, 4.0, 2.0])
    np.testing.assert_allclose(field(world, "body_mass")[1], m.body_mass * factor)
    np.testing.assert_allclose(field(world, "body_inertia")[1], m.body_inertia * factor[:, None])
    np.testing.assert_allclose(field(world, "actuator_gainprm")[0, :, 0], [25.0, 60.0])
    np.testing.assert_allclose(field(world, "actuator_biasprm")[0, :, 1], [-25.0, -60.0])


def test_terms_that_set_the_same_numbers_at_different_times_are_refused() -> None:
    terms = [ModelTerm("mass", ["cube"], Spread(), when="startup"), ModelTerm("mass", ["*u*"], Spread())]
    with pytest.raises(ConfigError, match="two events set body_mass of the same things, at startup and at reset"):
        EventSchedule(terms, world_of(1), dt=0.05)
    EventSchedule([terms[0], ModelTerm("mass", ["arm/*"], Spread())], world_of(1), dt=0.05)
