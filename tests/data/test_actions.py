from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.actions import ActionConfig, ActionTransform
from visuomotor.data.angles import wrap
from visuomotor.data.errors import ConfigError
from visuomotor.data.rotations import matrix_to_rot6d, quat_to_matrix

POSE = list(range(9))
IDENTITY_6D = [1.0, 0, 0, 0, 1, 0]
QUARTER_Z_6D = [0.0, -1, 0, 1, 0, 0]  # +90 deg about z
HALF_Z_6D = [-1.0, 0, 0, 0, -1, 0]


def transform(mode, size, n_obs=2, reference_size=None, **settings):
    config = ActionConfig(mode=mode, reference_key="pos", **settings)
    return ActionTransform(config, action_size=size, n_obs=n_obs, reference_size=reference_size or size)


def test_absolute_changes_nothing_and_needs_no_reference():
    t = ActionTransform(ActionConfig(), action_size=2, n_obs=2)
    a = np.ones((1, 4, 2))
    assert t.forward(a) is a
    assert t.inverse(a) is a


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_relative_and_delta_by_hand(make):
    a, ref = make([[[1.0], [3.0], [6.0], [10.0]]]), make([[2.0]])
    np.testing.assert_allclose(np.asarray(transform("relative", 1).forward(a, ref))[0, :, 0], [-1, 1, 4, 8])
    # The present is step 1: 3 - 2; after it 6 - 3 and 10 - 6; before it 1 - 3.
    delta = transform("delta", 1)
    np.testing.assert_allclose(np.asarray(delta.forward(a, ref))[0, :, 0], [-2, 1, 3, 4])
    np.testing.assert_allclose(np.asarray(delta.inverse(delta.forward(a, ref), ref)), np.asarray(a))


def test_a_wrong_past_does_not_reach_the_executed_actions():
    t = transform("delta", 1, n_obs=3)
    d, ref = np.ones((1, 6, 1)), np.zeros((1, 1))
    wrong = d.copy()
    wrong[:, :2] = 50
    np.testing.assert_array_equal(t.inverse(wrong, ref)[:, 2:], t.inverse(d, ref)[:, 2:])


def test_angles_go_the_short_way_and_stay_on_the_branch_of_the_reference():
    t = transform("relative", 1, angle_dims=[0])
    offset = t.forward(np.array([[[-3.1], [3.1]]]), np.array([[3.0]]))
    np.testing.assert_allclose(offset[0, :, 0], [2 * math.pi - 6.1, 0.1])
    np.testing.assert_allclose(t.inverse(offset, np.array([[3.0]]))[0, :, 0], [2 * math.pi - 3.1, 3.1])


def test_pose_is_expressed_in_the_reference_frame():
    t = transform("relative", 9, n_obs=1, pose_groups=[POSE])
    ref = np.array([[1.0, 2, 3, *QUARTER_Z_6D]])
    # Two metres along the world's y is two metres along the reference's x; half a turn is a quarter more.
    action = np.array([[[1.0, 4, 3, *HALF_Z_6D]]])
    offset = t.forward(action, ref)
    np.testing.assert_allclose(offset[0, 0], [2, 0, 0, *QUARTER_Z_6D], atol=1e-12)
    np.testing.assert_allclose(t.inverse(offset, ref), action, atol=1e-12)


def test_absolute_dims_and_reference_dims():
    # Action (x, gripper, y); the observation holds (y, other, x).
    t = transform("relative", 3, absolute_dims=[1], reference_dims=[2, 0])
    action, ref = np.array([[[5.0, 0.7, 9.0]]]), np.array([[4.0, 100, 2]])
    np.testing.assert_allclose(t.forward(action, ref), [[[3, 0.7, 5]]])
    np.testing.assert_allclose(t.inverse(t.forward(action, ref), ref), action)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    mode=st.sampled_from(["relative", "delta"]),
    n_obs=st.integers(1, 3),
    extra=st.integers(0, 5),
    dtype=st.sampled_from(["numpy", "torch"]),
)
def test_inverse_is_exact_for_a_mixed_action(seed, mode, n_obs, extra, dtype):
    rng = np.random.default_rng(seed)
    B, H = 2, n_obs + extra

    def draw(*lead):  # x, angle, two poses, gripper
        poses = [
            np.concatenate(
                [rng.normal(size=(*lead, 3)), matrix_to_rot6d(quat_to_matrix(rng.normal(size=(*lead, 4))))], -1
            )
            for _ in range(2)
        ]
        return np.concatenate(
            [rng.normal(size=(*lead, 1)), rng.uniform(-9, 9, (*lead, 1)), *poses, rng.normal(size=(*lead, 1))], -1
        )

    action, ref = draw(B, H), draw(B)
    t = transform(
        mode, 21, n_obs=n_obs, angle_dims=[1], pose_groups=[list(range(2, 11)), list(range(11, 20))], absolute_dims=[20]
    )
    if dtype == "torch":
        back = t.inverse(t.forward(torch.from_numpy(action), torch.from_numpy(ref)), torch.from_numpy(ref)).numpy()
    else:
        back = t.inverse(t.forward(action, ref), ref)
    difference = back - action
    difference[..., 1] = wrap(difference[..., 1])
    np.testing.assert_allclose(difference, 0, atol=1e-10)
    np.testing.assert_array_equal(t.forward(action, ref)[..., 20], action[..., 20])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mode": "relativ", "reference_key": "x"}, "Did you mean 'relative'"),
        ({"mode": "delta"}, "needs reference_key"),
        ({"pose_groups": [[0, 1, 2]]}, "has 3 components: expected 9"),
        ({"angle_dims": [1], "absolute_dims": [1]}, r"\[1\] are named twice"),
    ],
)
def test_bad_configs(changes, why):
    with pytest.raises(ConfigError, match=why):
        ActionConfig(**changes)


def test_components_that_do_not_exist():
    with pytest.raises(ConfigError, match=r"\[4\] do not exist"):
        transform("relative", 2, angle_dims=[4])
    with pytest.raises(ConfigError, match="component 2 does not exist in the reference 'pos', which has 2"):
        transform("relative", 3, reference_size=2)
    with pytest.raises(ConfigError, match="names 1 components, but 3 of 3"):
        transform("relative", 3, reference_dims=[0])
    with pytest.raises(ConfigError, match="needs the observation 'pos'"):
        transform("relative", 3).forward(np.zeros((1, 2, 3)))
