"""Which transport the environment means, and what is refused."""

from __future__ import annotations

import pytest
from ros_harness import free_domain

from visuomotor.data.errors import ConfigError, MissingExtraError
from visuomotor.sim2real.transports import choose, rclpy, rospy
from visuomotor.sim2real.transports.choose import TransportConfig, choose_transport, make_transport
from visuomotor.sim2real.transports.inproc import Bus

ROS_2 = {"AMENT_PREFIX_PATH": "/opt/ros/jazzy"}
ROS_1 = {"ROS_MASTER_URI": "http://localhost:11311"}


@pytest.mark.parametrize(
    ("environment", "has_rclpy", "has_rospy", "expected"),
    [
        ({}, True, True, "dds"),
        (ROS_2, True, True, "rclpy"),
        ({"RMW_IMPLEMENTATION": "rmw_zenoh_cpp"}, True, False, "rclpy"),
        (ROS_2, False, True, "dds"),
        (ROS_1, True, True, "rospy"),
        (ROS_1, True, False, "dds"),
        (ROS_2 | ROS_1, True, True, "rclpy"),
        (ROS_2 | ROS_1, False, True, "rospy"),
    ],
)
def test_auto(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], has_rclpy: bool, has_rospy: bool, expected: str
) -> None:
    monkeypatch.setattr(rclpy, "available", lambda: has_rclpy)
    monkeypatch.setattr(rospy, "available", lambda: has_rospy)
    assert choose_transport(environment) == expected


def test_nothing_there_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_has_dds", lambda: False)
    with pytest.raises(MissingExtraError, match=r"visuomotor\[dds\]"):
        choose_transport({})


def test_a_missing_rclpy_says_what_to_do() -> None:
    if rclpy.available():
        pytest.skip("rclpy is here")
    with pytest.raises(MissingExtraError, match="sourced ROS 2"):
        make_transport(TransportConfig(name="rclpy"))


def test_no_ros_master(monkeypatch: pytest.MonkeyPatch) -> None:
    if not rospy.available():
        pytest.skip("rospy is not here")
    monkeypatch.setenv("ROS_MASTER_URI", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"no ROS master answers at ROS_MASTER_URI='http://127\.0\.0\.1:9'"):
        make_transport(TransportConfig(name="rospy"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "ddss"}, "Did you mean 'dds'"),
        ({"domain": 233}, "0 to 232"),
        ({"node": "a b"}, "transport.node"),
        ({"node": "1a"}, "transport.node"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransportConfig(**settings)  # type: ignore[arg-type]


def test_an_interface_is_of_dds_alone() -> None:
    with pytest.raises(ConfigError, match="of dds, not of rospy"):
        make_transport(TransportConfig(name="rospy", interface="eth0"))


def test_the_domain_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = free_domain()
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    transport = make_transport(TransportConfig(name="dds"))
    assert transport.participant.domain_id == domain  # type: ignore[attr-defined]
    transport.close()
    monkeypatch.setenv("ROS_DOMAIN_ID", "high")
    with pytest.raises(ConfigError, match="ROS_DOMAIN_ID is 'high'"):
        make_transport(TransportConfig(name="dds"))


@pytest.mark.parametrize(
    ("environment", "settings", "expected"),
    [
        ({}, {}, ("auto", [])),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}, {}, ("lo", [])),
        ({"ROS_LOCALHOST_ONLY": "1"}, {}, ("lo", [])),
        ({"ROS_LOCALHOST_ONLY": "1"}, {"interface": "eth0"}, ("eth0", [])),
        ({"ROS_STATIC_PEERS": "a;b"}, {}, ("auto", ["a", "b"])),
        ({"ROS_STATIC_PEERS": "a;b"}, {"peers": ["c"]}, ("auto", ["c"])),
        ({"CYCLONEDDS_URI": "file:///x.xml"}, {}, ("", [])),
        ({"CYCLONEDDS_URI": "file:///x.xml"}, {"interface": "eth0"}, ("eth0", [])),
    ],
)
def test_where_dds_looks(environment: dict[str, str], settings: dict[str, object], expected: object) -> None:
    assert choose._network(TransportConfig(**settings), environment) == expected  # type: ignore[arg-type]


def test_inproc_connects_to_the_given_bus() -> None:
    bus = Bus()
    transport = make_transport(TransportConfig(name="inproc", node="bridge"), bus)
    assert (transport.name, transport.now_ns()) == ("inproc", 0)
    bus.advance(5)
    assert transport.now_ns() == 5
