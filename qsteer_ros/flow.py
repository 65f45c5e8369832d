r"""Velocity fields and their integration: the one idea the package is built on.

A frozen policy, once it has seen an observation, *is* a velocity field. Flow time runs from 0
(Gaussian noise) to 1 (action) everywhere; a field trained with the opposite convention is turned
round once, at the edge, by :func:`from_noise_at_one`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError

VelocityField = Callable[[Tensor, Tensor], Tensor]
"""(noisy_chunk (B, H, A), flow_time (B,)) -> velocity (B, H, A), normalised action units."""


def denoise(field: VelocityField, noise: Tensor, *, denoising_steps: int) -> Tensor:
    r"""Integrate a velocity field from noise to an action chunk with explicit Euler steps.

    .. math:: x_{k+1} = x_k + \tfrac1T v(x_k, \tau_k), \qquad \tau_k = k / T

    The field is asked at :math:`\tau = 0, \dots, 1 - 1/T`, never at 1. Nothing is clipped.

    Args:
        field: Frozen or steered velocity field.
        noise: x at flow time 0, (B, H, A). Not modified.
        denoising_steps: T >= 1.

    Returns:
        x at flow time 1, (B, H, A), with the dtype and device of ``noise``.

    Raises:
        ConfigError: ``denoising_steps`` is below 1.
    """
    if denoising_steps < 1:
        raise ConfigError(f"'denoising_steps' must be at least 1: got {denoising_steps}.")
    noisy_chunk = noise
    for step in range(denoising_steps):
        flow_time = noise.new_full((noise.shape[0],), step / denoising_steps)  # (B,)
        noisy_chunk = noisy_chunk + field(noisy_chunk, flow_time) / denoising_steps
    return noisy_chunk


def predict_clean(noisy_chunk: Tensor, flow_time: Tensor, velocity: Tensor) -> Tensor:
    r"""One Euler step to flow time 1: :math:`\hat a = x + (1 - \tau) v`, (B, H, A)."""
    return noisy_chunk + (1.0 - flow_time).view(-1, 1, 1) * velocity


def from_noise_at_one(field: VelocityField) -> VelocityField:
    """Adapt a field trained with noise at flow time 1 (openpi, LeRobot) to noise at 0."""

    def flipped(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        return -field(noisy_chunk, 1.0 - flow_time)

    return flipped


def sample_noise(shape: tuple[int, ...], *, seed: int, device: torch.device) -> Tensor:
    """Standard normal noise that depends on nothing but ``seed`` and ``shape``, float32.

    It is drawn on the CPU, so a GPU and a CPU start from the same chunk.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device)
