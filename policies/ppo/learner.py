"""One update: several passes over a rollout in minibatches. It knows no policy class, only :class:`Likelihood`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from visuomotor.policies.draws import Draws
from visuomotor.policies.learn.optim import clip_gradients
from visuomotor.policies.likelihoods.base import Likelihood, Record
from visuomotor.policies.ppo.config import PPOConfig
from visuomotor.policies.ppo.critic import Critic
from visuomotor.policies.ppo.objective import approximate_kl, reduce_log_ratio, surrogate, value_loss
from visuomotor.policies.ppo.regularisers import Regulariser
from visuomotor.policies.ppo.returns import generalized_advantage
from visuomotor.policies.ppo.rollout import Rollout

__all__ = ["Learner"]

_LR_RANGE = (1e-6, 1e-2)  # of the adaptive schedule


@dataclass(frozen=True)
class _Samples:
    """The decisions of a rollout, ``S = T * N`` of them in a row."""

    obs: dict[str, Tensor]
    record: Record
    mask: Tensor  # [S, M, H]
    advantage: Tensor  # [S]
    target: Tensor  # [S]
    value: Tensor  # [S]
    valid: Tensor  # [S] float, 0 where something was not finite

    def rows(self, index: Tensor) -> _Samples:
        return _Samples(
            {k: v[index] for k, v in self.obs.items()}, self.record.rows(index), self.mask[index],
            self.advantage[index], self.target[index], self.value[index], self.valid[index],
        )  # fmt: skip


class Learner:
    """Owns the optimisers of policy and critic.

    Several processes learn as one: each holds the rollout of its own worlds, minibatches are drawn over all of them,
    and gradients, advantage statistics and counts are summed.

    Args:
        likelihood: the policy and how it explores.
        critic: its critic.
        config: the settings.
        regularisers: further terms of the policy's loss.
        accelerator: the processes.
    """

    def __init__(
        self, likelihood: Likelihood, critic: Critic, config: PPOConfig, *, regularisers: Sequence[Regulariser] = (),
        accelerator: Accelerator,
    ) -> None:  # fmt: skip
        self._likelihood, self._critic, self._config = likelihood, critic, config
        self._regularisers, self._accelerator = list(regularisers), accelerator
        self.actor_optimizer = _adam(likelihood, config.lr)
        self.critic_optimizer = _adam(critic, config.critic_lr)
        self.lr = config.lr  # of the policy; the adaptive schedule changes it
        terms = likelihood.n_terms if config.level == "step" else 1
        device = accelerator.device
        order = torch.arange(terms, dtype=torch.float32, device=device)
        share = order / max(1, terms - 1) if terms > 1 else torch.ones(1, device=device)
        rise = torch.expm1(3.0 * share) / math.expm1(3.0)  # DPPO's schedule, rate 3
        self._clip = config.clip * (config.clip_first + (1.0 - config.clip_first) * rise)  # [M']
        self._weight = config.noise_discount ** (terms - 1 - order)  # [M']

    def update(self, rollout: Rollout, draws: Draws, *key: int, share_done: float) -> dict[str, float]:
        """Learn from ``rollout``; the order of the minibatches is a function of ``(*key, epoch)``.

        Returns what is worth reporting. ``share_done`` (0..1) is how much of the run is over.
        """
        c = self._config
        samples = self._samples(rollout)
        train_actor = key[-1] >= c.critic_warmup
        if c.schedule == "cosine":
            self.lr = 0.5 * c.lr * (1.0 + math.cos(math.pi * share_done))
        tally = _Tally()
        epochs_done = 0
        for epoch in range(c.epochs):
            kl_before = tally.total("kl"), tally.total("terms")
            for i, index in enumerate(self._minibatches(rollout.value.shape, draws, *key, epoch)):
                first = epoch == 0 and i == 0
                self._step(samples.rows(index), draws, tally, train_actor=train_actor, first=first)
            epochs_done += 1
            kl = (tally.total("kl") - kl_before[0]) / max(1.0, tally.total("terms") - kl_before[1])
            if train_actor and self._after_epoch(kl):
                break
        return {**tally.means(), **_explained(samples), "lr": self.lr, "epochs": float(epochs_done)}

    def state(self) -> dict[str, Tensor]:
        """Moments of both optimisers and the learning rate, for going on bit for bit."""
        out = {"lr": torch.tensor(self.lr, dtype=torch.float64)}
        for name, optimizer in (("actor", self.actor_optimizer), ("critic", self.critic_optimizer)):
            for i, p in enumerate(optimizer.param_groups[0]["params"]):
                out |= {f"{name}/{i}/{k}": v for k, v in optimizer.state[p].items()}
        return out

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state`."""
        self.lr = float(state["lr"])
        for name, optimizer in (("actor", self.actor_optimizer), ("critic", self.critic_optimizer)):
            for i, p in enumerate(optimizer.param_groups[0]["params"]):
                prefix = f"{name}/{i}/"
                mine = {k.removeprefix(prefix): v.clone() for k, v in state.items() if k.startswith(prefix)}
                if mine:
                    optimizer.state[p] = mine

    def _samples(self, r: Rollout) -> _Samples:
        c = self._config
        advantage = generalized_advantage(
            r.reward, r.discount, r.value, r.next_value, r.terminated, r.truncated, c.lam
        )  # fmt: skip
        valid = r.valid & torch.isfinite(advantage)
        for seen in r.obs.values():
            if seen.is_floating_point():
                valid &= torch.isfinite(seen).flatten(2).all(-1)
        valid = valid.float()
        advantage = advantage.nan_to_num(0.0, 0.0, 0.0)
        target = advantage + r.value.nan_to_num(0.0, 0.0, 0.0)
        if c.normalize_advantage == "batch":
            advantage = self._normalized(advantage, valid)
        # What is not finite counts for nothing, but 0 times NaN is NaN in the gradient of every weight.
        flat = {k: _finite(v.flatten(0, 1)) for k, v in r.obs.items()}
        aux = {k: _finite(v.flatten(0, 1)) for k, v in r.record.aux.items()}
        record = Record(_finite(r.record.chunk.flatten(0, 1)), aux)
        mask = self._likelihood.mask(r.executed.flatten(0, 1), record)
        return _Samples(
            flat, record, mask, advantage.flatten(), target.flatten(), r.value.flatten(), valid.flatten()
        )  # fmt: skip

    def _minibatches(self, shape: tuple[int, ...], draws: Draws, *key: int) -> Iterator[Tensor]:
        """Rows of this process in each minibatch of one permutation over the decisions of all processes."""
        draws.reseed(*key)
        (t, n), world = shape, draws.world_size
        order = torch.randperm(t * n * world, generator=draws.generator, device=draws.device)
        for part in order.chunk(self._config.minibatches):  # numbered by time, then by world over all processes
            time, which = part // (n * world), part % (n * world)
            yield part if world == 1 else (time * n + which % n)[which // n == draws.rank]

    def _step(self, s: _Samples, draws: Draws, tally: _Tally, *, train_actor: bool, first: bool) -> None:
        """One optimiser step of the critic and, unless it is warming up, of the policy."""
        count = self._sum(s.valid.sum()).clamp_min(1.0)
        value = self._critic(s.obs)
        critic_loss = (value_loss(value, s.value, s.target, self._config.value_clip) * s.valid).sum() / count
        critic_loss.backward()
        tally.add("critic_grad_norm", self._apply(self.critic_optimizer, self._config.critic_grad_clip))
        tally.add("value_loss", critic_loss.detach())
        if train_actor:
            self._policy_step(s, count, draws, tally, first=first)

    def _policy_step(self, s: _Samples, count: Tensor, draws: Draws, tally: _Tally, *, first: bool) -> None:
        c, da = self._config, s.record.chunk.shape[-1]
        obs = {k: v for k, v in s.obs.items() if k in self._likelihood.policy.spec.obs}
        found = self._likelihood.evaluate(obs, s.record)
        log_ratio = reduce_log_ratio(found.log_ratio, s.mask, da, reduce=c.reduce, level=c.level)  # [b, M']
        finite = torch.isfinite(log_ratio)
        weight = finite * s.valid[:, None]
        log_ratio = torch.where(finite, log_ratio, 0.0)
        advantage = s.advantage
        if c.normalize_advantage == "minibatch":
            advantage = self._normalized(advantage, s.valid)
        terms = surrogate(log_ratio, advantage[:, None] * self._weight, self._clip, kind=c.surrogate)
        loss = (terms.loss * weight).mean(1).sum() / count
        if c.entropy and found.entropy is not None:
            entropy = (found.entropy * s.mask).sum((1, 2)) / (s.mask.sum((1, 2)) * da).clamp_min(1)
            tally.add("entropy", (entropy.detach() * s.valid).sum() / count)
            loss = loss - c.entropy * (entropy * s.valid).sum() / count
        if found.penalty is not None:
            loss = loss + (found.penalty * s.valid).sum() / count
        for regulariser in self._regularisers:
            term = regulariser(self._likelihood, obs, s.record, found, draws) / self._accelerator.num_processes
            tally.add(regulariser.name, term.detach())
            loss = loss + term
        loss.backward()
        tally.add("policy_grad_norm", self._apply(self.actor_optimizer, c.grad_clip))
        with torch.no_grad():
            tally.add("policy_loss", loss.detach())
            total = self._sum(weight.sum())
            tally.add("kl", self._sum((approximate_kl(log_ratio) * weight).sum()), mean=False)
            tally.add("clipped", self._sum((terms.clipped * weight).sum()), mean=False)
            tally.add("terms", total, mean=False)
            tally.add("lost", (1.0 - weight).sum(), mean=False)
            if first:
                tally.add("first_ratio_error", ((terms.ratio - 1.0).abs() * weight).max())

    def _after_epoch(self, kl: float) -> bool:
        """Adapt the rate; whether to end the update."""
        c = self._config
        if c.schedule == "adaptive":
            factor = 1 / 1.5 if kl > 2.0 * c.desired_kl else 1.5 if kl < 0.5 * c.desired_kl else 1.0
            self.lr = min(max(self.lr * factor, _LR_RANGE[0]), _LR_RANGE[1])
        return c.target_kl is not None and kl > c.target_kl

    def _apply(self, optimizer: torch.optim.Optimizer, bound: float | None) -> Tensor:
        params = optimizer.param_groups[0]["params"]
        if self._accelerator.num_processes > 1:
            for p in params:
                p.grad = self._sum(torch.zeros_like(p) if p.grad is None else p.grad)
        if optimizer is self.actor_optimizer:
            optimizer.param_groups[0]["lr"] = self.lr
        norm = clip_gradients(params, bound)
        if bool(torch.isfinite(norm)):  # a step that is not finite is left out; the report shows its norm
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def _normalized(self, advantage: Tensor, valid: Tensor) -> Tensor:
        """Mean 0 and standard deviation 1 over what is valid, in all processes."""
        count, total = self._sum(valid.sum()).clamp_min(1.0), self._sum((advantage * valid).sum())
        centred = advantage - total / count
        variance = self._sum((centred.square() * valid).sum()) / count
        return centred / (variance.sqrt() + 1e-8)

    def _sum(self, x: Tensor) -> Tensor:
        """Over the processes."""
        return x if self._accelerator.num_processes == 1 else self._accelerator.reduce(x, reduction="sum")


class _Tally:
    """Running means and sums of what the steps of an update report; read once, at its end."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor, *, mean: bool = True) -> None:
        self._sums[name] = value + self._sums[name] if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1 if mean else 0

    def total(self, name: str) -> float:
        return float(self._sums[name]) if name in self._sums else 0.0

    def means(self) -> dict[str, float]:
        terms = max(1.0, self.total("terms"))
        out = {n: float(v) / self._counts[n] for n, v in self._sums.items() if self._counts[n]}
        if "terms" in self._sums:
            out |= {"kl": self.total("kl") / terms, "clip_fraction": self.total("clipped") / terms}
            out["lost_samples"] = self.total("lost")
        return out


def _adam(module: nn.Module, lr: float) -> torch.optim.Adam:
    params = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params, lr=lr, eps=1e-5, fused=True)
    # Fused kernels do not tell autograd that they changed the weights, and copies made for acting rely on that.
    optimizer.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(params))
    return optimizer


def _finite(x: Tensor) -> Tensor:
    return x.nan_to_num(0.0, 0.0, 0.0) if x.is_floating_point() else x


def _explained(s: _Samples) -> dict[str, float]:
    """Share of the variance of the returns that the critic explained before it learnt from them."""
    valid = s.valid.bool()
    target, value = s.target[valid], s.value[valid]
    variance = target.var() if len(target) > 1 else torch.zeros(())
    unexplained = (target - value).var() if len(target) > 1 else torch.zeros(())
    return {"explained_variance": float(1.0 - unexplained / variance.clamp_min(1e-8))}
