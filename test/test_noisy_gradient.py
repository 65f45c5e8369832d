"""The critic asked about the noisy chunk: CGQL and QFQL."""

from __future__ import annotations

import pytest
import torch
from fields import STEPS, Counting, noise, numerical_gradient, swirl, times, wavy
from torch import Tensor

from qsteer_ros import ensemble
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.noisy_gradient import noisy_gradient
from qsteer_ros.steering.qgf import qgf


def slope(chunk: Tensor) -> Tensor:
    return numerical_gradient(lambda point: wavy(point).amin(dim=0), chunk)


def test_cgql_adds_a_share_of_the_velocity_towards_the_critics_density() -> None:
    start = 3.0 * noise()  # not clipped
    for flow_time in list(times(4))[1:]:
        tau = float(flow_time[0])
        field = guide(swirl, noisy_gradient(wavy, weight=0.1, inverse_temperature=2.5))
        found = field(start, flow_time) - swirl(start, flow_time)
        expected = ((1 - tau) * 2.5 * slope(start) + start) * 0.1 / tau
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)


def test_cgql_follows_the_loop_of_its_code() -> None:
    """The official loop, written out with the ensemble's mean and its default temperature."""
    chunk = noise()
    for step in range(STEPS):
        tau = step / STEPS
        velocity = swirl(chunk, torch.full((4,), tau, dtype=torch.float64))
        if step > 0:
            score = numerical_gradient(lambda point: wavy(point).mean(dim=0), chunk)
            velocity = velocity + (score * (1 - tau) * 10.0 + chunk) * 0.02 / tau
        chunk = chunk + velocity / STEPS
    rule = noisy_gradient(wavy, weight=0.02, aggregate=ensemble.mean)
    found = Sampler(STEPS).denoise(guide(swirl, rule), noise())
    torch.testing.assert_close(found, chunk, atol=1e-6, rtol=1e-6)


def test_cgqls_first_step_is_the_frozen_policys_and_asks_no_critic() -> None:
    critic = Counting(wavy)
    start = torch.zeros(4, dtype=torch.float64)
    field = guide(swirl, noisy_gradient(critic, weight=0.1))
    assert torch.equal(field(noise(), start), swirl(noise(), start))
    assert critic.asked == []


def test_negating_the_critic_reverses_cgqls_critic_share_and_leaves_the_rest() -> None:
    flow_time = torch.full((4,), 0.4, dtype=torch.float64)

    def push(sign: float) -> Tensor:
        rule = noisy_gradient(
            lambda chunk: sign * wavy(chunk), weight=0.1, aggregate=ensemble.mean
        )
        return guide(swirl, rule)(noise(), flow_time) - swirl(noise(), flow_time)

    torch.testing.assert_close(push(1.0) + push(-1.0), 2 * noise() * 0.1 / 0.4)
    assert (push(1.0) - push(-1.0)).abs().max() > 0.1


def test_at_infinite_temperature_only_the_pull_to_noise_is_left() -> None:
    flow_time = torch.full((4,), 0.4, dtype=torch.float64)
    field = guide(swirl, noisy_gradient(wavy, weight=0.1, inverse_temperature=0.0))
    found = field(noise(), flow_time) - swirl(noise(), flow_time)
    torch.testing.assert_close(found, noise() * 0.1 / 0.4)


def test_qfql_is_qgf_asked_at_the_noisy_chunk() -> None:
    for flow_time in times(4):
        found = guide(swirl, noisy_gradient(wavy, weight=0.3, form="qfql"))(noise(), flow_time)
        expected = swirl(noise(), flow_time) + 0.3 * slope(noise())
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)
        same = guide(swirl, qgf(wavy, weight=0.3, estimate="noisy"))(noise(), flow_time)
        assert torch.equal(found, same)


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="'form' must be one of cgql, qfql: got 'sac'"):
        noisy_gradient(wavy, weight=0.1, form="sac")
    with pytest.raises(ConfigError, match="'inverse_temperature' must be finite and at least 0"):
        noisy_gradient(wavy, weight=0.1, inverse_temperature=-1.0)
