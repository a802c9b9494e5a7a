"""Image networks of timm and transformers, with weights from this machine. Nothing is ever downloaded.

The only file that imports timm, and transformers for images.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from visuomotor.data.errors import ConfigError, MissingExtraError, nearest
from visuomotor.policies.encoders.trunk import Trunk

__all__ = ["PretrainedConfig", "PretrainedTrunk"]

LIBRARIES = ("timm", "transformers")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(kw_only=True, slots=True)
class PretrainedConfig:
    """Which pretrained image network.

    Attributes:
        library: ``timm`` or ``transformers``.
        name: timm: an architecture (``vit_small_patch14_dinov2``, ``resnet18``, ...); transformers: a folder with
            ``config.json``, or a name that is in the local cache.
        weights: timm: a local ``.safetensors``, ``.pth`` or ``.bin`` file; transformers: null (they lie in ``name``).
            Not needed again once a policy was trained: its checkpoint holds them.
        frozen: keep the weights as they are; otherwise they are fine-tuned, at ``optim.encoder_lr_scale``.
    """

    library: str = "timm"
    name: str = ""
    weights: str | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.library not in LIBRARIES:
            raise ConfigError(
                f"unknown obs.image.pretrained.library {self.library!r}. {nearest(self.library, LIBRARIES)}"
            )


class PretrainedTrunk(Trunk):
    """``[B, 3, H, W]``, normalised by ``mean`` and ``std``, to its last feature map ``[B, out_channels, h, w]``.

    Batch norm keeps the statistics it came with, also while it is fine-tuned: those of small batches do not follow
    averaged weights.

    Args:
        config: which network.
        channels: of the image; must be 3.
        size: rows and columns of the image.

    Raises:
        MissingExtraError: the library is not installed.
        ConfigError: an unknown name, no weights, or an image it cannot read.
    """

    def __init__(self, config: PretrainedConfig, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        if channels != 3:
            raise ConfigError(f"obs.image.net=pretrained reads images of 3 channels, not of {channels}")
        if not config.name:
            raise ConfigError("obs.image.net=pretrained needs obs.image.pretrained.name")
        self._frozen, self._timm = config.frozen, config.library == "timm"
        if self._timm:
            self.net, self.mean, self.std = _timm(config, size)
        else:
            self.net, self.mean, self.std = _transformers(config)
        if config.frozen:
            self.net.requires_grad_(False)
        self.train(self.training)
        probe = self._probe(config.name, size)
        self.out_channels = int(probe.shape[1])
        # What the feature map does not depend on (poolers, class tokens' heads) never has a gradient, which
        # DistributedDataParallel takes for an error.
        reached = _leaves(probe)
        for p in self.net.parameters():
            p.requires_grad_(p in reached)

    def train(self, mode: bool = True) -> Self:
        """As :meth:`torch.nn.Module.train`; a frozen network and batch norms stay in eval mode."""
        super().train(mode)
        if self._frozen:
            self.net.eval()
        for module in self.net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """The last feature map, tokens laid out as the grid of patches that they stand for."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            if self._timm:
                options: dict[str, Any] = {"indices": 1, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
                out: Tensor = self.net.forward_intermediates(images, **options)[-1]  # type: ignore[operator]
                return out
            hidden: Tensor = self.net(pixel_values=images).last_hidden_state
        return hidden if hidden.ndim == 4 else _grid(hidden, images.shape[-2:], self.net.config)

    def _probe(self, name: str, size: tuple[int, int]) -> Tensor:
        """The feature map of one black image, with what it was computed from."""
        mode = self.training
        self.eval()
        try:
            with torch.enable_grad():
                out: Tensor = self(torch.zeros(1, 3, *size))
            return out
        # The last two: a network of texts, or one whose output is no feature map.
        except (AssertionError, RuntimeError, ValueError, NotImplementedError, AttributeError, TypeError) as e:
            why = (str(e).splitlines() or [type(e).__name__])[0]
            raise ConfigError(f"{name} cannot read images of {size[0]}x{size[1]} pixels: {why}") from e
        finally:
            self.train(mode)


def _timm(config: PretrainedConfig, size: tuple[int, int]) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    timm = _library("timm", "vision")
    if not timm.is_model(config.name):
        raise ConfigError(f"timm {timm.__version__} has no {config.name!r}. {nearest(config.name, timm.list_models())}")
    net: nn.Module = timm.create_model(config.name, pretrained=False, num_classes=0)
    if not hasattr(net, "forward_intermediates"):
        raise ConfigError(f"timm's {config.name!r} gives no feature maps (it has no forward_intermediates)")
    about = dict(net.pretrained_cfg)  # type: ignore[arg-type]
    expected = tuple(about["input_size"][1:])
    if about.get("fixed_input_size") and expected != size:
        raise ConfigError(
            f"timm's {config.name!r} reads images of {expected[0]}x{expected[1]} pixels, not of {size[0]}x{size[1]}: "
            f"set obs.image.resize and obs.image.crop so that {list(expected)} are left"
        )
    if config.weights is not None:
        _load(net, Path(config.weights).expanduser(), config.name)
    return net, about["mean"], about["std"]


def _load(net: nn.Module, path: Path, name: str) -> None:
    """Fill ``net`` from a file; a classifier in it is left out, anything missing is refused."""
    if not path.is_file():
        raise ConfigError(f"obs.image.pretrained.weights: there is no file {path}")
    try:
        state = _tensors(path)
    except Exception as e:  # each format and each kind of damage has an exception of its own
        why = (str(e).splitlines() or [type(e).__name__])[0]
        raise ConfigError(f"obs.image.pretrained.weights: {path} cannot be read as tensors: {why}") from e
    mine = net.state_dict()
    missing = sorted(k for k, v in mine.items() if k not in state or state[k].shape != v.shape)
    if missing:
        raise ConfigError(f"{path} is not of {name!r}: {missing[0]!r} is missing or of another shape")
    net.load_state_dict({k: state[k] for k in mine})


def _tensors(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)  # tensors only: runs no code of the file
    found: dict[str, Any] = state.get("state_dict", state.get("model", state))
    return found


def _leaves(out: Tensor) -> set[Tensor]:
    """The parameters that ``out`` depends on."""
    found: set[Tensor] = set()
    seen, left = {None}, [out.grad_fn]
    while left:
        node: Any = left.pop()
        if node not in seen:
            seen.add(node)
            left += [parent for parent, _ in node.next_functions]
            if hasattr(node, "variable"):
                found.add(node.variable)
    return found


def _transformers(config: PretrainedConfig) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    transformers = _library("transformers", "vision")
    if config.weights is not None:
        raise ConfigError("obs.image.pretrained.weights is for timm: transformers reads them from the folder `name`")
    folder = Path(config.name).expanduser()
    name = str(folder) if folder.is_dir() else config.name
    try:
        net: Any = transformers.AutoModel.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"obs.image.pretrained.name={config.name!r} is no folder of a transformers model, nor in the local cache: "
            f"{str(e).splitlines()[0]}"
        ) from e
    net = getattr(net, "vision_model", net)  # of CLIP and SigLIP only the image half
    settings = _preprocessing(name)
    return net, settings.get("image_mean", _IMAGENET[0]), settings.get("image_std", _IMAGENET[1])


def _preprocessing(name: str) -> dict[str, Any]:
    """What a transformers model in a folder, or in the local cache, says about its images; empty: nothing."""
    path: Any = Path(name) / "preprocessor_config.json"
    if not Path(name).is_dir():
        path = importlib.import_module("huggingface_hub").try_to_load_from_cache(name, path.name)
    found: dict[str, Any] = {}
    if isinstance(path, str | Path) and Path(path).is_file():  # neither unknown to the cache, nor known to be absent
        found = json.loads(Path(path).read_text())
    return found


def _grid(tokens: Tensor, size: Sequence[int], config: Any) -> Tensor:
    """Tokens ``[B, prefix + h * w, D]`` to ``[B, D, h, w]``; class and register tokens come first and are left out."""
    h, w = size[0] // config.patch_size, size[1] // config.patch_size
    return tokens[:, tokens.shape[1] - h * w :].transpose(1, 2).unflatten(2, (h, w))


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as e:  # RuntimeError: a torchvision of another build
        raise MissingExtraError(
            f"obs.image.net=pretrained needs {name} ({e}). Install it with: pip install 'visuomotor[{extra}]'"
        ) from None
