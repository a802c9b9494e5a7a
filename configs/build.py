"""From settings to objects: the only place that maps one to the other."""

from __future__ import annotations

import ctypes
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from visuomotor.configs.registry import every_backbone, every_head, name_of
from visuomotor.configs.schema import ActionSettings, TrainConfig
from visuomotor.data.actions import ActionConfig
from visuomotor.data.batches import goal_key
from visuomotor.data.errors import CheckpointError, ConfigError, DataError, nearest
from visuomotor.data.normalize import Normalizer
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.policies.base import BackboneConfig, ChunkSizes, HeadConfig, NetSizes
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.learn.checkpoint import Checkpoint, resolve_checkpoint
from visuomotor.policies.policy import LossConfig, Policy, prefix_dim
from visuomotor.policies.spec import PolicySpec

__all__ = [
    "LoadedPolicy",
    "as_read",
    "build_policy",
    "keep_freed_memory",
    "load_policy",
    "make_spec",
    "model_document",
    "pick_device",
    "set_threads",
]


def pick_device(device: str) -> torch.device:
    """``auto`` is the GPU where there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch sees no GPU here (visuomotor info). Use device=cpu or device=auto.")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def set_threads(threads: int | None) -> int:
    """Set the CPU threads of torch (None: leave as they are, one a core) and return how many there are."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def make_spec(config: TrainConfig, store: DemoStore) -> PolicySpec:
    """What the policy will observe and command, from the settings and the store's arrays.

    Raises:
        DataError: an array that the store does not have, or an action that is no vector.
        ConfigError: a rate that contradicts the store's, or a reference that is not observed.
    """
    store.require([*config.obs.store_keys, config.action.key])
    action = store.specs[config.action.key]
    if len(action.shape) != 1:
        raise DataError(f"action array {config.action.key!r} has steps of shape {action.shape}: expected a vector [Da]")
    fps = config.data.fps
    if fps is not None and store.fps is not None and abs(fps - store.fps) > 1e-6 * fps:
        raise ConfigError(f"data.fps={fps:g}, but {store.path} was recorded at {store.fps:g} Hz")
    reference = config.action.reference_key
    if config.action.mode != "absolute" and reference not in config.obs.step_keys:
        raise ConfigError(
            f"action.reference_key={reference!r} is not observed. {nearest(str(reference), config.obs.step_keys)}"
        )
    return PolicySpec(
        obs=_observed(config.obs, store),
        action_key=config.action.key,
        action=as_read(action),
        fps=store.fps if fps is None else fps,
        window=config.window,
        action_config=_action_config(config.action),
        constant_keys=config.obs.constant_keys,
    )


def _observed(obs: ObservationConfig, store: DemoStore) -> dict[str, ArraySpec]:
    """What one step of every observation is, goals and texts included."""
    out = {k: as_read(store.specs[k]) for k in obs.step_keys}
    for key in obs.text.keys:
        if store.column_types.get(key) != "str":
            texts = [k for k, kind in store.column_types.items() if kind == "str"]
            raise DataError(
                f"{store.path} has no column meta/{key} with a text for every episode. {nearest(key, texts)}"
            )
        out[key] = ArraySpec(shape=(obs.text.length,), dtype="uint8", role="observation")
    return out | {goal_key(k): as_read(store.specs[k]) for k in obs.goal.keys}


def as_read(spec: ArraySpec) -> ArraySpec:
    """The spec with the type that policies see: images uint8, everything else float32.

    Depth cameras give millimetres as uint16; that this is their unit must not get lost with the type.
    """
    unit = "mm" if spec.unit is None and spec.is_depth and spec.dtype == "uint16" else spec.unit
    return ArraySpec.from_dict({**spec.to_dict(), "dtype": "uint8" if spec.is_image else "float32", "unit": unit})


def _action_config(settings: ActionSettings) -> ActionConfig:
    return ActionConfig(**{k: v for k, v in asdict(settings).items() if k in ActionConfig.__dataclass_fields__})


def build_policy(
    spec: PolicySpec, *, obs: ObservationConfig, head: HeadConfig, backbone: BackboneConfig, normalizer: Normalizer,
    loss: LossConfig | None = None,
) -> Policy:  # fmt: skip
    """Encoder, head and backbone, with fresh weights from torch's global generator.

    Raises:
        ConfigError: parts that do not go together.
    """
    loss = loss or LossConfig()
    encoder = ObservationEncoder(obs, spec.obs)
    chunk = ChunkSizes(
        action_dim=spec.action.size,
        horizon=spec.window.horizon,
        n_obs=spec.window.n_obs,
        feature_dim=encoder.feature_dim,
    )
    head_module = every_head()[name_of(head)].build(head, chunk)
    prefix = prefix_dim(loss, spec.action.size)
    sizes = NetSizes(
        input_dim=head_module.input_dim + (prefix + 1 if prefix else 0),
        output_dim=head_module.output_dim,
        horizon=chunk.horizon,
        n_obs=chunk.n_obs,
        feature_dim=chunk.feature_dim,
        token_dim=encoder.token_dim,
        n_times=head_module.n_times,
        time_scale=head_module.time_scale,
    )
    net = every_backbone()[name_of(backbone)].build(backbone, sizes)
    if encoder.token_dim and not net.takes_tokens:
        raise ConfigError(
            f"backbone {name_of(backbone)} reads features, not tokens: choose backbone=dit or backbone=transformer, "
            "or let the encoders pool their tokens"
        )
    return Policy(spec, encoder=encoder, backbone=net, head=head_module, normalizer=normalizer, loss=loss)


def model_document(config: TrainConfig) -> dict[str, Any]:
    """What :func:`load_policy` needs to build the same network: names and settings of its parts.

    Files that weights came from are left out: the checkpoint holds the weights, and a robot does not have the files.
    """
    obs = asdict(config.obs)
    obs["image"]["pretrained"]["weights"] = None
    return {
        "obs": obs,
        "loss": asdict(config.loss),
        "head": {"name": name_of(config.policy), "config": asdict(config.policy)},
        "backbone": {"name": name_of(config.backbone), "config": asdict(config.backbone)},
    }


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy from a checkpoint, in eval mode, with where it came from."""

    policy: Policy
    checkpoint: Checkpoint


def load_policy(
    path: str | Path, *, weights: str = "ema", device: torch.device | str = "cpu", solver: str | None = None,
    sample_steps: int | None = None,
) -> LoadedPolicy:  # fmt: skip
    """Load the policy of a checkpoint or run.

    Args:
        path: checkpoint folder, or run folder.
        weights: ``ema`` or ``raw``.
        device: where to put it.
        solver, sample_steps: replace the head's solver or number of sampling steps.

    Raises:
        CheckpointError: nothing there, damaged files, or parts that this installation does not have.
        ConfigError: a solver or a number of steps that the head does not have, or other ``weights``.
    """
    if weights not in ("ema", "raw"):
        raise ConfigError(f"unknown weights {weights!r}. {nearest(weights, ('ema', 'raw'))}")
    checkpoint = Checkpoint.open(resolve_checkpoint(path))
    model = checkpoint.document("model")
    parts: dict[str, Any] = {}
    registries: dict[str, Any] = {"head": every_head(), "backbone": every_backbone()}
    for part, registry in registries.items():
        name = model[part]["name"]
        if name not in registry:
            raise CheckpointError(
                f"{checkpoint.path} needs {part} {name!r}, which is not installed. {nearest(name, registry)}"
            )
        settings = dict(model[part]["config"])
        parts[part] = _typed(registry[name].config_class, settings)
    policy = build_policy(
        PolicySpec.from_dict(checkpoint.document("spec")),
        obs=_typed(ObservationConfig, model["obs"]),
        head=parts["head"],
        backbone=parts["backbone"],
        normalizer=Normalizer.from_dict(checkpoint.document("normalizer")),
        loss=_typed(LossConfig, model.get("loss", {})),
    )
    if solver is not None or sample_steps is not None:
        policy.head.set_solver(solver, sample_steps)
    try:
        policy.load_state_dict(checkpoint.tensors("policy_ema" if weights == "ema" else "policy"))
    except RuntimeError as e:
        raise CheckpointError(
            f"{checkpoint.path} is of another network than this version builds: {str(e).splitlines()[-1].strip()}"
        ) from e
    return LoadedPolicy(policy.to(device).eval(), checkpoint)


def _typed(schema: type, values: dict[str, Any]) -> Any:
    known = [f.name for f in fields(schema)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"{schema.__name__} has no setting {unknown[0]!r}. {nearest(unknown[0], known)}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as e:  # deeper down
        key = getattr(e, "full_key", None)
        raise ConfigError(f"{schema.__name__}{f', {key}' if key else ''}: {str(e).splitlines()[0]}") from None


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, instead of returning it to the system.

    A training step frees and takes the same hundreds of megabytes again; returning them costs a page fault for every
    4 kB of it. Does nothing where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # from malloc.h
    mallopt(m_mmap_threshold, 32 << 20)  # the largest that glibc takes
    mallopt(m_trim_threshold, (1 << 31) - 1)
    mallopt(m_top_pad, 64 << 20)
