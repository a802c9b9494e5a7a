"""Labels of a teacher for what a student runs into, on worlds that can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError
from visuomotor.data.spec import ArraySpec
from visuomotor.envs.base import Obs, Step, VecEnv
from visuomotor.policies.learn.distill import DistillConfig, Labelled, collect_labels


class Line(VecEnv):
    """A point on a line: ``x += gain * action``; the gain is drawn by the seed, and privileged. Over at 12 steps."""

    def __init__(self, n: int) -> None:
        self.num_envs, self.device, self.fps, self.max_episode_steps = n, torch.device("cpu"), 10.0, 12
        self.obs_spec = {"x": ArraySpec(shape=(1,)), "privileged": ArraySpec(shape=(1,), role="privileged")}
        self.action_spec = ArraySpec(shape=(1,), role="action")
        self.action_low, self.action_high = torch.tensor([-1.0]), torch.tensor([1.0])
        self.x, self.gain, self.t = torch.zeros(n, 1), torch.ones(n, 1), torch.zeros(n, dtype=torch.int64)

    def reset(self, *, seeds: Sequence[int] | None = None, mask: Tensor | None = None) -> Obs:
        assert seeds is not None
        assert mask is not None
        for i in mask.nonzero().flatten().tolist():
            rng = np.random.default_rng(seeds[i])
            self.x[i], self.gain[i], self.t[i] = rng.uniform(2, 4), rng.uniform(0.5, 1.5), 0
        return self._obs()

    def advance(self, action: Tensor, active: Tensor) -> Step:
        self.x = torch.where(active[:, None], self.x + self.gain * action, self.x)
        self.t += active
        near = (self.x.abs() < 1e-5)[:, 0]
        over = active & (self.t >= self.max_episode_steps)
        obs = self._obs()
        return Step(obs, torch.zeros(self.num_envs), active & near, over, obs, {"success": near})

    def _obs(self) -> Obs:
        return {"x": self.x.clone(), "privileged": self.gain.clone()}

    def render(self, index: int) -> np.ndarray:
        raise NotImplementedError


class Teacher:
    """Goes to 0 as fast as it may, knowing the gain; its actions leave the bounds."""

    def reset(self, seeds: Sequence[int], mask: Tensor | None = None) -> None:
        self.seeds = list(seeds)

    def act(self, obs: Obs, active: Tensor) -> Tensor:
        return -obs["x"] / obs["privileged"]


class Away(Teacher):
    """A student that has learnt nothing: it always goes up by a tenth."""

    def act(self, obs: Obs, active: Tensor) -> Tensor:
        return torch.full_like(obs["x"], 0.1)


def collect(n: int, seeds: Sequence[int], beta: float, student: Teacher | None = None) -> list[Labelled]:
    return list(collect_labels(Line(n), student, Teacher(), seeds, keys=["x"], beta=beta, stretch=3))


def gain_of(seed: int) -> float:
    rng = np.random.default_rng(seed)
    rng.uniform(2, 4)
    return float(rng.uniform(0.5, 1.5))


def test_the_teacher_alone_reaches_the_goal() -> None:
    for e in collect(4, range(6), 1.0):
        assert e.success
        assert e.by_teacher == 1.0
        assert set(e.obs) == {"x"}  # nothing privileged is kept
        assert len(e.action) == len(e.obs["x"]) == int(np.ceil(e.obs["x"][0, 0] / gain_of(e.seed)))
        np.testing.assert_allclose(e.action[:-1], -1.0)  # cut off at the bounds


def test_labels_are_the_teachers_where_the_student_went() -> None:
    for e in collect(3, range(5), 0.0, Away()):
        gain, x = gain_of(e.seed), e.obs["x"][:, 0]
        np.testing.assert_allclose(np.diff(x), 0.1 * gain, rtol=1e-4)  # the student drove
        np.testing.assert_allclose(e.action[:, 0], np.clip(-x / gain, -1, 1), rtol=1e-5)
        assert not e.success
        assert e.by_teacher == 0.0
        assert len(x) == 12


def test_both_drive_by_turns_of_whole_stretches() -> None:
    episodes = collect(8, range(64), 0.5, Away())
    up = [np.diff(e.obs["x"][:, 0]) > 0 for e in episodes]
    assert 0.3 < np.mean(np.concatenate(up)) < 0.7
    for moves in up:
        for k in range(0, len(moves) - 3, 3):
            assert len(set(moves[k : k + 3].tolist())) == 1
    shares = [e.by_teacher for e in episodes]
    assert 0.3 < np.mean(shares) < 0.7


def test_an_episode_is_a_function_of_its_seed() -> None:
    wide, narrow = collect(8, range(8), 0.5, Away()), collect(3, [5, 2, 7, 0], 0.5, Away())
    for e in narrow:
        (same,) = [w for w in wide if w.seed == e.seed]
        np.testing.assert_array_equal(e.obs["x"], same.obs["x"])
        np.testing.assert_array_equal(e.action, same.action)
        assert (e.success, e.by_teacher) == (same.success, same.by_teacher)


def test_the_teacher_gives_way_round_by_round() -> None:
    config = DistillConfig(beta=0.5)
    assert [config.share(r) for r in range(4)] == [1.0, 0.5, 0.25, 0.125]
    assert [DistillConfig(beta=0.0).share(r) for r in range(2)] == [1.0, 0.0]
    with pytest.raises(ConfigError, match=r"distill\.beta=1\.5"):
        DistillConfig(beta=1.5)
    with pytest.raises(ConfigError, match=r"distill\.rounds=0"):
        DistillConfig(rounds=0)
