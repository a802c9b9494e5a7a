"""Run a policy on fixed seeds, with videos of the worst and best episodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.envs.base import Obs, Step, VecEnv
from visuomotor.envs.sim.gl import RenderingError
from visuomotor.envs.video import VideoWriter
from visuomotor.policies.learn.results import Comparison, Episode, EvalResult, Video, compare

__all__ = [
    "Actor",
    "Comparison",
    "Episode",
    "EvalResult",
    "Video",
    "compare",
    "evaluate",
    "selection_seeds",
    "test_seeds",
]

_TEST_START = 100_000  # as published with Diffusion Policy
_SELECTION_START = 50_000
_SAME_SCORE = 1e-3


class Actor(Protocol):
    """A policy with its chunk execution: one action a control step for ``N`` worlds."""

    def reset(self, seeds: Sequence[int], mask: Tensor | None = None) -> None:
        """Forget the past of the worlds in ``mask`` (bool ``[N]``, None: all) and draw their noise from ``seeds``."""

    def act(self, obs: Obs, active: Tensor) -> Tensor:
        """Actions ``[N, Da]`` for observations ``{key: [N, ...]}``; rows outside ``active`` are ignored."""


def test_seeds(n: int) -> range:
    """``n`` seeds to report on: from 100000 up, as published. Never select a checkpoint by them."""
    return range(_TEST_START, _TEST_START + n)


test_seeds.__test__ = False  # type: ignore[attr-defined]  # a name that pytest would collect


def selection_seeds(n: int) -> range:
    """``n`` seeds to select a checkpoint by, disjoint from every :func:`test_seeds`."""
    if n > _TEST_START - _SELECTION_START:
        raise ConfigError(
            f"{n} selection seeds; expected at most {_TEST_START - _SELECTION_START}, or they reach the test seeds"
        )
    return range(_SELECTION_START, _SELECTION_START + n)


def evaluate(
    env: VecEnv,
    actor: Actor,
    seeds: Sequence[int],
    *,
    video_worst: int = 2,
    video_best: int = 2,
    video_dir: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Run one episode a seed, ``env.num_envs`` side by side; finished worlds cost nothing.

    With ``video_dir`` the worst and best episodes are run again and filmed. ``on_progress(done, all)`` is called when
    episodes end.

    Raises:
        UserError: no seeds, a seed twice, or an environment that reports neither ``score`` nor ``success``.
    """
    if not len(seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{len(seeds)} seeds, {len(set(seeds))} of them different; expected at least one, each once")
    env.warnings()  # of whatever was done before
    start = time.perf_counter()
    episodes: list[Episode] = []
    for wave in _waves(seeds, env.num_envs):
        tally = _Tally(wave, env)
        for step, active in _run(env, actor, wave):
            ended = tally.add(step, active)
            if ended and on_progress is not None:
                on_progress(len(episodes) + tally.done, len(seeds))
        episodes += tally.episodes()
    seconds = time.perf_counter() - start
    troubles = env.warnings()
    videos, warnings = _film_if_possible(env, actor, _choose(episodes, video_worst, video_best), video_dir)
    return EvalResult(episodes=tuple(episodes), seconds=seconds, videos=tuple(videos), warnings=(*troubles, *warnings))


class _Tally:
    """Running score, success, length and return of the ``len(wave)`` episodes of one wave."""

    def __init__(self, wave: Sequence[int], env: VecEnv) -> None:
        self._wave, self.done = wave, 0
        n, device = env.num_envs, env.device
        self._score = torch.zeros(n, device=device)
        self._success = torch.zeros(n, dtype=torch.bool, device=device)
        self._length = torch.zeros(n, dtype=torch.int64, device=device)
        self._return = torch.zeros(n, dtype=torch.float64, device=device)

    def add(self, step: Step, active: Tensor) -> bool:
        """Count the step in the worlds that took it; True if episodes ended."""
        score, success = _outcome(step)
        self._score = torch.where(active, self._score.maximum(score), self._score)
        self._success |= active & success
        self._length += active
        self._return += step.reward  # 0 in worlds outside `active`
        ended = int((active & (step.terminated | step.truncated)).sum())
        self.done += ended
        return ended > 0

    def episodes(self) -> list[Episode]:
        columns = [x.tolist()[: len(self._wave)] for x in (self._score, self._success, self._length, self._return)]
        return [
            Episode(seed=seed, score=score, success=success, length=length, episode_return=total)
            for seed, score, success, length, total in zip(self._wave, *columns, strict=True)
        ]


def _outcome(step: Step) -> tuple[Tensor, Tensor]:
    """Score and success now; where the environment reports one of them only, it gives the other."""
    score, success = step.info.get("score"), step.info.get("success")
    if score is None and success is None:
        raise UserError(
            f"the environment reports neither 'score' nor 'success', only {sorted(step.info)}; "
            "give GymVecEnv a score= function or let the environment put one of them into its info; "
            "eval.episodes=0 trains without evaluation"
        )
    if score is None:
        assert success is not None
        return success.float(), success
    return score, score >= 1.0 if success is None else success


def _waves(seeds: Sequence[int], n: int) -> Iterator[list[int]]:
    for i in range(0, len(seeds), n):
        yield [int(s) for s in seeds[i : i + n]]


def _run(
    env: VecEnv, actor: Actor, wave: Sequence[int], on_obs: Callable[[Tensor], None] | None = None
) -> Iterator[tuple[Step, Tensor]]:
    """Yield every step of one wave with the worlds that took it; ``on_obs(worlds)`` sees each new state."""
    padded = [*wave, *[wave[-1]] * (env.num_envs - len(wave))]
    active = torch.arange(env.num_envs, device=env.device) < len(wave)
    obs = env.reset(seeds=padded, mask=active)
    actor.reset(padded, active)
    if on_obs is not None:
        on_obs(active)
    while bool(active.any()):
        step = env.advance(actor.act(obs, active), active)
        if on_obs is not None:
            on_obs(active)
        yield step, active
        obs = step.obs
        active = active & ~(step.terminated | step.truncated)


def _choose(episodes: Sequence[Episode], worst: int, best: int) -> list[tuple[str, Episode]]:
    """The lowest scores (of equal ones the lowest return) and, among the others, the highest (then the shortest)."""
    by_worst = sorted(episodes, key=lambda e: (e.score, e.episode_return, e.seed))
    low, rest = by_worst[:worst], by_worst[worst:]
    high = sorted(rest, key=lambda e: (-e.score, e.length, e.seed))[:best]
    return [*(("worst", e) for e in low), *(("best", e) for e in high)]


def _film_if_possible(
    env: VecEnv, actor: Actor, chosen: Sequence[tuple[str, Episode]], folder: Path | None
) -> tuple[list[Video], list[str]]:
    """An evaluation is worth having without films: a machine that cannot draw gets a warning instead of them."""
    if folder is None:
        return [], []
    try:
        return _film(env, actor, chosen, folder)
    except RenderingError as error:
        return [], [f"no films: {error}"]


def _film(
    env: VecEnv, actor: Actor, chosen: Sequence[tuple[str, Episode]], folder: Path
) -> tuple[list[Video], list[str]]:
    """Run the chosen episodes again, rendering every state."""
    videos, warnings = [], []
    for start in range(0, len(chosen), env.num_envs):
        part = chosen[start : start + env.num_envs]
        wave = [e.seed for _, e in part]
        paths = [folder / f"{kind}_seed{e.seed}.mp4" for kind, e in part]
        tally = _Tally(wave, env)
        with ExitStack() as stack:
            writers = [stack.enter_context(VideoWriter(p, env.fps)) for p in paths]

            def film(active: Tensor, writers: Sequence[VideoWriter] = writers) -> None:
                for i in active.nonzero().flatten().tolist():
                    writers[i].add(env.render(i))

            for step, active in _run(env, actor, wave, film):
                tally.add(step, active)
        for (kind, e), path, again in zip(part, paths, tally.episodes(), strict=True):
            videos.append(Video(path=path, kind=kind, seed=e.seed, score=e.score, success=e.success))
            if again.success != e.success or abs(again.score - e.score) > _SAME_SCORE:
                warnings.append(
                    f"{path.name} shows a repetition with score {again.score:.3f} after {again.length} steps, but the "
                    f"evaluated episode had {e.score:.3f} after {e.length}: policy or environment is not a function of "
                    "the seed alone (with other neighbours, a network's rounding already differs in the last bits)"
                )
    return videos, warnings
