"""Environment variables of the processes: middleware profile, discovery range, threads."""

from __future__ import annotations

import random
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from qsteer_ros.errors import ConfigError
from qsteer_ros.resources import find

SHARED_MEMORY = Path("/dev/shm")
NEEDED_SHARED_MEMORY = 256 * 2**20
"""A segment of 32 MiB for each of seven processes, and room to spare."""
LAST_PORTABLE_DOMAIN = 101
"""Above it the ports of a domain meet the range that Linux hands out to other programs."""


def additions(given: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to an environment so that the nodes find each other and run well.

    Nothing the user has set is changed. Discovery and data stay on this machine unless
    ``ROS_AUTOMATIC_DISCOVERY_RANGE`` asks for a network: the profile then binds loopback only,
    which is stricter than the range ``LOCALHOST`` of the middleware.

    Args:
        given: The environment the processes would inherit, e.g. ``os.environ``.
    """
    wanted = {
        "OMP_NUM_THREADS": "1",
        "MUJOCO_GL": "egl",
        "LP_NUM_THREADS": "0",
        "PYTHONUNBUFFERED": "1",
        "RCUTILS_COLORIZED_OUTPUT": "0",
    }
    if "AMENT_PREFIX_PATH" not in given and (Path(sys.prefix) / "share/ament_index").is_dir():
        wanted["AMENT_PREFIX_PATH"] = sys.prefix
    added = {name: value for name, value in wanted.items() if name not in given}
    if "FASTRTPS_DEFAULT_PROFILES_FILE" not in given:
        one_machine = given.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST") == "LOCALHOST"
        memory = "shm" if shared_memory_remark() is None else "udp"
        profile = f"fastdds_{memory}.xml" if one_machine else f"fastdds_{memory}_network.xml"
        added["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(find(profile))
        if one_machine:  # the middleware would add transports of its own under LOCALHOST
            added["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "SYSTEM_DEFAULT"
    return added


def shared_memory_remark() -> str | None:
    """What to tell the user when messages cannot go through shared memory; ``None``: they can.

    A container often has 64 MiB of it. A segment that meets that limit while it is being written
    kills its process, so the profile without shared memory is taken in time.
    """
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        free = 0
    if free >= NEEDED_SHARED_MEMORY:
        return None
    return (
        f"{SHARED_MEMORY} should have {NEEDED_SHARED_MEMORY >> 20} MiB free: it has "
        f"{free >> 20}. Messages go through UDP; raw images above 64 kB may be lost. In a "
        "container, start it with --shm-size=1g."
    )


def free_domain(*, seed: int | None = None) -> int:
    """A ROS domain that no process on this machine uses, drawn at random from 1 to 101.

    Raises:
        ConfigError: All of them are in use.
    """
    domains = list(range(1, LAST_PORTABLE_DOMAIN + 1))
    random.Random(seed).shuffle(domains)
    for domain in domains:
        if _first_ports_free(domain):
            return domain
    raise ConfigError(
        f"a free ROS domain must exist between 1 and {LAST_PORTABLE_DOMAIN}: all are in use. "
        "Stop a running graph, or choose one with ROS_DOMAIN_ID."
    )


def _first_ports_free(domain: int) -> bool:
    """Whether the first participants' ports of a domain (RTPS 9.6.1.1) can be bound."""
    for port in (7400 + 250 * domain + 10, 7400 + 250 * domain + 12):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
