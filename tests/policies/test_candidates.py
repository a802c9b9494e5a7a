"""Several chunks for one observation: the best is executed, by coherence, another policy or a value function."""

from __future__ import annotations

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.policies.base import ChunkSizes, NetSizes
from visuomotor.policies.candidates import Coherence, Likelihood, Value
from visuomotor.policies.execution.build import make_actor
from visuomotor.policies.execution.config import ExecuteConfig
from visuomotor.policies.execution.planner import Previous
from visuomotor.policies.heads.gaussian import GaussianConfig, GaussianHead
from visuomotor.policies.nets.mlp import MLPConfig, ResidualMLP
from visuomotor.policies.policy import Policy


def _act(policy, steps=10, worlds=2, n_exec=4, **options):
    actor = make_actor(policy, num_envs=worlds, config=ExecuteConfig(n_exec=n_exec), **options)
    actor.reset(list(range(worlds)))
    state = torch.tensor([[100.0, 3.0, 0.1]]).repeat(worlds, 1)
    return torch.stack([actor.act({"state": state + torch.tensor([t, 0.0, 0.0])}) for t in range(steps)]), actor


@pytest.fixture
def policy(make_policy):
    return make_policy()[0].eval()


def test_the_first_of_several_is_what_a_single_one_would_be(policy):
    first = Value("first", lambda obs, chunks: torch.arange(chunks.shape[1], 0, -1.0).expand(chunks.shape[:2]))
    plain, _ = _act(policy)
    several, _ = _act(policy, candidates=3, ranker=first)
    assert torch.allclose(several, plain, atol=1e-3)


def test_the_best_one_is_executed(policy):
    def highest(obs, chunks):
        assert obs["state"].shape == (16, 2, 3)
        assert chunks.shape == (16, 5, 16, 2)
        return chunks[:, :, 1, 0]

    best, _ = _act(policy, steps=1, candidates=5, ranker=Value("highest", highest))
    lowest, _ = _act(policy, steps=1, candidates=5, ranker=Value("lowest", lambda o, c: -c[:, :, 1, 0]))
    plain, _ = _act(policy, steps=1)
    assert (best[0, :, 0] > lowest[0, :, 0]).all()
    assert (best[0, :, 0] >= plain[0, :, 0] - 1e-3).all()


def test_candidates_are_a_function_of_the_seed(policy):
    ranker = Value("highest", lambda o, c: c[:, :, 1, 0])
    two, _ = _act(policy, worlds=2, candidates=3, ranker=ranker)
    five, _ = _act(policy, worlds=5, candidates=3, ranker=ranker)
    assert torch.allclose(two, five[:, :2], atol=1e-3)


def test_coherence_by_hand(policy):
    ranker = Coherence(policy, n_exec=13)  # 15 steps ahead: 2 are left of the previous chunk
    obs = {"state": torch.zeros(2, 2, 3)}
    old = torch.full((2, 16, 2), 100.0)
    chunks = old[:, None].repeat(1, 3, 1, 1)
    gain = float((policy.normalize_action(old + 1, obs) - policy.normalize_action(old, obs))[0, 0, 0])
    chunks[:, 1, 1, 0] += 2.0  # at the present
    chunks[:, 1, 2, 0] += 3.0  # one later, counts half
    chunks[:, 2, 0] += 50.0  # the past does not count
    chunks[:, 2, 3:] += 50.0  # nor what the previous chunk did not reach
    value = ranker(obs, chunks, Previous(old, torch.tensor([True, False])))
    expected = -(gain**2) * (4.0 + 0.5 * 9.0)
    assert value[0].tolist() == pytest.approx([0.0, expected, 0.0], abs=1e-4)
    assert value[1].tolist() == [0, 0, 0]


def test_coherent_chunks_have_smaller_seams(make_policy):
    policy = make_policy()[0].eval()
    _, plain = _act(policy, steps=24, worlds=4)
    _, coherent = _act(policy, steps=24, worlds=4, candidates=8, ranker="coherence")
    assert coherent.seams.to_dict()["at_seams"] < plain.seams.to_dict()["at_seams"]


@pytest.fixture
def judge(policy):
    torch.manual_seed(1)
    head = GaussianHead(GaussianConfig(), ChunkSizes(action_dim=2, horizon=16, n_obs=2, feature_dim=4))
    sizes = NetSizes(input_dim=head.input_dim, output_dim=head.output_dim, horizon=16, n_obs=2, feature_dim=4)
    net = ResidualMLP(MLPConfig(width=32, depth=1), sizes)
    return Policy(policy.spec, encoder=policy.encoder, backbone=net, head=head, normalizer=policy.normalizer).eval()


def test_another_policy_prefers_what_it_would_do(policy, judge):
    obs = {"state": torch.tensor([[[100.0, 3.0, 0.1], [101.0, 2.0, 0.2]]]).repeat(2, 1, 1)}
    mode = judge.sample(obs, torch.zeros(2, *judge.noise_shape))
    chunks = torch.stack([mode + 8.0, mode, mode + 3.0], dim=1)
    none = Previous(mode, torch.zeros(2, dtype=torch.bool))
    value = Likelihood(judge, policy)(obs, chunks, none)
    assert value.argsort(dim=1, descending=True).tolist() == [[1, 2, 0]] * 2
    best, _ = _act(policy, candidates=4, ranker=Likelihood(judge, policy))
    assert torch.isfinite(best).all()


def test_what_cannot_rank_is_refused(policy):
    with pytest.raises(ConfigError, match="DiffusionHead has no density or energy"):
        Likelihood(policy, policy)
    with pytest.raises(ConfigError, match=r"expected one finite value a chunk, \(16, 3\)"):
        _act(policy, candidates=3, ranker=Value("sum", lambda o, c: c.sum()))
    with pytest.raises(ConfigError, match="finite"):
        _act(policy, candidates=3, ranker=Value("nan", lambda o, c: c[:, :, 0, 0] * float("nan")))
    with pytest.raises(ConfigError, match=r"rank_by=none returned a float"):
        _act(policy, candidates=3, ranker=Value("none", lambda o, c: 1.0))  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match="candidates=3 without rank_by"):
        _act(policy, candidates=3)
    with pytest.raises(ConfigError, match="candidates=1 with rank_by"):
        _act(policy, ranker="coherence")
    with pytest.raises(ConfigError, match="nothing to compare"):
        _act(policy, n_exec=15, candidates=2, ranker="coherence")
    with pytest.raises(ConfigError, match="ensemble"):
        make_actor(policy, num_envs=1, config=ExecuteConfig(mode="ensemble"), candidates=2, ranker="coherence")
