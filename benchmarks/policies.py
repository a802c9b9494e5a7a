"""Training rate, chunk latency and size of every head on every backbone, and of LeRobot's where it has one.

    python benchmarks/policies.py --peer-python PYTHON --only lerobot,against     # the comparison, in turns
    python benchmarks/policies.py --rounds 1 --seconds 3                          # every head on every backbone

``PYTHON`` is an interpreter that has lerobot 0.4.4 (``lerobot_peer.py`` says how to make one without a GPU).
State observations: five numbers in, two actions out. Ours is measured as it trains, with normalisation and moving
average; LeRobot does the first outside the policy and the second not at all. Prints JSON.

* against ``lerobot_diffusion``: U-Net (64, 128, 256), batch 256, horizon 16, DDIM with 10 steps.
* against ``lerobot_act``: 4 encoder layers, 1 decoder layer and 4 layers of the CVAE, width 256, batch 64, chunk 100.
* every other: batch 256, horizon 16, default settings, but U-Net (64, 128, 256).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lerobot_peer import lerobot_act, lerobot_diffusion
from ours import ours
from turns import Contender, main

DIMS, DDIM_STEPS, ACT_WIDTH, ACT_HORIZON, ACT_BATCH = (64, 128, 256), 10, 256, 100, 64
BACKBONES = {"mlp": {}, "unet": {"dims": list(DIMS)}, "dit": {}, "transformer": {}}
HEADS = (
    "act", "carp", "diffusion", "edm", "energy", "flow", "gaussian", "gmm", "meanflow", "mip", "regression", "shortcut",
)  # fmt: skip
OURS, PEER = {"state": (5,)}, {"observation.state": (2,), "observation.environment_state": (3,)}
CHUNK = {"batch": 256, "n_obs": 2, "horizon": 16, "action_dim": 2}


def _contenders() -> dict[str, Callable[[], Contender]]:
    ddim = {"prediction": "epsilon", "solver": "ddim", "sample_steps": DDIM_STEPS}
    unet = partial(ours, OURS, head="diffusion", backbone="unet", head_settings=ddim, **CHUNK)  # type: ignore[arg-type]
    unet = partial(unet, backbone_settings=BACKBONES["unet"])
    layers = {"width": ACT_WIDTH, "encoder_layers": 4, "decoder_layers": 1, "heads": 8}
    act = partial(
        ours, OURS, head="act", backbone="transformer", backbone_settings=layers,
        head_settings={"width": ACT_WIDTH, "layers": 4, "attention_heads": 8}, batch=ACT_BATCH, n_obs=1,
        horizon=ACT_HORIZON, action_dim=2,
    )  # fmt: skip
    out: dict[str, Callable[[], Contender]] = {
        "lerobot_diffusion": partial(lerobot_diffusion, PEER, dims=DIMS, ddim_steps=DDIM_STEPS, **CHUNK),  # type: ignore[arg-type]
        "against_diffusion_fp32": partial(unet, precision="fp32"),
        "against_diffusion_auto": unet,
        "lerobot_act": partial(lerobot_act, PEER, batch=ACT_BATCH, horizon=ACT_HORIZON, action_dim=2, width=ACT_WIDTH),
        "against_act_fp32": partial(act, precision="fp32"),
        "against_act_auto": act,
    }
    for head in HEADS:
        for backbone, settings in BACKBONES.items():
            out[f"{head}/{backbone}"] = partial(
                ours,
                OURS,
                head=head,
                backbone=backbone,
                backbone_settings=settings,
                **CHUNK,  # type: ignore[arg-type]
            )
    return out


if __name__ == "__main__":
    pairs = {f"against_{k}_{p}": f"lerobot_{k}" for k in ("diffusion", "act") for p in ("fp32", "auto")}
    setting = {"horizon": 16, "batch": 256, "unet_dims": DIMS, "act": [ACT_BATCH, ACT_HORIZON, ACT_WIDTH]}
    main(str(__doc__), str(Path(__file__)), _contenders(), pairs, setting)
