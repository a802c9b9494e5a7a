"""Exported programs: the same chunk as PyTorch, for every head, backbone and kind of observation; what is refused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from visuomotor.configs.build import build_policy
from visuomotor.configs.registry import backbones, heads
from visuomotor.data.actions import ActionConfig
from visuomotor.data.errors import ConfigError, MissingExtraError, UserError
from visuomotor.data.normalize import KeyNorm, Normalizer, compute_stats
from visuomotor.data.spec import ArraySpec
from visuomotor.data.windows import WindowConfig
from visuomotor.policies import export
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.goal import GoalConfig
from visuomotor.policies.encoders.images import ImageConfig
from visuomotor.policies.encoders.points import PointsConfig
from visuomotor.policies.encoders.resnet import ResNetConfig
from visuomotor.policies.encoders.text import TextConfig
from visuomotor.policies.encoders.vit import ViTConfig
from visuomotor.policies.export import PolicyProgram, export_policy, parity
from visuomotor.policies.policy import LossConfig
from visuomotor.policies.spec import PolicySpec

onnxruntime = pytest.importorskip("onnxruntime", reason="extra 'export' is not installed")
pytest.importorskip("onnxscript", reason="extra 'export' is not installed")

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 32, "depth": 2},
    "unet": {"dims": [16, 32], "groups": 4},
    "dit": {"width": 32, "layers": 2, "heads": 2},
    "transformer": {"width": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2},
    "perceptron": {"width": 32},
}
_READ_CHUNKS = sorted(set(SMALL) - {"perceptron"})
_OBSERVATIONS_ALONE = ("gaussian", "gmm", "regression")  # heads that the perceptron serves
STATE, IMAGE = ArraySpec(shape=(3,)), ArraySpec(shape=(32, 32, 3), dtype="uint8")
H, DA, DELAY = 8, 2, 2
SOLVED = ("diffusion", "flow", "edm", "meanflow", "shortcut")  # two sampling steps instead of up to sixteen


def a_policy(
    head="flow", backbone="mlp", *, specs=None, obs=None, action=None, da=DA, loss=None, solver=None, steps=2, net=None
):  # fmt: skip
    """A policy of small parts whose weights are no longer those of a fresh network (zeros would hide mistakes)."""
    specs, obs, rng = specs or {"state": STATE}, obs or ObservationConfig(), np.random.default_rng(0)
    goals = {f"goal/{k}": specs[k] for k in obs.goal.keys}
    spec = PolicySpec(
        obs={**specs, **goals}, action_key="action", action=ArraySpec(shape=(da,)), fps=10.0,
        window=WindowConfig(n_obs=2, horizon=H, n_exec=4), action_config=action or ActionConfig(),
        constant_keys=obs.constant_keys,
    )  # fmt: skip
    sizes = {k: specs[k].size + len(obs.angles.get(k, [])) for k in obs.kinds(specs)["vector"]}
    stats = {f"obs/{k}": compute_stats([rng.normal(size=(50, n)) * 20 + 7]) for k, n in sizes.items()}
    stats["action"] = compute_stats([rng.normal(size=(50, da)) * 30])
    norms = {f"obs/{k}": obs.norm_of(k) for k in sizes} | {"action": KeyNorm(clip=None)}
    torch.manual_seed(0)
    policy = build_policy(
        spec, obs=obs, head=heads()[head].config_class(),
        backbone=backbones()[backbone].config_class(**(net or SMALL[backbone])), normalizer=Normalizer(stats, norms),
        loss=loss,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    policy.head.fit(torch.randn(64, H, da, generator=generator) * 0.3)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    if head in SOLVED:
        policy.head.set_solver(solver, steps)
    return policy.eval()


def check(policy, folder, **options):
    """Export, and look with a session of our own: right, and a function of what it is given."""
    result = export_policy(policy, folder, **options)
    assert max(result.parity.values()) <= 1e-4
    if "onnx" in result.parity:
        program = PolicyProgram(policy, batch=options.get("batch", 1))
        session = onnxruntime.InferenceSession(str(folder / "policy.onnx"), providers=["CPUExecutionProvider"])
        used = {i.name for i in session.get_inputs()}
        chunks = []
        for seed in (20, 21):
            inputs = program.example(seed)
            feed = {n: x.numpy() for n, x in zip(program.input_names, inputs, strict=True) if n in used}
            chunks.append(torch.from_numpy(session.run(["chunk"], feed)[0]))
            obs = program.observations(inputs)
            here = policy.sample(obs, inputs[len(obs)], prefix=_prefix(inputs[len(obs) + 1 :]))
            assert torch.allclose(
                policy.normalize_action(chunks[-1], obs), policy.normalize_action(here, obs), atol=1e-4
            )
        assert not torch.allclose(chunks[0], chunks[1], atol=1e-3)
    return result


def _prefix(known):
    return export.Prefix(*known) if known else None


ALL = [(h, b) for h in sorted(set(heads()) - {"energy"}) for b in _READ_CHUNKS]
ALL += [(h, "perceptron") for h in _OBSERVATIONS_ALONE]
FEW = [("diffusion", "unet"), ("flow", "dit"), ("act", "transformer"), ("carp", "mlp"), ("gmm", "mlp")]


@pytest.mark.parametrize(("head", "backbone"), FEW)
def test_onnx_samples_what_the_policy_samples(head, backbone, tmp_path):
    check(a_policy(head, backbone, loss=LossConfig(max_delay=DELAY)), tmp_path, formats=["onnx"])


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, DELAY])
@pytest.mark.parametrize(("head", "backbone"), ALL)
def test_every_head_on_every_backbone(head, backbone, delay, tmp_path):
    check(a_policy(head, backbone, loss=LossConfig(max_delay=delay)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "solver"),
    [("diffusion", s) for s in ("ddpm", "ddim", "dpmpp")] + [("flow", s) for s in ("euler", "midpoint", "heun", "rk4")]
    + [("edm", "heun")],
)  # fmt: skip
def test_every_solver_at_sixteen_steps(head, solver, tmp_path):
    check(a_policy(head, "mlp", solver=solver, steps=16), tmp_path)


@pytest.mark.slow
def test_a_unet_written_out_sixteen_times(tmp_path):
    check(a_policy("diffusion", "unet", steps=16), tmp_path)


def test_pt2_samples_what_the_policy_samples_and_says_what_it_reads(tmp_path):
    policy = a_policy(loss=LossConfig(max_delay=DELAY))
    result = check(policy, tmp_path / "new", formats=["pt2"], batch=3)
    assert [f.name for f in result.files] == ["io.json", "policy.pt2"]
    assert all(f.stat().st_size > 0 for f in result.files)
    io = json.loads((tmp_path / "new" / "io.json").read_text())
    assert io["inputs"] == [
        {"name": "obs.state", "shape": [3, 2, 3], "dtype": "float32"},
        {"name": "noise", "shape": [3, 1, H, DA], "dtype": "float32"},
        {"name": "prefix_action", "shape": [3, H, DA], "dtype": "float32"},
        {"name": "prefix_mask", "shape": [3, H], "dtype": "bool"},
    ]
    assert io["output"] == {"name": "chunk", "shape": [3, H, DA], "dtype": "float32"}
    assert PolicySpec.from_dict(io["spec"]) == policy.spec


def test_an_empty_mask_is_no_prefix_and_a_full_one_is_repeated():
    policy = a_policy(backbone="transformer", loss=LossConfig(max_delay=DELAY))
    program = PolicyProgram(policy, batch=2)
    state, noise, action, mask = program.example(5)
    assert mask.sum(1).tolist() == [3, 3]  # two steps of delay and the one before the present
    with torch.no_grad():
        free, known = program(state, noise, action, torch.zeros_like(mask)), program(state, noise, action, mask)
    assert torch.allclose(free, policy.sample({"state": state}, noise), atol=1e-3)
    assert torch.equal(known[:, :3], action[:, :3])


def test_weights_are_in_the_file_once_however_many_steps_there_are(tmp_path):
    policy = a_policy("diffusion", "unet", steps=4, net={"dims": [32, 64], "groups": 4})
    export_policy(policy, tmp_path, formats=["onnx"])
    weights = 4 * sum(p.numel() for p in policy.parameters())
    assert weights < (tmp_path / "policy.onnx").stat().st_size < 1.5 * weights


POSE = ActionConfig(mode="relative", reference_key="pose", pose_groups=[list(range(9))])


def cases():
    """Every kind of observation and action there is, by name."""
    small = ResNetConfig(width=0.25, stem="small")
    pooled = ImageConfig(crop=[28, 28], feature_dim=16, resnet=small)
    tokens = ImageConfig(tokens=True, token_dim=16, resize=[24, 24], resnet=small)
    vit = ImageConfig(net="vit", feature_dim=16, vit=ViTConfig(patch=8, dim=16, depth=1, heads=2))
    depth = ImageConfig(depth_keys=["depth"], feature_dim=16, resnet=small)
    goal = GoalConfig(keys=["state"], dropout=0.2, dim=8)
    picture = GoalConfig(keys=["img"], dropout=0.2, dim=8)
    both = ["state", "task"]
    text = {"state": STATE, "task": ArraySpec(shape=(8,), dtype="uint8")}
    image = {"state": STATE, "img": IMAGE}
    distance = ArraySpec(shape=(20, 20, 1), unit="m")
    cloud, box = ArraySpec(shape=(24, 3), unit="m"), {"low": [0.2] * 3, "high": [1.0] * 3}
    camera = {"depth": distance, "k": ArraySpec(shape=(4,)), "pose": ArraySpec(shape=(4, 4))}
    pose = {"pose": ArraySpec(shape=(9,)), "grip": ArraySpec(shape=())}

    def observing(keys, **settings):
        return ObservationConfig(keys=list(keys), **settings)

    def points(**settings):
        return PointsConfig(n_points=6, dim=8, **settings)

    return {
        "angles": ({"obs": ObservationConfig(angles={"state": [2]})}, "mlp"),
        "delta": ({"action": ActionConfig(mode="delta", reference_key="state", reference_dims=[0, 1])}, "mlp"),
        "relative pose": ({"specs": pose, "obs": observing(pose), "action": POSE, "da": 9}, "mlp"),
        "images": ({"specs": image, "obs": observing(image, image=pooled)}, "mlp"),
        "image tokens": ({"specs": image, "obs": observing(image, image=tokens)}, "dit"),
        "vit": ({"specs": image, "obs": observing(image, image=vit)}, "mlp"),
        "depth": ({"specs": {"depth": distance}, "obs": observing(["depth"], image=depth)}, "mlp"),
        "goal": ({"obs": ObservationConfig(goal=goal)}, "mlp"),
        "image goal": ({"specs": image, "obs": observing(image, image=pooled, goal=picture)}, "mlp"),
        "n-grams": ({"specs": text, "obs": observing(both, text=TextConfig(keys=["task"], length=8, dim=8))}, "mlp"),
        "text tokens": (
            {"specs": text, "obs": observing(both, text=TextConfig(
                keys=["task"], encoder="transformer", tokens=2, length=8, dim=8, heads=2))},
            "transformer",
        ),
        "points": (
            {"specs": {"cloud": cloud}, "obs": observing(["cloud"], points=points(keys=["cloud"], **box))},
            "mlp",
        ),
        "depth to points": (
            {"specs": camera, "obs": observing(camera, points=points(
                keys=["depth"], intrinsics_keys={"depth": "k"}, pose_keys={"depth": "pose"}, tokens=True))},
            "dit",
        ),
    }  # fmt: skip


QUICK = ("angles", "relative pose", "images")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in cases()])
def test_every_kind_of_observation_and_action(name, tmp_path):
    settings, backbone = cases()[name]
    policy = a_policy("flow", backbone, steps=1, **settings)
    check(policy, tmp_path, batch=1 if name in QUICK else 2)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", _READ_CHUNKS)
def test_guidance_is_part_of_the_program(backbone, tmp_path):
    policy = a_policy(backbone=backbone, obs=ObservationConfig(goal=GoalConfig(keys=["state"], dropout=0.2, dim=8)))
    plain = PolicyProgram(policy)(*PolicyProgram(policy).example(1))
    policy.guidance_scale = 3.0
    check(policy, tmp_path)
    assert not torch.allclose(plain, PolicyProgram(policy)(*PolicyProgram(policy).example(1)), atol=1e-2)


def test_nothing_is_computed_twice_from_the_same_weights():
    program = PolicyProgram(a_policy("diffusion", "unet", steps=3))
    graph = export._trace(program, program.example(0)).graph
    computed = [(n.target, repr(n.args), repr(n.kwargs)) for n in graph.nodes if n.op == "call_function" and n.users]
    assert max(Counter(computed).values()) == 1


def test_a_head_that_differentiates_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="EnergyHead differentiates its network while it samples"):
        export_policy(a_policy("energy"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_settings_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown format 'onx'. Did you mean 'onnx'"):
        export_policy(a_policy(), tmp_path, formats=["onx"])
    with pytest.raises(ConfigError, match="batch=0: expected at least 1"):
        export_policy(a_policy(), tmp_path, batch=0)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"onnxruntime.*visuomotor\[export\]"):
        export_policy(a_policy(), tmp_path)


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_program_that_differs_is_removed(wrong, tmp_path, monkeypatch):
    # A thousandth in normalised units: the action is scaled by half of its range.
    policy = a_policy()
    gain = 1 / policy.normalizer.get_buffer(f"gain_{policy.normalizer._slot['action']}")
    pt2 = export._pt2

    def off(*args):
        right = pt2(*args)
        return lambda *inputs: right(*inputs) + wrong * gain

    monkeypatch.setattr(export, "_pt2", off)
    with pytest.raises(UserError, match=r"policy.pt2 differs from PyTorch by (0.001|inf) in normalised units"):
        export_policy(policy, tmp_path, formats=["pt2"])
    assert not (tmp_path / "policy.pt2").exists()


def test_parity_is_in_normalised_units():
    policy = a_policy()
    program = PolicyProgram(policy)
    gain = 1 / policy.normalizer.get_buffer(f"gain_{policy.normalizer._slot['action']}")
    assert parity(program, program) == 0.0
    assert parity(program, lambda *inputs: program(*inputs) + 0.5 * gain) == pytest.approx(0.5, rel=1e-3)


def test_an_operator_that_cannot_be_traced_is_a_clear_error(tmp_path, monkeypatch):
    policy = a_policy()
    monkeypatch.setattr(policy.head, "sample", lambda net, noise: noise[:, 0] * float(noise.sum().item()))
    with pytest.raises(ConfigError, match=r"cannot be traced by torch.export"):
        export_policy(policy, tmp_path)
