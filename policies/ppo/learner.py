"""One update: several passes over a rollout in minibatches. It knows no policy class, only :class:`Likelihood`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from visuomotor.policies.draws import Draws
from visuomotor.policies.learn.optim import clip_gradients
from visuomotor.policies.likelihoods.base import Evaluation, Likelihood
from visuomotor.policies.ppo.config import PPOConfig
from visuomotor.policies.ppo.critic import Critic
from visuomotor.policies.ppo.objective import approximate_kl, reduce_log_ratio, surrogate, value_loss
from visuomotor.policies.ppo.processes import Processes
from visuomotor.policies.ppo.regularisers import Regulariser
from visuomotor.policies.ppo.reuse import Reuse
from visuomotor.policies.ppo.rollout import Rollout
from visuomotor.policies.ppo.samples import Samples, explained_variance, normalized
from visuomotor.policies.ppo.tally import Tally
from visuomotor.policies.ppo.trust_region import TrustRegion, divergence

__all__ = ["Learner"]

_LR_RANGE = (1e-6, 1e-2)  # of the adaptive schedule
_FIX_PASSES, _HALVINGS = 10, 20  # of the trust region: after so many it is forced


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
        self._regularisers, self._processes = list(regularisers), Processes(accelerator)
        self._compiled = torch.compile(likelihood.evaluate) if config.compile else None
        self.actor_optimizer = _adam(likelihood, config.lr)
        self.critic_optimizer = _adam(critic, config.critic_lr)
        self.lr = config.lr  # of the policy; the adaptive schedule changes it
        params = self.actor_optimizer.param_groups[0]["params"]
        self._reuse, self._parts = Reuse(config, likelihood.mask, self._evaluate), config.minibatches
        self._region = TrustRegion(config.trust_region, params, self._processes) if config.trust_region else None
        terms = likelihood.n_terms if config.level == "step" else 1
        order = torch.arange(terms, dtype=torch.float32, device=accelerator.device)
        share = order / (terms - 1) if terms > 1 else torch.ones_like(order)
        rise = torch.expm1(3.0 * share) / math.expm1(3.0)  # DPPO's schedule, rate 3
        self._clip = config.clip * (config.clip_first + (1.0 - config.clip_first) * rise)  # [M']
        self._weight = config.noise_discount ** (terms - 1 - order)  # [M']

    def update(self, rollout: Rollout, draws: Draws, *key: int, share_done: float) -> dict[str, float]:
        """Learn from ``rollout``; the order of the minibatches is a function of ``(*key, epoch)``.

        Returns what is worth reporting. ``share_done`` (0..1) is how much of the run is over.
        """
        c = self._config
        clip = self._clip * self._reuse.clip_share
        samples = self._samples(rollout)
        times, worlds = rollout.value.shape
        rollouts = len(samples.valid) // (times * worlds)
        self._parts = c.minibatches * rollouts  # as large with earlier rollouts as without
        train_actor = key[-1] >= c.critic_warmup
        for regulariser in self._regularisers:
            regulariser.begin(key[-1], share_done)
        if c.schedule == "cosine":
            self.lr = 0.5 * c.lr * (1.0 + math.cos(math.pi * share_done))
        before = self._begin_region(samples) if train_actor else None
        tally, epochs_done, kl_sum, terms = Tally(), 0, 0.0, 0.0
        for epoch in range(c.epochs):
            for i, index in enumerate(self._minibatches((times * rollouts, worlds), draws, *key, epoch)):
                s = samples.rows(index)
                count = self._processes.sum(s.valid.sum()).clamp_min(1.0)
                self._critic_step(s, count, tally)
                if train_actor:
                    old = None if before is None else tuple(x[index] for x in before)
                    self._policy_step(s, clip, count, old, draws, tally, first=epoch == 0 and i == 0)
            epochs_done += 1
            sums = tally.sums(self._processes)
            if train_actor and self._after_epoch((sums["kl"] - kl_sum) / max(1.0, sums["terms"] - terms)):
                break
            kl_sum, terms = sums.get("kl", 0.0), sums.get("terms", 0.0)
        fixed = self._fix_up(samples, before) if before is not None else {}
        return {**self._report(tally, samples), **fixed, "lr": self.lr, "epochs": float(epochs_done)}

    def state(self) -> dict[str, Tensor]:
        """Moments of both optimisers, learning rate and what terms hold on to, for going on bit for bit."""
        out = {"lr": torch.tensor(self.lr, dtype=torch.float64)}
        for name, optimizer in (("actor", self.actor_optimizer), ("critic", self.critic_optimizer)):
            for i, p in enumerate(optimizer.param_groups[0]["params"]):
                out |= {f"{name}/{i}/{k}": v for k, v in optimizer.state[p].items()}
        for regulariser in self._regularisers:
            out |= {f"{regulariser.name}/{k}": v for k, v in regulariser.state().items()}
        return out | ({} if self._region is None else self._region.state())

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state`."""
        self.lr = float(state["lr"])
        for name, optimizer in (("actor", self.actor_optimizer), ("critic", self.critic_optimizer)):
            for i, p in enumerate(optimizer.param_groups[0]["params"]):
                prefix = f"{name}/{i}/"
                saved = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                if saved:
                    optimizer.state[p] = {k: v.to(p.device, copy=True) for k, v in saved.items()}
        for regulariser in self._regularisers:
            prefix = f"{regulariser.name}/"
            regulariser.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        if self._region is not None:
            self._region.load_state(state)

    def rollouts(self) -> dict[str, Tensor]:
        """The earlier rollouts that are learnt from again: of this process, unlike :meth:`state`."""
        return self._reuse.state()

    def load_rollouts(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`rollouts`."""
        self._reuse.load_state(state, self._processes.device)

    def _samples(self, rollout: Rollout) -> Samples:
        samples = self._reuse.samples(rollout)
        if self._config.normalize_advantage != "batch":
            return samples
        return replace(samples, advantage=normalized(samples.advantage, samples.valid, self._processes))

    def _minibatches(self, shape: tuple[int, ...], draws: Draws, *key: int) -> Iterator[Tensor]:
        """Rows of this process in each minibatch of one permutation over the decisions of all processes."""
        draws.reseed(*key)
        (t, n), world = shape, draws.world_size
        order = torch.randperm(t * n * world, generator=draws.generator, device=draws.device)
        for part in order.tensor_split(self._parts):  # numbered by time, then by world over all processes
            time, which = part // (n * world), part % (n * world)
            yield part if world == 1 else (time * n + which % n)[which // n == draws.rank]

    def _critic_step(self, s: Samples, count: Tensor, tally: Tally) -> None:
        value = self._critic(s.obs)
        loss = (value_loss(value, s.value, s.target, self._config.value_clip) * s.valid).sum() / count
        loss.backward()
        norm = self._apply(self.critic_optimizer, self._config.critic_grad_clip)
        tally.mean("critic_grad_norm", norm)
        tally.add({"value_loss": loss.detach() * count, "valid": s.valid.sum()})

    def _policy_step(
        self, s: Samples, clip: Tensor, count: Tensor, old: tuple[Tensor, ...] | None, draws: Draws, tally: Tally, *,
        first: bool,
    ) -> None:  # fmt: skip
        """One optimiser step of the policy. ``old`` are mean and standard deviation of before the update."""
        c = self._config
        found = self._evaluate(s)
        log_ratio = reduce_log_ratio(
            found.log_ratio, s.mask, s.record.chunk.shape[-1], reduce=c.reduce, level=c.level
        )  # fmt: skip
        finite = torch.isfinite(log_ratio)  # [b, M']
        weight = finite * s.valid[:, None]
        log_ratio = torch.where(finite, log_ratio, 0.0)
        local = c.normalize_advantage == "minibatch"
        advantage = normalized(s.advantage, s.valid, self._processes) if local else s.advantage
        terms = surrogate(log_ratio, advantage[:, None] * self._weight, clip, kind=c.surrogate, start=s.start)
        loss = (terms.loss * weight).mean(1).sum() / count + self._further(s, found, count, draws, tally)
        if self._region is not None and old is not None:
            loss = loss + self._region.penalty(divergence(found, *_pair(old), s.mask), s.valid, count)
        loss.backward()
        tally.mean("policy_grad_norm", self._apply(self.actor_optimizer, c.grad_clip))
        with torch.no_grad():
            change = log_ratio - s.start
            kl, ratio_error = approximate_kl(change), change.expm1().abs()
            tally.add({
                "policy_loss": loss.detach() * count, "kl": (kl * weight).sum(), "terms": weight.sum(),
                "clipped": (terms.clipped * weight).sum(), "lost_ratios": (~finite).sum(),
            })  # fmt: skip
            if first:
                here = (ratio_error * weight).flatten()
                tally.mean("first_ratio_error", self._processes.largest(torch.cat([here, here.new_zeros(1)]).amax()))

    def _further(self, s: Samples, found: Evaluation, count: Tensor, draws: Draws, tally: Tally) -> Tensor:
        """Terms of the policy's loss besides the surrogate."""
        loss = torch.zeros((), device=s.value.device)
        if found.entropy is not None:
            components = (s.mask.sum((1, 2)) * s.record.chunk.shape[-1]).clamp_min(1)
            entropy = torch.where(s.mask, found.entropy, 0.0).sum((1, 2)) / components * s.valid
            tally.add({"entropy": entropy.detach().sum()})
            loss = loss - self._config.entropy * entropy.sum() / count if self._config.entropy else loss
        if found.penalty is not None:
            loss = loss + (found.penalty * s.valid).sum() / count
        for regulariser in self._regularisers:
            term = regulariser(self._likelihood, s.obs, s.record, found, draws) / self._processes.count
            tally.add({regulariser.name: term.detach() * count})
            loss = loss + term
        return loss

    def _evaluate(self, s: Samples) -> Evaluation:
        evaluate = self._compiled or self._likelihood.evaluate
        return evaluate({k: s.obs[k] for k in self._likelihood.policy.spec.obs}, s.record)

    def _after_epoch(self, kl: float) -> bool:
        """Adapt the rate; whether to end the update."""
        c = self._config
        if c.schedule == "adaptive":
            factor = 1 / 1.5 if kl > 2.0 * c.desired_kl else 1.5 if kl < 0.5 * c.desired_kl else 1.0
            self.lr = min(max(self.lr * factor, _LR_RANGE[0]), _LR_RANGE[1])
        return c.target_kl is not None and kl > c.target_kl

    def _begin_region(self, samples: Samples) -> tuple[Tensor, ...] | None:
        """Mean and standard deviation ``[S, M, H, Da]`` of the policy of now where it has such; None without region."""
        if self._region is None:
            return None
        self._region.begin()
        parts = []
        with torch.no_grad():
            for index in self._in_order(samples):
                found = self._evaluate(samples.rows(index))
                parts.append(() if found.mean is None or found.std is None else (found.mean, found.std))
        return tuple(torch.cat(x) for x in zip(*parts, strict=True))

    def _in_order(self, samples: Samples) -> Sequence[Tensor]:
        """Rows of all decisions in parts as large as a minibatch."""
        return torch.arange(len(samples.valid), device=samples.valid.device).tensor_split(self._parts)

    def _fix_up(self, samples: Samples, before: tuple[Tensor, ...]) -> dict[str, float]:
        """Steps on the divergence alone until every decision is within the bound; how many it took."""
        assert self._region is not None
        steps, passes = 0, 0
        while True:
            largest = 0.0
            for index in self._in_order(samples):
                s, old = samples.rows(index), tuple(x[index] for x in before)
                with torch.set_grad_enabled(passes < _FIX_PASSES):
                    kl = divergence(self._evaluate(s), *_pair(old), s.mask)
                here = float(self._region.largest(kl, s.valid))
                largest = max(largest, here)
                if here > self._region.bound and passes < _FIX_PASSES:
                    count = self._processes.sum(s.valid.sum()).clamp_min(1.0)
                    (self._region.weight * (kl * s.valid).sum() / count).backward()
                    self._apply(self.actor_optimizer, self._config.grad_clip)
                    steps += 1
            if largest <= self._region.bound:
                break
            passes += 1
            if passes > _FIX_PASSES:
                self._region.step_back(0.5 if passes < _FIX_PASSES + _HALVINGS else 1.0)
        return {
            "largest_kl": largest, "fix_up_steps": float(steps), "trust_region_weight": self._region.weight,
        }  # fmt: skip

    def _apply(self, optimizer: torch.optim.Optimizer, bound: float | None) -> Tensor:
        params = optimizer.param_groups[0]["params"]
        self._processes.sum_gradients(params)
        if optimizer is self.actor_optimizer:
            optimizer.param_groups[0]["lr"] = self.lr
        norm = clip_gradients(params, bound)
        # A step that is not finite is left out, by the kernel: asking would stall a GPU. The report shows the norm.
        optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def _report(self, tally: Tally, samples: Samples) -> dict[str, float]:
        sums = tally.sums(self._processes)
        valid, terms = max(1.0, sums.pop("valid")), sums.pop("terms", 0.0)
        out = tally.means()
        if terms:
            out |= {"kl": sums.pop("kl") / terms, "clip_fraction": sums.pop("clipped") / terms}
            out["lost_ratios"] = sums.pop("lost_ratios")
        out |= {name: total / valid for name, total in sums.items()}
        out["lost_samples"] = float(self._processes.sum((1.0 - samples.valid).sum()))
        out["explained_variance"] = float(explained_variance(samples, self._processes))
        return out


def _adam(module: nn.Module, lr: float) -> torch.optim.Adam:
    params = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params, lr=lr, eps=1e-5, fused=True)
    # Fused kernels do not tell autograd that they changed the weights, and copies made for acting rely on that.
    optimizer.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(params))
    return optimizer


def _pair(old: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
    return (old[0], old[1]) if old else (None, None)
