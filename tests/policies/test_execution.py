"""Which action of which chunk is executed when, in every mode, with delays, in worlds that restart at different times.

The stand-in policy observes the time and returns chunks of (time of its observation, time that the action is for).
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.actions import ActionConfig
from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import axis_angle_to_quat, matrix_to_rot6d, quat_to_matrix
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.base import ChunkSizes, NetSizes
from visuomotor.policies.execution.build import make_actor
from visuomotor.policies.execution.config import ExecuteConfig, SteerConfig
from visuomotor.policies.execution.ensemble import mean_action
from visuomotor.policies.heads.flow import FlowConfig, FlowHead
from visuomotor.policies.heads.regression import RegressionConfig, RegressionHead
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP
from visuomotor.policies.policy import LossConfig, Policy
from visuomotor.policies.spec import PolicySpec

H, N_OBS = 16, 2
AHEAD = H - N_OBS + 1  # 15
SIZES = ChunkSizes(action_dim=2, horizon=H, n_obs=N_OBS, feature_dim=1)
SPEC = PolicySpec(
    obs={"clock": ArraySpec(shape=(1,)), "goal/clock": ArraySpec(shape=(1,))},
    action_key="action",
    action=ArraySpec(shape=(2,)),
    fps=10.0,
    window=WindowConfig(n_obs=N_OBS, horizon=H, n_exec=8),
    action_config=ActionConfig(),
    constant_keys=frozenset({"goal/clock"}),
)


class _Clock:
    """Knows the time, and records what it is asked."""

    def __init__(self, max_delay=0, head=None):
        self.spec, self.device, self.noise_shape = SPEC, torch.device("cpu"), (1, H, 2)
        self.head = head or FlowHead(FlowConfig(), SIZES)
        self.loss_config = LossConfig(max_delay=max_delay)
        self.calls = []

    def sample(self, obs, noise, *, prefix=None, guide=None, start=None):
        self.calls.append({"obs": obs, "noise": noise, "prefix": prefix, "guide": guide, "start": start})
        now = obs["clock"][:, -1]  # [B, 1]
        meant_for = now + torch.arange(H) - (N_OBS - 1)
        return torch.stack([now.expand(len(now), H), meant_for], dim=-1)

    def normalize_action(self, action, obs):
        return action

    unnormalize_action = normalize_action


def _run(config, steps, restarts=({},), policy=None):
    """Commands ``[steps, N, 2]`` of one world for each set of ``restarts``; the time is that of the episode."""
    actor = make_actor(policy or _Clock(), num_envs=len(restarts), config=config)
    actor.reset(list(range(len(restarts))))
    clock, out = torch.zeros(len(restarts)), []
    for t in range(steps):
        begins = torch.tensor([t in r for r in restarts])
        if begins.any():
            actor.reset([7] * len(restarts), mask=begins)
            clock[begins] = 0
        out.append(actor.act({"clock": clock[:, None].clone(), "goal/clock": clock[:, None] * 0 + 5}))
        clock += 1
    return torch.stack(out), actor


def test_a_late_chunk_takes_over_at_the_action_for_the_present():
    out, _ = _run(ExecuteConfig(n_exec=4, delay=2), 12)
    assert out[:, 0, 0].tolist() == [0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8]
    assert out[:, 0, 1].tolist() == list(range(12))  # always the action that was meant for now


def test_a_delay_as_long_as_a_chunk():
    out, _ = _run(ExecuteConfig(n_exec=3, delay=3), 12)
    assert out[:, 0, 0].tolist() == [0, 0, 0, 0, 0, 0, 3, 3, 3, 6, 6, 6]


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_world_keeps_its_own_time(data):
    delay = data.draw(st.integers(0, 7))
    n_exec = data.draw(st.integers(max(1, delay), AHEAD - delay))
    mode = data.draw(st.sampled_from(["receding", "rtc_guided", "warm"]))
    restarts = data.draw(st.lists(st.sets(st.integers(1, 39), max_size=3), min_size=1, max_size=3))
    out, _ = _run(ExecuteConfig(mode=mode, n_exec=n_exec, delay=delay), 40, restarts)
    for world, when in enumerate(restarts):
        began = 0
        for t in range(40):
            began = t if t in when else began
            age = t - began
            asked = [r for r in range(0, age + 1, n_exec) if r == 0 or r + delay <= age]
            assert out[t, world].tolist() == [asked[-1], age]


def test_observations_that_stay_the_same_have_no_history():
    policy = _Clock()
    _run(ExecuteConfig(n_exec=2), 4, policy=policy)
    assert policy.calls[-1]["obs"]["goal/clock"].tolist() == [[[5.0]]]
    assert policy.calls[-1]["obs"]["clock"].tolist() == [[[1.0], [2.0]]]


def test_ensemble_by_hand():
    out, _ = _run(ExecuteConfig(mode="ensemble", decay=0.5), 3)
    a, b = math.exp(-0.5), math.exp(-1.0)
    assert out[1, 0, 0] == pytest.approx((0 * 1 + 1 * a) / (1 + a))  # the oldest chunk has weight 1
    assert out[2, 0, 0] == pytest.approx((0 * 1 + 1 * a + 2 * b) / (1 + a + b))
    assert out[:, 0, 1].tolist() == pytest.approx([0, 1, 2])


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_ensemble_takes_the_chunks_that_are_there(data):
    delay = data.draw(st.integers(0, 7))
    n_exec = data.draw(st.integers(max(1, delay), AHEAD - delay))
    restarts = data.draw(st.lists(st.sets(st.integers(1, 39), max_size=2), min_size=1, max_size=3))
    config = ExecuteConfig(mode="ensemble", n_exec=n_exec, delay=delay, decay=0.3)
    out, _ = _run(config, 40, restarts)
    for world, when in enumerate(restarts):
        began = 0
        for t in range(40):
            began = t if t in when else began
            age = t - began
            there = [
                r for r in range(0, age + 1, n_exec) if (r == 0 or r + delay <= age) and age - r < AHEAD
            ]  # oldest first
            weight = [math.exp(-0.3 * i) for i in range(len(there))]
            mean = sum(w * r for w, r in zip(weight, there, strict=True)) / sum(weight)
            assert out[t, world].tolist() == pytest.approx([mean, age], abs=1e-4)


def test_angles_and_rotations_are_averaged_as_such():
    half = torch.full((1, 2), 0.5)
    turn = torch.tensor([[[math.pi - 0.1], [-math.pi + 0.1]]])
    got = mean_action(turn, half, ActionConfig(angle_dims=[0]))
    assert float(got) == pytest.approx(math.pi)  # not 0, and on the branch of the first

    axis = torch.tensor([[0.0, 0.0, 0.6], [0.0, 0.0, -0.6]])
    rot6d = matrix_to_rot6d(quat_to_matrix(axis_angle_to_quat(axis)))
    poses = torch.cat([torch.tensor([[1.0, 2, 3], [3, 2, 1]]), rot6d], dim=1)[None]
    got = mean_action(poses, half, ActionConfig(pose_groups=[list(range(9))]))
    assert got[0].tolist() == pytest.approx([2, 2, 2, 1, 0, 0, 0, 1, 0], abs=1e-6)


def test_the_prefix_is_what_was_executed_and_what_is_certain():
    policy = _Clock(max_delay=3)
    _run(ExecuteConfig(mode="rtc", n_exec=4, delay=2), 9, policy=policy)
    first, second, third = (call["prefix"] for call in policy.calls)
    assert not first.mask.any()
    for prefix, now, rows in ((second, 4, [[0, 3], [0, 4], [0, 5]]), (third, 8, [[4, 7], [4, 8], [4, 9]])):
        assert prefix.mask[0].tolist() == [True] * 3 + [False] * 13, now  # the past step, and two certain ones
        assert prefix.action[0, :3].tolist() == rows


def test_past_actions_before_the_first_are_copies_of_it():
    policy = _Clock(max_delay=1)
    policy.spec = PolicySpec(**{**_fields(SPEC), "window": WindowConfig(n_obs=4, horizon=H, n_exec=1)})
    _run(ExecuteConfig(mode="rtc", delay=1), 2, policy=policy)
    # asked again at time 1, when time 0 alone was executed: the three past steps are three copies of that action
    assert policy.calls[1]["prefix"].action[0, :3].tolist() == [policy.calls[1]["prefix"].action[0, 0].tolist()] * 3


def _fields(spec):
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


def test_a_warm_start_shifts_the_chunk_and_repeats_its_last_action():
    policy = _Clock()
    _run(ExecuteConfig(mode="warm", n_exec=4, warm_steps=3), 5, policy=policy)
    assert policy.calls[0]["start"] is None
    start = policy.calls[1]["start"]
    assert start.steps == 3
    assert start.chunk[0, :, 1].tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 14, 14, 14, 14]


def test_worlds_that_begin_while_others_go_on_are_sampled_in_full():
    policy = _Clock()
    _run(ExecuteConfig(mode="warm", n_exec=4), 5, restarts=({4}, {}), policy=policy)
    assert [call["start"] is None for call in policy.calls] == [True, False, True]


def test_seams_by_hand():
    # dim 0 jumps by 4 at each takeover, dim 1 moves by 1 every step
    _, actor = _run(ExecuteConfig(n_exec=4, delay=2), 12, restarts=({}, {5}))
    seams = actor.seams.to_dict()
    # world 0 changes chunks at 6 and 10, world 1 (restarted at 5) at 11; first commands of an episode do not count
    assert seams["n_seams"] == 3
    assert seams["at_seams"] == pytest.approx(math.hypot(4, 1))
    assert seams["elsewhere"] == pytest.approx(1.0)


def test_inactive_worlds_are_not_counted():
    actor = make_actor(_Clock(), num_envs=2, config=ExecuteConfig(n_exec=1))
    actor.reset([0, 1])
    for t in range(4):
        actor.act({"clock": torch.full((2, 1), float(t)), "goal/clock": torch.zeros(2, 1)}, torch.tensor([True, False]))
    assert actor.seams.to_dict()["n_seams"] == 3


@pytest.fixture
def flow(make_policy):
    """``flow(mode)``: a policy with a flow head, which starts at noise alone, and with channels for known actions."""

    def make(mode="absolute"):
        base, _ = make_policy(mode)
        torch.manual_seed(0)
        head = FlowHead(FlowConfig(sample_steps=6), ChunkSizes(action_dim=2, horizon=H, n_obs=N_OBS, feature_dim=4))
        net = ResidualMLP(
            MLPConfig(width=32, depth=2), NetSizes(input_dim=5, output_dim=2, horizon=H, n_obs=N_OBS, feature_dim=4)
        )
        loss = LossConfig(max_delay=3)
        parts = {"encoder": base.encoder, "backbone": net, "head": head, "normalizer": base.normalizer, "loss": loss}
        return Policy(base.spec, **parts).eval()

    return make


def _positions(policy, config, seeds, steps=8, **options):
    """Commands ``[steps, N, 2]`` of a policy that observes a moving point."""
    actor = make_actor(policy, num_envs=len(seeds), config=config, **options)
    actor.reset(seeds)
    start = torch.tensor([[100.0 + s, 3.0, 0.1] for s in seeds])
    return torch.stack([actor.act({"state": start + torch.tensor([t, 0.0, 0.0])}) for t in range(steps)])


def test_a_warm_start_of_all_steps_is_a_plain_one(flow):
    policy, seeds = flow(), [3, 4, 5]
    warm = _positions(policy, ExecuteConfig(mode="warm", n_exec=3, warm_steps=6), seeds)
    plain = _positions(policy, ExecuteConfig(n_exec=3), seeds)
    assert torch.equal(warm, plain)
    short = _positions(policy, ExecuteConfig(mode="warm", n_exec=3, warm_steps=2), seeds)
    assert torch.equal(short[:3], plain[:3])
    assert not torch.allclose(short, plain, atol=0.1)


@pytest.mark.parametrize("mode", ["ensemble", "rtc", "rtc_guided", "warm"])
def test_a_world_does_not_depend_on_its_neighbours(flow, mode):
    config = ExecuteConfig(mode=mode, n_exec=3, delay=2)
    few, many = _positions(flow(), config, [70, 3]), _positions(flow(), config, [*range(30), 70])
    assert torch.equal(few[:, 0], many[:, 30])


@pytest.mark.parametrize("action", ["absolute", "relative", "delta"])
def test_a_chunk_goes_on_from_known_actions_in_every_action_mode(flow, action):
    """The certain actions are executed as they were planned, though their reference has moved since."""
    config = ExecuteConfig(mode="rtc", n_exec=4, delay=2)
    seen = []
    policy = flow(action)
    sample = policy.sample

    def record(obs, noise, *, prefix):
        seen.append((prefix, sample(obs, noise, prefix=prefix)))
        return seen[-1][1]

    policy.sample = record
    out = _positions(policy, config, [5])
    prefix, chunk = seen[1]
    assert torch.allclose(chunk[0, :3], prefix.action[0, :3], atol=1e-3)
    assert torch.allclose(prefix.action[0, :3], out[3:6, 0], atol=1e-3)  # steps 3 (past), 4 and 5 (certain)
    assert torch.equal(out[6:8, 0], chunk[0, 3:5])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"n_exec": 16}, r"n_exec=16.*1 to 15"),
        ({"n_exec": 14, "delay": 2}, r"n_exec=14.*comes 2 steps after.*expected 2 to 13"),
        ({"n_exec": 2, "delay": 3}, r"delay=3 with n_exec=2.*expected n_exec of 3 to 12"),
        ({"n_exec": 8, "delay": 8}, r"delay=8: the policy predicts 15 steps.*expected at most 7"),
        ({"mode": "rtc", "delay": 2}, r"trained without known actions.*loss.max_delay=2.*rtc_guided"),
        ({"mode": "warm", "warm_steps": 11}, r"warm_steps=11.*10 steps"),
    ],
)
def test_what_cannot_be_executed_is_refused(config, says):
    with pytest.raises(ConfigError, match=says):
        make_actor(_Clock(), num_envs=1, config=ExecuteConfig(**config))


def test_a_delay_longer_than_trained_is_refused():
    with pytest.raises(ConfigError, match=r"delay=3.*delays up to 2"):
        make_actor(_Clock(max_delay=2), num_envs=1, config=ExecuteConfig(mode="rtc", delay=3))


@pytest.mark.parametrize(("mode", "says"), [("rtc_guided", "no such steps"), ("warm", "in one go")])
def test_heads_without_denoising_steps_are_refused(mode, says):
    policy = _Clock(head=RegressionHead(RegressionConfig(), SIZES))
    with pytest.raises(ConfigError, match=f"RegressionHead.*{says}"):
        make_actor(policy, num_envs=1, config=ExecuteConfig(mode=mode))
    with pytest.raises(ConfigError, match=r"steering.*RegressionHead"):
        make_actor(policy, num_envs=1, steer=SteerConfig(target=[1.0, 2.0]))


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"mode": "recedng"}, "receding"),
        ({"mode": "rtc"}, "nothing is certain|no action is certain"),
        ({"n_exec": 0}, "n_exec=0"),
        ({"delay": -1}, "delay=-1"),
        ({"beta": 0.0}, "beta=0"),
        ({"warm_steps": 0}, "warm_steps=0"),
    ],
)
def test_wrong_settings_are_refused(settings_, says):
    with pytest.raises(ConfigError, match=says):
        ExecuteConfig(**settings_)
