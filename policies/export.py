"""Policies as self-contained programs: ``torch.export`` and ONNX, the whole sampler loop included.

The program maps raw observations and noise to raw actions; normaliser, encoders and all denoising steps are inside. The
only file that imports onnxscript and onnxruntime, and that asks torch for ONNX.
"""

from __future__ import annotations

import json
import logging
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from visuomotor.data.angles import from_sin_cos
from visuomotor.data.errors import ConfigError, MissingExtraError, UserError, nearest
from visuomotor.policies.conditioned import Prefix
from visuomotor.policies.policy import Policy

__all__ = ["FORMATS", "TOLERANCE", "ExportResult", "PolicyProgram", "export_policy", "parity"]

FORMATS = ("onnx", "pt2")
TOLERANCE = 1e-4  # largest difference to PyTorch, in normalised units, that a file may have
_OPSET = 18

Program = Callable[..., Tensor]


class PolicyProgram(nn.Module):
    """A policy as a function of tensors alone: ``(observations..., noise[, prefix_action, prefix_mask]) -> chunk``.

    A policy that was trained to go on from known actions takes these, too; where the mask is false all over, nothing is
    known. The number of rows is fixed: samplers and encoders are written out for it.

    Args:
        policy: in eval mode, on the CPU.
        batch: rows of every input, at least 1.

    Raises:
        ConfigError: the head differentiates its network while it samples, which these formats cannot hold.
    """

    def __init__(self, policy: Policy, *, batch: int = 1) -> None:
        super().__init__()
        if policy.head.needs_gradient:
            raise ConfigError(
                f"{type(policy.head).__name__} differentiates its network while it samples: neither torch.export nor "
                "ONNX has an operator for that. Serve this policy with PyTorch"
            )
        if batch < 1:
            raise ConfigError(f"batch={batch}: expected at least 1")
        self.policy, self._batch = policy, batch
        self._keys = list(policy.spec.obs)
        self._with_prefix = policy.loss_config.max_delay > 0

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in order."""
        known = ["prefix_action", "prefix_mask"] if self._with_prefix else []
        return [*(f"obs.{k}" for k in self._keys), "noise", *known]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs as :attr:`input_names` says to the chunk ``[batch, H, Da]`` in raw units."""
        noise, *known = inputs[len(self._keys) :]
        return self.policy.generate(self.observations(inputs), noise, prefix=Prefix(*known) if known else None)

    def observations(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """The observations among ``inputs``, by key."""
        return dict(zip(self._keys, inputs, strict=False))

    def example(self, seed: int) -> tuple[Tensor, ...]:
        """Inputs of the right shapes: plausible observations, standard-normal noise, ``seed`` steps known (or fewer).

        Seed 0 is for tracing; what is traced does not depend on the values.
        """
        g = torch.Generator().manual_seed(seed)
        policy, spec, b = self.policy, self.policy.spec, self._batch
        inputs = [self._plausible(key, g) for key in self._keys]
        noise = torch.randn((b, *policy.noise_shape), generator=g)
        if not self._with_prefix:
            return (*inputs, noise)
        steps = min(seed, policy.loss_config.max_delay + spec.window.n_obs - 1)
        normalised = 2 * torch.rand((b, spec.window.horizon, spec.action.size), generator=g) - 1
        action = policy.unnormalize_action(normalised, self.observations(inputs))
        mask = (torch.arange(spec.window.horizon) < steps).expand(b, -1).contiguous()
        return (*inputs, noise, action, mask)

    def _plausible(self, key: str, g: torch.Generator) -> Tensor:
        """Raw observations ``[batch, To or 1, ...]`` within the range of training, as far as the policy knows it."""
        spec, config = self.policy.spec, self.policy.encoder.config
        array, steps = spec.obs[key], 1 if key in spec.constant_keys else spec.window.n_obs
        lead, name = (self._batch, steps), key.removeprefix("goal/")
        if np.issubdtype(np.dtype(array.dtype), np.integer):
            return torch.randint(0, 256, (*lead, *array.shape), generator=g).to(getattr(torch, array.dtype))
        if f"obs/{name}" in self.policy.normalizer.keys:
            angles = config.angles.get(name, [])
            shape = (*array.shape[:-1], array.shape[-1] + len(angles)) if array.shape else (1 + len(angles),)
            values = self.policy.normalizer.unnormalize(f"obs/{name}", 2 * torch.rand((*lead, *shape), generator=g) - 1)
            return (from_sin_cos(values, angles) if angles else values).view(*lead, *array.shape)
        values = torch.rand((*lead, *array.shape), generator=g)
        if name in config.points.keys and name not in config.points.intrinsics | config.points.intrinsics_keys:
            low, high = (torch.tensor(v or [d] * 3) for v, d in ((config.points.low, 0.0), (config.points.high, 1.0)))
            return torch.cat([low + (high - low) * values[..., :3], values[..., 3:]], dim=-1)
        return values + 0.5  # metres of a depth image, camera matrices; a focal length must not be near 0


@dataclass(frozen=True)
class ExportResult:
    """What was written; ``parity`` is the largest difference to PyTorch in normalised units, by format."""

    files: list[Path]
    parity: dict[str, float]


def export_policy(policy: Policy, folder: Path, *, formats: Sequence[str] = FORMATS, batch: int = 1) -> ExportResult:
    """Write ``policy.onnx``, ``policy.pt2`` and ``io.json`` (names, shapes and types of all inputs) into ``folder``.

    Every program is loaded again and compared with the policy on random inputs; a file that differs is removed. The
    policy is put on the CPU, in eval mode.

    Raises:
        ConfigError: an unknown format, or a policy that cannot be exported.
        MissingExtraError: ONNX is asked for and the extra is not installed.
        UserError: a program differs from the policy by more than ``TOLERANCE``.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"unknown format {name!r}. {nearest(name, FORMATS)}")
    if "onnx" in formats:
        _require_onnx()
    program = PolicyProgram(policy.cpu().eval(), batch=batch).eval()
    inputs = program.example(0)
    exported = _trace(program, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    files, differences = [folder / "io.json"], {}
    files[0].write_text(json.dumps(_description(program, inputs), indent=1))
    write: dict[str, Callable[[ExportedProgram, PolicyProgram, Path], Program]] = {"onnx": _onnx, "pt2": _pt2}
    for name in sorted(set(formats), reverse=True):  # for ONNX the traced program is changed
        files.append(folder / f"policy.{name}")
        differences[name] = parity(program, write[name](exported, program, files[-1]))
        if not differences[name] <= TOLERANCE:
            files[-1].unlink()
            raise UserError(
                f"{files[-1].name} differs from PyTorch by {differences[name]:.2g} in normalised units, more than "
                f"{TOLERANCE:g}, and was removed"
            )
    return ExportResult(files, differences)


def parity(program: PolicyProgram, other: Program, *, samples: int = 8) -> float:
    """Largest difference between ``program`` and ``other(*inputs)`` over random inputs, in normalised units.

    Infinite if either gives a number that is not finite.
    """
    worst = 0.0
    for seed in range(1, samples + 1):
        inputs = program.example(seed)
        obs = program.observations(inputs)
        with torch.no_grad():
            a, b = (program.policy.normalize_action(f(*inputs), obs) for f in (program, other))
        difference = float((a - b).abs().max())
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


def _trace(program: PolicyProgram, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    try:
        with torch.no_grad(), _quiet():
            exported = torch.export.export(program, inputs, strict=False)
    except (RuntimeError, TypeError) as e:  # what a head, backbone or encoder of another package may do
        raise ConfigError(f"this policy cannot be traced by torch.export: {_first_line(e)}") from e
    _share(exported.graph_module)
    return exported


def _share(module: fx.GraphModule) -> None:
    """Compute once what is computed several times from the same values.

    The network is written out once a denoising step. What depends on weights alone (a weight in another order) would
    become a constant of its own in each.
    """
    known: dict[tuple[Any, str, str], fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.users or not _is_pure(node.target):
            continue
        key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())))
        first = known.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            module.graph.erase_node(node)
    module.recompile()


def _is_pure(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return target is operator.getitem


def _description(program: PolicyProgram, inputs: tuple[Tensor, ...]) -> Mapping[str, Any]:
    spec = program.policy.spec
    described = [
        {"name": n, "shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
        for n, x in zip(program.input_names, inputs, strict=True)
    ]
    output = {"name": "chunk", "shape": [len(inputs[0]), spec.window.horizon, spec.action.size], "dtype": "float32"}
    return {"inputs": described, "output": output, "spec": spec.to_dict()}


def _pt2(exported: ExportedProgram, program: PolicyProgram, path: Path) -> Program:
    """Write ``path``; returns the program that was written, loaded again."""
    with _quiet():
        torch.export.save(exported, path)
        program_again: Program = torch.export.load(path).module()
    return program_again


def _require_onnx() -> None:
    try:  # torch needs onnxscript as well, and says so less clearly
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise MissingExtraError(f"ONNX needs {e.name}: pip install 'visuomotor[export]'") from e


def _onnx(exported: ExportedProgram, program: PolicyProgram, path: Path) -> Program:
    """Write ``path``; returns the program that was written, run by onnxruntime."""
    from onnxscript import optimizer

    _four_axes(exported.graph_module)
    # Torch's own optimisation searches the whole graph once for every node and pattern: minutes for a U-Net that is
    # written out 16 times. Folding constants is what matters; onnxruntime fuses on loading.
    try:
        with _quiet():
            made = torch.onnx.export(
                exported, (), input_names=program.input_names, output_names=["chunk"], dynamo=True, verbose=False,
                optimize=False, opset_version=_OPSET, custom_translation_table=_translations(),
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as e:
        raise ConfigError(f"this policy cannot be written as ONNX: {_cause(e)}. formats=[pt2] is left") from e
    assert made is not None
    optimizer.fold_constants(made.model, onnx_shape_inference=True)
    optimizer.remove_unused_nodes(made.model)
    for node in made.model.graph:  # each holds the lines of source that it came from: more than the node itself
        node.metadata_props.clear()
    made.save(path)
    return _session(path, program.input_names)


def _four_axes(module: fx.GraphModule) -> None:
    """Give attention without an axis of heads such an axis: torch writes no other to ONNX."""
    attention, unsqueeze = torch.ops.aten.scaled_dot_product_attention.default, torch.ops.aten.unsqueeze.default
    for node in module.graph.find_nodes(op="call_function", target=attention):
        if node.args[0].meta["val"].ndim != 3:
            continue
        with module.graph.inserting_before(node):
            node.args = tuple(
                module.graph.call_function(unsqueeze, (a, 1))
                if isinstance(a, fx.Node) and a.meta["val"].ndim == 3
                else a
                for a in node.args
            )
        with module.graph.inserting_after(node):
            out = module.graph.call_function(torch.ops.aten.squeeze.dim, (node, 1))
        node.replace_all_uses_with(out, delete_user_cb=lambda user, out=out: user is not out)
    module.recompile()


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators that ONNX has and onnxruntime has no kernel for, in terms of others."""
    from onnxscript import opset18 as op

    def mish(x: Any) -> Any:
        return op.Mul(x, op.Tanh(op.Softplus(x)))

    return {torch.ops.aten.mish.default: mish}


def _session(path: Path, names: Sequence[str]) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    used = {i.name for i in session.get_inputs()}  # an input that the program ignores is left out of the graph

    def run(*inputs: Tensor) -> Tensor:
        feed = {n: x.numpy() for n, x in zip(names, inputs, strict=True) if n in used}
        return torch.from_numpy(session.run(["chunk"], feed)[0])

    return run


def _cause(e: BaseException) -> str:
    """The first line of what is at the bottom of ``e``."""
    while e.__cause__ is not None:
        e = e.__cause__
    return _first_line(e)


def _first_line(e: BaseException) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print progress and warn about their own internals."""
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
