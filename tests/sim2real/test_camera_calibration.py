"""Where a camera is mounted: from poses that are known, and from pictures drawn of a board."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from visuomotor.configs import calibrate
from visuomotor.configs.calibrate import main_camera, main_latency
from visuomotor.configs.robots import load_robot
from visuomotor.data.errors import ConfigError, UserError
from visuomotor.data.rotations import axis_angle_to_quat, quat_to_matrix
from visuomotor.sim2real.calibration.board import Board, BoardConfig, Intrinsics
from visuomotor.sim2real.calibration.camera import PoseTaker, Taken, load_taken, save_taken, solve_mounting
from visuomotor.sim2real.calibration.handeye import hand_eye, transform
from visuomotor.sim2real.kinematics import Kinematics
from visuomotor.sim2real.messages import Image, JointState
from visuomotor.sim2real.robots.config import CameraStream, RobotConfig
from visuomotor.sim2real.transports.base import SENSOR
from visuomotor.sim2real.transports.inproc import Bus

WIDTH, HEIGHT = 640, 480
MATRIX = np.array([[600.0, 0.0, 320.0], [0.0, 600.0, 240.0], [0.0, 0.0, 1.0]])
BOARD = Board(BoardConfig())
PRINTED = BOARD.picture(4000.0)
HOME = np.array([-0.301, -1.696, 1.913, -1.788, -1.571, 1.27])  # of the ur5e


def turned(vector: np.ndarray) -> np.ndarray:
    return np.asarray(quat_to_matrix(axis_angle_to_quat(np.asarray(vector, np.float64))))


def random_pose(random: np.random.Generator, turn: float, move: float) -> np.ndarray:
    return transform(random.normal(0, move, 3), turned(random.normal(0, turn, 3)))


def drawn(board_in_camera: np.ndarray) -> np.ndarray:
    """What a pinhole camera sees of the board: uint8 ``[H, W, 3]``."""
    metres = np.array([[1 / 4000, 0.0, 0.5 / 4000], [0.0, 1 / 4000, 0.5 / 4000], [0.0, 0.0, 1.0]])  # of its pixels
    flat = np.stack([board_in_camera[:3, 0], board_in_camera[:3, 1], board_in_camera[:3, 3]], 1)
    seen = cv2.warpPerspective(PRINTED, MATRIX @ flat @ metres, (WIDTH, HEIGHT), flags=cv2.INTER_AREA, borderValue=160)
    return np.repeat(cv2.GaussianBlur(seen, (3, 3), 0)[..., None], 3, 2)


@settings(max_examples=25, deadline=None)
@example(seed=282, n=3)
@given(seed=st.integers(0, 10_000), n=st.integers(3, 12))
def test_exact_poses_give_the_mounting_exactly(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    camera, board = random_pose(random, 1.0, 0.1), random_pose(random, 1.0, 0.5)
    hands = [random_pose(random, 0.6, 0.3) for _ in range(n)]
    for i, axis in ((1, [0.5, 0.0, 0.0]), (2, [0.0, 0.5, 0.0])):  # chance may turn all about nearly one axis
        hands[i] = hands[0] @ transform(random.normal(size=3), cv2.Rodrigues(np.array(axis))[0])
    found = hand_eye(hands, [np.linalg.inv(h @ camera) @ board for h in hands])
    np.testing.assert_allclose(found.camera, camera, atol=1e-7)
    np.testing.assert_allclose(found.board, board, atol=1e-7)
    assert found.position_m < 1e-7


def test_noise_is_averaged_and_told() -> None:
    random = np.random.default_rng(0)
    camera, board = random_pose(random, 1.0, 0.1), random_pose(random, 1.0, 0.5)
    hands = [random_pose(random, 0.6, 0.3) for _ in range(40)]
    noisy = [np.linalg.inv(h @ camera) @ board @ random_pose(random, 0.002, 0.001) for h in hands]
    found = hand_eye(hands, noisy)
    assert np.abs(found.camera[:3, 3] - camera[:3, 3]).max() < 1e-3
    assert found.position_m == pytest.approx(0.001 * np.sqrt(3), rel=0.3)
    assert found.turn_rad == pytest.approx(0.002 * np.sqrt(3), rel=0.3)


def test_poses_that_do_not_tell_are_refused() -> None:
    camera, board = transform(np.ones(3), np.eye(3)), np.eye(4)
    hands = [transform(np.array([0.1 * i, 0.0, 0.0]), turned(np.array([0.0, 0.0, 0.3 * i]))) for i in range(8)]
    with pytest.raises(UserError, match="about one axis only"):
        hand_eye(hands, [np.linalg.inv(h @ camera) @ board for h in hands])
    with pytest.raises(UserError, match="3 at least"):
        hand_eye(hands[:2], hands[:2])


def arm_pictures(mount: str, camera: np.ndarray, n: int = 10) -> list[Taken]:
    """Pictures of the board from poses of the ur5e around its home, whose camera sees the board in its middle."""
    kinematics, random = Kinematics.load("ur5e"), np.random.default_rng(1)
    taken: list[Taken] = []
    away = transform(np.array([-0.14, -0.1, 0.45]), np.eye(3))  # the board before the camera at home
    home = transform(*kinematics.pose(HOME))
    board = home @ camera @ away if mount == "hand" else np.linalg.inv(home) @ camera @ away
    while len(taken) < n:
        q = HOME + random.uniform(-0.25, 0.25, 6)
        hand = transform(*kinematics.pose(q))
        seen = np.linalg.inv(hand @ camera) @ board if mount == "hand" else np.linalg.inv(camera) @ hand @ board
        picture = drawn(seen)
        if seen[2, 3] > 0.2 and BOARD.find(picture) is not None:
            taken.append(Taken(picture, q))
    return taken


@pytest.mark.parametrize("mount", ["hand", "base"])
def test_the_mounting_is_found_in_pictures(mount: str) -> None:
    camera = transform(np.array([0.05, -0.02, 0.03]), turned(np.array([0.1, -0.2, 0.3])))
    if mount == "base":
        camera = transform(np.array([0.9, 0.1, 0.4]), turned(np.array([0.0, -2.0, 0.4])))
    taken = arm_pictures(mount, camera)
    known = Intrinsics(MATRIX, np.zeros(5), WIDTH, HEIGHT)
    found = solve_mounting(taken, BOARD, Kinematics.load("ur5e"), mount, known)
    assert np.abs(found.found.camera[:3, 3] - camera[:3, 3]).max() < 2e-3
    assert np.abs(found.found.camera[:3, :3] - camera[:3, :3]).max() < 4e-3
    assert found.reprojection_px < 0.5
    assert found.found.position_m < 2e-3
    assert found.used == found.taken == 10


def test_the_command_works_on_recorded_poses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    camera = transform(np.array([0.05, -0.02, 0.03]), turned(np.array([0.1, -0.2, 0.3])))
    names = [
        "shoulder_pan_joint",
        "shoulder_lift_joint",
        "elbow_joint",
        "wrist_1_joint",
        "wrist_2_joint",
        "wrist_3_joint",
    ]
    taken = arm_pictures("hand", camera, n=12)
    save_taken(tmp_path, [Taken(t.picture, t.joints[::-1]) for t in taken], names[::-1])
    loaded = load_taken(tmp_path, names)
    np.testing.assert_allclose(loaded[3].joints, taken[3].joints)
    np.testing.assert_array_equal(loaded[3].picture, taken[3].picture)
    assert main_camera(["robot=ur5e", "camera=wrist", f"poses={tmp_path}"]) == 0
    document = json.loads((tmp_path / "camera.json").read_text())
    assert np.abs(np.array(document["T_hand_camera"])[:3, 3] - camera[:3, 3]).max() < 8e-3  # intrinsics found as well
    assert abs(document["matrix"][0][0] - 600) < 12
    assert "from 12 of 12 pictures" in capsys.readouterr().out


def test_mistakes_are_named(tmp_path: Path) -> None:
    kinematics = Kinematics.load("ur5e")
    blank = [Taken(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), HOME)]
    with pytest.raises(UserError, match=r"found in none of 1 pictures: is it 7 x 5 squares"):
        solve_mounting(blank, BOARD, kinematics, "hand")
    with pytest.raises(UserError, match="is missing, damaged or of another arm"):
        load_taken(tmp_path, ["a"])
    with pytest.raises(ConfigError, match=r"unknown mount 'head'. .*'hand'"):
        main_camera(["robot=ur5e", "mount=head"])
    with pytest.raises(ConfigError, match="takes a model of the arm"):
        main_camera(["robot=ur10e", "poses=nowhere"])
    with pytest.raises(ConfigError, match="expected 0 < marker < square"):
        BoardConfig(marker=0.05)
    assert main_camera(["robot=ur5e", f"print_board={tmp_path}/board.png"]) == 0
    printed = cv2.imread(str(tmp_path / "board.png"))
    assert printed is not None
    assert printed.shape[1] == 2800  # 7 squares of 40 mm at 10 px a millimetre


@pytest.mark.parametrize(("end", "raised"), [(EOFError, UserError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_pictures_are_kept_however_the_taking_ends(
    end: type[BaseException], raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = transform(np.array([0.05, -0.02, 0.03]), turned(np.array([0.1, -0.2, 0.3])))
    coming = iter(arm_pictures("hand", camera, n=2))

    class Taker:
        def __init__(self, *_: object) -> None: ...

        def take(self) -> Taken:
            return next(coming)

    answers = iter(["", ""])

    def ask(_: str) -> str:
        for answer in answers:
            return answer
        raise end

    monkeypatch.setattr(calibrate, "PoseTaker", Taker)
    monkeypatch.setattr(calibrate, "make_transport", lambda _: Bus().node("calibration"))
    with pytest.raises(raised):  # two are too few
        main_camera(["robot=ur5e", f"out={tmp_path}"], ask)
    assert len(load_taken(tmp_path, load_robot("ur5e").joints)) == 2


def test_nothing_moves_where_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    def nobody(_: str) -> str:
        raise EOFError

    assert main_latency(["robot=ur5e"], nobody) == 1
    assert "nothing was moved" in capsys.readouterr().out


def test_a_pose_is_taken_while_the_arm_stands_still() -> None:
    bus = Bus()
    robot = RobotConfig(joints=["a", "b"], cameras={"wrist": CameraStream(topic="/wrist/image_raw")})
    driver = bus.node("driver")
    states = driver.advertise("/joint_states", JointState, SENSOR)
    images = driver.advertise("/wrist/image_raw", Image, SENSOR)
    speed, silent = 0.0, False

    def wait(seconds: float) -> None:
        for _ in range(round(seconds / 0.01)):
            bus.advance(10_000_000)
            q = np.array([7.0, 2.0 + speed * bus.now_ns * 1e-9, 1.0])
            states.publish(JointState(name=("other", "b", "a"), position=q))
            if not silent:
                images.publish(Image(height=4, width=4, encoding="rgb8", step=12, data=np.arange(48, dtype=np.uint8)))

    taker = PoseTaker(robot, "wrist", bus.node("calibration"), wait)
    taken = taker.take()
    np.testing.assert_allclose(taken.joints, [1.0, 2.0])
    assert taken.picture.shape == (4, 4, 3)
    speed = 0.1
    with pytest.raises(UserError, match=r"the arm moves with 0.\d+ rad/s"):
        taker.take()
    speed, silent = 0.0, True
    with pytest.raises(UserError, match="no pictures came on /wrist/image_raw within 2 s"):
        taker.take()
    with pytest.raises(ConfigError, match=r"no camera 'wrst'.*'wrist'"):
        PoseTaker(robot, "wrst", driver, wait)
