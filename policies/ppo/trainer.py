"""PPO from end to end: gather, learn, update the statistics; everything else subscribes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from visuomotor.envs.base import VecEnv
from visuomotor.envs.sim.env import EnvSnapshot, SimVecEnv
from visuomotor.envs.sim.simulator import Snapshot
from visuomotor.policies.draws import Draws
from visuomotor.policies.learn.events import GracefulStop
from visuomotor.policies.likelihoods.base import Likelihood
from visuomotor.policies.ppo.config import PPOConfig
from visuomotor.policies.ppo.critic import Critic
from visuomotor.policies.ppo.learner import Learner
from visuomotor.policies.ppo.processes import Processes
from visuomotor.policies.ppo.regularisers import Regulariser
from visuomotor.policies.ppo.rollout import Collector, Rollout
from visuomotor.policies.ppo.scaling import ReturnScale, RunningStats

__all__ = ["BudgetConfig", "PPOTrainer", "UpdateEvent", "UpdateSubscriber"]

_ROLLOUT, _UPDATE = 1, 2  # streams of random numbers


@dataclass(kw_only=True, slots=True)
class BudgetConfig:
    """How long a run lasts: whichever comes first. At least one must be given.

    Attributes:
        env_steps: control steps of all worlds together.
        minutes: wall-clock time, interruptions left out; a run that ends by the clock is not repeatable bit for bit.
    """

    env_steps: int | None = 1_000_000
    minutes: float | None = None


@dataclass(frozen=True)
class UpdateEvent:
    """One update is done."""

    update: int  # updates done, from 1
    env_steps: int  # of all worlds so far
    share: float  # of the budget that is spent, 0..1
    metrics: Mapping[str, float]
    done: bool  # the run ends here, by its budget
    stopping: bool  # or before it, because somebody asked


UpdateSubscriber = Callable[[UpdateEvent], None]


class PPOTrainer:
    """Owns what changes: policy and exploration, critic, optimisers, statistics, worlds, and how much is done.

    Args:
        env: worlds of this process; ``config.num_envs`` over all of them.
        likelihood: the policy to train, and how it explores.
        critic: its critic.
        config: settings.
        budget: how long.
        seed: of all noise.
        learn_statistics: whether the policy's observation statistics are learnt too (from scratch), or frozen
            (fine-tuning).
        regularisers: further terms of the policy's loss.
        accelerator: the processes.
    """

    def __init__(
        self, env: VecEnv, likelihood: Likelihood, critic: Critic, *, config: PPOConfig, budget: BudgetConfig,
        seed: int, learn_statistics: bool, regularisers: Sequence[Regulariser] = (), accelerator: Accelerator,
    ) -> None:  # fmt: skip
        device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
        self.env, self.likelihood, self.critic = env, likelihood.to(device), critic.to(device)
        self._config, self._budget, self._seed, self._processes = config, budget, seed, Processes(accelerator)
        self._draws = Draws(seed, device=device, rank=rank, world_size=world)
        self.scale = ReturnScale(env.num_envs).to(device)
        encoder = likelihood.policy.encoder
        self._stats = {k: RunningStats(likelihood.policy.spec.obs[k].size) for k in encoder.vector_keys}
        self._stats = {k: v.to(device) for k, v in self._stats.items()} if learn_statistics else {}
        self.collector = Collector(
            env, self.likelihood, self.critic, gamma=config.gamma, bound=config.action_bound, seed=seed, rank=rank,
            stagger=config.stagger, image_shift=config.image_shift,
        )  # fmt: skip
        self.learner = Learner(self.likelihood, self.critic, config, regularisers=regularisers, accelerator=accelerator)
        self.updates_done, self.env_steps, self.seconds = 0, 0, 0.0

    def run(self, subscribers: Sequence[UpdateSubscriber], stop: GracefulStop) -> None:
        """Train until the budget is spent, or until ``stop`` is requested."""
        while self.share_done < 1.0:
            start = time.perf_counter()
            update = self.updates_done
            self.likelihood.set_progress(self.share_done)
            rollout = self.collector.collect(self._config.decisions, self._draws, self._seed, _ROLLOUT, update)
            gathered = time.perf_counter()
            scaled = self._scaled(rollout)
            learnt = self.learner.update(scaled, self._draws, self._seed, _UPDATE, update, share_done=self.share_done)
            self._update_statistics(rollout)
            self.updates_done += 1
            now = time.perf_counter()
            metrics = learnt | self._report(rollout, now - start, learn=now - gathered)
            done, stopping = self.share_done >= 1.0, self._agree(stop.requested)
            event = UpdateEvent(self.updates_done, self.env_steps, self.share_done, metrics, done, stopping)
            for subscriber in subscribers:
                subscriber(event)
            if stopping:
                return

    @property
    def share_done(self) -> float:
        """Share of the budget that is spent."""
        b = self._budget
        by_steps = self.env_steps / b.env_steps if b.env_steps else 0.0
        by_time = self.seconds / (60.0 * b.minutes) if b.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Tensors from which the run goes on bit for bit on the CPU, with worlds that can be saved."""
        done = {"updates": self.updates_done, "env_steps": self.env_steps, "seconds": self.seconds}
        statistics = {f"{k}/{n}": v for k, stats in self._stats.items() for n, v in stats.state_dict().items()}
        groups = {
            "policy": self.likelihood.policy.state_dict(),
            "exploration": self.likelihood.own_state(),
            "critic": self.critic.state_dict(),
            "ppo": self.learner.state(),
            "rollouts": self.learner.rollouts(),
            "statistics": statistics,
            "reward_scale": self.scale.state_dict(),
            "progress": {k: torch.tensor(v, dtype=torch.float64) for k, v in done.items()},
            "collector": self.collector.state(),
        }
        if isinstance(self.env, SimVecEnv):
            groups["worlds"] = _flatten(self.env.snapshot())
        return {k: v for k, v in groups.items() if v}

    def load_state(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        """Inverse of :meth:`state`. Worlds that could not be saved begin new episodes."""
        self.likelihood.policy.load_state_dict(state["policy"])
        self.likelihood.load_state_dict(state.get("exploration", {}), strict=False)
        self.critic.load_state_dict(state["critic"])
        self.learner.load_state(state["ppo"])
        self.learner.load_rollouts(state.get("rollouts", {}))
        self.scale.load_state_dict(state["reward_scale"])
        for key, stats in self._stats.items():
            prefix = f"{key}/"
            saved = state["statistics"].items()
            stats.load_state_dict({n.removeprefix(prefix): v for n, v in saved if n.startswith(prefix)})
        progress = state["progress"]
        self.updates_done, self.env_steps = int(progress["updates"]), int(progress["env_steps"])
        self.seconds = float(progress["seconds"])
        if isinstance(self.env, SimVecEnv) and "worlds" in state:
            self.env.restore(_unflatten(state["worlds"], self.env.device))
            self.collector.load_state(state["collector"])

    def _scaled(self, rollout: Rollout) -> Rollout:
        """The rollout with rewards divided by the scale so far; the first one is divided by its own."""
        if not self._config.scale_reward:
            return rollout
        if not bool(self.scale.scale > 0):
            self._update_scale(rollout)
            return replace(rollout, reward=self.scale(rollout.reward))
        scaled = replace(rollout, reward=self.scale(rollout.reward))
        self._update_scale(rollout)
        return scaled

    def _update_scale(self, rollout: Rollout) -> None:
        ended = rollout.terminated | rollout.truncated
        self.scale.update(rollout.reward, rollout.discount, ended, self._processes)

    def _update_statistics(self, rollout: Rollout) -> None:
        """Between updates only: inside one, the ratio would not begin at 1."""
        keys = {*self.critic.encoder.vector_keys, *self._stats}
        seen = {k: self._processes.gather(v[:, :, -1:].flatten(0, 1)) for k, v in rollout.obs.items() if k in keys}
        self.critic.observe({k: seen[k] for k in self.critic.encoder.vector_keys})
        normalizer, specs = self.likelihood.policy.normalizer, self.likelihood.policy.spec.obs
        for key, stats in self._stats.items():
            stats.update(seen[key][:, -1].flatten(1).float())
            if stats.count > 0:
                normalizer.set_stats(f"obs/{key}", stats.to_stats(specs[key].shape))

    def _report(self, r: Rollout, seconds: float, *, learn: float) -> dict[str, float]:
        """Count what was done; the processes agree on all of it, and so on when the budget is spent."""
        shares = [*r.seconds.values(), learn, seconds]
        mine = torch.cat([torch.tensor([float(r.steps), *shares], dtype=torch.float64), r.episodes.cpu()])
        steps, *parts = self._processes.sum(mine).tolist()
        *parts, finished, returns, lengths, successes = parts
        parts = [x / self._processes.count for x in parts]
        self.env_steps += int(steps)
        self.seconds += parts[-1]
        out = {"env_steps": float(self.env_steps), "steps_per_s": steps / parts[-1], "finished": finished}
        out |= {f"share_{k}": v / parts[-1] for k, v in zip([*r.seconds, "learn"], parts, strict=False)}
        if finished:
            out |= {"return": returns / finished, "length": lengths / finished, "success": successes / finished}
        if isinstance(self.env, SimVecEnv):
            self.env.events.adapt(self.env_steps, self._processes.gather)
            out |= self.env.events.report()
        return out

    def _agree(self, stopping: bool) -> bool:
        """Whether any process wants to stop."""
        return bool(self._processes.sum(torch.tensor(float(stopping))) > 0)


def _flatten(snapshot: EnvSnapshot) -> dict[str, Tensor]:
    model = {f"model/{k}": v for k, v in snapshot.sim.model.items()}
    return {"state": snapshot.sim.state, **model, **{f"buffer/{k}": v for k, v in snapshot.buffers.items()}}


def _unflatten(tensors: Mapping[str, Tensor], device: torch.device) -> EnvSnapshot:
    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v.to(device) for k, v in tensors.items() if k.startswith(prefix)}

    return EnvSnapshot(Snapshot(tensors["state"].to(device), part("model/")), part("buffer/"))
