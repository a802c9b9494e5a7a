"""Which transport, and one of it."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from visuomotor.data.errors import ConfigError, MissingExtraError, nearest
from visuomotor.sim2real.transports import rclpy, rospy  # both import their ROS when it is asked for
from visuomotor.sim2real.transports.base import Transport
from visuomotor.sim2real.transports.inproc import Bus

__all__ = ["TRANSPORTS", "TransportConfig", "choose_transport", "make_transport"]

TRANSPORTS = ("auto", "dds", "rclpy", "rospy", "inproc")
_LAST_DOMAIN = 232  # the ports of higher ones do not exist
_NODE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_OF_ROS_2 = ("AMENT_PREFIX_PATH", "RMW_IMPLEMENTATION")  # one of them is set where a ROS 2 is sourced


@dataclass(kw_only=True, slots=True)
class TransportConfig:
    """How to reach the robot.

    Attributes:
        name: one of ``TRANSPORTS``; ``auto`` takes what the environment offers.
        node: the name that others see.
        domain: of ROS 2; null: ``ROS_DOMAIN_ID``, or 0.
        interface: of ``dds``: name or address of a network interface, ``auto`` for the one that Cyclone chooses, ``lo``
            for this machine alone. A node on another interface is not found, on the same machine either. Empty: what
            ``CYCLONEDDS_URI`` says, or else as ROS does it: ``lo`` where ``ROS_AUTOMATIC_DISCOVERY_RANGE`` is
            ``LOCALHOST`` or ``OFF``, or ``ROS_LOCALHOST_ONLY`` is 1, otherwise ``auto``.
        peers: of ``dds``: hosts to ask directly, where the network has no multicast; empty: ``ROS_STATIC_PEERS``.
    """

    name: str = "auto"
    node: str = "visuomotor"
    domain: int | None = None
    interface: str = ""
    peers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.peers = list(self.peers)
        if self.name not in TRANSPORTS:
            raise ConfigError(f"transport.name is {self.name!r}. {nearest(self.name, TRANSPORTS)}")
        if not _NODE.fullmatch(self.node):
            raise ConfigError(f"transport.node is {self.node!r}; expected letters, digits and _, no digit first")
        if self.domain is not None and not 0 <= self.domain <= _LAST_DOMAIN:
            raise ConfigError(f"transport.domain is {self.domain}; expected 0 to {_LAST_DOMAIN}")


def _has_dds() -> bool:
    try:
        importlib.import_module("visuomotor.sim2real.transports.dds")
    except MissingExtraError:
        return False
    return True


def choose_transport(environment: Mapping[str, str]) -> str:
    """What ``auto`` means in this environment.

    Raises:
        MissingExtraError: nothing is there.
    """
    if any(environment.get(name) for name in _OF_ROS_2) and rclpy.available():
        return "rclpy"
    if environment.get("ROS_MASTER_URI") and rospy.available():
        return "rospy"
    if _has_dds():
        return "dds"
    raise MissingExtraError(
        "no way to a robot: there is no sourced ROS 2 (rclpy), no ROS_MASTER_URI with rospy, and no Cyclone DDS. "
        "Without ROS: pip install 'visuomotor[dds]'"
    )


def _domain(config: TransportConfig, environment: Mapping[str, str]) -> int:
    if config.domain is not None:
        return config.domain
    text = environment.get("ROS_DOMAIN_ID") or "0"
    if not text.isdecimal() or int(text) > _LAST_DOMAIN:
        raise ConfigError(f"ROS_DOMAIN_ID is {text!r}; expected 0 to {_LAST_DOMAIN}")
    return int(text)


def _network(config: TransportConfig, environment: Mapping[str, str]) -> tuple[str, list[str]]:
    peers = config.peers or [host for host in environment.get("ROS_STATIC_PEERS", "").split(";") if host]
    if config.interface or (environment.get("CYCLONEDDS_URI") and not config.peers):
        return config.interface, peers
    local = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE") in ("LOCALHOST", "OFF")
    return "lo" if local or environment.get("ROS_LOCALHOST_ONLY") == "1" else "auto", peers


def make_transport(config: TransportConfig, bus: Bus | None = None) -> Transport:
    """The transport of these settings; ``bus`` is what ``inproc`` connects to.

    Raises:
        ConfigError: a setting or a variable of the environment that cannot be; no connection.
        MissingExtraError: what it needs is not installed.
    """
    environment = os.environ
    name = choose_transport(environment) if config.name == "auto" else config.name
    if name == "inproc":
        return (bus or Bus()).node(config.node)
    if name == "dds":
        from visuomotor.sim2real.transports.dds import DdsTransport

        return DdsTransport(config.node, _domain(config, environment), *_network(config, environment))
    if config.interface or config.peers:
        raise ConfigError(f"transport.interface and transport.peers are of dds, not of {name}: its own settings decide")
    if name == "rclpy":
        return rclpy.RclpyTransport(config.node, _domain(config, environment))
    return rospy.RospyTransport(config.node)
