"""Settings of ``qsteer train bc``."""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.learning.settings import ChunkSource, option


@dataclass(frozen=True)
class PolicySettings(ChunkSource):
    """How ``qsteer train bc`` trains: Adam, cosine."""

    hidden: str = option("256,256,256", "Widths of the layers.")
    steps: int = option(20_000, "Optimiser steps.", bounds=(1, 1e9))
    ema: float = option(
        0.0,
        "Rate of an averaged copy of the weights, which then is the policy; 0: no copy.",
        bounds=(0.0, 1.0),
    )
    checkpoint_every: int = option(2000, "Steps between saved states.", bounds=(1, 1e9))
