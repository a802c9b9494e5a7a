"""Training samples per second and chunk latency of the image diffusion policy: ours against LeRobot's, same networks.

    python benchmarks/images.py [--peer-python PYTHON] [--rounds 5] [--seconds 8] [--threads 2] [--out FILE]

``PYTHON`` is an interpreter that has lerobot 0.4.4 (``lerobot_peer.py`` says how to make one without a GPU); without it
only ours is measured. Besides the rate by the clock, the processor time of a sample is given: on a machine that does
other work at the same time only that can be compared.

Batch 16 of 2 observed 96x96 images, cut to 84x84 at random; ResNet-18 at full width with group norm and 32 keypoints;
U-Net (128, 256, 512); horizon 16; DDIM with 10 steps. LeRobot gets float images on the device already; ours uint8.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lerobot_peer import lerobot_diffusion
from ours import ours
from turns import main

DIMS, SIZE, CROP, DDIM_STEPS = (128, 256, 512), 96, 84, 10
CHUNK = {"batch": 16, "n_obs": 2, "horizon": 16, "action_dim": 2, "crop": CROP}

if __name__ == "__main__":
    mine = partial(
        ours, {"img": (SIZE, SIZE, 3), "agent_pos": (2,)}, head="diffusion", backbone="unet",
        head_settings={"prediction": "epsilon", "solver": "ddim", "sample_steps": DDIM_STEPS},
        backbone_settings={"dims": list(DIMS)}, **CHUNK,  # type: ignore[arg-type]
    )  # fmt: skip
    peer = {"observation.image": (3, SIZE, SIZE), "observation.state": (2,)}
    contenders = {
        "lerobot": partial(lerobot_diffusion, peer, dims=DIMS, ddim_steps=DDIM_STEPS, **CHUNK),  # type: ignore[arg-type]
        "ours_fp32": partial(mine, precision="fp32"),
        "ours_auto": mine,
    }
    pairs = {"ours_fp32": "lerobot", "ours_auto": "lerobot"}
    main(str(__doc__), str(Path(__file__)), contenders, pairs, {**CHUNK, "size": SIZE, "dims": DIMS})
