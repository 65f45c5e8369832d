"""How values become weights: normalisation, clip and log-mean-exp."""

from __future__ import annotations

import math

import pytest
import torch
from fields import (
    wavy,
)
from sampled import MEAN, push, scattered, small
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.steering.qpilots_m import Tilt, log_mean_exp


def test_an_affine_change_of_q_that_the_statistics_follow_changes_nothing() -> None:
    tilt = Tilt(mean=0.2, std=0.5, clip=3.0)
    followed = Tilt(mean=200.0 + 7.0, std=500.0, clip=3.0)
    of = {"aggregate": MEAN}
    torch.testing.assert_close(
        push(lambda a: 1e3 * wavy(a) + 7.0, scattered, 0.5, tilt=followed, **of),
        push(wavy, scattered, 0.5, tilt=tilt, **of),
    )


def test_a_constant_added_to_q_changes_nothing_and_a_factor_sharpens_the_weights() -> None:
    base = push(wavy, scattered, 0.5, aggregate=MEAN)
    torch.testing.assert_close(push(lambda a: wavy(a) + 5.0, scattered, 0.5, aggregate=MEAN), base)
    sharper = push(lambda a: 30.0 * wavy(a), scattered, 0.5, aggregate=MEAN)
    assert not torch.allclose(sharper, base, atol=1e-3)
    hotter = Tilt(mean=0.0, std=1.0, clip=math.inf, inverse_temperature=30.0)
    torch.testing.assert_close(push(wavy, scattered, 0.5, aggregate=MEAN, tilt=hotter), sharper)
    one = {"aggregate": MEAN, "num_samples": 1}  # nothing to weigh: the scale drops out
    torch.testing.assert_close(
        push(lambda a: 30.0 * wavy(a), scattered, 0.5, **one), push(wavy, scattered, 0.5, **one)
    )


def test_a_saturated_value_has_no_gradient_and_keeps_its_share_of_the_weight() -> None:
    """Sample 1 is far better than the clip: it mutes sample 0, and adds no direction."""

    def two(normals: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        apart = torch.tensor([0.0, 0.5], dtype=normals.dtype).view(1, 2, 1, 1)
        return 0.1 * noisy_chunk.unsqueeze(1) + apart

    def linear(chunk: Tensor) -> Tensor:
        return chunk.sum(dim=(1, 2)).unsqueeze(0)

    options = {"num_samples": 2, "aggregate": MEAN, "scaling": "tilt", "weight": 1.0}
    found = push(linear, two, 0.5, tilt=Tilt(0.0, 1.0, clip=2.0), **options)
    low = linear(0.1 * small())[0]
    share = torch.exp(low) / (torch.exp(low) + math.exp(2.0))
    assert (low.abs() < 2.0).all()
    torch.testing.assert_close(found, (0.1 * share).view(-1, 1, 1).expand_as(found))
    silent = push(linear, two, 0.5, tilt=Tilt(-10.0, 1.0, clip=2.0), **options)
    assert torch.equal(silent, torch.zeros_like(silent))


def test_all_saturated_is_the_frozen_policy_also_at_the_length_of_the_drift() -> None:
    found = push(wavy, scattered, 0.5, tilt=Tilt(mean=100.0, std=1.0, clip=5.0))
    assert torch.equal(found, torch.zeros_like(found))


def test_the_log_mean_exp_lies_between_mean_and_maximum_and_follows_the_better_sample() -> None:
    weights = torch.tensor([[0.0, 2.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    value = log_mean_exp(weights)
    expected = torch.tensor([math.log((1.0 + math.exp(2.0)) / 2.0), 1.0], dtype=torch.float64)
    torch.testing.assert_close(value, expected)
    assert 1.0 < value[0].item() < 2.0
    (gradient,) = torch.autograd.grad(value.sum(), weights)
    torch.testing.assert_close(gradient, torch.softmax(weights, dim=1).detach())
    small_tilt = 1e-4 * torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64)
    torch.testing.assert_close(log_mean_exp(small_tilt), small_tilt.mean(), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": math.nan}, "tilt 'mean' must be finite: got nan"),
        ({"std": 0.0}, "tilt 'std' must be finite and positive: got 0.0"),
        ({"std": math.inf}, "tilt 'std' must be finite and positive: got inf"),
        ({"clip": 0.0}, "tilt 'clip' must be positive: got 0.0"),
        ({"clip": math.nan}, "tilt 'clip' must be positive: got nan"),
        ({"inverse_temperature": 0.0}, "'inverse_temperature' must be finite and positive: got"),
    ],
)
def test_a_tilt_that_is_no_normalisation_is_refused(
    values: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Tilt(**{"mean": 0.0, "std": 1.0, "clip": 5.0} | values)
