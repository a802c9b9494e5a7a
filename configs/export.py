"""``visuomotor export``: a checkpoint as ONNX and as a torch.export program, compared with PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING
from rich.console import Console

from visuomotor.configs.build import load_policy
from visuomotor.configs.compose import parse_plain
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.policies.export import FORMATS, TOLERANCE, export_policy

__all__ = ["ExportConfig", "main"]


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """Settings of ``visuomotor export``.

    Attributes:
        checkpoint: run folder or checkpoint folder.
        out: folder for the files; null: <run>/export/<checkpoint>.
        formats: what to write: onnx (run by onnxruntime, needs the extra 'export') and pt2 (run by PyTorch).
        batch: rows of every input; fixed in the files.
        weights: ema or raw.
        solver: another solver of the policy's head than the checkpoint's.
        sample_steps: another number of sampling steps; the loop is written out, so files grow with it.
        guidance_scale: weight of goal and texts; 1 is the plain policy.
    """

    checkpoint: str = MISSING
    out: str | None = None
    formats: list[str] = field(default_factory=lambda: list(FORMATS))
    batch: int = 1
    weights: str = "ema"
    solver: str | None = None
    sample_steps: int | None = None
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise ConfigError(f"unknown format {name!r}. {nearest(name, FORMATS)}")
        if not self.formats:
            raise ConfigError(f"formats is empty: expected some of {', '.join(FORMATS)}")
        if self.weights not in ("ema", "raw"):
            raise ConfigError(f"unknown weights {self.weights!r}. {nearest(self.weights, ('ema', 'raw'))}")
        if self.batch < 1:
            raise ConfigError(f"batch={self.batch}: expected at least 1")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise ConfigError(f"guidance_scale={self.guidance_scale}: expected 0 (ignore the goal), 1 (plain) or more")


def main(words: Sequence[str]) -> int:
    """Export as ``words`` say (``key=value ...``); returns the exit status."""
    config = parse_plain(ExportConfig, words)
    loaded = load_policy(
        config.checkpoint, weights=config.weights, solver=config.solver, sample_steps=config.sample_steps
    )
    loaded.policy.guidance_scale = config.guidance_scale
    result = export_policy(
        loaded.policy, _out(config, loaded.checkpoint.path), formats=config.formats, batch=config.batch
    )
    console = Console()
    for file in result.files:
        line = f"written: {file} ({file.stat().st_size / 1e6:.2f} MB)"
        if (name := file.suffix.removeprefix(".")) in result.parity:
            line += f", differs from PyTorch by {result.parity[name]:.1e} in normalised units (at most {TOLERANCE:g})"
        console.print(line, highlight=False, soft_wrap=True)
    return 0


def _out(config: ExportConfig, checkpoint: Path) -> Path:
    """``<run>/export/<checkpoint>``, or the folder that was asked for."""
    if config.out is not None:
        return Path(config.out).expanduser()
    parent = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    return parent / "export" / checkpoint.name
