"""Training by imitation: batch, loss, gradient, moving average. Everything else subscribes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from visuomotor.data.batches import Batch, BatchSource
from visuomotor.data.errors import CheckpointError, ConfigError, nearest
from visuomotor.policies.draws import Draws, mix_seed
from visuomotor.policies.learn.events import GracefulStop, StepEvent, Subscriber
from visuomotor.policies.learn.graphed import GraphedStep, StaticDraws
from visuomotor.policies.learn.optim import (
    EMA,
    EMAConfig,
    OptimConfig,
    clip_gradients,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from visuomotor.policies.policy import Policy

__all__ = ["PRECISIONS", "Trainer", "TrainingConfig"]

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    """Length and arithmetic of a run. Schedules are counted in optimiser steps, so a run does not depend on the clock.

    Attributes:
        steps: optimiser steps.
        batch_size: windows a step, over all ranks.
        precision: ``fp32``; ``bf16`` autocast (weights, optimiser and moving average stay in float32); ``auto`` takes
            bf16 where the processor computes in it.
        compile: compile the loss with its gradient, and the update, with torch.compile. Meant for a GPU; on the CPU
            it was measured slower.
        cuda_graph: record the whole step (loss, gradient, clipping, AdamW, moving average) as a CUDA graph and replay
            it. For one GPU; the batches must lie there or be copied there.
        log_every: steps between lines of metrics.jsonl.
        val_every: steps between held-out losses; 0 for the end only.
        eval_every: steps between evaluations in the task; 0 for the end only.
        save_every: steps between checkpoints; 0 for the end only.
        max_val_windows: windows of the held-out episodes that the validation loss looks at.
    """

    steps: int = 20_000
    batch_size: int = 256
    precision: str = "auto"
    compile: bool = False
    cuda_graph: bool = False
    log_every: int = 100
    val_every: int = 2_000
    eval_every: int = 0
    save_every: int = 2_000
    max_val_windows: int = 2_048

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"train.precision {self.precision!r} is unknown. {nearest(self.precision, PRECISIONS)}")
        for name in ("steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)}: expected at least 1")
        for name in ("val_every", "eval_every", "save_every", "max_val_windows"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name}={getattr(self, name)}: expected 0 or more")


class Trainer:
    """Owns what changes during training: weights, moving average, optimiser and the number of steps done.

    Batches and noise are functions of ``(seed, step)``, so these four are the whole state of a run.
    """

    def __init__(
        self,
        policy: Policy,
        source: BatchSource,
        *,
        config: TrainingConfig,
        optim: OptimConfig,
        ema: EMAConfig,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        self._config, self._optim, self._seed = config, optim, seed
        self.precision = _computable(config.precision, accelerator.device)
        self._accelerator, self._source = accelerator, source
        graphed = config.cuda_graph
        if graphed and (accelerator.device.type != "cuda" or accelerator.num_processes > 1):
            raise ConfigError(
                f"train.cuda_graph=true: expected one process on a GPU, this is {accelerator.num_processes} on "
                f"{accelerator.device.type}"
            )
        if config.compile and not policy.head.compiles:
            raise ConfigError(
                f"train.compile=true: the loss of {type(policy.head).__name__} differentiates its network, for which "
                "torch.compile has no derivatives. Set train.compile=false"
            )
        self.policy = policy.to(accelerator.device)
        self.ema = EMA(self.policy, ema)
        self.optimizer = make_optimizer(self.policy, optim, graphed=graphed)
        self._average_weight: float | Tensor = torch.ones((), device=accelerator.device) if graphed else 1.0
        self.steps_done = 0
        self._names = [n for n, p in self.policy.named_parameters() if p.requires_grad]
        rank, world = accelerator.process_index, accelerator.num_processes
        draws = StaticDraws if graphed else Draws
        self._draws = draws(seed, device=accelerator.device, rank=rank, world_size=world)
        self._loss: Callable[[Batch, Draws], Tensor] = self._make_loss()
        self._update: Callable[[], Tensor] = torch.compile(self._apply) if config.compile else self._apply
        self._step = GraphedStep(self._advance) if graphed else self._advance

    def run(self, subscribers: Sequence[Subscriber], stop: GracefulStop) -> None:
        """Train until ``config.steps`` are done, or until ``stop`` is requested."""
        total = self._config.steps
        for step in range(self.steps_done, total):
            lr = self._seed_and_rate(step)
            loss, grad_norm = self._step(self._source.batch(step).to(self._accelerator.device))
            self.steps_done = step + 1
            stopping = self._agree(stop.requested)
            event = StepEvent(self.steps_done, total, loss, grad_norm, lr, self._config.batch_size, stopping)
            for subscriber in subscribers:
                subscriber(event)
            if event.stopping:
                return

    @torch.no_grad()
    def validation_loss(self, source: BatchSource) -> float:
        """Loss of the averaged weights on up to ``max_val_windows`` held-out windows, with noise that never changes."""
        n = min(len(source), self._config.max_val_windows)
        windows = torch.linspace(0, len(source) - 1, n, dtype=torch.float64).long()  # float32 ends at 2^24
        draws = Draws(self._seed, -1, device=self._accelerator.device)
        total = 0.0
        for chunk in windows.split(self._config.batch_size):
            with self._autocast():
                out = self.ema.module(source.gather(chunk).to(self._accelerator.device), draws)
            total += float(out.loss) * len(chunk)
        return total / n

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Tensors from which training goes on bit for bit: raw and averaged weights, and the optimiser's moments."""
        moments: dict[str, Tensor] = {}
        for name, p in zip(self._names, self._trained(), strict=True):
            moments |= {f"{k}/{name}": v for k, v in self.optimizer.state[p].items() if torch.is_tensor(v)}
        return {"policy": self.policy.state_dict(), "policy_ema": self.ema.module.state_dict(), "optimizer": moments}

    def load_state(self, state: dict[str, dict[str, Tensor]], steps_done: int) -> None:
        """Inverse of :meth:`state`.

        Raises:
            CheckpointError: the state is of another network.
        """
        try:
            self.policy.load_state_dict(state["policy"])
            self.ema.module.load_state_dict(state["policy_ema"])
        except RuntimeError as e:
            raise CheckpointError(f"the checkpoint is of another network: {str(e).splitlines()[-1].strip()}") from e
        for name, p in zip(self._names, self._trained(), strict=True):
            suffix = f"/{name}"
            mine = {k.removesuffix(suffix): v for k, v in state["optimizer"].items() if k.endswith(suffix)}
            # The step count stays on the CPU where fused AdamW keeps it for CPU weights, and follows them to a GPU.
            self.optimizer.state[p] = {k: v.to(p.device) for k, v in mine.items()}
        self.steps_done = steps_done

    def _seed_and_rate(self, step: int) -> float:
        """Make everything random in ``step`` a function of ``(seed, step)``, and set its learning rate."""
        self._draws.reseed(self._seed, step)
        torch.manual_seed(mix_seed(self._seed, step, self._accelerator.process_index))  # dropout
        o = self._optim
        lr = learning_rate(step, base=o.lr, warmup_steps=o.warmup_steps, total_steps=self._config.steps)
        set_learning_rate(self.optimizer, lr)
        weight = self.ema.weight(step)
        self._average_weight = weight if isinstance(self._average_weight, float) else self._average_weight.fill_(weight)
        return lr

    def _advance(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss, gradient, optimiser and moving average; returns loss and gradient norm."""
        loss = self._loss(batch, self._draws)
        self._accelerator.backward(loss)
        grad_norm = self._update()
        self.ema.update(self._average_weight)
        return loss.detach(), grad_norm

    def _agree(self, stopping: bool) -> bool:
        """Whether any rank wants to stop; asked every tenth step, because it costs a synchronisation."""
        if self._accelerator.num_processes == 1:
            return stopping
        if self.steps_done % 10:
            return False
        flag = torch.tensor([float(stopping)], device=self._accelerator.device)
        return bool(self._accelerator.reduce(flag, reduction="sum") > 0)

    def _autocast(self) -> torch.autocast:
        # Not Accelerator's: its precision is a setting of the whole process, and one process may train twice.
        return torch.autocast(self._accelerator.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _make_loss(self) -> Callable[[Batch, Draws], Tensor]:
        model = self._accelerator.prepare_model(self.policy) if self._accelerator.num_processes > 1 else self.policy
        self.policy.train()

        def loss(batch: Batch, draws: Draws) -> Tensor:
            with self._autocast():
                out = model(batch, draws)
            return out.loss if out.count is None else out.loss * self._share(out.count)

        return torch.compile(loss) if self._config.compile else loss

    def _share(self, count: Tensor) -> Tensor | float:
        """What makes the mean over processes of their losses the mean over all steps, of which ``count`` are here."""
        world = self._accelerator.num_processes
        if world == 1:
            return 1.0
        mine = count.float()
        share: Tensor = mine * world / self._accelerator.reduce(mine, reduction="sum").clamp_min(1.0)
        return share

    def _apply(self) -> Tensor:
        """Clip, step, forget the gradients; returns the norm before clipping."""
        norm = clip_gradients(self._trained(), self._optim.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _trained(self) -> list[Tensor]:
        return [p for p in self.policy.parameters() if p.requires_grad]


def _computable(precision: str, device: torch.device) -> str:
    """What ``auto`` means on ``device``."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        try:
            native = bool({"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
        except OSError:
            native = False
    return "bf16" if native else "fp32"
