"""Cameras by MuJoCo Warp's ray tracer: all worlds at once, in the memory in which they are simulated."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.envs.sim.cameras import CameraConfig, camera_ids, camera_specs
from visuomotor.envs.sim.render import CameraRenderer
from visuomotor.envs.sim.warp import WarpSimulator, load_warp

__all__ = ["WarpCameras"]


class WarpCameras(CameraRenderer):
    """Traces one ray a pixel (``full``: and one to each light, for shadows); nothing leaves the device.

    Per-world values of model fields are seen: colours, sizes, lights, camera poses and angles, and which texture a
    material has. Sites are not: MuJoCo Warp does not draw them. All worlds are drawn in every call: to leave some out
    would take longer than to draw them.

    Args:
        sim: its worlds.
        config: which cameras, at which size.
    """

    def __init__(self, sim: WarpSimulator, config: CameraConfig) -> None:
        self.spec = camera_specs(sim.model, config)
        self._sim, self._config = sim, config
        self._wp, self._mjw = load_warp()
        known = camera_ids(sim.model)
        active = sorted(known[name] for name in config.names)
        self._index = {name: active.index(known[name]) for name in config.names}  # among those that are drawn
        self._bodies = torch.tensor(np.append(sim.model.geom_bodyid, -1).astype(np.int32), device=sim.device)
        with sim.scope():
            self._context: Any = self._mjw.create_render_context(
                sim.model,
                nworld=sim.num_envs,
                cam_res=(config.width, config.height),
                render_rgb=True,
                render_depth=bool(config.depth),
                render_seg=bool(config.segmentation),
                cam_active=active,
                use_shadows=config.quality == "full",
                use_precomputed_rays=False,  # they would fix the angles of view, which may differ from world to world
                render_skybox=bool((sim.model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX).any()),
            )

        self._rgb = self._pixels(self._context.rgb_data, torch.uint8, 4)
        if config.depth:
            self._depth = self._pixels(self._context.depth_data, torch.float32)
        if config.segmentation:
            self._geoms = self._pixels(self._context.seg_data, torch.int32, 2)[..., 0]
        self._far = float(sim.model.vis.map.zfar * sim.model.stat.extent)

    def observe(self, worlds: Tensor | None = None) -> dict[str, Tensor]:
        sim, context = self._sim, self._context
        with sim.scope():
            self._mjw.refit_bvh(sim.warp_model, sim.warp_data, context)
            self._mjw.render(sim.warp_model, sim.warp_data, context)
        out: dict[str, Tensor] = {}
        for name, index in self._index.items():
            out[name] = self._rgb[:, index, ..., :3].flip(-1)  # packed as blue, green, red, alpha
            if name in self._config.depth:
                depth = self._depth[:, index, ..., None]
                out[f"{name}_depth"] = torch.where(depth > 0.0, depth, self._far).clamp(max=self._far)
            if name in self._config.segmentation:
                out[f"{name}_segmentation"] = self._bodies[self._geoms[:, index]]
        return out

    def _pixels(self, array: Any, dtype: torch.dtype, *last: int) -> Tensor:
        """Live view ``[N, cameras, H, W, *last]`` of what the context has drawn, of those cameras that have it."""
        view: Tensor = self._wp.to_torch(array).view(dtype)
        return view.view(self._sim.num_envs, -1, self._config.height, self._config.width, *last)
