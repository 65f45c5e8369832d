"""Settings of ``qsteer train dsrl``."""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.learning.settings import RewardSource, option


@dataclass(frozen=True)
class DsrlSettings(RewardSource):
    """How ``qsteer train dsrl`` trains: Adam, cosine. The flow policy stays as it is."""

    policy: str = option("checkpoints/policy", "The flow policy whose noise is chosen.")
    critic: str = option("", "A trained critic to learn from; empty trains one along.")
    steps: int = option(5_000, "Optimiser steps.", bounds=(1, 1e9))
    noise_scale: float = option(
        1.0, "Largest absolute value of a component of the noise.", bounds=(0.01, 10.0)
    )
    denoising_steps: int = option(
        10, "Euler steps from noise to chunk while training.", bounds=(1, 1000)
    )
    hidden: str = option("256,256,256", "Widths of the actor's and critics' layers.")
    ensemble: int = option(2, "Members of the critic that is trained along.", bounds=(1, 32))
    rho: float = option(
        0.0, "Weight of that ensemble's spread in its own target.", bounds=(0.0, 10.0)
    )
    ema: float = option(0.005, "Rate of that critic's target networks.", bounds=(1e-5, 1.0))
    entropy_per_component: float = option(
        -0.5, "Entropy wanted of each component of tanh noise, nats.", bounds=(-5.0, 0.69)
    )
    temperature: float = option(1.0, "Weight of the entropy at the start.", bounds=(1e-6, 1e6))
    temperature_rate: float = option(1e-2, "Peak learning rate of that weight.", bounds=(0.0, 1.0))
