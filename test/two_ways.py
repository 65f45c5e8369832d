"""A field with two ways round an obstacle: independent chunks jump from one to the other."""

from __future__ import annotations

import torch
from torch import Tensor

from qsteer_ros.ensemble import QFunction

HORIZON, ACTION_DIM, STD = 8, 2, 0.1
WAYS = torch.tensor([[0.3, 0.8], [0.3, -0.8]], dtype=torch.float64).unsqueeze(1)  # (2, 1, A)
"""Every row of a chunk has its way's action, with this standard deviation."""


def two_ways(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
    """Exact velocity E[a - noise | x] of chunks that take either way with equal chance."""
    t = flow_time.view(-1, 1, 1, 1)
    ways = WAYS.to(noisy_chunk)
    variance = (t * STD) ** 2 + (1.0 - t) ** 2
    off = noisy_chunk.unsqueeze(1) - t * ways  # (B, 2, H, A)
    exponent = -0.5 * (off.square() / variance).sum(dim=(2, 3), keepdim=True)
    each = ways + (t * STD**2 - (1.0 - t)) / variance * off
    return (exponent.softmax(dim=1) * each).sum(dim=1)


def chunk_noise(batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, HORIZON, ACTION_DIM, dtype=torch.float64, generator=generator)


def running(seed: int = 5) -> Tensor:
    """A chunk (H, A) on the first way."""
    return WAYS[0] + STD * chunk_noise(1, seed)[0]


def prefers(way: int) -> QFunction:
    """A critic with its top on one way; two members that agree."""
    return lambda chunk: -(chunk - WAYS[way].to(chunk)).square().sum(dim=(1, 2)).expand(2, -1)
