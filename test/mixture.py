"""A Gaussian mixture under variance-preserving noise, with closed forms, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
CENTRES = torch.tensor([[0.6, 0.4], [-0.7, 0.5], [-0.1, -0.6]], dtype=torch.float64)
SPREADS = torch.tensor([0.12, 0.08, 0.2], dtype=torch.float64)
DIM = 2


def draw(count: int, *, seed: int = 0) -> Tensor:
    """Standard normal noise in chunks of one action, (B, 1, 2)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, DIM, dtype=torch.float64, generator=generator)


def clean_mean(noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[a | alpha a + sigma eps = noisy]; alpha and sigma (B, 1)."""
    flat = noisy.flatten(1).unsqueeze(1)  # (B, 1, D)
    alpha, sigma = alpha.unsqueeze(-1), sigma.unsqueeze(-1)  # (B, 1, 1)
    variance = (alpha * SPREADS.view(1, -1, 1)).square() + sigma.square()  # (B, M, 1)
    away = flat - alpha * CENTRES
    shares = torch.softmax(
        WEIGHTS.log() - 0.5 * (away.square() / variance + variance.log()).sum(dim=2), dim=1
    )
    means = CENTRES + alpha * SPREADS.view(1, -1, 1).square() / variance * away
    return (shares.unsqueeze(-1) * means).sum(dim=1).view_as(noisy)


def exact_model(signal: Sequence[float], predicts: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The best predictor of epsilon, the sample or v; between timesteps, of the angle between."""
    angles = torch.tensor([math.acos(math.sqrt(left)) for left in signal], dtype=torch.float64)

    def model(noisy: Tensor, timestep: Tensor) -> Tensor:
        low = timestep.floor().long().clamp(max=len(angles) - 1)
        share = timestep - low
        angle = torch.lerp(
            angles[low], angles[(low + 1).clamp(max=len(angles) - 1)], share.double()
        )
        alpha, sigma = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)
        clean = clean_mean(noisy, alpha, sigma)
        wide_alpha, wide_sigma = alpha.unsqueeze(-1), sigma.unsqueeze(-1)
        if predicts == "sample":
            return clean
        epsilon = (noisy - wide_alpha * clean) / wide_sigma
        return epsilon if predicts == "epsilon" else wide_alpha * epsilon - wide_sigma * clean

    return model


def mean_and_covariance() -> tuple[Tensor, Tensor]:
    mean = WEIGHTS @ CENTRES
    inner = torch.diag(SPREADS.square() @ WEIGHTS * torch.ones(DIM, dtype=torch.float64))
    away = CENTRES - mean
    return mean, inner + (away * WEIGHTS.unsqueeze(1)).T @ away


def mode_shares(samples: Tensor) -> Tensor:
    """Share of samples nearest to each centre, measured in its spread."""
    away = (samples.flatten(1).unsqueeze(1) - CENTRES).norm(dim=2) / SPREADS
    return torch.bincount(away.argmin(dim=1), minlength=len(WEIGHTS)) / len(samples)
