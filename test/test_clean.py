"""Where the critic is asked: Euler step, noisy chunk, end of the path."""

from __future__ import annotations

import itertools

import pytest
import torch
from fields import Counting, hill, noise, numerical_gradient, swirl, times, wavy
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import INTEGRATORS, Sampler, field_at
from qsteer_ros.steering.clean import finish
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.qgf import qgf

SAMPLERS = [
    Sampler(5, integrator, time_power) for integrator in INTEGRATORS for time_power in (1.0, 1.7)
]


def euler(chunk: Tensor, *points: float) -> Tensor:
    """Euler steps between the given flow times, written out."""
    for start, end in itertools.pairwise(points):
        velocity = swirl(chunk, torch.full((len(chunk),), start, dtype=torch.float64))
        chunk = chunk + (end - start) * velocity
    return chunk


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_a_grid_point_the_path_ends_where_the_sampler_ends(sampler: Sampler) -> None:
    for step, tau in enumerate(sampler.flow_times):
        expected = sampler.denoise(swirl, noise(), first_step=step)
        assert torch.equal(finish(swirl, noise(), tau, sampler), expected)


def test_between_grid_points_the_first_step_goes_to_the_next_one() -> None:
    found = finish(swirl, noise(), 0.45, Sampler(5))
    torch.testing.assert_close(found, euler(noise(), 0.45, 0.6, 0.8, 1.0))


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_between_grid_points_the_integrator_is_the_samplers(integrator: str) -> None:
    expected = Sampler(3, integrator, times=(0.45, 0.6, 0.8, 1.0)).denoise(swirl, noise())
    assert torch.equal(finish(swirl, noise(), 0.45, Sampler(5, integrator)), expected)


def test_before_a_late_grid_the_first_step_goes_to_its_first_point() -> None:
    late = Sampler(2, times=(0.3, 0.7, 1.0))
    found = finish(swirl, noise(), 0.1, late)
    torch.testing.assert_close(found, euler(noise(), 0.1, 0.3, 0.7, 1.0))


def test_at_flow_time_one_nothing_is_left_to_do() -> None:
    for tau in (1.0, 1.0 - 1e-12):
        assert torch.equal(finish(swirl, noise(), tau, Sampler(5)), noise())


@pytest.mark.parametrize("offset", [-1e-12, 0.0, 1e-12])
def test_a_rounded_grid_point_costs_no_extra_step(offset: float) -> None:
    asked = list[Tensor]()

    def counted(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        asked.append(flow_time)
        return swirl(noisy_chunk, flow_time)

    found = finish(counted, noise(), 0.4 + offset, Sampler(5))
    assert len(asked) == 3
    torch.testing.assert_close(found, euler(noise(), 0.4, 0.6, 0.8, 1.0))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_chain_asks_at_the_end_of_the_path(sampler: Sampler) -> None:
    """Between grid points, too: what the midpoint rule does on the way."""
    field = guide(swirl, qgf(wavy, weight=0.7, estimate="chain", sampler=sampler))
    for tau in (0.0, 0.13, sampler.flow_times[2], 0.9):
        flow_time = torch.full((4,), tau, dtype=torch.float64)
        end = finish(swirl, noise(), tau, sampler).clamp(-1, 1)
        expected = 0.7 * numerical_gradient(lambda chunk: wavy(chunk).amin(dim=0), end)
        found = field_at(field, tau)(noise(), flow_time) - swirl(noise(), flow_time)
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6)


def test_the_chain_records_no_gradients() -> None:
    recording = list[bool]()

    def watched(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        recording.append(torch.is_grad_enabled())
        return swirl(noisy_chunk, flow_time)

    rule = qgf(wavy, weight=0.7, estimate="chain", sampler=Sampler(5))
    guide(watched, rule)(noise(), torch.full((4,), 0.4, dtype=torch.float64))
    assert recording[1:] == [False, False, False]


def test_with_one_step_left_chain_and_euler_are_one() -> None:
    flow_time = torch.full((4,), 0.9, dtype=torch.float64)
    chain = guide(swirl, qgf(wavy, weight=1.0, estimate="chain", sampler=Sampler(10)))
    found = chain(noise(), flow_time)
    torch.testing.assert_close(found, guide(swirl, qgf(wavy, weight=1.0))(noise(), flow_time))


def test_the_noisy_estimate_is_the_chunk_itself_and_is_not_clipped() -> None:
    critic = Counting(wavy)
    field = guide(swirl, qgf(critic, weight=0.7, estimate="noisy"))
    for flow_time in times(4):
        found = field(3.0 * noise(), flow_time) - swirl(3.0 * noise(), flow_time)
        expected = numerical_gradient(lambda chunk: wavy(chunk).amin(dim=0), 3.0 * noise())
        torch.testing.assert_close(found, 0.7 * expected, atol=1e-7, rtol=1e-6)
    assert torch.equal(critic.asked[0], 3.0 * noise())
    assert critic.asked[0].abs().max() > 1.0


@pytest.mark.parametrize("estimate", ["euler", "chain"])
@pytest.mark.parametrize("clip", [True, False])
def test_an_estimate_is_clipped_on_demand(estimate: str, clip: bool) -> None:
    critic = Counting(hill())
    rule = qgf(critic, weight=1.0, estimate=estimate, clip=clip, sampler=Sampler(4))
    guide(swirl, rule)(4.0 * noise(), torch.full((4,), 0.5, dtype=torch.float64))
    assert bool(critic.asked[0].abs().max() > 1.0) != clip


def test_a_chain_without_a_sampler_is_refused() -> None:
    with pytest.raises(ConfigError, match="estimate 'chain' needs 'sampler': got None"):
        qgf(wavy, weight=1.0, estimate="chain")


def test_an_unknown_estimate_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="'estimate' must be one of euler, noisy, chain: got 'x'"
    ):
        qgf(wavy, weight=1.0, estimate="x")
