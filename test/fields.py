"""Small velocity fields and critics with known answers, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qsteer_ros.ensemble import QFunction
from qsteer_ros.flow import VelocityField

HORIZON, ACTION_DIM, STEPS = 3, 2, 10


def noise(batch: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, HORIZON, ACTION_DIM, dtype=torch.float64, generator=generator)


def swirl(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
    """A smooth field that depends on time and mixes the components of a sample."""
    tau = flow_time.view(-1, 1, 1)
    turned = noisy_chunk.flip(2).roll(1, dims=1)
    return 0.3 * torch.sin(2.0 * turned + 3.0 * tau) - 0.4 * (noisy_chunk + tau * noisy_chunk)


def towards(goal: float) -> VelocityField:
    """Field of data concentrated in one point: every path ends there."""

    def field(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        return (goal - noisy_chunk) / (1.0 - flow_time).view(-1, 1, 1)

    return field


def hill(centre: float | Tensor = 0.5, *, scale: float = 1.0, members: int = 2) -> QFunction:
    """Concave critic with its top at ``centre``; members differ by a constant."""

    def q(chunk: Tensor) -> Tensor:
        value = -scale * (chunk - centre).square().sum(dim=(1, 2))
        return torch.stack([value + 0.1 * member for member in range(members)])

    return q


def wavy(chunk: Tensor) -> Tensor:
    """Smooth critic whose two members differ in value, slope and order."""
    first = torch.sin(2.0 * chunk).sum(dim=(1, 2)) + chunk.prod(dim=2).sum(dim=1)
    second = 0.8 * torch.cos(chunk - 0.3).sum(dim=(1, 2)) - 0.2 * chunk.pow(3).sum(dim=(1, 2))
    return torch.stack([first, second])


class Counting:
    """A critic that remembers every chunk it was asked about."""

    def __init__(self, q: QFunction) -> None:
        self._q, self.asked = q, list[Tensor]()

    def __call__(self, chunk: Tensor) -> Tensor:
        self.asked.append(chunk.detach().clone())
        return self._q(chunk)


def never(chunk: Tensor) -> Tensor:
    """A critic that must not be asked."""
    raise AssertionError("the critic was asked")


def times(batch: int, steps: int = STEPS) -> Iterator[Tensor]:
    """Flow times of a denoising run."""
    for step in range(steps):
        yield torch.full((batch,), step / steps, dtype=torch.float64)


def numerical_gradient(function: QFunction, point: Tensor, bump: float = 1e-6) -> Tensor:
    """Central differences of a scalar function per sample, (B, H, A)."""
    gradient = torch.zeros_like(point)
    for h in range(point.shape[1]):
        for a in range(point.shape[2]):
            shift = torch.zeros_like(point)
            shift[:, h, a] = bump
            rise = function(point + shift) - function(point - shift)
            gradient[:, h, a] = rise / (2 * bump)
    return gradient
