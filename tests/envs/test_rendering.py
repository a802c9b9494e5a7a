"""Pictures of worlds: what is where, per-world values, lazy OpenGL, films, and the ray tracer."""

from __future__ import annotations

import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.envs.sim import gl
from visuomotor.envs.sim.batch import BatchSimulator
from visuomotor.envs.sim.cameras import CameraConfig, camera_specs, film_camera
from visuomotor.envs.sim.engines import EngineConfig
from visuomotor.envs.sim.env import SimVecEnv
from visuomotor.envs.sim.gl import RenderingError
from visuomotor.envs.sim.render import FilmRenderer, GLCameras, make_cameras
from visuomotor.envs.sim.selection import Selection
from visuomotor.envs.tasks.lift import Lift, LiftConfig

# A camera 2 m above a floor looks straight down at a cube of 0.4 m in the middle; 90 degrees: 4 m of floor are seen.
XML = """
<mujoco>
  <visual>
    <headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/>
    <map znear=".01" zfar="30"/>
    <quality shadowsize="0" offsamples="0"/>
  </visual>
  <statistic extent="1"/>
  <asset>
    <texture name="green" type="2d" builtin="flat" rgb1="0 1 0" width="8" height="8"/>
    <texture name="blue" type="2d" builtin="flat" rgb1="0 0 1" width="8" height="8"/>
    <material name="floor" texture="green"/>
    <material name="spare" texture="blue"/>
  </asset>
  <worldbody>
    <camera name="above" pos="0 0 2" fovy="90"/>
    <camera name="robot/wrist" pos="0 0 2" xyaxes="1 0 0 0 0 1" fovy="90"/>
    <geom name="floor" type="plane" size="5 5 .1" material="floor"/>
    <body name="cube" pos="0 0 .2">
      <joint name="x" type="slide" axis="1 0 0"/>
      <geom name="cube" type="box" size=".2 .2 .2" rgba="1 0 0 1"/>
    </body>
  </worldbody>
</mujoco>
"""
RED, GREEN, BLUE = [255, 0, 0], [0, 255, 0], [0, 0, 255]


def _sim(n: int = 1) -> BatchSimulator:
    sim = BatchSimulator(mujoco.MjModel.from_xml_string(XML), n, threads=1)
    sim.forward(Selection.all(n, sim.device))
    return sim


def _config(**changes: object) -> CameraConfig:
    settings: dict = {"names": ["above"], "height": 32, "width": 48, "depth": ["above"], "segmentation": ["above"]}
    return CameraConfig(**(settings | changes))


@pytest.fixture
def cameras():
    made = []

    def make(sim: BatchSimulator, threads: int = 1, **changes: object) -> GLCameras:
        made.append(GLCameras(sim, _config(**changes), threads=threads))
        return made[-1]

    yield make
    for c in made:
        c.close()


def test_colour_depth_and_bodies_are_where_geometry_says(cameras):
    """At 2 m, 32 rows see 4 m: 8 px a metre. The cube's top at 0.4 m is 1.6 m away: 0.4 m are 4 px there."""
    obs = cameras(_sim()).observe()
    rgb, depth, bodies = obs["above"][0], obs["above_depth"][0], obs["above_segmentation"][0]
    assert rgb.dtype == torch.uint8
    assert rgb.shape == (32, 48, 3)
    assert depth.dtype == torch.float32
    assert depth.shape == (32, 48, 1)
    assert bodies.dtype == torch.int32
    cube = bodies == 1
    assert cube.sum() == 16  # 0.4 m of 3.2 m that are seen at 1.6 m: an eighth of 32 rows, squared
    assert cube[14:18, 22:26].all()
    assert set(bodies.unique().tolist()) == {0, 1}
    torch.testing.assert_close(depth[16, 24], torch.tensor([1.6]), atol=2e-3, rtol=0)
    torch.testing.assert_close(depth[2, 2], torch.tensor([2.0]), atol=2e-3, rtol=0)  # along the view, not the ray
    assert rgb[16, 24].tolist() == RED
    assert rgb[2, 2].tolist() == GREEN


def test_what_is_up_is_up_and_the_sky_is_far(cameras):
    obs = cameras(_sim(), names=["wrist"], depth=["wrist"], segmentation=["wrist"]).observe()  # looks along +y
    bodies, depth = obs["wrist_segmentation"][0], obs["wrist_depth"][0]
    assert (bodies[:12] == -1).all()
    assert (bodies[-4:] == 0).all()
    torch.testing.assert_close(depth[0, 0], torch.tensor([30.0]), atol=0.1, rtol=0)
    assert torch.isfinite(depth).all()


def test_every_world_shows_its_own_state_colour_camera_and_texture(cameras):
    sim = _sim(4)
    everyone = Selection.all(4, sim.device)
    sim.field("qpos")[1, 0] = 0.8
    sim.model_field("geom_rgba")[2, 1] = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=sim.dtype)
    sim.model_field("mat_texid")[3, 0] = sim.nominal("mat_texid")[1]
    sim.model_field("cam_pos")[0, 0, 2] = 1.2
    sim.forward(everyone)
    obs = cameras(sim, threads=2).observe()
    rgb, bodies = obs["above"], obs["above_segmentation"]
    assert (bodies[0] == 1).sum() == 64  # from 0.8 m above its top it is twice as wide
    assert (bodies[1] == 1)[14:18, 22 + 8 : 26 + 8].all()  # 0.8 m at 10 px a metre
    assert rgb[2, 16, 24].tolist() == BLUE
    assert [rgb[i, 2, 2].tolist() for i in range(4)] == [GREEN, GREEN, GREEN, BLUE]


def test_only_worlds_that_changed_are_drawn_and_pictures_do_not_alias(cameras):
    sim = _sim(3)
    c = cameras(sim)
    first = c.observe()
    sim.field("qpos")[:, 0] = 0.8
    sim.forward(Selection.all(3, sim.device))
    second = c.observe(torch.tensor([False, True, False]))
    for i, same in enumerate((True, False, True)):
        assert torch.equal(first["above"][i], second["above"][i]) == same
    assert (first["above_segmentation"][:, 14:18, 22:26] == 1).all()  # was not overwritten
    assert torch.equal(c.observe(torch.zeros(3, dtype=torch.bool))["above"], second["above"])


def test_pictures_do_not_depend_on_threads(cameras):
    sim = _sim(5)
    sim.field("qpos")[:, 0] = torch.linspace(-1, 1, 5, dtype=sim.dtype)
    sim.forward(Selection.all(5, sim.device))
    one, three = cameras(sim).observe(), cameras(sim, threads=3).observe()
    for key in one:
        assert torch.equal(one[key], three[key])


def test_a_world_that_is_not_finite_is_black(cameras):
    sim = _sim(2)
    sim.field("qpos")[0] = torch.nan
    obs = cameras(sim).observe()
    assert (obs["above"][0] == 0).all()
    assert obs["above"][1, 16, 24].tolist() == RED


def test_full_quality_has_shadows():
    xml = XML.replace('ambient="1 1 1"', 'ambient=".3 .3 .3"').replace(
        "<worldbody>", '<worldbody><light pos="2 0 4" dir="-.4 0 -1" directional="true"/>'
    )
    sim = BatchSimulator(mujoco.MjModel.from_xml_string(xml), 1, threads=1)
    sim.forward(Selection.all(1, sim.device))
    floors = {}
    for quality in ("fast", "full"):
        c = GLCameras(sim, _config(names=["above"], quality=quality), threads=1)
        obs = c.observe()
        floors[quality] = obs["above"][0][obs["above_segmentation"][0] == 0].float().std(0).max()
        c.close()
    assert floors["full"] > floors["fast"] + 1.0


def test_films_show_the_film_camera():
    sim = _sim()
    assert film_camera(sim.model) == 0
    film = FilmRenderer(sim, size=64)
    picture = film.picture(0)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert picture[32, 32].tolist() == RED
    film.close()
    assert film_camera(mujoco.MjModel.from_xml_string("<mujoco/>")) == -1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ["a", "a"]}, "each camera once"),
        ({"names": ["a"], "depth": ["b"]}, "cameras.depth names 'b', which is not observed"),
        ({"quality": "fst"}, "unknown cameras.quality 'fst'. Did you mean 'fast'"),
        ({"height": 4}, "cameras.height=4: expected at least 8 pixels"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CameraConfig(**settings)


def test_an_unknown_camera_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"the scene has no camera 'abov'\. Did you mean 'above'"):
        camera_specs(_sim().model, _config(names=["abov"], depth=[], segmentation=[]))


def test_specs_are_images_depth_and_neither():
    specs = camera_specs(_sim().model, _config())
    assert specs["above"].is_image
    assert specs["above_depth"].is_depth
    assert specs["above_depth"].unit == "m"
    assert not specs["above_segmentation"].is_image
    assert not specs["above_segmentation"].is_depth


def test_an_environment_observes_cameras_and_a_reset_draws_the_new_episode():
    config = LiftConfig(cameras=CameraConfig(names=["front", "wrist"], height=32, width=32))
    env = SimVecEnv(Lift(config), config, 2)
    obs = env.reset(seeds=[1, 2])
    assert set(env.obs_spec) == set(obs)
    assert obs["front"].shape == (2, 32, 32, 3)
    assert not torch.equal(obs["front"][0], obs["front"][1])
    again = env.reset(seeds=[2, 2], mask=torch.tensor([True, False]))
    assert torch.equal(again["front"][0], again["front"][1])
    assert torch.equal(obs["front"][1], again["front"][1])
    step = env.advance(torch.zeros(2, env.action_spec.size), torch.tensor([False, False]))
    assert torch.equal(step.obs["wrist"], again["wrist"])
    assert env.render(0).shape == (480, 480, 3)
    env.close()


# ---- OpenGL itself


def test_no_cameras_no_renderer_no_opengl():
    assert make_cameras(_sim(), CameraConfig()) is None
    code = (
        "from visuomotor.envs.tasks.lift import Lift, LiftConfig\n"
        "from visuomotor.envs.sim.env import SimVecEnv\n"
        "import sys\n"
        "c = LiftConfig(); e = SimVecEnv(Lift(c), c, 1); e.reset(seeds=[1]); e.close()\n"
        "assert not any(m.startswith(('OpenGL', 'mujoco.egl', 'mujoco.osmesa')) for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"MUJOCO_GL": "disabled"})


@pytest.fixture
def fresh_choice():
    gl.backend_name.cache_clear()
    yield
    gl.backend_name.cache_clear()


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.parametrize(
    ("word", "egl", "osmesa", "display", "expected"),
    [
        (None, True, True, "", "egl"),
        (None, True, True, ":0", "egl"),
        (None, False, True, ":0", "osmesa"),
        (None, False, False, ":0", "glfw"),
        ("osmesa", True, True, "", "osmesa"),
        ("EGL", False, True, "", "egl"),
        ("enabled", True, False, "", "egl"),
    ],
)
def test_choice_of_backend(monkeypatch, word, egl, osmesa, display, expected):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    if word is not None:
        monkeypatch.setenv("MUJOCO_GL", word)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(gl, "_egl_works", lambda: egl)
    monkeypatch.setattr(gl.ctypes.util, "find_library", lambda name: "lib.so" if osmesa else None)
    assert gl.backend_name() == expected


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "apt install libegl1 libegl-mesa0.*apt install libosmesa6"),
        ("off", "switches pictures off"),
        ("eql", "MUJOCO_GL=eql is unknown here. .*'egl'"),
    ],
)
def test_nothing_to_draw_with_is_one_message_that_says_what_to_install(monkeypatch, word, message):
    monkeypatch.setenv("MUJOCO_GL", word)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(gl, "_egl_works", lambda: False)
    monkeypatch.setattr(gl.ctypes.util, "find_library", lambda name: None)
    film = FilmRenderer(_sim(), size=32)
    with pytest.raises(RenderingError, match=message):
        film.picture(0)
    film.close()


@pytest.mark.slow
@pytest.mark.skipif(gl.ctypes.util.find_library("OSMesa") is None, reason="OSMesa is not installed")
def test_osmesa_draws_the_same():
    """In another process: PyOpenGL binds itself to the first backend it meets."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_rendering as t\n"
        "obs = t.GLCameras(t._sim(), t._config(), threads=1).observe()\n"
        "assert obs['above'][0, 16, 24].tolist() == t.RED and (obs['above_segmentation'] == 1).sum() == 16\n"
    )
    environ = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"} | {"MUJOCO_GL": "osmesa"}
    subprocess.run([sys.executable, "-c", code, os.path.dirname(__file__)], check=True, env=environ)


# ---- the ray tracer


@pytest.mark.slow
def test_the_ray_tracer_sees_what_opengl_sees():
    pytest.importorskip("mujoco_warp")
    from visuomotor.envs.sim.warp import WarpSimulator

    sims = [_sim(2), WarpSimulator(mujoco.MjModel.from_xml_string(XML), 2, device="cpu")]
    pictures = []
    for sim in sims:
        sim.model_field("geom_rgba")[1, 1] = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=sim.dtype)
        sim.field("qpos")[1, 0] = 0.8
        sim.forward(Selection.all(2, sim.device))
        c = make_cameras(sim, _config(names=["wrist", "above"]))
        assert c is not None
        pictures.append({k: v.float() for k, v in c.observe().items()})
        c.close()
    for key in ("above_depth", "above_segmentation"):
        close = (pictures[0][key] - pictures[1][key]).abs() < 5e-3
        assert close.float().mean() > 0.97  # edges fall on one or the other pixel
    for rgb in (p["above"] for p in pictures):
        assert rgb[1, 16, 32].argmax() == 2  # the blue cube of world 1
        assert rgb[0, 16, 24].argmax() == 0
        assert rgb[:, 2, 2].argmax(1).tolist() == [1, 1]
    assert pictures[1]["wrist"].shape == (2, 32, 48, 3)


@pytest.mark.slow
def test_the_ray_tracer_draws_an_environment_with_shadows():
    pytest.importorskip("mujoco_warp")
    engine = EngineConfig(name="warp", device="cpu")
    config = LiftConfig(engine=engine, cameras=CameraConfig(names=["front"], height=16, width=16, quality="full"))
    env = SimVecEnv(Lift(config), config, 2)
    obs = env.reset(seeds=[1, 2])
    assert obs["front"].dtype == torch.uint8
    assert obs["front"].float().std() > 5
    assert not torch.equal(obs["front"][0], obs["front"][1])
    assert env.render(1).shape == (480, 480, 3)
    env.close()
