"""The way a GPU is driven: all worlds are computed, masks decide, and nothing is asked of the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from visuomotor.envs.registry import get_task, make_env, task_names
from visuomotor.envs.sim import arrays
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.events import Event
from visuomotor.envs.sim.random import Draws
from visuomotor.envs.sim.selection import Selection, constant
from visuomotor.envs.sim.spread import Spread
from visuomotor.envs.sim.task import SimConfig
from visuomotor.envs.sim.terms import ModelTerm, Push
from visuomotor.envs.sim.world import names_of
from visuomotor.envs.tasks.lift import Lift, LiftConfig
from visuomotor.envs.tasks.tabletop import TabletopTask

# Operations that make the host wait for a GPU: values read back, sizes that depend on values, and arrays that are
# copied from the host (single numbers travel with the kernel).
_WAITS = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "unique", "equal", "is_nonzero")


class Waits(TorchDispatchMode):
    """Collects the names of such operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if name in _WAITS and not (name == "lift_fresh" and args[0].ndim == 0):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def lift(n: int, engine: str = "batch", **settings: Any) -> SimVecEnv:
    config = LiftConfig(engine=EngineConfig(name=engine, device="cpu", threads=engine == "batch"), **settings)
    return SimVecEnv(Lift(config), config, n)


def rollout(env: SimVecEnv, actions: torch.Tensor) -> list[torch.Tensor]:
    found = [*env.reset(seeds=range(env.num_envs)).values()]
    env._elapsed[:] = torch.arange(env.num_envs)  # worlds out of step with one another
    for action in actions:
        s = env.step(action)
        found += [*s.obs.values(), *s.final_obs.values(), s.reward, s.terminated, s.truncated, *s.info.values()]
        found.append(env.sim.state())
    return found


def test_dense_selections_give_what_sparse_ones_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, over resets of some worlds and of none; then an environment step asks the device for nothing."""
    sparse, dense = lift(4, max_episode_steps=5), lift(4, max_episode_steps=5)
    actions = torch.rand(12, 4, sparse.action_spec.size, generator=torch.Generator().manual_seed(0))
    actions = sparse.action_low + actions * (sparse.action_high - sparse.action_low)
    expected = rollout(sparse, actions)
    monkeypatch.setattr(Selection.__init__, "__defaults__", (True,))
    monkeypatch.setattr(dense, "_may_ask", False)
    for found, wanted in zip(rollout(dense, actions), expected, strict=True):
        assert torch.equal(found, wanted)
    monkeypatch.setattr(arrays, "_NUMPY", False)
    with Waits() as waits:
        for action in actions:
            dense.step(action)
    assert waits.seen == []


@pytest.mark.parametrize("task", [t for t in task_names() if issubclass(get_task(t).config_class, SimConfig)])
def test_no_task_and_no_term_asks_the_device_for_anything(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do experts: three steps, with a reset of some worlds, pushes and every distribution of the terms."""
    monkeypatch.setattr(Selection.__init__, "__defaults__", (True,))
    monkeypatch.setattr(arrays, "_NUMPY", False)
    config = get_task(task).config_class(engine=EngineConfig(threads=1), max_episode_steps=2)
    made = make_env(config, 1)
    assert isinstance(made, SimVecEnv)
    spreads = [Spread(distribution="choice", values=(1.0, 1.1)), Spread(distribution="normal", low=0.9, high=1.1)]
    events: list[Event] = [ModelTerm("gravity", [], s) for s in spreads]
    config.privileged = isinstance(made.task, TabletopTask)
    if isinstance(made.task, TabletopTask) and made.task.objects:
        body = next(n for n in names_of(made.sim.model, "body") if n in made.task.objects)
        events.append(Push(body, linear=0.1, interval=(0.05, 0.05)))
    kind: Any = type(made.task)
    env = SimVecEnv(kind(config), config, 3, events)
    monkeypatch.setattr(env, "_may_ask", False)
    env.reset(seeds=range(3))
    expert = env.task.expert(0.5) if config.privileged else None
    everyone = Selection.all(3, env.device)
    for k in range(2):  # in the first round constants are made
        with Waits() as waits:
            if expert is not None:
                expert.reset(everyone, env.world.random.draws(everyone, 99, env._elapsed))
            for _ in range(3):
                action = torch.zeros(3, env.action_spec.size) if expert is None else expert.act()
                env.step(action)
        assert k == 0 or waits.seen == []


def test_constants_are_made_once_and_outlive_inference_mode() -> None:
    with torch.inference_mode():
        first = constant((1.0, 2.0, 5.5), torch.device("cpu"))
    assert constant((1.0, 2.0, 5.5), torch.device("cpu")) is first
    assert not first.is_inference()


def test_waits_are_noticed() -> None:
    with Waits() as waits:
        x = torch.zeros(3)
        _ = bool(x.any()), x.nonzero(), torch.tensor([1.0, 2.0])
    assert {"_local_scalar_dense", "nonzero", "lift_fresh"} <= set(waits.seen)


@pytest.mark.slow
@pytest.mark.timeout(900)  # compiles MuJoCo Warp's kernels
def test_the_expert_lifts_as_often_on_both_engines() -> None:
    """16 paired seeds: within one episode of each other. Seen: 16 of 16 on both."""
    n = 16
    solved = {}
    for engine in ("batch", "warp"):
        env = lift(n, engine)
        env.reset(seeds=range(n))
        expert = env.task.expert(0.0)
        expert.reset(Selection.all(n, env.device), Draws(env._random.key))
        success, done = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
        for _ in range(env.max_episode_steps):
            s = env.advance(expert.act(), ~done)
            success |= s.info["success"] & ~done
            done |= s.terminated | s.truncated
            if bool(done.all()):
                break
        solved[engine] = success
        assert env.sim.overflow() == {"contacts": 0, "constraints": 0}
    print(
        {k: f"{int(v.sum())} of {n}" for k, v in solved.items()},
        "differ:",
        int((solved["batch"] ^ solved["warp"]).sum()),
    )
    assert abs(int(solved["batch"].sum()) - int(solved["warp"].sum())) <= 1
    assert int(solved["batch"].sum()) >= 15
