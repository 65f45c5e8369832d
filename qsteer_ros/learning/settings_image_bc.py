"""Settings of ``qsteer train image-bc``."""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.learning.settings import Training, option


@dataclass(frozen=True)
class ImageBcSettings(Training):
    """How ``qsteer train image-bc`` trains: Adam, cosine."""

    episodes: str = option("", "Folder of logged episodes.")
    robot: str = option("robot_ur5e_sim.yaml", "Robot file of the episodes.")
    goal: int = option(0, "Clone only episodes of this goal; 0: of every goal.", bounds=(0, 1e6))
    successes_only: bool = option(False, "Clone only episodes that reached their goal.")
    horizon: int = option(5, "Actions per chunk.", bounds=(1, 1000))
    size: int = option(64, "Pixels; pictures are shrunk to size x size.", bounds=(16, 512))
    random_crop: bool = option(True, "Shift pictures by up to 4 pixels while training.")
    hidden: str = option("256,256,256", "Widths of the velocity network's layers.")
    steps: int = option(20_000, "Optimiser steps.", bounds=(1, 1e9))
    batch: int = option(64, "Chunks per step, over all processes.", bounds=(1, 1e6))
    learning_rate: float = option(3e-4, "Peak.", bounds=(0.0, 1.0))
    ema: float = option(
        0.001,
        "Rate of averaged copies of both networks, which then are kept; 0: no copies.",
        bounds=(0.0, 1.0),
    )
