"""From a policy and settings to what acts."""

from __future__ import annotations

from visuomotor.data.errors import ConfigError
from visuomotor.policies.candidates import Coherence
from visuomotor.policies.execution.config import ExecuteConfig, SteerConfig
from visuomotor.policies.execution.ensemble import TemporalEnsemble
from visuomotor.policies.execution.planner import ChunkPolicy, Planner, Ranker
from visuomotor.policies.execution.receding import RecedingHorizon, check_timing
from visuomotor.policies.execution.sampling import ChunkSampler

__all__ = ["make_actor"]


def make_actor(
    policy: ChunkPolicy, *, num_envs: int, config: ExecuteConfig | None = None, steer: SteerConfig | None = None,
    candidates: int = 1, ranker: Ranker | str | None = None,
) -> RecedingHorizon | TemporalEnsemble:  # fmt: skip
    """What turns the chunks of ``policy`` into actions of ``num_envs`` worlds.

    Args:
        policy: in ``eval`` mode.
        num_envs: worlds, with a state each.
        config: the mode of execution.
        steer: what the chunks are drawn to.
        candidates: chunks made for each plan.
        ranker: how the best of them is found: ``coherence``, or a function.

    Raises:
        ConfigError: what the policy or its head cannot do, with the reason.
    """
    config = config or ExecuteConfig()
    window, ensemble = policy.spec.window, config.mode == "ensemble"
    n_exec = config.n_exec or (max(1, config.delay) if ensemble else window.n_exec)
    check_timing(window, n_exec, config.delay)
    if isinstance(ranker, str):
        if ranker != "coherence":
            raise ConfigError(f"unknown ranker {ranker!r}; expected coherence, or a function")
        if ensemble:
            raise ConfigError(
                "rank_by=coherence with execute.mode=ensemble: the mean of many chunks is executed, so there is no "
                "previous chunk to agree with"
            )
        ranker = Coherence(policy, n_exec=n_exec)
    sampler = ChunkSampler(policy, config, n_exec=n_exec, steer=steer)
    planner = Planner(policy, num_envs=num_envs, sampler=sampler, candidates=candidates, ranker=ranker)
    if ensemble:
        return TemporalEnsemble(planner, n_exec=n_exec, delay=config.delay, decay=config.decay)
    return RecedingHorizon(planner, n_exec=n_exec, delay=config.delay)
