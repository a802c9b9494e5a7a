#!/usr/bin/env bash
# Environments for the tests against real middleware: .ros/jazzy and .ros/kilted (ROS 2, wheels from PyPI, 250 MB each)
# and, where apt is there and we may, rospy and a master from Debian or Ubuntu (ROS 1, 6 MB).
#
#   scripts/make_ros_venvs.sh [jazzy] [kilted] [rospy]      all three without arguments; what is there is kept
#
# The wheels are built by others (ros-wheels) and replace the interpreter's start-up: never install them into an
# environment that is used for anything else. A robot's computer has its own ROS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-python3}"
# what the bridge needs of its own dependencies to run in there; no torch
ours=(numpy hydra-core zarr numcodecs array-api-compat google-crc32c opencv-python-headless mujoco)
messages=(ros-sensor-msgs ros-trajectory-msgs ros-std-msgs ros-geometry-msgs)

make_venv() { # name, wheel of rclpy, packages of messages...
  local folder=".ros/$1" wheel="$2"
  shift 2
  if [ -e "$folder/.done" ]; then
    echo "$folder is there"
    return
  fi
  rm -rf "$folder"
  "$python" -m venv "$folder"
  "$folder/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt "${ours[@]}" "$wheel" "$@"
  # a fresh interpreter: the wheels' start-up runs once, and finds its libraries
  env -u LD_LIBRARY_PATH -u _ROS_WHEELS_BOOTSTRAP_COMPLETE "$folder/bin/python" -c 'import rclpy, sensor_msgs.msg'
  touch "$folder/.done"
  echo "$folder is made"
}

make_rospy() {
  if /usr/bin/python3 -c 'import rospy, rosmaster, sensor_msgs.msg, trajectory_msgs.msg' 2>/dev/null; then
    echo "rospy is there"
    return
  fi
  local packages=(python3-rospy python3-rosmaster python3-sensor-msgs python3-trajectory-msgs python3-std-msgs) sudo=()
  [ "$(id -u)" = 0 ] || sudo=(sudo -n)
  if ! command -v apt-get >/dev/null || ! "${sudo[@]}" apt-get update -qq ||
    ! DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null; then
    echo "rospy: apt cannot install it here; tests with ROS 1 are skipped" >&2
    return "${REQUIRE_ROS:-0}"
  fi
  echo "rospy is installed"
}

for what in "${@:-jazzy kilted rospy}"; do
  for name in $what; do
    case "$name" in
      jazzy) make_venv jazzy 'ros-jazzy-rclpy[fastrtps]' "${messages[@]/%/==5.3.6}" ;;
      kilted) make_venv kilted 'ros-kilted-rclpy[fastrtps]' "${messages[@]}" ;;
      rospy) make_rospy ;;
      *)
        echo "unknown: $name (jazzy, kilted, rospy)" >&2
        exit 2
        ;;
    esac
  done
done
