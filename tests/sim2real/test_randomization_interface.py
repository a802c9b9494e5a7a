"""Terms of actuation and sensing in environments: by hand, from what the worlds truly are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import rot6d_to_matrix
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.tasks.lift import Lift, LiftConfig
from visuomotor.envs.tasks.reacher import Reacher, ReacherConfig
from visuomotor.sim2real.randomization.build import build_events
from visuomotor.sim2real.randomization.config import RandomizationConfig, TermConfig
from visuomotor.sim2real.randomization.registry import get_term

ENGINE = EngineConfig(threads=1)


def term(kind: str, **settings: Any) -> TermConfig:
    return get_term(kind).config_class(term=kind, **settings)


def reacher(n: int, *terms: TermConfig, steps: int = 30) -> SimVecEnv:
    config = ReacherConfig(engine=ENGINE, max_episode_steps=steps, end_on_success=False)
    events = build_events(RandomizationConfig(terms={str(i): t for i, t in enumerate(terms)}))
    return SimVecEnv(Reacher(config), config, n, events)


def truth(env: SimVecEnv) -> Tensor:
    return env.task.observe()["state"]


def push(env: SimVecEnv, t: int) -> Tensor:
    return 0.5 * torch.sin(torch.arange(env.num_envs)[:, None] + 0.7 * t + torch.arange(2))


def test_noise_has_its_deviation_and_is_the_same_whatever_the_neighbours() -> None:
    noise = term("observation_noise", names=["state"], low=0.1, high=0.1)
    env = reacher(600, noise)
    obs = env.reset(seeds=range(600))["state"]
    z = (obs - truth(env)) / 0.1
    assert abs(float(z.mean())) < 0.07
    assert float(z.std()) == pytest.approx(1.0, abs=0.05)
    alone = reacher(1, noise)
    torch.testing.assert_close(alone.reset(seeds=[77])["state"][0], obs[77], rtol=0, atol=0)
    a, b = (e.step(torch.zeros(e.num_envs, 2)).obs["state"] for e in (env, alone))
    torch.testing.assert_close(a[77], b[0], rtol=0, atol=1e-7)


def test_bias_drift_and_scale_by_hand() -> None:
    env = reacher(
        3,
        term("observation_scale", names=["state"], low=0.5, high=2.0),
        term("observation_bias", names=["state"], low=-1.0, high=1.0),
        term("observation_drift", names=["state"], low=-3.0, high=3.0, shared=True),
        steps=6,
    )
    obs = env.reset(seeds=[1, 2, 3])["state"]
    scale, bias, drift = (e.buffers()["number"].clone() for e in env.events._events)
    assert drift.shape == (3, 1)
    torch.testing.assert_close(obs, truth(env) * scale + bias)
    for t in range(1, 6):
        obs = env.step(push(env, t)).obs["state"]
        torch.testing.assert_close(obs, truth(env) * scale + bias + drift * t / env.fps)
    env.step(push(env, 6))  # time is up: new episodes, new numbers
    assert not torch.equal(env.events._events[1].buffers()["number"], bias)


def test_a_point_changes_nothing_bit_for_bit() -> None:
    kinds = ("observation_noise", "observation_bias", "observation_drift", "observation_delay", "observation_dropout")
    zero = [term(k, names=["state"]) for k in (*kinds, "observation_scale")]
    zero += [term(k, names=["*"]) for k in ("action_noise", "action_bias", "action_scale")]
    zero += [term(k) for k in ("control_delay", "control_jitter", "command_dropout")]
    env, plain = reacher(4, *zero, steps=8), reacher(4, steps=8)
    for e in (env, plain):
        e.reset(seeds=range(4))
    for t in range(20):
        ours, theirs = env.step(push(env, t)), plain.step(push(plain, t))
        assert torch.equal(ours.obs["state"], theirs.obs["state"])
        assert torch.equal(ours.reward, theirs.reward)


def test_delayed_observations_are_those_of_earlier_steps() -> None:
    delay = term("observation_delay", names=["state"], distribution="choice", values=[0.0, 0.04, 0.1], low=0, high=0)
    env = reacher(40, delay, steps=9)
    shown = [env.reset(seeds=range(40))["state"]]
    late = (env.events._events[0].buffers()["number"][:, 0] * env.fps).round().long()
    assert set(late.tolist()) == {0, round(0.04 * env.fps), round(0.1 * env.fps)}
    true = [truth(env)]
    for t in range(8):
        shown.append(env.step(push(env, t)).obs["state"])
        true.append(truth(env))
    for t, obs in enumerate(shown):
        expected = torch.stack([true[max(t - int(k), 0)][i] for i, k in enumerate(late)])
        assert torch.equal(obs, expected)
    last = env.step(push(env, 8))
    assert last.truncated.all()
    assert not torch.equal(last.obs["state"], last.final_obs["state"])
    assert torch.equal(last.obs["state"], truth(env))  # nothing of the last episode is left


def test_dropouts_hold_the_last_value_that_came() -> None:
    env = reacher(200, term("observation_dropout", names=["state"], low=0.3, high=0.3))
    held = env.reset(seeds=range(200))["state"]
    assert torch.equal(held, truth(env))
    shares = []
    for t in range(20):
        obs, true = env.step(push(env, t)).obs["state"], truth(env)
        lost = obs[:, 6] != true[:, 6]
        assert torch.equal(obs[lost], held[lost])
        assert torch.equal(obs[~lost], true[~lost])
        shares.append(float(lost.float().mean()))
        held = obs
    assert float(np.mean(shares)) == pytest.approx(0.3, abs=0.03)


EVERYTHING: list[tuple[str, dict[str, Any]]] = [
    ("observation_noise", {"names": ["state"], "high": 0.1}),
    ("observation_drift", {"names": ["state"], "high": 0.1}),
    ("observation_delay", {"names": ["state"], "high": 0.1}),
    ("observation_dropout", {"names": ["state"], "high": 0.5}),
    ("action_noise", {"names": ["*"], "high": 0.2}),
    ("control_jitter", {"high": 0.1}),
    ("control_delay", {"high": 0.05}),
    ("command_dropout", {"high": 0.3}),
    ("mass", {"names": ["*er"], "low": 0.5, "high": 2.0}),
]


def test_showing_again_shows_the_same_and_snapshots_hold_everything() -> None:
    env = reacher(6, *(term(k, **s) for k, s in EVERYTHING), steps=7)
    env.reset(seeds=range(6))
    env.reset(seeds=range(10, 16), mask=torch.tensor([True, False] * 3))
    for t in range(5):
        step = env.step(push(env, t))
        ended = step.terminated | step.truncated
        assert torch.equal(step.obs["state"][~ended], step.final_obs["state"][~ended])
    snapshot = env.snapshot()
    before = [env.step(push(env, t)) for t in range(15)]
    env.restore(snapshot)
    for t, old in enumerate(before):
        new = env.step(push(env, t))
        assert torch.equal(new.obs["state"], old.obs["state"])
        assert torch.equal(new.reward, old.reward)


def test_chunks_and_single_steps_are_the_same_episodes() -> None:
    envs = [reacher(4, *(term(k, **s) for k, s in EVERYTHING), steps=20) for _ in range(2)]
    for env in envs:
        env.reset(seeds=range(4))
    actions = torch.stack([push(envs[0], t) for t in range(8)], 1)
    chunk = envs[0].step_chunk(actions)
    for t in range(8):
        last = envs[1].step(actions[:, t])
    torch.testing.assert_close(chunk.obs["state"], last.obs["state"], rtol=0, atol=0)


def inputs(env: SimVecEnv, steps: int) -> tuple[Tensor, Tensor]:
    """Actuator inputs ``[steps, N]`` that the actions ``[steps, N]`` led to."""
    given, got = [], []
    for t in range(steps):
        given.append(push(env, t)[:, 0])
        env.step(push(env, t))
        got.append(env.sim.field("ctrl")[:, 0].float().clone())
    return torch.stack(given), torch.stack(got)


def test_errors_of_actions_by_hand() -> None:
    env = reacher(500, term("action_noise", names=["*"], low=0.1, high=0.1), term("action_bias", names=["*"], high=0.2))
    env.reset(seeds=range(500))
    half = float(env.action_high[0] - env.action_low[0]) / 2
    bias = env.events._events[1].buffers()["number"][:, 0]
    given, got = inputs(env, 1)
    free = got.abs() < half
    z = (got - given - bias * half)[free] / (0.1 * half)
    assert float(z.std()) == pytest.approx(1.0, abs=0.1)
    env = reacher(3, term("action_scale", names=["joint0"], low=0.5, high=0.5))
    env.reset()
    given, got = inputs(env, 2)
    torch.testing.assert_close(got, 0.5 * given)


def test_late_commands_act_later() -> None:
    env = reacher(5, term("control_delay", distribution="choice", values=[0.0, 2 / 50, 3 / 50]))
    env.reset(seeds=range(5))
    late = (env.events._events[0].buffers()["number"][:, 0] * env.fps).round().long()
    given, got = inputs(env, 12)
    for i, k in enumerate(late.tolist()):
        assert torch.equal(got[:k, i], torch.zeros(k))
        torch.testing.assert_close(got[k:, i], given[: 12 - k, i])


def test_a_delay_of_half_a_step_more_has_room() -> None:
    """4.5 steps are 4 in float64 and 5 in the float32 that they are drawn in."""
    assert round(0.09 / (1 / 50)) == 4
    env = reacher(1, term("control_delay", low=0.09, high=0.09))
    env.reset(seeds=[0])
    given, got = inputs(env, 12)
    torch.testing.assert_close(got[5:, 0], given[:7, 0])


def test_commands_that_overtake_each_other_act_in_order() -> None:
    env = reacher(50, term("control_jitter", low=0.08, high=0.08), steps=60)
    env.reset(seeds=range(50))
    event, n = env.events._events[0], 50
    given, arrival, acted = [], [], []
    for t in range(40):
        given.append(push(env, t)[:, 0])
        env.step(push(env, t))
        slot = t % event.buffers()["arrival"].shape[1]
        arrival.append(event.buffers()["arrival"][:, slot].clone())
        acted.append(env.sim.field("ctrl")[:, 0].float().clone())
    late = torch.stack(arrival) - torch.arange(40)[:, None]
    assert set(late.unique().tolist()) == set(range(round(0.08 * env.fps) + 1))
    for i in range(n):
        last, value = -1, torch.tensor(0.0)
        for t in range(40):
            there = [s for s in range(last + 1, t + 1) if arrival[s][i] <= t]
            if there:
                last, value = there[-1], given[there[-1]][i]
            assert acted[t][i] == value


def test_lost_commands_leave_the_targets() -> None:
    env = reacher(300, term("command_dropout", low=0.25, high=0.25))
    env.reset(seeds=range(300))
    given, got = inputs(env, 10)
    lost = got != given
    assert float(lost.float().mean()) == pytest.approx(0.25, abs=0.03)
    before = torch.cat([torch.zeros(1, 300), got[:-1]])
    assert torch.equal(got[lost], before[lost])


def lift(n: int, *terms: TermConfig, engine: str = "batch") -> SimVecEnv:
    config = LiftConfig(engine=EngineConfig(name=engine, device="cpu", threads=engine == "batch"), privileged=True)
    events = build_events(RandomizationConfig(terms={str(i): t for i, t in enumerate(terms)}))
    return SimVecEnv(Lift(config), config, n, events)


@pytest.mark.timeout(900)  # compiles MuJoCo Warp's kernels
@pytest.mark.parametrize(("engine", "tolerance"), [("batch", 1e-5), ("warp", 1e-4)])
def test_an_arm_with_encoders_that_are_off_believes_what_it_reads(engine: str, tolerance: float) -> None:
    offset = term("encoder_offset", names=["robot/joint*"], low=-0.05, high=0.05)
    env, plain = lift(2, offset, engine=engine), lift(2, engine=engine)
    obs, honest = env.reset(seeds=[1, 2]), plain.reset(seeds=[1, 2])
    arm = env.task.arms[0]  # type: ignore[attr-defined]
    for key in ("joint_pos", "tcp_pos", "tcp_rot6d", "object"):  # at home by its own reading
        torch.testing.assert_close(obs[key], honest[key], rtol=0, atol=tolerance)
    off = env.events._events[0].buffers()["number"]
    true_pos, true_rot = arm.chain.forward(obs["joint_pos"] - off)
    assert float((true_pos - obs["tcp_pos"]).norm(dim=1).min()) > 1e-3
    torch.testing.assert_close(arm.tcp.pos(), true_pos, rtol=0, atol=tolerance)
    torch.testing.assert_close(arm.tcp.matrix(), true_rot, rtol=0, atol=tolerance)
    for _ in range(5):
        step = env.step(torch.zeros(2, 7))
    torch.testing.assert_close(step.obs["joint_pos"], obs["joint_pos"], rtol=0, atol=0.02)  # the servos hold readings


def test_derived_constants_with_encoders_that_are_off_are_those_of_a_compiled_model() -> None:
    import copy

    import mujoco

    env = lift(2, term("encoder_offset", names=["robot/joint*"], low=-0.3, high=0.3))
    env.reset(seeds=[1, 2])
    m = copy.copy(env.sim.model)
    m.qpos0[:] = env.sim.model_field("qpos0")[1].numpy()
    mujoco.mj_setConst(m, mujoco.MjData(m))
    for name in ("dof_invweight0", "body_invweight0", "actuator_acc0"):
        np.testing.assert_allclose(env.sim.model_field(name)[1].numpy(), getattr(m, name), rtol=1e-9)


def test_wrong_estimates_of_poses_are_poses() -> None:
    settings = {"names": ["object"], "low": 0.02, "high": 0.02, "angle": 5.0}
    env = lift(200, term("pose_error", **settings))
    obs = env.reset(seeds=range(200))["object"]
    true = env.task.observe()["object"]
    assert float((obs - true)[:, :3].std()) == pytest.approx(0.02, rel=0.1)
    seen, real = rot6d_to_matrix(obs[:, 3:]), rot6d_to_matrix(true[:, 3:])
    torch.testing.assert_close(seen @ seen.mT, torch.eye(3).expand(200, 3, 3), rtol=0, atol=1e-5)
    angle = ((torch.diagonal(seen @ real.mT, dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos()
    assert float(angle.mean()) == pytest.approx(0.1 * 1.6, rel=0.1)  # the mean length of a normal vector in 3-D
    again = env.step(torch.zeros(200, 7)).obs["object"] - env.task.observe()["object"]
    torch.testing.assert_close(again[:, :3], (obs - true)[:, :3], rtol=0, atol=1e-6)
    env = lift(2, term("pose_error", **settings, each_step=True))
    first = env.reset(seeds=[0, 1])["object"] - env.task.observe()["object"]
    second = env.step(torch.zeros(2, 7)).obs["object"] - env.task.observe()["object"]
    assert float((first - second).abs().min()) > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (term("observation_noise", names=["joint_poss"]), "nothing observed is 'joint_poss'. Did you mean 'joint_pos'"),
        (term("observation_noise"), "no names; expected observations: joint_pos"),
        (term("observation_noise", names=["joint_pos"], low=-1.0), "range from -1; expected 0 or more"),
        (term("observation_bias", names=["joint_pos"], operation="*"), r"operation '\*'; expected '\+'"),
        (term("observation_dropout", names=["joint_pos"], high=2.0), "a probability up to 2"),
        (term("command_dropout", high=2.0), "a probability up to 2"),
        (term("control_delay", names=["slide"]), "expected none: it is of whole commands"),
        (term("object_size", names=["cube"], when="startup"), "when=startup: this term acts at reset"),
        (term("distractors", names=["cub"]), "no body 'cub'.*cube"),
        (term("action_noise", names=["joint9"]), "no component of the action is 'joint9'"),
        (term("encoder_offset", names=["robot/joint9"]), "no joint 'robot/joint9'"),
        (term("encoder_offset", names=["cube"]), "free or a ball"),
        (term("pose_error", names=["joint_pos"]), "no components <thing>_x"),
        (
            term("observation_bias", names=["joint_pos"], when="interval", interval=[1.0, 2.0]),
            "when=interval; expected startup or reset",
        ),
    ],
)
def test_mistakes_are_named(config: TermConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lift(1, config)
