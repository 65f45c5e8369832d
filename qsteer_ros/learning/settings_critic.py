"""Settings of ``qsteer train critic``."""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.learning.settings import RewardSource, option

OBJECTIVES = ("iql", "sarsa", "td", "calql", "monte_carlo", "stepwise_iql")
CANDIDATES = ("local", "policy")


@dataclass(frozen=True)
class CriticSettings(RewardSource):
    """How ``qsteer train critic`` trains: Adam, cosine."""

    objective: str = option("iql", f"What is learned: {', '.join(OBJECTIVES)}.")
    network: str = option("flat", "flat, or injected: every layer sees the chunk.")
    hidden: str = option("256,256,256", "Widths of the layers.")
    activation: str = option("auto", "auto: gelu for flat, silu for injected networks.")
    layer_norm: str = option("auto", "yes, no, or auto: only in flat networks.")
    inject_head: bool = option(False, "Injected: the head sees the chunk too.")
    proprio: int = option(
        0, "Injected: how many of the last features are projected first.", bounds=(0, 1e5)
    )
    proprio_dim: int = option(256, "Injected: width they are projected to.", bounds=(1, 1e5))
    ensemble: int = option(2, "Q networks.", bounds=(1, 32))
    steps: int = option(4_000, "Optimiser steps.", bounds=(1, 1e9))
    expectile: float = option(0.9, "IQL: of the value loss.", bounds=(0.5, 0.999))
    reduction: str = option(
        "auto",
        "How members become one in targets: min, mean, pessimistic; auto: min for iql, mean for "
        "calql, pessimistic for sarsa and td.",
    )
    rho: float = option(0.5, "Pessimistic: weight of the spread.", bounds=(0.0, 100.0))
    ema: float = option(0.02, "Rate of the target networks.", bounds=(1e-5, 1.0))
    warm_start: int = option(0, "First steps that regress Monte-Carlo returns.", bounds=(0, 1e9))
    policy: str = option("", "td, calql with candidates=policy: checkpoint of the flow policy.")
    steering: str = option(
        "qpilots_u", "td: how the bootstrap chunk is steered: off, qgf, qgf_jacobian, qpilots_u."
    )
    steering_weight: float = option(0.2, "td: in the units of that mode.", bounds=(0.0, 1e6))
    denoising_steps: int = option(10, "td, calql: Euler steps of the policy.", bounds=(1, 1000))
    alpha: float = option(0.05, "calql: weight of the conservative loss.", bounds=(0.0, 1e6))
    candidates: str = option(
        "local", "calql, beside uniform ones: local (data's chunk and noise) or policy."
    )
    num_candidates: int = option(10, "calql: of each kind, per row.", bounds=(1, 1000))
    local_std: float = option(0.05, "calql: noise of local candidates.", bounds=(1e-6, 10.0))
    densities: bool = option(False, "calql: correct for how candidates were drawn.")
