"""What cameras see of randomised scenes: textures, walls, lights, distractors; in worlds and in demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from visuomotor.configs.randomize import load_randomization
from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.rotations import quat_to_matrix
from visuomotor.envs.demonstrate import Demonstrator, DemoPlan
from visuomotor.envs.sim.cameras import CameraConfig
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.tasks.lift import Lift, LiftConfig
from visuomotor.sim2real.randomization.build import build_events
from visuomotor.sim2real.randomization.config import RandomizationConfig, TermConfig
from visuomotor.sim2real.randomization.registry import get_term

N = 4


def term(kind: str, **settings: Any) -> TermConfig:
    return get_term(kind).config_class(term=kind, **settings)


def lift(*terms: TermConfig, cameras: tuple[str, ...] = (), n: int = N, engine: str = "batch") -> SimVecEnv:
    config = LiftConfig(
        engine=EngineConfig(name=engine, device="cpu", threads=engine == "batch"),
        cameras=CameraConfig(names=list(cameras), height=48, width=48),
    )
    events = build_events(RandomizationConfig(terms={str(i): t for i, t in enumerate(terms)}))
    return SimVecEnv(Lift(config), config, n, events)


def field(env: SimVecEnv, name: str) -> np.ndarray:
    return env.sim.model_field(name).numpy()


@pytest.mark.timeout(900)  # compiles MuJoCo Warp's kernels
@pytest.mark.parametrize("engine", ["batch", "warp"])
def test_worlds_look_different_and_the_same_seed_looks_the_same(engine: str) -> None:
    events = build_events(load_randomization(["randomization=visual"]))
    config = LiftConfig(
        engine=EngineConfig(name=engine, device="cpu", threads=engine == "batch"),
        cameras=CameraConfig(names=["front", "wrist"], height=48, width=48),
    )
    env = SimVecEnv(Lift(config), config, N, events)
    first = env.reset(seeds=[1, 2, 3, 4])
    for camera in ("front", "wrist"):
        a = first[camera].float()
        assert min(float((a[i] - a[j]).abs().mean()) for i in range(N) for j in range(i)) > 5
    env.reset(seeds=[5, 6, 7, 8])
    again = env.reset(seeds=[4, 3, 2, 1])
    for camera in ("front", "wrist"):
        difference = (again[camera].flip(0).float() - first[camera].float()).abs()
        assert float(difference.mean()) < 0.5  # the arm's links are at rest, but not to the last bit on a GPU


def test_a_table_wears_pictures_of_a_folder(tmp_path: Path) -> None:
    for i, colour in enumerate(([0, 0, 255], [0, 255, 0], [255, 0, 0])):  # OpenCV: blue, green, red
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((20, 20, 3), colour, np.uint8))
    env = lift(term("texture", names=["table"], folder=str(tmp_path), size=16), cameras=("top",), n=24)
    seen = env.reset(seeds=range(24))["top"][:, 2, 2].numpy()  # a corner that shows the table alone
    texture = field(env, "mat_texid")[:, 0, 1]
    names = [env.sim.model.texture(int(t)).name for t in texture]
    assert set(names) == {"table", "texture0", "texture1", "texture2"}
    for name, rgb in zip(names, seen, strict=True):
        if name != "table":
            assert int(rgb.argmax()) == int(name[-1])
            assert int(rgb.max()) > 2 * int(np.sort(rgb)[1])
    with pytest.raises(DataError, match="there is no folder"):
        lift(term("texture", names=["table"], folder=str(tmp_path / "x")))
    with pytest.raises(ConfigError, match=r"no material 'tabel'\. Did you mean 'table'"):
        lift(term("texture", names=["tabel"]))


def test_walls_face_the_scene_and_clipping_planes_stay() -> None:
    env, plain = lift(term("backdrop"), term("distractors")), lift()
    assert env.sim.model.stat.extent == plain.sim.model.stat.extent
    m = env.sim.model
    for i in range(4):
        g = m.geom(f"backdrop{i}").id
        axes = quat_to_matrix(m.geom_quat[g])
        assert axes[:, 2] @ m.geom_pos[g] == pytest.approx(-3.0)  # towards the middle
        np.testing.assert_allclose(axes[:, 1], [0, 0, 1], atol=1e-12)


def test_distractors_change_nothing_that_moves() -> None:
    words = term("distractors", count=5, share=0.6, names=["cube"], keep=0.15)
    env, plain = lift(words, n=8), lift(n=8)
    ours, theirs = env.reset(seeds=range(8)), plain.reset(seeds=range(8))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0)
    for t in range(5):
        action = torch.full((8, 7), 0.01 * t)
        ours, theirs = env.step(action).obs, plain.step(action).obs
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0)
    pos = env.sim.field("mocap_pos")
    there = pos[..., 2] > 0
    assert 0.35 < float(there.float().mean()) < 0.75
    cube = env.task.objects["cube"].pos()  # type: ignore[attr-defined]
    apart = (pos[..., :2] - cube[:, None, :2]).norm(dim=-1)
    assert float(apart[there].min()) > 0.14
    size = env.sim.model_field("geom_size")[:, -5:]  # box, sphere, cylinder, capsule, box
    down = torch.stack([size[:, 0, 2], size[:, 1, 0], size[:, 2, 1], size[:, 3, :2].sum(-1), size[:, 4, 2]], -1)
    torch.testing.assert_close(pos[..., 2][there], down[there], rtol=0, atol=1e-6)


def test_lights_by_hand() -> None:
    extra = term("extra_lights", count=3, share=0.5, low=0.2, high=0.4)
    warm = term("light_temperature", names=["key"], low=2700.0, high=2700.0)
    env = lift(extra, warm, n=40)
    env.reset(seeds=range(40))
    m, light = env.sim.model, field(env, "light_diffuse")
    key = light[:, m.light("key").id]
    assert key[0] @ np.array([0.2126, 0.7152, 0.0722]) == pytest.approx(0.4, abs=1e-3)  # as bright as it was
    assert (np.diff(key, axis=1) < 0).all()
    ids = [m.light(f"extra_light{i}").id for i in range(3)]
    on = light[:, ids].sum(-1) > 0
    assert 0.35 < on.mean() < 0.65
    pos, ray = field(env, "light_pos")[:, ids] - [0.5, 0, 0], field(env, "light_dir")[:, ids]
    distance = np.linalg.norm(pos, axis=-1)
    assert distance.min() >= 1.0 - 1e-6
    assert distance.max() <= 3.0 + 1e-6
    np.testing.assert_allclose(ray, -pos / distance[..., None], atol=1e-6)


def test_cameras_turn_by_so_much() -> None:
    env = lift(term("camera_rotation", names=["front", "side"], low=0.1, high=0.1))
    env.reset(seeds=range(N))
    m = env.sim.model
    old, new = (quat_to_matrix(q) for q in (m.cam_quat, field(env, "cam_quat")[0]))
    for name, angle in (("front", 0.1 * 3**0.5), ("side", 0.1 * 3**0.5), ("top", 0.0)):
        i = m.camera(name).id
        turned = np.arccos(np.clip((np.trace(old[i].T @ new[i]) - 1) / 2, -1, 1))
        assert turned == pytest.approx(angle, abs=1e-6)


def test_faults_of_cameras_change_pictures_only_by_their_numbers() -> None:
    faults = [term("camera_exposure", names=["front"], low=-1.0, high=1.0), term("camera_noise", names=["*"], high=0.1)]
    env, plain = lift(*faults, cameras=("front", "side")), lift(cameras=("front", "side"))
    ours, theirs = env.reset(seeds=range(N)), plain.reset(seeds=range(N))
    stops = env.events._events[0].buffers()["number"][:, 0]
    ratio = ours["front"].float().mean((1, 2, 3)) / theirs["front"].float().mean((1, 2, 3))
    assert ((ratio > 1) == (stops > 0)).all()
    assert float((ours["side"].float().mean((1, 2, 3)) / theirs["side"].float().mean((1, 2, 3)) - 1).abs().max()) < 0.05
    zero = [term(f"camera_{k}", names=["*"]) for k in ("exposure", "noise", "blur", "hue", "contrast", "temperature")]
    env = lift(*zero, cameras=("front",))
    assert torch.equal(env.reset(seeds=range(N))["front"], theirs["front"])
    with pytest.raises(ConfigError, match=r"camera_blur: nothing observed is 'frnt'\. Did you mean 'front'"):
        lift(term("camera_blur", names=["frnt"]), cameras=("front",))


def test_demonstrations_show_what_the_worlds_showed() -> None:
    terms = {
        "late": term("observation_delay", names=["front"], low=0.1, high=0.1),
        "dark": term("camera_exposure", names=["front"], low=-2.0, high=-2.0),
        "noisy": term("observation_noise", names=["joint_pos"], low=0.01, high=0.01),
    }
    config = LiftConfig(cameras=CameraConfig(names=["front"], height=16, width=16), engine=EngineConfig(threads=1))
    episodes = []
    for names in ((), ("late", "dark", "noisy")):
        events = build_events(RandomizationConfig(terms={n: terms[n] for n in names}))
        demonstrator = Demonstrator(DemoPlan(env=config, diversity=0.0, events=tuple(events)))
        episodes.append({a.seed: a.arrays for a in demonstrator.run(7_000_000) if a.arrays is not None})
        demonstrator.close()
    plain, randomised = episodes
    seed = next(s for s in plain if s in randomised)
    a, b = plain[seed], randomised[seed]
    n = min(len(a["front"]), len(b["front"]))
    bright, dark = a["front"][:n].astype(float), b["front"][:n].astype(float)
    assert dark[0].mean() < 0.7 * bright[0].mean()
    assert np.array_equal(b["front"][0], b["front"][2])  # two control steps late: the first is shown thrice
    assert b["joint_pos"][0].std() > 0
    assert not np.array_equal(a["joint_pos"][0], b["joint_pos"][0])
