"""Events in environments and on both engines; what the terms write is in test_terms.py."""

from __future__ import annotations

import pytest
import torch

from tests.envs.engine_models import model
from visuomotor.envs.sim.engines import EngineConfig, make_simulator
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.events import Event, EventSchedule
from visuomotor.envs.sim.random import Draws, WorldRandom
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.sim.spread import Spread
from visuomotor.envs.sim.terms import ModelTerm
from visuomotor.envs.sim.world import World
from visuomotor.envs.tasks.lift import Lift, LiftConfig

N = 3


class Heavier(Event):
    """Three times the mass, now and then."""

    when, interval, changes_constants = "interval", (0.1, 0.1), True

    def bind(self, world: World) -> None:
        self.mass, self.nominal = world.sim.model_field("body_mass"), world.sim.nominal("body_mass")

    def apply(self, worlds: Selection, draws: Draws) -> None:
        worlds.put(self.mass, 3.0 * self.nominal.expand(worlds.n, -1))


@pytest.mark.timeout(900)  # compiles MuJoCo Warp's kernels
@pytest.mark.parametrize("engine", ["batch", "warp"])
def test_masses_that_change_in_mid_episode_act_in_full_in_the_next_step(engine: str) -> None:
    everyone = Selection.all(N, torch.device("cpu"))
    ends = []
    for by_event in (True, False):
        sim = make_simulator(model(), N, EngineConfig(name=engine, device="cpu", threads=engine == "batch"))
        sim.field("xpos")
        sim.field("qvel")[:, 7] += torch.arange(N) * 0.2
        sim.forward(everyone)
        if by_event:
            schedule = EventSchedule([Heavier()], World(sim, WorldRandom(N, sim.device)), 0.1)
            schedule.interval(torch.ones(N, dtype=torch.int64))
        else:
            sim.model_field("body_mass")[:] = 3.0 * sim.nominal("body_mass")
            sim.set_const(everyone)
            sim.forward(everyone)
        sim.step(1)
        ends.append(sim.state())
    assert torch.equal(*ends)


def test_environments_may_share_their_events() -> None:
    """An event is bound to its worlds: the second environment must not take it from the first."""
    config = LiftConfig(engine=EngineConfig(threads=1))
    events = [ModelTerm("mass", ["cube"], Spread(low=2.0, high=2.0))]
    first = SimVecEnv(Lift(config), config, 1, events)
    second = SimVecEnv(Lift(config), config, 1, events)
    first.reset(seeds=[3])
    cube = first.sim.model.body("cube").id
    masses = [float(env.sim.model_field("body_mass")[0, cube]) for env in (first, second)]
    assert masses == pytest.approx([0.2, 0.1])
