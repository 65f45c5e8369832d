"""Settings of ``qsteer train critic``."""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.learning.settings import RewardSource, option


@dataclass(frozen=True)
class CriticSettings(RewardSource):
    """How ``qsteer train critic`` trains: Adam, cosine."""

    hidden: str = option("256,256,256", "Widths of the layers.")
    ensemble: int = option(2, "Q networks.", bounds=(1, 32))
    steps: int = option(4_000, "Optimiser steps.", bounds=(1, 1e9))
    expectile: float = option(0.9, "Of the value loss.", bounds=(0.5, 0.999))
    ema: float = option(0.02, "Rate of the target networks.", bounds=(1e-5, 1.0))
