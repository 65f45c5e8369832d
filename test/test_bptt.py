"""Back-propagation through the rest of the path."""

from __future__ import annotations

import pytest
import torch
from fields import hill, noise, numerical_gradient, swirl, towards, wavy
from torch import Tensor

from qsteer_ros import ensemble
from qsteer_ros.flow import INTEGRATORS, Sampler, VelocityField, field_at
from qsteer_ros.steering.bptt import bptt
from qsteer_ros.steering.clean import finish
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.qgf_jacobian import qgf_jacobian

SAMPLERS = [
    Sampler(5, integrator, time_power) for integrator in INTEGRATORS for time_power in (1.0, 1.7)
]


def guidance(
    sampler: Sampler, tau: float, start: Tensor, *, field: VelocityField = swirl, **options: object
) -> Tensor:
    rule = bptt(wavy, weight=0.7, sampler=sampler, **options)  # type: ignore[arg-type]
    flow_time = torch.full((len(start),), tau, dtype=torch.float64)
    return field_at(guide(field, rule), tau)(start, flow_time) - field(start, flow_time)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_gradient_is_that_of_the_clipped_end_with_respect_to_the_noisy_chunk(
    sampler: Sampler,
) -> None:
    """On grid points, between them, and where components end saturated."""
    start = 1.5 * noise()
    for tau in (0.0, 0.13, sampler.flow_times[2], 0.9):
        end = finish(swirl, start, tau, sampler)
        assert (end.abs() > 1.0).any()

        def value(point: Tensor, tau: float = tau) -> Tensor:
            return wavy(finish(swirl, point, tau, sampler).clamp(-1, 1)).amin(dim=0)

        expected = 0.7 * numerical_gradient(value, start)
        torch.testing.assert_close(guidance(sampler, tau, start), expected, atol=1e-8, rtol=1e-6)


def test_on_a_linear_field_every_remaining_step_multiplies_the_gradient() -> None:
    def decay(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        return -0.5 * noisy_chunk

    def height(chunk: Tensor) -> Tensor:
        return chunk.sum(dim=(1, 2)).unsqueeze(0)

    for step in range(10):
        tau = step / 10
        flow_time = torch.full((4,), tau, dtype=torch.float64)
        start = 0.2 * noise()
        field = guide(decay, bptt(height, weight=2.0, sampler=Sampler(10)))
        found = field_at(field, tau)(start, flow_time) - decay(start, flow_time)
        torch.testing.assert_close(found, torch.full_like(found, 2.0 * 0.95 ** (10 - step)))


def test_what_ends_saturated_counts_nothing() -> None:
    def still(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        return torch.zeros_like(noisy_chunk)

    start = torch.tensor([[[4.0, 0.5]]], dtype=torch.float64)
    field = guide(still, bptt(hill(0.0), weight=1.0, sampler=Sampler(10)))
    push = field(start, torch.full((1,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(push, torch.tensor([[[0.0, -1.0]]], dtype=torch.float64))


def test_with_one_step_left_it_is_the_gradient_through_the_clean_prediction() -> None:
    flow_time = torch.full((4,), 0.9, dtype=torch.float64)
    through = guide(swirl, bptt(wavy, weight=1.0, sampler=Sampler(10)))
    one_step = guide(swirl, qgf_jacobian(wavy, weight=1.0))
    torch.testing.assert_close(through(noise(), flow_time), one_step(noise(), flow_time))


def test_on_concentrated_data_nothing_is_pushed() -> None:
    sampler = Sampler(10)
    chunk = sampler.denoise(
        guide(towards(0.3), bptt(hill(0.8), weight=3.0, sampler=sampler)), noise()
    )
    torch.testing.assert_close(chunk, torch.full_like(chunk, 0.3))


def test_the_aggregate_is_the_chosen_one() -> None:
    smallest = guidance(Sampler(5), 0.4, noise())
    average = guidance(Sampler(5), 0.4, noise(), aggregate=ensemble.mean)
    assert (smallest - average).abs().max() > 1e-2


def test_each_step_evaluates_the_rest_of_the_path_once_more() -> None:
    asked = list[Tensor]()

    def counted(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        asked.append(flow_time)
        return swirl(noisy_chunk, flow_time)

    sampler = Sampler(10)
    sampler.denoise(guide(counted, bptt(wavy, weight=0.1, sampler=sampler)), noise())
    assert len(asked) == 10 + 55


def test_the_middle_of_a_midpoint_step_is_handled() -> None:
    """The midpoint rule asks off the grid; with small weights the pushes add up smoothly."""
    sampler = Sampler(6, "midpoint")
    frozen = sampler.denoise(swirl, noise())

    def effect(weight: float) -> Tensor:
        field = guide(swirl, bptt(wavy, weight=weight, sampler=sampler))
        return (sampler.denoise(field, noise()) - frozen) / weight

    torch.testing.assert_close(effect(1e-4), effect(1e-5), atol=1e-3, rtol=1e-2)
