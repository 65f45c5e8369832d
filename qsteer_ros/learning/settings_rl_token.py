"""Settings of ``qsteer train rl-token``."""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.learning.settings import Training, option


@dataclass(frozen=True)
class RLTokenSettings(Training):
    """How ``qsteer train rl-token`` trains: Adam, cosine."""

    prefixes: str = option("", "Folder of *.safetensors, one prefix (L, D) of the VLA in each.")
    width: int = option(
        0, "Of the RL token and its blocks; 0: that of the prefix.", bounds=(0, 1e5)
    )
    blocks: int = option(2, "Attention blocks, in the encoder and in the decoder.", bounds=(1, 48))
    heads: int = option(8, "Of each block.", bounds=(1, 256))
    context_dropout: float = option(
        0.9, "Share of the prefix hidden from the decoder while training.", bounds=(0.0, 1.0)
    )
    held_out: float = option(0.1, "Share of the files, the last, to test on.", bounds=(0.0, 0.9))
    token_margin: float = option(
        1.5, "How many times its error a wrong token must give the decoder.", bounds=(1.0, 100.0)
    )
    bfloat16: bool = option(False, "Blocks in bfloat16 while training.")
    steps: int = option(10_000, "Optimiser steps.", bounds=(1, 1e9))
    batch: int = option(32, "Prefixes per step, over all processes.", bounds=(1, 1e6))
    learning_rate: float = option(1e-4, "Peak.", bounds=(0.0, 1.0))
    warmup: int = option(1000, "Steps in which the rate rises to its peak.", bounds=(0, 1e9))
    ema: float = option(
        0.001,
        "Rate of an averaged copy of the weights, which then is kept; 0: no copy.",
        bounds=(0.0, 1.0),
    )
