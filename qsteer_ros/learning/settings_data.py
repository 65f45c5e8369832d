"""Settings of ``qsteer data``."""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.learning.settings import option


@dataclass(frozen=True)
class DataSettings:
    """What ``qsteer data`` generates."""

    transitions: int = option(300_000, "Control steps of play.", bounds=(1001, 1e8))
    frames: int = option(16_000, "Training frames, each from every camera.", bounds=(0, 1e7))
    test_frames: int = option(1_200, "Frames from other play, for measuring.", bounds=(0, 1e6))
    noise: float = option(0.1, "Noise on the expert's plan.", bounds=(0.0, 1.0))
    smoothing: float = option(0.5, "Smoothing of that noise, in steps.", bounds=(0.0, 100.0))
    random_cube: float = option(0.3, "Share of frames with the cube moved.", bounds=(0.0, 1.0))
    camera_shift_m: float = option(
        0.015, "Largest displacement of the front camera along each axis.", bounds=(0.0, 0.2)
    )
    camera_turn_deg: float = option(
        1.0, "Largest rotation of the front camera about each axis.", bounds=(0.0, 20.0)
    )
    workers: int = option(2, "Processes.", bounds=(1, 256))
    seed: int = option(0, "Decides every episode and frame.", bounds=(0, 2**31))
