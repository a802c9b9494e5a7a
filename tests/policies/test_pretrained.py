"""Image networks of timm and transformers with weights from a local file; skipped where the extra is absent."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from visuomotor.data.errors import ConfigError, MissingExtraError
from visuomotor.data.normalize import Normalizer
from visuomotor.data.spec import ArraySpec
from visuomotor.policies.draws import Draws
from visuomotor.policies.encoders import pretrained
from visuomotor.policies.encoders.images import ImageConfig, ImageEncoder
from visuomotor.policies.encoders.pretrained import PretrainedConfig, PretrainedTrunk

RGB = ArraySpec(shape=(64, 64, 3), dtype="uint8")


@pytest.fixture(scope="module")
def timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as e:  # RuntimeError: a torchvision of another build
        pytest.skip(f"the extra 'vision' is not installed: {e}")
    return timm


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture
def weights(timm: Any, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    net = timm.create_model("resnet10t", pretrained=False)  # with its classifier, as published files are
    path = tmp_path / "net.safetensors"
    save_file(net.state_dict(), path)
    return path


def test_weights_come_from_the_file_and_end_in_the_policy(weights: Path):
    config = PretrainedConfig(name="resnet10t", weights=str(weights))
    first, second = PretrainedTrunk(config, 3, (64, 64)).eval(), PretrainedTrunk(config, 3, (64, 64)).eval()
    x = torch.rand(2, 3, 64, 64)
    assert first(x).shape == (2, first.out_channels, 2, 2)
    assert torch.equal(first(x), second(x))
    bare = PretrainedTrunk(PretrainedConfig(name="resnet10t"), 3, (64, 64)).eval()
    assert not torch.equal(bare(x), first(x))
    bare.load_state_dict(first.state_dict())  # what loading a checkpoint does: no file of weights is needed
    assert torch.equal(bare(x), first(x))
    assert tuple(first.mean) == pytest.approx((0.485, 0.456, 0.406))


def test_pickled_weights_are_read_as_tensors_only(weights: Path, tmp_path: Path):
    from safetensors.torch import load_file

    torch.save({"state_dict": load_file(weights)}, tmp_path / "net.pth")
    a = PretrainedTrunk(PretrainedConfig(name="resnet10t", weights=str(weights)), 3, (64, 64)).eval()
    b = PretrainedTrunk(PretrainedConfig(name="resnet10t", weights=str(tmp_path / "net.pth")), 3, (64, 64)).eval()
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(a(x), b(x))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_weights_and_statistics_stay(timm: Any, frozen: bool):
    config = ImageConfig(net="pretrained", pretrained=PretrainedConfig(name="resnet10t", frozen=frozen))
    encoder = ImageEncoder(["img"], {"img": RGB}, config).train()
    buffers = [b.clone() for b in encoder.trunks.buffers()]
    obs = {"img": torch.randint(0, 256, (2, 2, 64, 64, 3), dtype=torch.uint8)}
    features = encoder(obs, Normalizer({}, {}), Draws(0)).features
    assert features.shape == (2, 2, 64)
    features.square().mean().backward()
    assert all(torch.equal(a, b) for a, b in zip(buffers, encoder.trunks.buffers(), strict=True))
    assert all(p.requires_grad is not frozen for p in encoder.trunks.parameters())
    trained = encoder.readouts if frozen else encoder
    assert all(p.grad is not None for p in trained.parameters())


def test_a_vision_transformer_of_timm_gives_its_grid(timm: Any):
    config = ImageConfig(
        net="pretrained", tokens=True, token_dim=8, resize=[224, 224],
        pretrained=PretrainedConfig(name="vit_tiny_patch16_224"),
    )  # fmt: skip
    encoder = ImageEncoder(["img"], {"img": RGB}, config).eval()
    obs = {"img": torch.zeros(1, 1, 64, 64, 3, dtype=torch.uint8)}
    assert encoder(obs, Normalizer({}, {})).tokens.shape == (1, 14 * 14, 8)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"name": "resnet10x"}, r"has no 'resnet10x'.*Did you mean"),
        ({"name": "resnet10t", "weights": "/none.safetensors"}, r"there is no file /none\.safetensors"),
        ({"name": "vit_tiny_patch16_224"}, r"reads images of 224x224 pixels, not of 64x64.*obs\.image\.resize"),
    ],
)
def test_refusals_of_timm(timm: Any, config: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        PretrainedTrunk(PretrainedConfig(**config), 3, (64, 64))


def test_weights_of_another_network_are_refused(timm: Any, weights: Path):
    with pytest.raises(ConfigError, match=r"is not of 'resnet18'.*missing or of another shape"):
        PretrainedTrunk(PretrainedConfig(name="resnet18", weights=str(weights)), 3, (64, 64))


def test_a_folder_of_transformers(transformers: Any, tmp_path: Path):
    settings = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=64, patch_size=16
    )
    transformers.ViTModel(settings).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}')
    trunk = PretrainedTrunk(PretrainedConfig(library="transformers", name=str(tmp_path)), 3, (64, 64)).eval()
    assert trunk(torch.rand(2, 3, 64, 64)).shape == (2, 16, 4, 4)
    assert list(trunk.std) == [0.2, 0.2, 0.2]
    with pytest.raises(ConfigError, match=r"cannot read images of 32x32"):
        PretrainedTrunk(PretrainedConfig(library="transformers", name=str(tmp_path)), 3, (32, 32))
    with pytest.raises(ConfigError, match=r"is no folder of a transformers model"):
        PretrainedTrunk(PretrainedConfig(library="transformers", name=str(tmp_path / "none")), 3, (64, 64))


class _Half(torch.nn.Module):
    """A network whose head the feature map does not depend on, as transformers' poolers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.pooler = torch.nn.Conv2d(3, 8, 16, 16), torch.nn.Linear(8, 8)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.patches(pixel_values))


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that gives :class:`_Half` for any folder."""
    library = SimpleNamespace(AutoModel=SimpleNamespace(from_pretrained=lambda name, **_: _Half()))
    monkeypatch.setattr(pretrained, "_library", lambda name, extra: library)


@pytest.mark.parametrize("frozen", [True, False])
def test_what_no_feature_depends_on_is_not_trained(half: None, tmp_path: Path, frozen: bool):
    config = PretrainedConfig(library="transformers", name=str(tmp_path), frozen=frozen)
    trunk = PretrainedTrunk(config, 3, (64, 64)).train()
    trained = {n for n, p in trunk.named_parameters() if p.requires_grad}
    assert trained == (set() if frozen else {"net.patches.weight", "net.patches.bias"})


def test_a_model_in_the_local_cache_says_how_its_images_are_normalised(
    half: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    snapshot = tmp_path / "models--org--net" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--net" / "refs").mkdir()
    (tmp_path / "models--org--net" / "refs" / "main").write_text("abc")
    (snapshot / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}')
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    trunk = PretrainedTrunk(PretrainedConfig(library="transformers", name="org/net"), 3, (64, 64))
    assert list(trunk.std) == [0.2, 0.2, 0.2]
    other = PretrainedTrunk(PretrainedConfig(library="transformers", name="org/other"), 3, (64, 64))
    assert tuple(other.mean) == pytest.approx((0.485, 0.456, 0.406))


def test_a_network_of_texts_is_refused(half: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_Half, "forward", lambda self, input_ids: None)
    with pytest.raises(ConfigError, match=r"cannot read images of 64x64.*pixel_values"):
        PretrainedTrunk(PretrainedConfig(library="transformers", name=str(tmp_path)), 3, (64, 64))


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
@pytest.mark.parametrize("content", [b"", b"no tensors at all"])
def test_damaged_weights_are_refused(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name} cannot be read as tensors"):
        pretrained._load(torch.nn.Linear(1, 1), tmp_path / name, "net")


def test_refusals_without_any_library(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="3 channels, not of 1"):
        PretrainedTrunk(PretrainedConfig(name="resnet18"), 1, (64, 64))
    with pytest.raises(ConfigError, match=r"needs obs\.image\.pretrained\.name"):
        PretrainedTrunk(PretrainedConfig(), 3, (64, 64))
    with pytest.raises(ConfigError, match=r"library 'tim'.*timm"):
        PretrainedConfig(library="tim")

    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(pretrained.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"needs timm .*pip install 'visuomotor\[vision\]'"):
        PretrainedTrunk(PretrainedConfig(name="resnet18"), 3, (64, 64))
