"""Settings of ``qsteer train qvgm``."""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.learning.settings import ChunkSource, option


@dataclass(frozen=True)
class QvgmSettings(ChunkSource):
    """How ``qsteer train qvgm`` trains: Adam, constant rate. A number of -1 is the variant's.

    The rate is for the small networks of this package; the paper's is 5e-6, for the action expert
    of a vision-language-action model. Of the data only states are used.
    """

    policy: str = option("checkpoints/policy", "Frozen reference, from which training starts.")
    critic: str = option("", "Critic of the task that is to be done better.")
    variant: str = option(
        "v5_iql_chunk10", "Version: v1_calql_chunk, v2_iql_stepwise or v5_iql_chunk10."
    )
    custom: bool = option(
        False, "Deviate from what the variant states; its name then ends in +custom."
    )
    trainable: str = option(
        "all", "Weights to train: all, or beginnings of their names, such as head,layers.2."
    )
    denoising_steps: int = option(-1, "Steps of the path.", bounds=(-1, 1000))
    last_steps: int = option(-1, "Steps that are corrected; v2, v5.", bounds=(-1, 1000))
    gate_power: float = option(-1.0, "Power of flow time that weighs steps; v1.", bounds=(-1, 100))
    ascent_steps: int = option(-1, "Steps up the critic.", bounds=(-1, 1000))
    step_size: float = option(-1.0, "Of a step up the critic.", bounds=(-1.0, 1e6))
    max_norm: float = option(-1.0, "Longest gradient of the critic; v1, v2.", bounds=(-1.0, 1e9))
    gradient_clip: float = option(3.5, "Longest gradient of the weights.", bounds=(0.0, 1e9))
    steps: int = option(1000, "Optimiser steps.", bounds=(1, 1e9))
    batch: int = option(64, "States per step, over all processes.", bounds=(1, 1e6))
    learning_rate: float = option(1e-4, "Constant.", bounds=(0.0, 1.0))
    warmup: int = option(0, "Steps in which the rate rises.", bounds=(0, 1e9))
    lr_floor: float = option(1.0, "Share of the rate at the end of a cosine.", bounds=(0.0, 1.0))
