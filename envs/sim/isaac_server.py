"""Isaac Gym (Preview 4) behind a pipe: runs under the Python of an Isaac Gym installation, 3.7 or 3.8.

Started by path by :mod:`visuomotor.envs.sim.isaac_process`, with three inherited file descriptors: a socket for
messages (JSON, one a line), the shared memory, and none of visuomotor. Python 3.7 syntax; imports the standard library,
numpy, isaacgym and torch (in this order: Isaac Gym demands to be first) only. Arrays travel through the shared memory,
in Isaac Gym's own order and conventions: quaternions xyzw, velocities in the world's frame.

Messages: the server greets; ``build`` makes the worlds and answers with the names Isaac Gym has for things;
``properties`` sets what differs from world to world; ``step`` writes states and targets, simulates and reads states.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from isaacgym import gymapi

    Arrays = dict[str, np.ndarray]

__all__ = ["PROTOCOL", "Server", "main"]

PROTOCOL = 1


class Server:
    """All worlds in one Isaac Gym simulation. ``A`` actors a world, ``D`` degrees of freedom a world.

    Args:
        build: the client's message: device, timestep, gravity, ground, actors.
        arrays: shared memory: ``root [N, A, 13]``, ``dof [N, D, 2]``, ``target [N, D]``, ``write [N]``, ``drive
            [N, D, 4]`` (stiffness, damping, effort, armature), ``body [N, L, 10]`` (mass, inertia), ``friction
            [N, S]``, ``filter [S]``, ``gravity [3]``.
    """

    def __init__(self, build: dict[str, Any], arrays: Arrays) -> None:
        from isaacgym import gymapi, gymtorch  # isort: skip
        import torch

        self._api, self._torch_api, self._torch = gymapi, gymtorch, torch
        self._arrays, self._actors = arrays, build["actors"]
        self._num_envs = int(arrays["write"].shape[0])
        self._gpu = build["device"] >= 0
        self._device = torch.device(f"cuda:{build['device']}" if self._gpu else "cpu")
        self._gym: gymapi.Gym = gymapi.acquire_gym()
        self._params = self._sim_params(build)
        self._sim = self._gym.create_sim(max(build["device"], 0), -1, gymapi.SIM_PHYSX, self._params)
        if self._sim is None:
            raise RuntimeError("Isaac Gym made no simulation (see its log; is there a supported GPU and driver?)")
        if build["ground"] is not None:
            plane = gymapi.PlaneParams()
            plane.normal, plane.distance = gymapi.Vec3(0.0, 0.0, 1.0), 0.0
            plane.static_friction = plane.dynamic_friction = build["ground"]
            self._gym.add_ground(self._sim, plane)
        self._assets = [self._load(build["folder"], a) for a in self._actors]
        self._create(build["spacing"])
        self._prepared = False

    def names(self) -> list[dict[str, Any]]:
        """For each actor: degrees of freedom and bodies in Isaac Gym's order, shapes of each body."""
        gym = self._gym
        return [
            {
                "dofs": list(gym.get_asset_dof_names(a)),
                "bodies": list(gym.get_asset_rigid_body_names(a)),
                "shapes": [r.count for r in gym.get_asset_rigid_body_shape_indices(a)],
            }
            for a in self._assets
        ]

    def set_properties(self, fields: list[str]) -> None:
        """Give the worlds marked in ``write`` their own values of some of ``drive``, ``body``, ``friction``."""
        if "gravity" in fields:
            self._params.gravity = self._api.Vec3(*(float(x) for x in self._arrays["gravity"]))
            self._gym.set_sim_params(self._sim, self._params)
        for world in np.flatnonzero(self._arrays["write"]):
            env, at = self._envs[world], {"dof": 0, "body": 0, "shape": 0}
            for handle in range(len(self._actors)):
                self._set_actor(env, handle, fields, at, int(world))

    def step(self, n: int, write: bool) -> None:
        """Put states into the worlds marked in ``write``, give targets, simulate ``n`` steps, read states."""
        if not self._prepared:
            self._prepare()
        if write:
            self._write()
        gym, sim = self._gym, self._sim
        if self._targets.numel():
            self._put(self._targets, self._arrays["target"])
            gym.set_dof_position_target_tensor(sim, self._torch_api.unwrap_tensor(self._targets.view(-1)))
        for _ in range(n):
            gym.simulate(sim)
            if not self._gpu:
                gym.fetch_results(sim, True)
        gym.refresh_actor_root_state_tensor(sim)
        if self._dof.numel():
            gym.refresh_dof_state_tensor(sim)
        self._root_host.copy_(self._root, non_blocking=True)
        self._dof_host.copy_(self._dof, non_blocking=True)
        if self._gpu:
            self._torch.cuda.synchronize(self._device)
        self._arrays["root"][:] = self._root_host.numpy()
        self._arrays["root"][:, :, :3] -= self._origin
        self._arrays["dof"][:] = self._dof_host.numpy()

    def close(self) -> None:
        self._gym.destroy_sim(self._sim)

    # ---- how

    def _sim_params(self, build: dict[str, Any]) -> gymapi.SimParams:
        params: gymapi.SimParams = self._api.SimParams()
        params.dt, params.substeps = build["timestep"], 1
        params.up_axis, params.gravity = self._api.UP_AXIS_Z, self._api.Vec3(*build["gravity"])
        params.use_gpu_pipeline = params.physx.use_gpu = self._gpu
        params.physx.solver_type = 1  # TGS
        params.physx.num_position_iterations, params.physx.num_velocity_iterations = 8, 1
        params.physx.contact_offset, params.physx.rest_offset = 0.005, 0.0
        params.physx.bounce_threshold_velocity = 0.2
        return params

    def _load(self, folder: str, actor: dict[str, Any]) -> gymapi.Asset:
        options: gymapi.AssetOptions = self._api.AssetOptions()
        options.fix_base_link, options.disable_gravity = actor["fixed"], actor["weightless"]
        options.collapse_fixed_joints = options.override_com = options.override_inertia = False
        options.replace_cylinder_with_capsule = False
        options.use_physx_armature = True
        options.linear_damping = options.angular_damping = options.thickness = 0.0
        options.max_linear_velocity = options.max_angular_velocity = 1000.0
        asset = self._gym.load_asset(self._sim, folder, actor["file"], options)
        if asset is None:
            raise RuntimeError(f"Isaac Gym cannot load {actor['file']}; its log has the reason")
        return asset

    def _create(self, spacing: float) -> None:
        """The worlds, side by side; in each the actors, as one aggregate: the broad phase sees a world as one thing."""
        gym, api = self._gym, self._api
        corner, per_row = api.Vec3(spacing, spacing, spacing), int(np.ceil(np.sqrt(self._num_envs)))
        bodies = sum(len(gym.get_asset_rigid_body_names(a)) for a in self._assets)
        shapes = sum(gym.get_asset_rigid_shape_count(a) for a in self._assets)
        self._envs = []
        for world in range(self._num_envs):
            env = gym.create_env(self._sim, api.Vec3(-spacing, -spacing, 0.0), corner, per_row)
            gym.begin_aggregate(env, bodies, shapes, True)
            for i, actor in enumerate(self._actors):
                p, q = actor["pose"][:3], actor["pose"][3:]
                pose = api.Transform(p=api.Vec3(*p), r=api.Quat(*q))
                handle = gym.create_actor(env, self._assets[i], pose, f"actor{i}", world, 0, 0)
                index = gym.get_actor_index(env, handle, api.DOMAIN_SIM)
                if handle != i or index != world * len(self._actors) + i:
                    raise RuntimeError(f"Isaac Gym numbers actors in an unknown way: {handle}, {index}")
            gym.end_aggregate(env)
            self._envs.append(env)

    def _prepare(self) -> None:
        gym, sim, torch = self._gym, self._sim, self._torch
        gym.prepare_sim(sim)
        n, actors, dofs = self._num_envs, len(self._actors), self._arrays["target"].shape[1]
        wrap = self._torch_api.wrap_tensor
        root = wrap(gym.acquire_actor_root_state_tensor(sim))
        gym.refresh_actor_root_state_tensor(sim)
        self._root = root.view(n, actors, 13)
        self._dof = torch.zeros(n, 0, 2, device=self._device)
        if dofs:
            dof = wrap(gym.acquire_dof_state_tensor(sim))
            gym.refresh_dof_state_tensor(sim)
            self._dof = dof.view(n, dofs, 2)
        # Whether positions are those of the world or of the whole simulation is read off the first actors, which
        # nothing has moved yet.
        asked = np.array(self._actors[0]["pose"][:3], np.float32)
        self._origin = (self._root[:, :1, :3].cpu().numpy() - asked).round(4)
        self._targets = torch.zeros(n, dofs, device=self._device)
        staging = {"pin_memory": self._gpu}
        self._root_host = torch.zeros(n, actors, 13, **staging)
        self._dof_host = torch.zeros(n, dofs, 2, **staging)
        self._prepared = True

    def _write(self) -> None:
        """States of marked worlds, each kind in one call: of several in a step Isaac Gym keeps only the last."""
        torch, unwrap, sim = self._torch, self._torch_api.unwrap_tensor, self._sim
        marked = np.flatnonzero(self._arrays["write"])
        rows = torch.as_tensor(marked, device=self._device)
        root = self._arrays["root"][marked]
        root[:, :, :3] += self._origin[marked]
        self._root[rows] = torch.as_tensor(root, device=self._device)
        first = marked[:, None] * len(self._actors)
        placed = [i for i, a in enumerate(self._actors) if a["placed"]]
        jointed = [i for i, a in enumerate(self._actors) if a["jointed"]]
        # kept in the object: Isaac Gym reads the memory later
        self._ids = (
            [
                torch.as_tensor((first + kind).ravel().astype(np.int32), device=self._device)
                for kind in (placed, jointed)
            ]
            if placed or jointed
            else []
        )
        if placed:
            ids = self._ids[0]
            flat = unwrap(self._root.view(-1, 13))
            self._gym.set_actor_root_state_tensor_indexed(sim, flat, unwrap(ids), ids.numel())
        if jointed:
            ids = self._ids[1]
            self._dof[rows] = torch.as_tensor(self._arrays["dof"][marked], device=self._device)
            flat = unwrap(self._dof.view(-1, 2))
            self._gym.set_dof_state_tensor_indexed(sim, flat, unwrap(ids), ids.numel())

    def _put(self, tensor: torch.Tensor, array: np.ndarray) -> None:
        tensor.copy_(self._torch.as_tensor(array))

    def _set_actor(
        self,
        env: Any,
        handle: int,
        fields: list[str],
        at: dict[str, int],
        world: int,
    ) -> None:
        """Properties of one actor; ``at`` counts what earlier actors of the world have taken of the arrays."""
        gym, asset = self._gym, self._assets[handle]
        dofs = len(gym.get_asset_dof_names(asset))
        if "drive" in fields and dofs:
            props = gym.get_actor_dof_properties(env, handle)
            drive = self._arrays["drive"][world, at["dof"] : at["dof"] + dofs]
            props["driveMode"][:] = int(self._api.DOF_MODE_POS)
            for k, name in enumerate(("stiffness", "damping", "effort", "armature")):
                props[name][:] = drive[:, k]
            props["friction"][:] = 0.0
            gym.set_actor_dof_properties(env, handle, props)
        bodies = len(gym.get_asset_rigid_body_names(asset))
        if "body" in fields:
            body_props = gym.get_actor_rigid_body_properties(env, handle)
            for k, p in enumerate(body_props):
                mass, tensor = (
                    self._arrays["body"][world, at["body"] + k, 0],
                    self._arrays["body"][world, at["body"] + k, 1:],
                )
                p.mass = float(mass)
                x, y, z = (self._api.Vec3(*(float(v) for v in tensor[3 * r : 3 * r + 3])) for r in range(3))
                p.inertia.x, p.inertia.y, p.inertia.z = x, y, z
            gym.set_actor_rigid_body_properties(env, handle, body_props, False)
        shapes = gym.get_asset_rigid_shape_count(asset)
        if "friction" in fields and shapes:
            shape_props = gym.get_actor_rigid_shape_properties(env, handle)
            for k, s in enumerate(shape_props):
                s.friction = float(self._arrays["friction"][world, at["shape"] + k])
                s.filter, s.restitution = int(self._arrays["filter"][at["shape"] + k]), 0.0
            gym.set_actor_rigid_shape_properties(env, handle, shape_props)
        at["dof"], at["body"], at["shape"] = at["dof"] + dofs, at["body"] + bodies, at["shape"] + shapes


def _map(fd: int, arrays: list[Any]) -> Arrays:
    """Views of the shared memory: ``[name, type, shape, offset]`` each."""
    memory = mmap.mmap(fd, 0)
    return {
        name: np.frombuffer(memory, kind, int(np.prod(shape)), at).reshape(shape) for name, kind, shape, at in arrays
    }


def main() -> None:
    """Answer messages until the client closes the socket or is gone."""
    link = socket.socket(fileno=int(sys.argv[1]))
    lines = link.makefile("r", encoding="utf-8")
    server = None

    def say(**message: Any) -> None:
        link.sendall((json.dumps(message) + "\n").encode())

    try:
        say(hello="visuomotor-isaac", protocol=PROTOCOL, python=f"{sys.version_info[0]}.{sys.version_info[1]}")
        for line in lines:
            message = json.loads(line)
            order = message.pop("do")
            answer: dict[str, Any] = {}
            if order == "build":
                # what it names belongs to Isaac Gym: the arrays that depend on it are mapped by this order alone
                server = Server(message, _map(int(sys.argv[2]), message["arrays"]))
                answer["names"] = server.names()
            elif order == "properties" and server is not None:
                server.set_properties(**message)
            elif order == "step" and server is not None:
                server.step(**message)
            else:
                raise ValueError(f"unknown order {order!r}")
            say(ok=True, **answer)
        if server is not None:
            server.close()
    except (BrokenPipeError, ConnectionResetError):  # the client has gone
        pass
    except Exception as error:
        say(ok=False, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    os._exit(0)  # Isaac Gym may hang or crash on the way out


if __name__ == "__main__":
    main()
