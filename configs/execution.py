"""What acts in an evaluation: one policy or several composed, and how their chunks are executed and chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from visuomotor.configs.schema import EvalConfig
from visuomotor.data.errors import CheckpointError, ConfigError, nearest
from visuomotor.policies.candidates import Likelihood, Value, value_functions
from visuomotor.policies.composition import ComposedPolicy, convex_weights
from visuomotor.policies.execution.build import make_actor
from visuomotor.policies.execution.config import ExecuteConfig, SteerConfig
from visuomotor.policies.execution.ensemble import TemporalEnsemble
from visuomotor.policies.execution.planner import ChunkPolicy, Ranker
from visuomotor.policies.execution.receding import RecedingHorizon
from visuomotor.policies.learn.checkpoint import resolve_checkpoint
from visuomotor.policies.learn.evaluate import EvalResult
from visuomotor.policies.policy import Policy

__all__ = ["Execution", "compose", "load_execution", "search_weights"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How an evaluation executes, the same for every policy that it rolls out."""

    config: ExecuteConfig
    steer: SteerConfig | None = None
    candidates: int = 1
    rank_by: str | None = None
    value: Value | None = None
    judge: Policy | None = None

    def actor(self, policy: ChunkPolicy, num_envs: int) -> RecedingHorizon | TemporalEnsemble:
        """What acts in ``num_envs`` worlds.

        Raises:
            ConfigError: something that the policy cannot do, with the reason.
        """
        ranker: Ranker | str | None = self.value or self.rank_by
        if self.judge is not None:
            ranker = Likelihood(self.judge, policy)
        return make_actor(
            policy, num_envs=num_envs, config=self.config, steer=self.steer, candidates=self.candidates, ranker=ranker
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready settings."""
        steer = asdict(self.steer) if self.steer is not None and self.steer.corners else None
        return {**asdict(self.config), "candidates": self.candidates, "rank_by": self.rank_by, "steer": steer}


def load_execution(config: EvalConfig, load: Callable[[str], Policy]) -> Execution:
    """Resolve what ``rank_by`` names: ``coherence``, a value function of another package, or a checkpoint.

    Raises:
        ConfigError: a name that is none of these.
    """
    found: dict[str, Any] = {}
    if config.rank_by is not None and config.rank_by != "coherence":
        values = value_functions()
        if config.rank_by in values:
            found["value"] = Value(config.rank_by, values[config.rank_by].load())
        else:
            found["judge"] = _judge(config.rank_by, load, list(values))
    return Execution(
        config=config.execute, steer=config.steer, candidates=config.candidates, rank_by=config.rank_by, **found
    )


def _judge(name: str, load: Callable[[str], Policy], values: list[str]) -> Policy:
    try:
        resolve_checkpoint(Path(name).expanduser())
    except CheckpointError:
        raise ConfigError(
            f"rank_by={name} is neither a value function (entry point of the group visuomotor.values), nor coherence, "
            f"nor a checkpoint or run. {nearest(name, ['coherence', *values])}"
        ) from None
    return load(name)


def compose(policies: list[Policy], config: EvalConfig, weights: list[float] | None = None) -> ChunkPolicy:
    """The policies as one; a single one stays what it is.

    Raises:
        ConfigError: policies that do not go together.
    """
    if len(policies) == 1:
        return policies[0]
    return ComposedPolicy(policies, weights or config.compose_weights or [1.0 / len(policies)] * len(policies))


def search_weights(
    policies: list[Policy], config: EvalConfig, select: Callable[[ChunkPolicy], EvalResult], console: Console
) -> tuple[list[float], list[dict[str, Any]]]:
    """Try all convex weights of a grid on the selection seeds: the best ones, and what each scored (GPC, section 4)."""
    tried: list[dict[str, Any]] = []
    for weights in convex_weights(len(policies), config.search_parts):
        result = select(compose(policies, config, weights))
        tried.append({"weights": weights, "score": result.score_mean, "success": result.success_rate})
        shown = ", ".join(f"{w:.2g}" for w in weights)
        console.print(
            f"weights [{shown}]: score {result.score_mean:.3f}, success {result.success_rate:.0%} over "
            f"{len(result.episodes)} selection seeds",
            highlight=False,
        )
    best = max(tried, key=lambda row: float(row["score"]) + float(row["success"]))
    return list(best["weights"]), tried
