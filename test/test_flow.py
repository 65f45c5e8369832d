from __future__ import annotations

import math

import pytest
import torch
from fields import noise, swirl
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import (
    Scheduled,
    VelocityField,
    denoise,
    from_noise_at_one,
    predict_clean,
    sample_noise,
)


def constant(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
    return torch.full_like(noisy_chunk, 0.7)


def quadratic_in_time(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
    return 3.0 * flow_time.view(-1, 1, 1).square().expand_as(noisy_chunk)


def test_a_constant_field_is_exact_in_one_step() -> None:
    start = noise()
    torch.testing.assert_close(denoise(constant, start, denoising_steps=1), start + 0.7)


def test_euler_takes_the_left_end_of_each_step() -> None:
    start = noise()
    moved = denoise(quadratic_in_time, start, denoising_steps=10) - start
    left_sum = sum(3.0 * (k / 10) ** 2 for k in range(10)) / 10  # 0.855; right end 1.155
    torch.testing.assert_close(moved, torch.full_like(moved, left_sum))


def test_the_error_halves_when_the_steps_double() -> None:
    def error(steps: int) -> float:
        exact = denoise(swirl, noise(), denoising_steps=4096)
        return float((denoise(swirl, noise(), denoising_steps=steps) - exact).norm())

    assert error(32) / error(64) == pytest.approx(2.0, rel=0.1)


def test_a_decaying_field_follows_its_closed_form() -> None:
    end = denoise(lambda x, tau: -x, noise(), denoising_steps=50)
    torch.testing.assert_close(end, noise() * (1 - 1 / 50) ** 50)
    torch.testing.assert_close(end, noise() * math.exp(-1), atol=0.01, rtol=0.02)


def test_denoising_leaves_the_noise_alone_and_keeps_its_type() -> None:
    start = noise().float()
    before = start.clone()
    end = denoise(lambda x, tau: -x * tau.view(-1, 1, 1), start, denoising_steps=3)
    assert torch.equal(start, before)
    assert (end.dtype, end.shape) == (torch.float32, start.shape)


def test_fewer_than_one_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="'denoising_steps' must be at least 1: got 0"):
        denoise(constant, noise(), denoising_steps=0)


def test_the_clean_prediction_is_one_step_to_the_end() -> None:
    flow_time = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    velocity = torch.ones(4, 3, 2, dtype=torch.float64)
    found = predict_clean(noise(), flow_time, velocity) - noise()
    torch.testing.assert_close(found[:, 0, 0], 1.0 - flow_time)


def test_a_turned_field_follows_the_path_that_its_own_convention_gives() -> None:
    """The loop of LeRobot and openpi, written out, against our integrator."""

    def noise_at_one(noisy_chunk: Tensor, time: Tensor) -> Tensor:
        return torch.sin(2.0 * noisy_chunk + 3.0 * time.view(-1, 1, 1))

    x = noise()
    for step in range(10):
        time = torch.full((len(x),), 1.0 - step / 10, dtype=torch.float64)
        x = x - noise_at_one(x, time) / 10
    found = denoise(from_noise_at_one(noise_at_one), noise(), denoising_steps=10)
    torch.testing.assert_close(found, x)


def test_turning_a_field_twice_is_the_identity() -> None:
    twice = from_noise_at_one(from_noise_at_one(swirl))
    flow_time = torch.full((4,), 0.25, dtype=torch.float64)  # exact in binary, as is its flip
    assert torch.equal(twice(noise(), flow_time), swirl(noise(), flow_time))


def test_noise_depends_on_seed_and_shape_only() -> None:
    device = torch.device("cpu")
    torch.manual_seed(5)
    first = sample_noise((1, 5, 5), seed=3, device=device)
    torch.manual_seed(6)
    assert torch.equal(first, sample_noise((1, 5, 5), seed=3, device=device))
    assert not torch.equal(first, sample_noise((1, 5, 5), seed=4, device=device))
    assert first.dtype == torch.float32


def test_a_turned_field_that_knows_its_flow_times_still_does() -> None:
    asked: list[float] = []

    def at(flow_time: float) -> VelocityField:
        asked.append(flow_time)
        return swirl

    denoise(from_noise_at_one(Scheduled(at)), noise(), denoising_steps=4)
    assert asked == [1.0, 0.75, 0.5, 0.25]
