"""Parameters of the simulator node."""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.errors import ConfigError
from qsteer_ros.nodes.parameters import param

#: Simulated time between two messages of ``/clock`` and ``joint_states``.
TICK_NS = 10_000_000


@dataclass(frozen=True)
class SimParameters:
    """Parameters of the simulator node."""

    seed: int = param(0, "Seed of the next episode's start.", bounds=(0, 2**31 - 1))
    goal: int = param(1, "Goal of the next episode: judges success.", bounds=(1, 3))
    real_time_factor: float = param(
        1.0,
        "Simulated seconds per second; fewer when the machine cannot keep up.",
        bounds=(0.05, 20.0),
    )
    camera_rate_hz: float = param(
        20.0,
        "Frames per simulated second and camera; the period must be a multiple of 10 ms.",
        bounds=(1.0, 100.0),
        read_only=True,
    )
    jpeg_quality: int = param(95, "Quality of compressed frames.", bounds=(1, 100))


def camera_period_ns(rate_hz: float) -> int:
    """Time between frames.

    Raises:
        ConfigError: It is not a multiple of the tick, so frames could not be stamped exactly.
    """
    period_ns = 1e9 / rate_hz
    ticks = round(period_ns / TICK_NS)
    if ticks < 1 or abs(period_ns - ticks * TICK_NS) > 1.0:
        raise ConfigError(
            f"the period of 'camera_rate_hz' must be a multiple of {TICK_NS // 1_000_000} ms: "
            f"got {rate_hz:g} Hz. Choose 10, 20, 25, 50 or 100."
        )
    return ticks * TICK_NS
