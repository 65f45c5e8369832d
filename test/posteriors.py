"""Policies whose posterior is known: independent mixtures of Gaussians, one per action."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qsteer_ros.interface import Interface
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.policies.flow_policy import FlowPolicy


@dataclass(frozen=True)
class Line:
    """A mixture of Gaussians on the line; rows of x and t each have a posterior of their own."""

    weights: Tensor
    means: Tensor
    deviations: Tensor

    @staticmethod
    def of(*parts: tuple[float, float, float]) -> Line:
        """From (weight, mean, deviation) of each component."""
        return Line(*torch.tensor(parts, dtype=torch.float64).unbind(1))

    @property
    def mean(self) -> float:
        return float(self.weights @ self.means)

    def tilted_mean(self, curve: float) -> float:
        """Of the mixture times exp(curve a^2); every component stays a Gaussian."""
        variance = self.deviations**2
        wider = variance / (1.0 - 2.0 * curve * variance)
        means = self.means / variance * wider
        gain = 0.5 * (means**2 / wider - self.means**2 / variance)
        weights = self.weights * (wider / variance).sqrt() * gain.exp()
        return float(weights @ means / weights.sum())

    def draw(self, count: int, source: torch.Generator) -> Tensor:
        which = torch.multinomial(self.weights, count, replacement=True, generator=source)
        normal = torch.randn(count, dtype=torch.float64, generator=source)
        return self.means[which] + self.deviations[which] * normal

    def posterior(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and deviations (B, K) of the clean action behind x (B,) at t (B,)."""
        x, t = x.unsqueeze(1), t.unsqueeze(1)
        variance = t**2 * self.deviations**2 + (1.0 - t) ** 2
        off = x - t * self.means
        logits = self.weights.log() - 0.5 * (off**2 / variance + variance.log())
        means = self.means + t * self.deviations**2 / variance * off
        deviations = self.deviations * (1.0 - t) / variance.sqrt()
        return torch.softmax(logits, dim=1), means, deviations

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Exact velocity of the flow, (B,): no pole at either end."""
        weights, _, _ = self.posterior(x, t)
        x, t = x.unsqueeze(1), t.unsqueeze(1)
        variance = t**2 * self.deviations**2 + (1.0 - t) ** 2
        slope = (t * self.deviations**2 - (1.0 - t)) / variance
        return (weights * (self.means + slope * (x - t * self.means))).sum(dim=1)


class ExactVelocity(nn.Module):
    """The velocity network of a policy that is right: action h of the chunk is ``lines[h]``."""

    def __init__(self, lines: tuple[Line, ...]) -> None:
        super().__init__()
        self.feature_dim, self.chunk_dim, self.lines = 1, len(lines), lines

    def forward(self, features: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        x, t = noisy_chunk.double(), flow_time.double()
        columns = [line.velocity(x[:, i], t) for i, line in enumerate(self.lines)]
        return torch.stack(columns, dim=1).to(noisy_chunk.dtype)


LINES = (
    Line.of((0.6, -0.45, 0.25), (0.4, 0.65, 0.25)),
    Line.of((0.7, -0.4, 0.3), (0.3, 0.5, 0.3)),
)
"""Chunks of one action with two components: one that has two modes, one that is skewed."""


def space(horizon: int = 1, features: int = 1) -> Interface:
    return Interface(
        horizon=horizon,
        action_names=("left", "up"),
        action_scale=(1.0, 1.0),
        feature_names=tuple(f"feature_{i}" for i in range(features)),
        control_dt_s=0.05,
    )


def exact_policy(lines: tuple[Line, ...] = LINES) -> FlowPolicy:
    return FlowPolicy(
        ExactVelocity(lines),  # type: ignore[arg-type]
        torch.zeros(1),
        torch.ones(1),
        space(),
        hash="exact",
    )


def clean_chunks(count: int, seed: int, lines: tuple[Line, ...] = LINES) -> Tensor:
    """From the policy, (count, 1, A) float64."""
    source = torch.Generator().manual_seed(seed)
    return torch.stack([line.draw(count, source) for line in lines], dim=1).unsqueeze(1)


def data_of(lines: tuple[Line, ...] = LINES, count: int = 20_000) -> Transitions:
    return Transitions(
        features=np.zeros((count, 1), dtype=np.float32),
        chunk=clean_chunks(count, 0, lines).float().numpy(),
        interface=space(),
        data_hash="mixture",
    )


def energy_test(one: Tensor, other: Tensor, *, permutations: int = 499, seed: int = 0) -> float:
    """p-value of the energy-distance test that two samples (n, D) have one distribution.

    The distance between samples is compared with that after random relabelling; the smallest
    p-value is 1 / (permutations + 1).
    """
    both = torch.cat([one, other]).double()
    apart = torch.cdist(both, both)
    n, m = len(one), len(other)
    source = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), 1.0 / n), torch.full((m,), -1.0 / m)]).double()
    shuffled = [labels] + [
        labels[torch.randperm(n + m, generator=source)] for _ in range(permutations)
    ]
    signs = torch.stack(shuffled, dim=1)
    distances = -(signs * (apart @ signs)).sum(dim=0)  # 2 E|X-Y| - E|X-X'| - E|Y-Y'|
    assert not math.isnan(float(distances[0]))
    return float((distances >= distances[0]).double().mean())
