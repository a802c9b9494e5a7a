from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.envs.base import Obs
from visuomotor.envs.gym_adapter import GymVecEnv
from visuomotor.envs.sim.gl import RenderingError
from visuomotor.policies.learn.evaluate import (
    Episode,
    EvalResult,
    compare,
    evaluate,
    selection_seeds,
    test_seeds,
)


class Dash(gym.Env[np.ndarray, np.ndarray]):
    """Run from 0 to 1 in noisy steps; the score is the position, so it can fall again; 12 steps at most."""

    metadata = {"render_fps": 10}  # noqa: RUF012  # as gymnasium declares it
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    forgetful = True  # False carries state over a reset: no function of the seed

    def __init__(self) -> None:
        self.x, self.worn = 0.0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = 0.0
        return np.array([self.x], np.float32), self._info()

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.worn += 0.01 * (not self.forgetful)
        self.x += float(action[0]) + 0.15 * float(self.np_random.normal()) - self.worn
        return np.array([self.x], np.float32), self.x, self.x >= 1, False, self._info()

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), np.uint8(np.clip(200 * self.x, 0, 255)))

    def _info(self) -> dict[str, Any]:
        return {"score": min(max(self.x, 0.0), 1.0), "success": self.x >= 1}


class Runner:
    """Noise from the episode's seed and a stride that grows with the episode's age: it depends on its own reset."""

    def __init__(self, n: int, speed: float = 0.025) -> None:
        self.generators, self.age, self.speed = [torch.Generator() for _ in range(n)], torch.zeros(n), speed
        self.active_seen: list[int] = []

    def reset(self, seeds: Sequence[int], mask: Tensor | None = None) -> None:
        for i, seed in enumerate(seeds):
            if mask is None or mask[i]:
                self.generators[i].manual_seed(seed)
                self.age[i] = 0

    def act(self, obs: Obs, active: Tensor) -> Tensor:
        self.active_seen.append(int(active.sum()))
        for i in active.nonzero().flatten().tolist():
            self.age[i] += 1
        noise = torch.stack(
            [torch.rand(1, generator=g) if a else torch.zeros(1) for g, a in zip(self.generators, active, strict=True)]
        )
        return self.speed * self.age[:, None] * noise


def dashes(n: int, env: type[Dash] = Dash) -> GymVecEnv:
    return GymVecEnv([env] * n, max_episode_steps=12)


def test_an_episode_depends_on_its_seed_alone() -> None:
    seeds = list(test_seeds(11))
    one_by_one = evaluate(dashes(1), Runner(1), seeds)
    for n in (3, 11, 16):
        assert evaluate(dashes(n), Runner(n), seeds).episodes == one_by_one.episodes
    backwards = evaluate(dashes(4), Runner(4), seeds[::-1])
    assert backwards.episodes == one_by_one.episodes[::-1]
    assert 0 < one_by_one.success_count < 11  # else the test says little


def test_score_is_the_maximum_and_return_the_sum() -> None:
    result = evaluate(dashes(1), Runner(1), [7])
    env, rng = Dash(), torch.Generator().manual_seed(7)
    env.reset(seed=7)
    total, best, success, length, ended = 0.0, 0.0, False, 0, False
    while not ended and length < 12:
        length += 1
        action = (0.025 * length * torch.rand(1, generator=rng)).numpy()
        _, reward, ended, _, info = env.step(action)
        total, best, success = total + reward, max(best, info["score"]), success or info["success"]
    (episode,) = result.episodes
    assert episode.score == pytest.approx(best, abs=1e-6)
    assert episode.episode_return == pytest.approx(total, abs=1e-5)
    assert (episode.success, episode.length) == (success, length)


def test_finished_worlds_are_not_asked_for_again() -> None:
    actor = Runner(4)
    result = evaluate(dashes(4), actor, range(4))
    assert sum(actor.active_seen) == sum(e.length for e in result.episodes)


def test_intervals_and_json() -> None:
    calls: list[tuple[int, int]] = []
    result = evaluate(dashes(4), Runner(4), range(10), on_progress=lambda *x: calls.append(x))
    d = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert d["n_episodes"] == 10
    assert d["score"]["low"] < d["score"]["mean"] == np.mean([e["score"] for e in d["episodes"]]) < d["score"]["high"]
    assert d["success"]["count"] == sum(e["success"] for e in d["episodes"])
    assert d["success"]["low"] <= d["success"]["rate"] <= d["success"]["high"]
    assert sorted(d["episodes"][0]) == ["length", "return", "score", "seed", "success"]
    assert d["steps_per_s"] == pytest.approx(sum(e["length"] for e in d["episodes"]) / d["seconds"])
    assert d["videos"] == []
    assert calls[-1] == (10, 10)
    assert [c[0] for c in calls] == sorted({c[0] for c in calls})
    single = evaluate(dashes(1), Runner(1), [0]).to_dict()
    assert single["score"]["low"] is None


def test_videos_show_the_worst_and_the_best(tmp_path: Path) -> None:
    result = evaluate(dashes(3), Runner(3), range(8), video_dir=tmp_path / "videos")
    assert result.warnings == ()
    ranked = sorted(result.episodes, key=lambda e: e.score)
    assert [v.kind for v in result.videos] == ["worst", "worst", "best", "best"]
    assert {v.score for v in result.videos if v.kind == "worst"} == {e.score for e in ranked[:2]}
    assert {v.score for v in result.videos if v.kind == "best"} == {ranked[-1].score, ranked[-2].score}
    length = {e.seed: e.length for e in result.episodes}
    for video in result.videos:
        with av.open(str(video.path)) as file:
            frames = list(file.decode(file.streams.video[0]))
        assert len(frames) == length[video.seed] + 1  # the first state and one after each step
    few = evaluate(dashes(2), Runner(2), range(3), video_dir=tmp_path / "few")
    assert [v.kind for v in few.videos] == ["worst", "worst", "best"]  # no episode twice


def test_a_machine_that_cannot_draw_evaluates_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def render(index: int) -> np.ndarray:
        raise RenderingError("there is no OpenGL")

    env = dashes(3)
    monkeypatch.setattr(env, "render", render)
    result = evaluate(env, Runner(3), range(4), video_dir=tmp_path)
    assert len(result.episodes) == 4
    assert result.videos == ()
    assert result.warnings == ("no films: there is no OpenGL",)
    assert list(tmp_path.iterdir()) == []


def test_a_repetition_that_differs_is_reported(tmp_path: Path) -> None:
    class Wearing(Dash):
        forgetful = False

    result = evaluate(dashes(2, Wearing), Runner(2), range(4), video_dir=tmp_path, video_best=0)
    assert "not a function of the seed alone" in result.warnings[0]


def test_only_one_of_score_and_success() -> None:
    class NoScore(Dash):
        def _info(self) -> dict[str, Any]:
            return {"success": self.x >= 1}

    class NoSuccess(Dash):
        def _info(self) -> dict[str, Any]:
            return {"score": min(max(self.x, 0.0), 1.0)}

    class Neither(Dash):
        def _info(self) -> dict[str, Any]:
            return {"pace": 1.0}

    full = evaluate(dashes(2), Runner(2), range(6))
    rates = evaluate(dashes(2, NoScore), Runner(2), range(6))
    assert [e.score for e in rates.episodes] == [float(e.success) for e in full.episodes]
    scores = evaluate(dashes(2, NoSuccess), Runner(2), range(6))
    assert [e.success for e in scores.episodes] == [e.success for e in full.episodes]
    with pytest.raises(UserError, match=r"neither 'score' nor 'success', only \['pace'\].*eval.episodes=0"):
        evaluate(dashes(2, Neither), Runner(2), range(6))


def test_seed_lists() -> None:
    assert list(test_seeds(3)) == [100000, 100001, 100002]
    assert not set(test_seeds(50_000)) & set(selection_seeds(50_000))
    with pytest.raises(ConfigError, match="at most 50000"):
        selection_seeds(50_001)
    with pytest.raises(UserError, match="3 seeds, 2 of them different"):
        evaluate(dashes(1), Runner(1), [1, 1, 2])


def result_of(scores: dict[int, float]) -> EvalResult:
    episodes = (Episode(seed=k, score=v, success=v == 1, length=1, episode_return=v) for k, v in scores.items())
    return EvalResult(episodes=tuple(episodes), seconds=1.0)


def test_comparison_by_hand() -> None:
    a = result_of({1: 1.0, 2: 0.5, 3: 1.0, 4: 1.0, 9: 0.0})
    b = result_of({4: 0.8, 3: 0.5, 2: 1.0, 1: 1.0, 7: 0.0})
    c = compare(a, b)
    assert c.n == 4  # seeds 1 to 4: differences 0, -0.5, 0.5, 0.2
    assert c.score_difference == pytest.approx(0.05)
    assert c.score_interval[0] < 0.05 < c.score_interval[1]
    assert c.success_difference == 0.25  # +1 on 3 and 4, -1 on 2, 0 on 1
    assert (c.only_a, c.only_b) == (2, 1)
    assert c.p_value == 1.0  # 2 * (1 + 3) / 8
    back = compare(b, a)
    assert (back.score_difference, back.only_a) == (pytest.approx(-0.05), 1)
    assert json.loads(json.dumps(c.to_dict(), allow_nan=False))["n"] == 4
    assert math.isnan(compare(result_of({1: 1.0}), b).score_interval[0])
    with pytest.raises(UserError, match="2 seeds from 1 to 2, the other 1 seeds from 5 to 5"):
        compare(result_of({1: 0.0, 2: 0.0}), result_of({5: 0.0}))


def test_better_pairs_are_seen_through_large_spread() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 0.9, 100)
    a = result_of({i: float(x + 0.03 + 0.01 * rng.normal()) for i, x in enumerate(base)})
    b = result_of({i: float(x) for i, x in enumerate(base)})
    c = compare(a, b)
    assert 0.02 < c.score_interval[0] < 0.03 < c.score_interval[1] < 0.04
    assert b.score_interval[0] < a.score_mean < b.score_interval[1]  # unpaired, the two look alike
