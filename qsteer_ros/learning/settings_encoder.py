"""Settings of ``qsteer train encoder``."""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.learning.settings import Training, option


@dataclass(frozen=True)
class EncoderSettings(Training):
    """How ``qsteer train encoder`` trains: AdamW, cosine."""

    data: str = option("data/cube", "Folder that qsteer data wrote.")
    steps: int = option(14_000, "Optimiser steps.", bounds=(1, 1e9))
    batch: int = option(32, "Frames per step.", bounds=(1, 4096))
    learning_rate: float = option(1.5e-3, "Peak.", bounds=(1e-7, 1.0))
    lr_floor: float = option(0.02, "Share of the peak at the end.", bounds=(0.0, 1.0))
    weight_decay: float = option(1e-4, "AdamW.", bounds=(0.0, 1.0))
    yaw_weight: float = option(0.3, "Weight of the yaw loss.", bounds=(0.0, 100.0))
    bfloat16: bool = option(True, "Convolutions in bfloat16 while training.")
