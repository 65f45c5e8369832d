"""Where the tilted distribution is known: Gaussian mixtures and a linear reward."""

from __future__ import annotations

import math

import pytest
import torch
from mixtures import Mixture, exact_samples, mixture, spread_normals
from sampled import MEAN, rule
from torch import Tensor

from qsteer_ros.flow import Sampler, Scheduled, VelocityField
from qsteer_ros.posterior import PosteriorMap, glass_posterior
from qsteer_ros.steering.guide import guide

FREE = (-math.inf, math.inf)


def exact_push(data: Mixture, slope: Tensor) -> VelocityField:
    """The field with the exact gradient of V and the unrescaled coefficient (1 - t) / t."""

    def at(tau: float) -> VelocityField:
        def velocity(chunk: Tensor, flow_time: Tensor) -> Tensor:
            x = chunk.flatten(1).clone().requires_grad_(True)
            frozen = data.velocity_at(x.detach(), tau).view_as(chunk)
            if tau == 0.0:
                return frozen
            posterior = data.posterior(x, tau)
            half = 0.5 * torch.einsum("d,kde,e->k", slope, posterior.covariances, slope)
            worth = torch.logsumexp(
                posterior.weights.log() + posterior.means @ slope + half, dim=1
            )
            (gradient,) = torch.autograd.grad(worth.sum(), x)
            return frozen + (1.0 - tau) / tau * gradient.view_as(chunk)

        return velocity

    return Scheduled(at)


def ends(field: VelocityField, *, steps: int, count: int) -> Tensor:
    """Chunks (count, 2) from evenly spread noise."""
    start = spread_normals(count, 2).view(-1, 1, 2)
    return Sampler(steps).denoise(field, start).flatten(1)


SLOPE = torch.tensor([1.0, -0.6], dtype=torch.float64)


def linear(chunk: Tensor) -> Tensor:
    return (chunk.flatten(1) @ SLOPE).unsqueeze(0)


def test_the_exact_gradient_with_the_unrescaled_coefficient_samples_the_tilted_mixture() -> None:
    data = mixture(2, 3, seed=1)
    truth = data.tilted(SLOPE)
    assert (truth.mean - data.mean).norm() > 1.0  # the tilt is worth measuring

    def error(steps: int) -> float:
        chunks = ends(exact_push(data, SLOPE), steps=steps, count=4096)
        torch.testing.assert_close(torch.cov(chunks.T), truth.covariance, atol=0.04, rtol=0)
        return float((chunks.mean(dim=0) - truth.mean).norm())

    coarse, fine = error(50), error(100)
    assert fine < 0.015
    assert coarse / fine == pytest.approx(2.0, abs=0.2)  # what is left is Euler's


def axis(low: float, high: float, share: float, deviation: float) -> Mixture:
    return Mixture(
        torch.tensor([1.0 - share, share], dtype=torch.float64),
        torch.tensor([[low], [high]], dtype=torch.float64),
        torch.full((2, 1, 1), deviation**2, dtype=torch.float64),
    )


def product(axes: list[Mixture]) -> VelocityField:
    """The field of a chunk (1, 2) whose two components are independent mixtures."""

    def velocity(chunk: Tensor, flow_time: Tensor) -> Tensor:
        columns = [
            data.velocity_at(chunk[:, 0, a : a + 1], float(flow_time[0]))
            for a, data in enumerate(axes)
        ]
        return torch.cat(columns, dim=1).view_as(chunk)

    return velocity


def test_with_an_exact_posterior_the_tilt_scaling_gives_the_tilted_mean() -> None:
    axes = [axis(-0.6, 0.6, 0.5, 0.3), axis(-0.4, 0.5, 0.3, 0.4)]
    frozen = torch.cat([data.mean for data in axes])
    truth = torch.cat([data.tilted(SLOPE[a : a + 1]).mean for a, data in enumerate(axes)])

    def found(posterior: PosteriorMap, **options: object) -> Tensor:
        steered = rule(
            linear,
            posterior,
            weight=1.0,
            scaling="tilt",
            aggregate=MEAN,
            num_samples=32,
            **options,
        )
        field = guide(product(axes), steered, bounds=FREE)
        return ends(field, steps=25, count=256).mean(dim=0)

    assert (truth - frozen).norm() > 0.3
    exact = found(exact_samples(axes))
    torch.testing.assert_close(exact, truth, atol=0.01, rtol=0)
    glass = found(glass_posterior(product(axes), steps=4))
    torch.testing.assert_close(glass, truth, atol=0.01, rtol=0)


def test_more_samples_come_closer_to_the_exact_gradient_of_the_potential() -> None:
    axes = [axis(-0.6, 0.6, 0.5, 0.3), axis(-0.4, 0.5, 0.3, 0.4)]
    start = spread_normals(256, 2, seed=2).view(-1, 1, 2)
    time = torch.full((256,), 0.4, dtype=torch.float64)
    field = product(axes)
    exact = torch.cat(
        [
            exact_push(data, SLOPE[a : a + 1]).at(0.4)(start[:, :, a : a + 1], time).flatten(1)  # type: ignore[attr-defined]
            for a, data in enumerate(axes)
        ],
        dim=1,
    )

    def error(count: int) -> float:
        steered = rule(
            linear,
            exact_samples(axes),
            weight=1.0,
            scaling="tilt",
            aggregate=MEAN,
            num_samples=count,
        )
        found = guide(field, steered, bounds=FREE)(start, time).flatten(1)
        return float((found - exact).square().mean().sqrt())

    few, many = error(16), error(256)
    assert 2.5 < few / many < 6.0  # 1 / sqrt(N): 4
    assert many < 0.1 * float((exact - field(start, time).flatten(1)).square().mean().sqrt())
