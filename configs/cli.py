"""The ``visuomotor`` command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from visuomotor.data.errors import ConfigError, UserError, nearest

__all__ = ["main"]

USAGE = """\
visuomotor: robot policies from demonstrations to the arm

  visuomotor train task=pusht data.path=<zarr>        train, evaluate, write report.html
  visuomotor train resume=<run>                       go on with an interrupted run, bit for bit
  visuomotor rl task=cartpole                         PPO from scratch in parallel simulation
  visuomotor finetune checkpoint=<run>                a trained policy made better by PPO in its task; resume= as train
  visuomotor distill teacher=<run>                    a student that sees only its sensors' history, by DAgger
  visuomotor eval checkpoint=<run> task=pusht         score and success over test seeds, with videos
  visuomotor eval checkpoint=<run> data=<zarr>        open-loop error on held-out episodes
  visuomotor bench pusht data=<zarr>                  every head under the same budget, as a table; resumable
  visuomotor export checkpoint=<run>                  the policy as ONNX and as a torch.export program
  visuomotor serve checkpoint=<run>                   the policy for robots on other machines
  visuomotor data generate task=lift episodes=200     demonstrations by the task's scripted expert; resumable
  visuomotor data import <path> <zarr>                demonstrations of another format into a store; resumable
  visuomotor data export <zarr> <path> format=npz     a store in another format
  visuomotor data inspect <zarr>                      what a dataset holds
  visuomotor data validate <zarr>                     what is wrong with it, by array, episode and step
  visuomotor data edit <zarr> <out> filter success=true   filter, split, merge, trim, resample, ...
  visuomotor data weigh <zarr> <out>                  how much each step should count in training
  visuomotor data report <zarr>                       one HTML page: pictures, distributions, coverage, findings
  visuomotor data view <zarr> checkpoint=<run>        episodes in the rerun viewer, with a policy's predictions
  visuomotor data video <zarr> camera=front           one camera of one episode as mp4
  visuomotor robustness checkpoint=<run>              what it survives, factor by factor, and which policy will transfer
  visuomotor sysid data=<zarr or bag> robot=panda     physics of the real arm from recordings, as a randomisation
  visuomotor play task=lift record=<zarr>             a window: act by keyboard or gamepad, record demonstrations
  visuomotor play checkpoint=<run>                    watch a policy, and take over from it
  visuomotor deploy checkpoint=<run> robot=ur5e       the policy on an arm, over ROS 2, ROS 1 or DDS
  visuomotor record robot=ur5e store=<zarr>           a person shows a task on the arm: demonstrations
  visuomotor replay store=<zarr> robot=ur5e           a recorded motion on an arm or its twin
  visuomotor twin robot=panda_twin task=lift          a simulated arm with the robot's ROS interface, to rehearse on
  visuomotor doctor robot=ur5e checkpoint=<run>       what stands in the way of a deployment, before anything moves
  visuomotor calibrate-latency robot=ur5e             delays of commands and cameras, by swinging one joint
  visuomotor calibrate-camera robot=ur5e camera=wrist where a camera is mounted, by pictures of a board
  visuomotor envs list                                external suites: installed or not, and how to install them
  visuomotor envs check <id>                          types, seeds, speed and a picture of an environment
  visuomotor info                                     versions, devices, extras present or missing

Settings are given as key=value; `visuomotor <command> --help` lists them with their defaults.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status (0 done, 1 findings, 2 a mistake in the input, 130 stopped)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except UserError as e:
        print(f"visuomotor: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("visuomotor: stopped", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    verb, rest = words[0], words[1:]
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "rl": lambda rest: _rl("rl", rest),
        "finetune": lambda rest: _rl("finetune", rest),
        "eval": _eval,
        "bench": _bench,
        "export": _export,
        "serve": _serve,
        "data": _data,
        "sysid": _sysid,
        "robustness": _robustness,
        "deploy": _deploy,
        "record": _record,
        "replay": _replay,
        "distill": _distill,
        "play": _play,
        "twin": _twin,
        "doctor": _doctor,
        "calibrate-latency": _calibrate_latency,
        "calibrate-camera": _calibrate_camera,
        "envs": _envs,
        "info": _info,
    }
    if verb not in commands:
        raise ConfigError(f"unknown command {verb!r}. {nearest(verb, commands)} See visuomotor --help.")
    return commands[verb](rest)


# Each command imports what it needs: torch alone takes seconds, and `data` and `--help` need none of it.
def _train(words: list[str]) -> int:
    if _asks_help(words):
        from visuomotor.configs.help import train_help

        print(train_help(), end="")
        return 0
    from visuomotor.configs.train import main as train

    return train(words)


def _rl(command: str, words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.help import rl_help

        print(rl_help(command), end="")
        return 0
    from visuomotor.configs.rl import main as rl

    return rl(command, words)


def _eval(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.help import eval_help

        print(eval_help(), end="")
        return 0
    from visuomotor.configs.evaluate import main as evaluate

    return evaluate(words)


def _bench(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.help import bench_help

        print(bench_help(), end="")
        return 0
    from visuomotor.configs.bench import main as bench

    return bench(words)


def _export(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.help import export_help

        print(export_help(), end="")
        return 0
    from visuomotor.configs.export import main as export

    return export(words)


def _serve(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.help import settings_help
        from visuomotor.configs.serve import ServeConfig

        print(settings_help(ServeConfig), end="")
        return 0
    from visuomotor.configs.serve import main as serve

    return serve(words)


def _data(words: list[str]) -> int:
    from visuomotor.configs.data import main as data

    return data(words)


def _robustness(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.help import robustness_help

        print(robustness_help(), end="")
        return 0
    from visuomotor.configs.robustness import main as robustness

    return robustness(words)


def _distill(words: list[str]) -> int:
    from visuomotor.configs.distill import main as distill

    return distill(words)


def _sysid(words: list[str]) -> int:
    from visuomotor.configs.sysid import main as sysid

    return sysid(words)


def _play(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.help import play_help

        print(play_help(), end="")
        return 0
    from visuomotor.configs.play import main as play

    return play(words)


def _record(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.help import settings_help
        from visuomotor.configs.record import RecordConfig

        print(settings_help(RecordConfig), end="")
        return 0
    from visuomotor.configs.record import main as record

    return record(words)


def _replay(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.help import settings_help
        from visuomotor.configs.replay_motion import ReplayConfig

        print(settings_help(ReplayConfig), end="")
        return 0
    from visuomotor.configs.replay_motion import main as replay

    return replay(words)


def _deploy(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.deploy_config import DeployConfig
        from visuomotor.configs.help import robot_help

        print(robot_help(DeployConfig), end="")
        return 0
    from visuomotor.configs.deploy import main as deploy

    return deploy(words)


def _twin(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.help import robot_help
        from visuomotor.configs.twin import TwinCommand

        print(robot_help(TwinCommand), end="")
        return 0
    from visuomotor.configs.twin import main as twin

    return twin(words)


def _doctor(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.doctor import DoctorConfig
        from visuomotor.configs.help import robot_help

        print(robot_help(DoctorConfig), end="")
        return 0
    from visuomotor.configs.doctor import main as doctor

    return doctor(words)


def _calibrate_latency(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.calibrate import LatencyConfig
        from visuomotor.configs.help import robot_help

        print(robot_help(LatencyConfig), end="")
        return 0
    from visuomotor.configs.calibrate import main_latency

    return main_latency(words)


def _calibrate_camera(words: list[str]) -> int:
    if _asks_help(words) or not words:
        from visuomotor.configs.calibrate import CameraCalibrationConfig
        from visuomotor.configs.help import robot_help

        print(robot_help(CameraCalibrationConfig), end="")
        return 0
    from visuomotor.configs.calibrate import main_camera

    return main_camera(words)


def _envs(words: list[str]) -> int:
    from visuomotor.configs.envs import main as envs

    return envs(words)


def _info(words: list[str]) -> int:
    from visuomotor.configs.info import main as info

    return info(words)


def _asks_help(words: Sequence[str]) -> bool:
    return any(w in ("-h", "--help", "help") for w in words)


if __name__ == "__main__":
    sys.exit(main())
