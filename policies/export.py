"""Policies as self-contained programs: ``torch.export`` and ONNX, the whole sampler loop included.

The program maps raw observations and noise to raw actions; normaliser, encoders and all denoising steps are inside. The
only file that imports onnxruntime, and that asks torch for ONNX.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError, MissingExtraError, nearest
from visuomotor.policies.conditioned import Prefix
from visuomotor.policies.policy import Policy

__all__ = ["FORMATS", "ExportResult", "PolicyProgram", "export_policy", "parity"]

FORMATS = ("onnx", "pt2")


class PolicyProgram(nn.Module):
    """A policy as a function of tensors alone: ``(observations..., noise[, prefix_action, prefix_mask]) -> chunk``.

    Args:
        policy: in eval mode, on the CPU.
        batch: rows of every input.

    Raises:
        ConfigError: the head differentiates its network while it samples, which these formats cannot hold.
    """

    def __init__(self, policy: Policy, *, batch: int = 1) -> None:
        super().__init__()
        if policy.head.needs_gradient:
            raise ConfigError(
                f"{type(policy.head).__name__} differentiates its network while it samples: neither torch.export nor ONNX "
                "has an operator for that. Serve this policy with PyTorch."
            )
        self.policy, self._batch = policy, batch
        self._keys = list(policy.spec.obs)
        self._with_prefix = policy.loss_config.max_delay > 0

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in order."""
        known = ["prefix_action", "prefix_mask"] if self._with_prefix else []
        return [*(f"obs.{k}" for k in self._keys), "noise", *known]

    def example(self, seed: int) -> tuple[Tensor, ...]:
        """Inputs of the right shapes: plausible observations, standard-normal noise, no known steps."""
        g = torch.Generator().manual_seed(seed)
        spec, b = self.policy.spec, self._batch
        inputs = []
        for key in self._keys:
            shape = (b, 1 if key in spec.constant_keys else spec.window.n_obs, *spec.obs[key].shape)
            if np.issubdtype(np.dtype(spec.obs[key].dtype), np.integer):
                inputs.append(torch.randint(0, 256, shape, generator=g).to(getattr(torch, spec.obs[key].dtype)))
            else:
                inputs.append(self._plausible(key, torch.rand(shape, generator=g)))
        inputs.append(torch.randn((b, *self.policy.noise_shape), generator=g))
        if self._with_prefix:
            inputs.append(torch.zeros(b, spec.window.horizon, spec.action.size))
            inputs.append(torch.zeros(b, spec.window.horizon, dtype=torch.bool))
        return tuple(inputs)

    def _plausible(self, key: str, u: Tensor) -> Tensor:
        """Uniform numbers ``u`` in [0, 1) to raw observations from the range of training; angles to a full turn."""
        slot, config = f"obs/{key}", self.policy.encoder.config
        if slot not in self.policy.normalizer.keys:
            return u
        if key not in config.angles:
            return self.policy.normalizer.unnormalize(slot, 2 * u - 1)
        angles = sorted(config.angles[key])
        wide = torch.ones(u.shape[-1] + len(angles))  # an angle is normalised as sine and cosine
        low, high = (self.policy.normalizer.unnormalize(slot, v * wide) for v in (-1.0, 1.0))
        place = [i + sum(a < i for a in angles) for i in range(u.shape[-1])]
        out = low[place] + u * (high - low)[place]
        out[..., angles] = u[..., angles] * 2 * torch.pi
        return out

    def forward(self, *inputs: Tensor) -> Tensor:
        obs = dict(zip(self._keys, inputs, strict=False))
        noise, *known = inputs[len(self._keys) :]
        return self.policy.generate(obs, noise, prefix=Prefix(known[0], known[1]) if known else None)


@dataclass(frozen=True)
class ExportResult:
    """What was written; ``parity`` is the largest difference to PyTorch in normalised units, by format."""

    files: list[Path]
    parity: dict[str, float]


def export_policy(policy: Policy, folder: Path, *, formats: Sequence[str] = FORMATS, batch: int = 1) -> ExportResult:
    """Write ``policy.onnx``, ``policy.pt2`` and ``io.json`` (names, shapes and types of all inputs) into ``folder``.

    Every program is loaded again and compared with the policy on random inputs.

    Raises:
        ConfigError: an unknown format, or a policy that cannot be exported.
        MissingExtraError: ONNX is asked for and the extra is not installed.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"unknown format {name!r}. {nearest(name, FORMATS)}")
    program = PolicyProgram(policy.cpu().eval(), batch=batch).eval()
    folder.mkdir(parents=True, exist_ok=True)
    inputs = program.example(0)
    with torch.no_grad(), _quiet():
        exported = torch.export.export(program, inputs, strict=False)
    files, differences = [folder / "io.json"], {}
    files[0].write_text(json.dumps(_description(program, inputs), indent=1))
    if "pt2" in formats:
        files.append(folder / "policy.pt2")
        torch.export.save(exported, files[-1])
        differences["pt2"] = parity(program, _run_pt2(files[-1]))
    if "onnx" in formats:
        files.append(folder / "policy.onnx")
        _write_onnx(exported, program, files[-1])
        differences["onnx"] = parity(program, _run_onnx(files[-1], program.input_names))
    return ExportResult(files, differences)


def parity(program: PolicyProgram, other: Any, *, samples: int = 8) -> float:
    """Largest difference between ``program`` and ``other(*inputs)`` over random inputs, in normalised units."""
    policy, worst = program.policy, 0.0
    for seed in range(1, samples + 1):
        inputs = program.example(seed)
        obs = dict(zip(policy.spec.obs, inputs, strict=False))
        with torch.no_grad():
            a, b = (policy.normalize_action(f(*inputs), obs) for f in (program, other))
        worst = max(worst, float((a - b).abs().max()))
    return worst


def _description(program: PolicyProgram, inputs: tuple[Tensor, ...]) -> Mapping[str, Any]:
    spec = program.policy.spec
    described = [
        {"name": n, "shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
        for n, x in zip(program.input_names, inputs, strict=True)
    ]
    output = {"name": "chunk", "shape": [len(inputs[0]), spec.window.horizon, spec.action.size], "dtype": "float32"}
    return {"inputs": described, "output": output, "spec": spec.to_dict()}


def _run_pt2(path: Path) -> Any:
    return torch.export.load(path).module()


def _write_onnx(exported: torch.export.ExportedProgram, program: PolicyProgram, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401  (torch needs it and says so less clearly)
    except ImportError as e:
        raise MissingExtraError("ONNX needs onnxscript: pip install 'visuomotor[export]'") from e
    with _quiet():
        made = torch.onnx.export(
            exported, (), input_names=program.input_names, output_names=["chunk"], dynamo=True, verbose=False
        )
    assert made is not None
    made.save(path)


def _run_onnx(path: Path, names: Sequence[str]) -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise MissingExtraError("an ONNX file is checked by onnxruntime: pip install 'visuomotor[export]'") from e
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    known = {i.name for i in session.get_inputs()}  # an input that the program ignores is left out of the graph

    def run(*inputs: Tensor) -> Tensor:
        feed = {n: x.numpy() for n, x in zip(names, inputs, strict=True) if n in known}
        return torch.from_numpy(session.run(["chunk"], feed)[0])

    return run


@contextmanager
def _quiet() -> Any:
    """The exporters print progress and warn about their own internals."""
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
