"""The point encoder: its cloud by hand, what it does not notice, and augmentation."""

from __future__ import annotations

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.data.normalize import Normalizer
from visuomotor.data.spec import ArraySpec
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.encoders.points import PointsConfig, PointsEncoder

NOTHING = Normalizer({}, {})
CLOUD = {"cloud": ArraySpec(shape=(40, 3))}


def encoder(specs=CLOUD, **settings):
    torch.manual_seed(0)
    return PointsEncoder(list(specs), specs, PointsConfig(keys=list(specs), **settings)).eval()


def a_cloud(n=40, batch=2, n_obs=2):
    return torch.rand(batch, n_obs, n, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("n_points", [10, 40])
def test_the_pooled_vector_does_not_depend_on_the_order_of_the_points(n_points):
    e = encoder(n_points=n_points, low=[0.1, 0.0, 0.0], high=[1.0, 1.0, 1.0])
    cloud = a_cloud()
    shuffled = cloud[:, :, torch.randperm(40, generator=torch.Generator().manual_seed(2))]
    a, b = (e({"cloud": c}, NOTHING).features for c in (cloud, shuffled))
    assert a.shape == (2, 2, 64)
    assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(a, e({"cloud": cloud + 0.2}, NOTHING).features, atol=1e-3)


def test_points_outside_the_box_are_not_noticed():
    e = encoder(low=[0.0, 0.0, 0.0], high=[1.0, 1.0, 0.5])
    cloud = a_cloud()
    outside = cloud[..., 2:] > 0.5
    moved = torch.where(outside, cloud + 3.0, cloud)
    assert torch.allclose(e({"cloud": cloud}, NOTHING).features, e({"cloud": moved}, NOTHING).features, atol=1e-6)


def test_a_cloud_of_which_nothing_is_left_is_at_the_centre_of_the_box():
    e = encoder(low=[5.0, 5.0, 5.0], high=[6.0, 7.0, 6.0])
    cloud = e.cloud({"cloud": a_cloud()})
    assert torch.equal(cloud, torch.tensor([5.5, 6.0, 5.5]).expand(2, 2, 40, 3))
    assert torch.isfinite(e({"cloud": a_cloud()}, NOTHING).features).all()


def test_depth_images_of_two_cameras_become_one_cloud_in_the_base_frame():
    specs = {
        "left": ArraySpec(shape=(2, 2)), "wrist": ArraySpec(shape=(1, 2, 1), unit="mm"),
        "pose": ArraySpec(shape=(4, 4)),
    }  # fmt: skip
    config = PointsConfig(
        keys=["left", "wrist"], intrinsics={"left": [1.0, 1.0, 0.0, 0.0], "wrist": [2.0, 2.0, 0.0, 0.0]},
        pose={"left": [1, 0, 0, 10, 0, 1, 0, 20, 0, 0, 1, 30, 0, 0, 0, 1]}, pose_keys={"wrist": "pose"},
    )  # fmt: skip
    e = PointsEncoder(["left", "wrist"], specs, config)
    assert e.keys == ["left", "wrist", "pose"]
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    obs = {
        "left": torch.tensor([[1.0, 2.0], [0.0, 4.0]])[None, None],
        "wrist": torch.tensor([[500.0, 1000.0]])[None, None, ..., None],  # [mm]
        "pose": flip[None, None],
    }
    # Left: (u z, v z, z) + (10, 20, 30); the pixel without a measurement is replaced by a copy. Wrist: flipped.
    expected = {(10, 20, 31), (12, 20, 32), (14, 24, 34), (0, 0, -0.5), (0.5, 0, -1.0)}
    cloud = e.cloud(obs)
    assert cloud.shape == (1, 1, 6, 3)
    assert {tuple(p) for p in cloud[0, 0].tolist()} == expected


@pytest.mark.parametrize("dim", [16, 7])
def test_tokens_of_a_point_tell_when_it_was_seen(dim):
    e = encoder(tokens=True, n_points=8, dim=dim)
    still = a_cloud(n=8)[:, :1].repeat(1, 3, 1, 1)
    before, now = e({"cloud": still}, NOTHING).tokens.view(2, 3, 8, dim)[:, 1:].unbind(1)
    assert (before - now).abs().amax(-1).min() > 0.1
    alone = e({"cloud": still[:, :1]}, NOTHING).tokens
    assert torch.allclose(now, alone, atol=1e-5)  # one observed step, or the latest of several: the present


def test_tokens_are_one_a_point_and_reach_the_policy_without_features():
    e = encoder(tokens=True, n_points=8, dim=16)
    assert (e.feature_dim, e.token_dim) == (0, 16)
    out = e({"cloud": a_cloud()}, NOTHING)
    assert out.features is None
    assert out.tokens.shape == (2, 2 * 8, 16)
    points = PointsConfig(keys=["cloud"], tokens=True, n_points=8, dim=16)
    whole = ObservationEncoder(ObservationConfig(keys=["cloud"], points=points), CLOUD)
    seen = whole({"cloud": a_cloud()}, NOTHING)
    assert (whole.feature_dim, whole.token_dim) == (1, 16)
    assert seen.features.shape == (2, 2, 1)
    assert seen.tokens.shape == (2, 16, 16)


def test_augmentation_comes_from_the_draws():
    e = encoder(dropout=0.5, jitter=0.01)
    cloud = a_cloud(batch=50)
    plain = e.cloud({"cloud": cloud})
    changed = e._augment(plain, Draws(1))
    assert torch.equal(changed, e._augment(plain, Draws(1)))
    assert not torch.equal(changed, e._augment(plain, Draws(2)))
    only_dropped = encoder(dropout=0.5)._augment(plain, Draws(1))
    kept = (only_dropped == plain).all(-1).float().mean()
    assert float(kept) == pytest.approx(0.5 + 0.5 / 40, abs=0.03)  # a hidden first seen point cannot be
    assert float((changed - only_dropped).std()) == pytest.approx(0.01, rel=0.05)
    assert torch.equal(e({"cloud": cloud}, NOTHING).features, e({"cloud": cloud}, NOTHING).features)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"intrinsics": {"cloud": [1.0, 2.0]}}, r"'cloud' has 2 numbers: expected 4"),
        ({"pose": {"clod": [0.0] * 16}}, r"'clod'.*Did you mean 'cloud'"),
        ({"low": [0.0, 0.0, 1.0], "high": [1.0, 1.0, 1.0]}, r"expected low < high"),
        ({"low": [0.0, 0.0, 0.0]}, r"expected low < high"),
        ({"n_points": 5000}, r"candidates=4096: expected at least 5000"),
        ({"dropout": 1.0}, r"0 <= dropout < 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        PointsConfig(keys=["cloud"], **settings)


def test_arrays_of_the_wrong_shape_are_refused():
    with pytest.raises(ConfigError, match=r"\(64, 48\).*point cloud \[n, 3\].*obs.points.intrinsics"):
        encoder({"depth": ArraySpec(shape=(64, 48))})
    with pytest.raises(ConfigError, match=r"\(8, 8, 3\).*depth image"):
        encoder({"rgb": ArraySpec(shape=(8, 8, 3))}, intrinsics={"rgb": [1.0] * 4})
