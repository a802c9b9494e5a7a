"""When a source is asked for chunks, what it is told, and how several chunks become one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from arm_rig import MS, spec

from visuomotor.data.actions import ActionConfig
from visuomotor.data.rotations import axis_angle_to_quat, matrix_to_rot6d, quat_to_matrix
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies.execution.ensemble import mean_action
from visuomotor.sim2real.remote.source import PlanRequest
from visuomotor.sim2real.runtime.blending import mean_chunk
from visuomotor.sim2real.runtime.pilot import Pilot, Rhythm
from visuomotor.sim2real.runtime.types import Observed

DT = 50 * MS


class Source:
    """Remembers what it was asked; answers the step's number in every action, after ``latency``."""

    def __init__(self, n_obs: int = 2, horizon: int = 8) -> None:
        window = WindowConfig(n_obs=n_obs, horizon=horizon, n_exec=2)
        base = spec(obs={"x": ArraySpec(shape=(1,))})
        self.spec = type(base)(
            obs=base.obs, action_key="action", action=ArraySpec(shape=(1,), names=("pan",)), fps=20.0, window=window,
            action_config=ActionConfig(),
        )  # fmt: skip
        self.requests: list[PlanRequest] = []
        self.answer = True

    def plan(self, request: PlanRequest) -> np.ndarray | None:
        self.requests.append(request)
        if not self.answer:
            return None
        number = len(self.requests)
        return (100 * number + np.arange(8, dtype=np.float32))[:, None]

    def close(self) -> None:
        pass


def seen(step: int, episode: int = 0) -> Observed:
    values = {"x": np.array([step], np.float32)}
    return Observed(time_ns=step * DT, step=step, episode=episode, seed=4, values=values, ages_s={})


def test_the_history_the_previous_chunk_and_the_delay_that_a_source_is_told() -> None:
    source = Source()
    pilot = Pilot(source, Rhythm(fps=20.0, n_exec=2))
    for step in range(5):
        pilot.take(seen(step))
        if pilot.due:
            pilot.plan(lambda step=step: step * DT + 60 * MS)  # type: ignore[misc]  # 1.2 steps: two are past
    first, second, third = source.requests
    assert first.previous is None
    assert first.delay == 0
    np.testing.assert_array_equal(first.obs["x"], [[0], [0]])  # an episode repeats its first observation
    np.testing.assert_array_equal(second.obs["x"], [[1], [2]])
    assert (second.seed, second.plan, second.delay) == (4, 1, 2)
    assert second.previous is not None
    assert third.previous is not None
    # chunk 1 (101 is its present, step 0): at step 2 the past is its action of step 1
    np.testing.assert_array_equal(second.previous[:, 0], [102, 103, 104, 105, 106, 107, 107, 107])
    # chunk 2 took over at step 4, with its action for it
    np.testing.assert_array_equal(third.previous[:, 0], [104, 203, 204, 205, 206, 207, 207, 207])


def test_missed_observations_keep_the_spacing_of_the_history_and_a_new_episode_forgets() -> None:
    source = Source()
    pilot = Pilot(source, Rhythm(fps=20.0, n_exec=1))
    pilot.take(seen(0))
    pilot.take(seen(3))
    pilot.plan(lambda: 3 * DT)
    np.testing.assert_array_equal(source.requests[-1].obs["x"], [[0], [3]])
    pilot.take(seen(0, episode=1))
    made = pilot.plan(lambda: 0)
    assert made is not None
    assert made.episode == 1
    assert source.requests[-1].previous is None
    np.testing.assert_array_equal(source.requests[-1].obs["x"], [[0], [0]])


def test_without_an_answer_the_pilot_asks_again() -> None:
    source = Source()
    source.answer = False
    pilot = Pilot(source, Rhythm(fps=20.0, n_exec=4))
    pilot.take(seen(0))
    assert pilot.plan(lambda: 0) is None
    assert pilot.due
    source.answer = True
    made = pilot.plan(lambda: 0)
    assert made is not None
    assert not pilot.due
    assert source.requests[-1].plan == 0
    np.testing.assert_array_equal(made.actions[:, 0], np.arange(201, 208))  # from the present on


def test_an_ensemble_is_the_mean_of_all_chunks_that_reach_a_step() -> None:
    source = Source(n_obs=1)
    pilot = Pilot(source, Rhythm(fps=20.0, n_exec=1, ensemble=True, decay=0.5))
    made = None
    for step in range(3):
        pilot.take(seen(step))
        made = pilot.plan(lambda step=step: step * DT)  # type: ignore[misc]
    assert made is not None
    w = np.exp(-0.5 * np.arange(3))
    expected = (w @ np.array([102.0, 201.0, 300.0])) / w.sum()  # of step 2: oldest first
    assert made.actions[0, 0] == pytest.approx(expected)
    assert made.actions[-1, 0] == pytest.approx(307.0)  # only the newest reaches step 9


def test_means_of_angles_and_rotations_are_those_of_the_simulation() -> None:
    rng = np.random.default_rng(0)
    config = ActionConfig(angle_dims=[1], pose_groups=[list(range(2, 11))])
    chunks = []
    for k in range(3):
        rotations = quat_to_matrix(axis_angle_to_quat(rng.normal(0, 0.4, (6 - k, 3))))
        pose = np.concatenate([rng.normal(size=(6 - k, 3)), matrix_to_rot6d(rotations)], 1)
        chunks.append(np.concatenate([rng.normal(0, 2.5, (6 - k, 2)), pose], 1).astype(np.float32))
    chunks = chunks[::-1]  # the oldest reaches least far
    got = mean_chunk(chunks, 0.3, config)
    for i in range(6):
        reach = [c[i] for c in chunks if i < len(c)]
        w = torch.exp(-0.3 * torch.arange(len(reach), dtype=torch.float32))
        expected = mean_action(torch.from_numpy(np.stack(reach))[None], (w / w.sum())[None], config)[0]
        np.testing.assert_allclose(got[i], expected.numpy(), atol=2e-5)
