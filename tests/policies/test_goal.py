"""Goals and texts: where they enter the policy, how they are hidden, guidance, and that they decide what is done."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from visuomotor.configs.build import build_policy
from visuomotor.data.actions import ActionConfig
from visuomotor.data.batches import BatchSource
from visuomotor.data.cache import TrainingCache
from visuomotor.data.errors import ConfigError
from visuomotor.data.normalize import KeyNorm, Normalizer, compute_stats
from visuomotor.data.spec import ArraySpec
from visuomotor.data.texts import encode_texts
from visuomotor.data.windows import WindowConfig, window_table
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.goal import GoalConfig
from visuomotor.policies.encoders.images import ImageConfig
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.encoders.resnet import ResNetConfig
from visuomotor.policies.encoders.text import TextConfig
from visuomotor.policies.heads.diffusion import DiffusionConfig
from visuomotor.policies.heads.regression import RegressionConfig
from visuomotor.policies.learn.fitting import fit_normalizer
from visuomotor.policies.nets.mlp import MLPConfig
from visuomotor.policies.spec import PolicySpec

WINDOW = WindowConfig(n_obs=1, horizon=4, n_exec=4)
STATE = ArraySpec(shape=(2,), role="observation")
TEXTS = ["go left", "go right"]
N_EPISODES, LENGTH = 200, 4
NORMALIZER = Normalizer({"obs/state": compute_stats([np.eye(2) - 0.5])}, {"obs/state": KeyNorm(mode="identity")})


def an_encoder(dropout=0.3, n_text_tokens=0, **changes):
    """State and text observed, a later state as the goal."""
    torch.manual_seed(0)
    text = TextConfig(keys=["task"], encoder="transformer", length=8, dim=8, tokens=n_text_tokens)
    config = ObservationConfig(
        keys=["state", "task"], norm=KeyNorm(mode="identity"), text=text,
        goal=GoalConfig(keys=["state"], dropout=dropout, dim=6), **changes,
    )  # fmt: skip
    specs = {"state": STATE, "task": ArraySpec(shape=(8,), dtype="uint8"), "goal/state": STATE}
    encoder = ObservationEncoder(config, specs)
    if dropout:
        torch.nn.init.normal_(encoder.null)
    return encoder


def observations(n=5, n_obs=3):
    generator = torch.Generator().manual_seed(1)
    texts = torch.from_numpy(encode_texts(["left", "right"], 8))[torch.arange(n) % 2]
    return {
        "state": torch.rand(n, n_obs, 2, generator=generator),
        "goal/state": torch.rand(n, 1, 2, generator=generator),
        "task": texts[:, None],
    }


def test_goal_and_text_are_features_of_every_observed_step():
    e, obs = an_encoder(), observations()
    seen = e(obs, NORMALIZER)
    assert e.feature_dim == 6 + 8 + 2
    assert seen.features.shape == (5, 3, 16)
    assert torch.equal(seen.features[..., 14:], obs["state"])
    assert torch.equal(seen.features[:, 0, :14], seen.features[:, 2, :14])
    other = e({**obs, "goal/state": obs["goal/state"].flip(0)}, NORMALIZER).features
    assert torch.equal(other[..., 6:], seen.features[..., 6:])
    assert torch.allclose(other[:, :, :6], seen.features[..., :6].flip(0), atol=1e-6)


def test_hiding_leaves_the_observed_steps_and_every_other_row_alone():
    e, obs = an_encoder(n_text_tokens=2), observations()
    seen = e(obs, NORMALIZER)
    hidden = torch.tensor([True, False, True, False, False])
    out = e.hide_goal(seen, hidden)
    assert torch.equal(out.features[~hidden], seen.features[~hidden])
    assert torch.equal(out.tokens[~hidden], seen.tokens[~hidden])
    assert torch.equal(out.features[hidden][..., :6], e.null.expand(2, 3, 6))
    assert torch.equal(out.features[hidden][..., 6:], seen.features[hidden][..., 6:])
    assert torch.equal(out.tokens[hidden], e.null_token.expand(2, 2, 8))
    everything = e.hide_goal(e(obs, NORMALIZER))
    changed = {**obs, "goal/state": obs["goal/state"] + 1, "task": obs["task"].roll(1, 0)}
    assert torch.equal(everything.features, e.hide_goal(e(changed, NORMALIZER)).features)
    assert torch.equal(everything.tokens, e.hide_goal(e(changed, NORMALIZER)).tokens)


def test_training_hides_the_share_that_was_asked_for_and_nothing_else_does():
    e, obs = an_encoder(dropout=0.3), observations(n=4000, n_obs=1)
    hidden = (e(obs, NORMALIZER, Draws(3)).features[:, 0, :14] == e.null).all(-1)
    assert float(hidden.float().mean()) == pytest.approx(0.3, abs=0.025)
    again = (e(obs, NORMALIZER, Draws(3)).features[:, 0, :14] == e.null).all(-1)
    assert torch.equal(hidden, again)
    assert not bool((e(obs, NORMALIZER).features[:, 0, :14] == e.null).all(-1).any())
    parts = [{k: v[r * 2000 : (r + 1) * 2000] for k, v in obs.items()} for r in range(2)]
    ranks = [e(p, NORMALIZER, Draws(3, rank=r, world_size=2)).features for r, p in enumerate(parts)]
    assert torch.equal((torch.cat(ranks)[:, 0, :14] == e.null).all(-1), hidden)


def test_an_image_goal_shares_the_weights_of_its_camera():
    image = ImageConfig(feature_dim=8, pool="mean", resnet=ResNetConfig(width=0.25))
    camera = ArraySpec(shape=(16, 16, 3), dtype="uint8")
    config = ObservationConfig(keys=["img"], image=image, goal=GoalConfig(keys=["img"], dim=4))
    e = ObservationEncoder(config, {"img": camera, "goal/img": camera}).eval()
    assert not [k for k in e.state_dict() if k.startswith("goal.") and not k.startswith("goal.project.")]
    img = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    obs = {"img": img[:, :2], "goal/img": img[:, 2:]}
    features = e(obs, Normalizer({}, {})).features
    now = e({**obs, "img": img[:, 2:]}, Normalizer({}, {})).features[..., 4:]
    assert features.shape == (2, 2, 12)
    assert e.goal is not None
    assert torch.allclose(features[:, 0, :4], e.goal.project(now)[:, 0], atol=1e-5)
    copied = copy.deepcopy(e)
    for p in copied.parts.parameters():
        torch.nn.init.zeros_(p)
    blind = copied({**obs, "goal/img": img[:, 1:2]}, Normalizer({}, {})).features
    assert torch.equal(copied(obs, Normalizer({}, {})).features, blind)  # the copy's goal uses the copy's camera


def test_a_goal_of_one_of_two_cameras_has_an_encoder_of_its_own():
    image = ImageConfig(feature_dim=8, pool="mean", resnet=ResNetConfig(width=0.25), crop_by_key={"wrist": [12, 12]})
    camera = ArraySpec(shape=(16, 16, 3), dtype="uint8")
    config = ObservationConfig(keys=["img", "wrist"], image=image, goal=GoalConfig(keys=["img"], dim=4))
    e = ObservationEncoder(config, dict.fromkeys(["img", "wrist", "goal/img"], camera))
    assert any(k.startswith("goal.own.0.trunks.0") for k in e.state_dict())
    img = torch.zeros(2, 2, 16, 16, 3, dtype=torch.uint8)
    seen = e({"img": img, "wrist": img, "goal/img": img[:, :1]}, Normalizer({}, {}))
    assert seen.features.shape == (2, 2, 4 + 16)


def test_a_camera_has_a_size_of_its_own_even_if_only_the_goal_shows_it():
    camera = ArraySpec(shape=(16, 16, 3), dtype="uint8")
    specs = {"img": camera, "state": ArraySpec(shape=(2,)), "goal/side": camera}

    def build(**sizes):
        image = ImageConfig(feature_dim=8, pool="mean", resnet=ResNetConfig(width=0.25), **sizes)
        config = ObservationConfig(keys=["img", "state"], image=image, goal=GoalConfig(keys=["side"], dim=4))
        return ObservationEncoder(config, specs)

    e = build(resize_by_key={"side": [8, 12]})
    assert e.goal is not None
    assert e.goal.own[0].views[0].size == (8, 12)
    for wrong, says in (("sid", r"crop_by_key names 'sid'.*Did you mean 'side'"), ("state", r"'state'.*as an image")):
        with pytest.raises(ConfigError, match=says):
            build(crop_by_key={wrong: [8, 8]})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"goal": GoalConfig(keys=["task"])}, r"'task'.*texts are hidden"),
        ({"goal": GoalConfig(dropout=0.1), "text": TextConfig()}, r"neither a goal nor a text"),
    ],
)
def test_goals_that_cannot_be_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        ObservationConfig(**{"keys": ["state", "task"], "text": TextConfig(keys=["task"]), **settings})


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"strategy": "last"}, r"'last'.*final"), ({"dropout": 1.0}, r"< 1"), ({"keys": ["a", "a"]}, r"\['a'\]")],
)
def test_goal_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        GoalConfig(**settings)


def two_ways(agreement, head=None, **goal):
    """A policy for episodes that go left or right, and its batches.

    Goal (``aim``) and text name the way in the share ``agreement`` of the episodes, else the other way.
    """
    rng = np.random.default_rng(0)
    way = np.arange(N_EPISODES) % 2 * 2.0 - 1.0  # -1: left, 1: right
    told = np.where(rng.random(N_EPISODES) < agreement, way, -way)
    steps = np.tile(np.arange(LENGTH), N_EPISODES)
    arrays = {
        "state": np.stack([0.1 * steps, rng.normal(size=N_EPISODES * LENGTH)], 1),
        "aim": 5 + told.repeat(LENGTH)[:, None],
        "action": 100 * way.repeat(LENGTH)[:, None] + 5 * rng.normal(size=(N_EPISODES * LENGTH, 1)),
    }
    tensors = {k: torch.tensor(v, dtype=torch.float32) for k, v in arrays.items()}
    cache = TrainingCache(tensors, np.arange(1, N_EPISODES + 1) * LENGTH, "ram", 0, "test")
    texts = torch.from_numpy(encode_texts([TEXTS[int(t > 0)] for t in told], 8))
    keys = ["state"] if goal.get("keys") else ["state", "task"]
    obs = ObservationConfig(keys=keys, text=TextConfig(keys=keys[1:], length=8, dim=16), goal=GoalConfig(**goal))
    known = {"state": STATE, "task": ArraySpec(shape=(8,), dtype="uint8"), "goal/aim": ArraySpec(shape=(1,))}
    spec = PolicySpec(
        obs={k: known[k] for k in [*keys, *(f"goal/{k}" for k in obs.goal.keys)]}, action_key="action",
        action=ArraySpec(shape=(1,), role="action"), fps=10.0, window=WINDOW,
        action_config=ActionConfig(mode="absolute", reference_key=None), constant_keys=obs.constant_keys,
    )  # fmt: skip
    source = BatchSource(
        cache, window_table(cache.episode_ends, WINDOW), obs_keys=["state"], action_key="action", n_obs=1, horizon=4,
        batch_size=128, seed=0, goal_keys=obs.goal.keys, episode_tables={"task": texts} if obs.text.keys else {},
    )  # fmt: skip
    normalizer = fit_normalizer(
        spec, encoder=ObservationEncoder(obs, spec.obs), cache=cache, source=source, episodes=np.arange(N_EPISODES),
        action_norm=KeyNorm(clip=None),
    )  # fmt: skip
    torch.manual_seed(0)
    policy = build_policy(
        spec, obs=obs, head=head or DiffusionConfig(prediction="sample", sample_steps=8), normalizer=normalizer,
        backbone=MLPConfig(width=64, depth=2, dropout=0.0),
    )  # fmt: skip
    return policy, source


def train(policy, source, steps=300):
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    policy.train()
    for step in range(steps):
        optimizer.zero_grad()
        policy.loss(source.batch(step), Draws(0, step)).loss.backward()
        optimizer.step()
    return policy.eval()


def share_right(policy, told, n=256):
    """Share of the samples that go right when told -1 (left) or 1 (right)."""
    obs = {"state": torch.zeros(n, 1, 2), "goal/aim": torch.full((n, 1, 1), 5.0 + told)}
    obs["task"] = torch.from_numpy(encode_texts([TEXTS[int(told > 0)]], 8)).expand(n, 1, -1)
    wanted = {k: v for k, v in obs.items() if k in policy.spec.obs}
    chunk = policy.sample(wanted, policy.draw_noise(n, torch.Generator().manual_seed(7)))
    assert float((chunk.abs() > 60).float().mean()) > 0.9  # one way or the other, no average
    return float((chunk.mean((1, 2)) > 0).float().mean())


def test_the_text_decides_what_is_done():
    policy = train(*two_ways(1.0))
    assert share_right(policy, -1) < 0.02
    assert share_right(policy, 1) > 0.98


def test_the_goal_decides_and_guidance_sharpens():
    policy = train(*two_ways(0.8, keys=["aim"], dropout=0.2))
    plain = share_right(policy, 1)
    assert 0.65 < plain < 0.95  # the demonstrations follow the goal in 80 of 100 cases
    assert 0.05 < share_right(policy, -1) < 0.35
    policy.guidance_scale = 3.0  # 0.8^3 / (0.8^3 + 0.2^3) = 0.98
    assert share_right(policy, 1) > max(0.87, plain + 0.1)
    assert share_right(policy, -1) < 0.13
    policy.guidance_scale = 0.0  # what it does without a goal: both ways
    assert 0.3 < share_right(policy, 1) < 0.7


def test_guidance_extrapolates_what_the_net_predicts():
    policy, source = two_ways(1.0, keys=["aim"], dropout=0.2)
    for p in policy.parameters():  # so that the zero-initialised layers do something
        torch.nn.init.normal_(p, std=0.1)
    policy.eval()
    obs = source.batch(0).obs
    x, t = torch.randn(128, 4, 1), torch.full((128,), 10)
    with torch.no_grad():
        plain = policy.net(obs)(x, t)
        policy.guidance_scale = 0.0
        null = policy.net(obs)(x, t)
        assert not torch.allclose(plain, null, atol=1e-3)
        for w in (1.0, 2.0, 4.5):
            policy.guidance_scale = w
            assert torch.allclose(policy.net(obs)(x, t), null + w * (plain - null), atol=1e-5)
            known = policy.net(obs).at(torch.tensor([10]))[0](x)
            assert torch.allclose(known, null + w * (plain - null), atol=1e-5)


def test_guidance_that_means_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"always saw its goal.*obs.goal.dropout"):
        two_ways(1.0, keys=["aim"])[0].guidance_scale = 2.0
    policy = two_ways(1.0, RegressionConfig(), keys=["aim"], dropout=0.2)[0]
    with pytest.raises(ConfigError, match=r"RegressionHead predicts no field"):
        policy.guidance_scale = 2.0
    assert policy.guidance_scale == 1.0
    policy.guidance_scale = 1.0
