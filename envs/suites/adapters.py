"""What each suite needs to be stepped as Gymnasium environments. Runs inside the suites' own Python environments.

Imports nothing of this package, and each suite only where it is asked for; see :mod:`visuomotor.envs.suites.server`.
Observations become one flat set of arrays, ``info`` gets ``success`` (and ``score`` where the suite has one), and an
episode becomes a function of its seed. Pictures have no shadows and no antialiasing, on a CPU most of their cost.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

__all__ = ["Aloha", "MetaWorld", "PushT", "Robosuite", "Robotics", "WithPictures"]

_FILM = 480  # px, side of a rendered picture


class _Cameras:
    """Pictures of a MuJoCo scene; ``scene`` gives its model and data, which a suite may replace at a reset."""

    def __init__(self, scene: Callable[[], tuple[Any, Any]], upside_down: Sequence[str], hidden: Sequence[int]) -> None:
        self._scene, self._upside_down, self._hidden = scene, upside_down, list(hidden)
        self._model: Any = None
        self._renderers: dict[int, Any] = {}

    def take(self, camera: str, size: int) -> np.ndarray:
        import mujoco

        model, data = self._scene()
        if model is not self._model:
            self.close()
            self._model = model
            model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        if size not in self._renderers:
            self._renderers[size] = mujoco.Renderer(model, size, size)
        shown = mujoco.MjvOption()
        shown.geomgroup[self._hidden] = 0
        self._renderers[size].update_scene(data, camera=camera, scene_option=shown)
        picture = np.array(self._renderers[size].render())
        return picture[::-1, ::-1] if camera in self._upside_down else picture

    def names(self) -> list[str]:
        model, _ = self._scene()
        return [model.camera(i).name for i in range(model.ncam)]

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}


class WithPictures(gym.Wrapper):
    """A MuJoCo environment whose observation also holds the pictures of some cameras, under the cameras' names.

    Args:
        env: its observation is a Dict space, or anything else, which becomes ``state``.
        scene: gives MuJoCo's model and data.
        images: names of cameras.
        image_size: side of their pictures [px].
        film: camera of ``render()``; None leaves that to the environment.
        upside_down: cameras whose pictures are turned by 180 degrees.
        hidden: groups of geometry that are not drawn.
    """

    def __init__(
        self, env: Any, scene: Callable[[], tuple[Any, Any]], images: Sequence[str], image_size: int,
        film: str | None = None, *, upside_down: Sequence[str] = (), hidden: Sequence[int] = (),
    ) -> None:  # fmt: skip
        super().__init__(env)
        self._cameras = _Cameras(scene, upside_down, hidden)
        self._images, self._size, self._film = list(images), image_size, film
        known = self._cameras.names()
        if unknown := sorted(set(images) - set(known)):
            raise ValueError(f"no camera {unknown[0]!r}; this environment has: {', '.join(known) or '(none)'}")
        scene()[0].vis.quality.shadowsize = scene()[0].vis.quality.offsamples = 0
        own = env.observation_space
        self._plain = not isinstance(own, gym.spaces.Dict)
        picture = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        spaces = {"state": own} if self._plain else dict(own.spaces)
        self.observation_space = gym.spaces.Dict({**spaces, **dict.fromkeys(images, picture)})

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return self._with(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, *rest = self.env.step(action)
        return (self._with(obs), *rest)  # type: ignore[return-value]

    def render(self) -> Any:
        return self.env.render() if self._film is None else self._cameras.take(self._film, _FILM)

    def close(self) -> None:
        self._cameras.close()
        self.env.close()

    def _with(self, obs: Any) -> dict[str, Any]:
        own = {"state": obs} if self._plain else dict(obs)
        return {**own, **{name: self._cameras.take(name, self._size) for name in self._images}}


class MetaWorld:
    """Meta-World 3: 50 tasks of one arm, ``state [39]`` with the goal in its last three components.

    Its ``reset`` ignores the seed, and without ``seeded_rand_vec`` object and goal come from numpy's global generator;
    here they are drawn anew at each reset, from the seed.
    """

    def ids(self) -> list[str]:
        from metaworld.policies import ENV_POLICY_MAP

        return sorted(ENV_POLICY_MAP)

    def make(self, id: str, images: list[str], image_size: int, settings: dict[str, Any]) -> Any:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        class Seeded(gym.Wrapper):
            def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
                if seed is not None:
                    self.env.unwrapped.seed(seed)  # type: ignore[attr-defined]
                return self.env.reset()

        env = ALL_V3_ENVIRONMENTS[_known(id, ALL_V3_ENVIRONMENTS)](render_mode="rgb_array", **settings)
        env._set_task_inner()
        env._partially_observable, env._freeze_rand_vec, env.seeded_rand_vec = False, False, True
        env._set_task_called = True
        env.max_path_length = 2**31  # beyond its own limit it raises; the time limit is counted by the server
        env.__dict__.pop("sawyer_observation_space", None)  # cached before the goal was visible
        env.observation_space = env.sawyer_observation_space
        turned = ("corner", "corner2", "corner3", "topview")  # the model has them upside down
        scene = lambda: (env.model, env.data)  # noqa: E731
        return WithPictures(Seeded(env), scene, images, image_size, "corner2", upside_down=turned)

    def expert(self, env: Any, id: str) -> Callable[[dict[str, Any]], Any]:
        from metaworld.policies import ENV_POLICY_MAP

        policy = ENV_POLICY_MAP[id]()
        return lambda seen: np.clip(policy.get_action(seen["state"]), -1.0, 1.0)


class PushT:
    """gym-pusht: ``state [5]``, or the picture ``top`` with ``agent_pos [2]``; the reward is the score."""

    def ids(self) -> list[str]:
        return ["PushT-v0"]

    def make(self, id: str, images: list[str], image_size: int, settings: dict[str, Any]) -> Any:
        _known(id, self.ids())
        from gym_pusht.envs.pusht import PushTEnv

        if images not in ([], ["top"]):
            raise ValueError(f"images {images}; Push-T has one camera: top")

        class Scored(gym.Wrapper):
            def reset(self, **kwargs: Any) -> Any:
                obs, info = self.env.reset(**kwargs)
                return self._named(obs), {**info, "score": info.get("coverage", 0.0) / 0.95}

            def step(self, action: Any) -> Any:
                obs, reward, terminated, truncated, info = self.env.step(action)
                return self._named(obs), reward, terminated, truncated, {**info, "score": reward}

            def _named(self, obs: Any) -> Any:
                return {"top": obs["pixels"], "agent_pos": obs["agent_pos"]} if images else obs

        kind = "pixels_agent_pos" if images else "state"
        env = PushTEnv(obs_type=kind, observation_width=image_size, observation_height=image_size, **settings)
        scored = Scored(env)
        if images:
            own = env.observation_space
            scored.observation_space = gym.spaces.Dict({"top": own["pixels"], "agent_pos": own["agent_pos"]})
        return scored


class Aloha:
    """gym-aloha: two arms, ``agent_pos [14]`` and ``object`` (pose of cube, or of peg and socket); score: reward / 4.

    The suite renders three 480x640 pictures at every step whatever was asked for; here only ``images`` are rendered. It
    also states an action space of -1..1, although actions are joint positions [rad]; here joints have +-pi and grippers
    0 (closed) to 1.
    """

    _TASKS = {"AlohaInsertion-v0": "insertion", "AlohaTransferCube-v0": "transfer_cube"}  # noqa: RUF012

    def ids(self) -> list[str]:
        return sorted(self._TASKS)

    def make(self, id: str, images: list[str], image_size: int, settings: dict[str, Any]) -> Any:
        task = self._TASKS[_known(id, self._TASKS)]
        from gym_aloha.env import AlohaEnv

        class Scored(gym.Wrapper):
            def step(self, action: Any) -> Any:
                obs, reward, terminated, truncated, info = self.env.step(action)
                return obs, reward, terminated, truncated, {**info, "score": float(reward) / 4.0}

            def reset(self, **kwargs: Any) -> Any:
                obs, info = self.env.reset(**kwargs)
                return obs, {**info, "score": 0.0}

        env = AlohaEnv(task, obs_type="pixels_agent_pos", **settings)
        inner, physics = env._env.task, env._env.physics
        inner.get_observation = lambda p: {"agent_pos": inner.get_qpos(p), "object": inner.get_env_state(p)}
        env._format_raw_obs = lambda raw: {k: np.array(raw[k]) for k in ("agent_pos", "object")}
        free = inner.get_env_state(physics).shape
        env.observation_space = gym.spaces.Dict(
            {"agent_pos": gym.spaces.Box(-np.inf, np.inf, (14,)), "object": gym.spaces.Box(-np.inf, np.inf, free)}
        )
        high = np.array(([np.pi] * 6 + [1.0]) * 2, np.float32)
        env.action_space = gym.spaces.Box(np.where(high > 1, -high, 0.0).astype(np.float32), high)
        return WithPictures(Scored(env), lambda: (physics.model.ptr, physics.data.ptr), images, image_size, "top")


class Robotics:
    """gymnasium-robotics: Fetch, Adroit, Kitchen, the Shadow hand and the mazes, of each the newest version.

    Goal environments give ``observation``, ``achieved_goal`` and ``desired_goal``, the others ``state``. The goals of
    the Kitchen are one vector each, the tasks in alphabetical order; its score is the share of tasks completed.
    """

    def ids(self) -> list[str]:
        import gymnasium_robotics

        gym.register_envs(gymnasium_robotics)
        newest: dict[str, int] = {}
        for name in gym.registry:
            base = re.fullmatch(r"((?:Fetch|Hand|AdroitHand|FrankaKitchen|PointMaze|AntMaze)\w*)-v(\d+)", name)
            if base:
                newest[base[1]] = max(newest.get(base[1], 0), int(base[2]))
        return sorted(f"{name}-v{version}" for name, version in newest.items())

    def make(self, id: str, images: list[str], image_size: int, settings: dict[str, Any]) -> Any:
        _known(id, self.ids())

        class Completed(gym.Wrapper):
            def reset(self, **kwargs: Any) -> Any:
                obs, info = self.env.reset(**kwargs)
                return obs, self._scored(info)

            def step(self, action: Any) -> Any:
                obs, reward, terminated, truncated, info = self.env.step(action)
                return obs, reward, terminated, truncated, self._scored(info)

            def _scored(self, info: dict[str, Any]) -> dict[str, Any]:
                done = len(info["episode_task_completions"])
                share = done / max(1, len(env.unwrapped.goal))
                return {**info, "score": share, "success": share >= 1.0}

        env: Any = gym.make(id, render_mode="rgb_array", disable_env_checker=True, **settings)
        owner = env.unwrapped
        for part in ("robot_env", "point_env", "ant_env"):
            owner = getattr(owner, part, owner)
        owner = owner.unwrapped
        whole = Completed(env) if id.startswith("FrankaKitchen") else env
        return WithPictures(whole, lambda: (owner.model, owner.data), images, image_size)


class Robosuite:
    """robosuite 1.5: ``<robot>_proprio`` for each robot and ``object``; one Panda, or two in tasks for two arms.

    The generator of the environment is set in place, because its samplers hold on to it. Sizes of objects are drawn
    when the model is built: at every reset, or with ``hard_reset: false`` once, with the same result in all worlds.
    """

    def ids(self) -> list[str]:
        import robosuite

        return sorted(robosuite.ALL_ENVIRONMENTS)

    def make(self, id: str, images: list[str], image_size: int, settings: dict[str, Any]) -> Any:
        import robosuite

        _known(id, robosuite.ALL_ENVIRONMENTS)
        robots = {"robots": ["Panda", "Panda"] if id.startswith("TwoArm") else "Panda"}
        fixed = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "ignore_done": True}
        sim = robosuite.make(id, **{**robots, "seed": 0, "reward_shaping": True, **settings, **fixed})
        names = {k: k.replace("_proprio-state", "_proprio").replace("object-state", "object") for k in _vectors(sim)}

        class Plain(gym.Env):
            metadata = {"render_modes": ["rgb_array"], "render_fps": sim.control_freq}  # noqa: RUF012
            observation_space = gym.spaces.Dict(
                {names[k]: gym.spaces.Box(-np.inf, np.inf, v.shape) for k, v in _vectors(sim).items()}
            )
            action_space = gym.spaces.Box(*(x.astype(np.float32) for x in sim.action_spec))

            def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
                if seed is not None:
                    sim.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
                    np.random.seed(seed % 2**32)
                sim.reset()
                return self._seen(), {"success": False}

            def step(self, action: Any) -> Any:
                _, reward, _, _ = sim.step(action)
                return self._seen(), float(reward), False, False, {"success": bool(sim._check_success())}

            def _seen(self) -> dict[str, np.ndarray]:
                return {names[k]: v for k, v in _vectors(sim).items()}

        def scene() -> tuple[Any, Any]:
            return sim.sim.model._model, sim.sim.data._data

        return WithPictures(Plain(), scene, images, image_size, "frontview", hidden=[0])  # group 0: collision shapes


def _vectors(sim: Any) -> dict[str, np.ndarray]:
    found = sim._get_observations(force_update=True)
    return {k: np.array(v) for k, v in found.items() if k.endswith("_proprio-state") or k == "object-state"}


def _known(id: str, ids: Any) -> str:
    if id not in ids:
        near = difflib.get_close_matches(id, list(ids), n=3) or sorted(ids)
        raise ValueError(f"no environment {id!r} in this suite; known are {', '.join(near[:10])}")
    return id
