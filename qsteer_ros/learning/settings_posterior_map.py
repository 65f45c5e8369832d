"""Settings of ``qsteer train posterior-map``."""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.learning.settings import ChunkSource, option


@dataclass(frozen=True)
class PosteriorMapSettings(ChunkSource):
    """How ``qsteer train posterior-map`` trains: Adam, cosine."""

    policy: str = option("checkpoints/policy", "Policy whose posterior is learned; it is frozen.")
    horizon: int = option(0, "Actions per chunk; 0: the policy's.", bounds=(0, 1000))
    hidden: str = option("256,256,256", "Widths of the layers.")
    steps: int = option(20_000, "Optimiser steps.", bounds=(1, 1e9))
    diagonal_weight: float = option(1.0, "Of the velocities' loss.", bounds=(0.0, 1e3))
    consistency_weight: float = option(
        0.5, "Of the loss that makes steps compose.", bounds=(0.0, 1e3)
    )
    zero_share: float = option(
        0.1, "Share of rows at flow time 0, the policy itself.", bounds=(0.0, 1.0)
    )
    highest_time: float = option(
        0.99, "Highest flow time that is learned; steering asks up to 1 - 1/steps.",
        bounds=(0.0, 0.9999),
    )  # fmt: skip
    whole_share: float = option(
        0.25, "Share of consistency rows that go from 0 to 1, as samples do.", bounds=(0.0, 1.0)
    )
    whole_steps: int = option(
        4,
        "Midpoint steps in which the frozen policy itself goes that way, as their target; 0: they "
        "too are put together from two steps of the map.",
        bounds=(0, 64),
    )
    ema: float = option(
        1e-4,
        "Rate of the averaged copy, which is what is kept; faster in the first 9 / rate steps.",
        bounds=(0.0, 1.0),
    )
