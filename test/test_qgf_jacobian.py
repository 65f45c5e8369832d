"""QGF with the Jacobian of the clean prediction, and what the paper does to that Jacobian."""

from __future__ import annotations

import itertools

import pytest
import torch
from fields import Counting, hill, noise, numerical_gradient, swirl, times, towards, wavy
from torch import Tensor

from qsteer_ros import ensemble
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, VelocityField, predict_clean
from qsteer_ros.steering.gradient import norm_per_sample, slope_at
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qgf_jacobian import qgf_jacobian
from qsteer_ros.steering.step_noise import StepNoise

BOUNDS = (-1.0, 1.0)


def guidance(flow_time: Tensor, *, weight: float = 1.0, **options: object) -> Tensor:
    field = guide(swirl, qgf_jacobian(wavy, weight=weight, **options))  # type: ignore[arg-type]
    return field(noise(), flow_time) - swirl(noise(), flow_time)


def clean(point: Tensor, flow_time: Tensor) -> Tensor:
    return predict_clean(point, flow_time, swirl(point, flow_time))


def slope(flow_time: Tensor) -> Tensor:
    """The critic's gradient at the clipped prediction."""
    point = clean(noise(), flow_time)
    return slope_at(wavy, point, aggregate=ensemble.minimum, bounds=BOUNDS).gradient


def through(flow_time: Tensor, gradient: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    """J^T gradient of the unclipped prediction at the shifted chunk, by differences."""
    return numerical_gradient(
        lambda point: (gradient * clean(point + shift, flow_time)).sum(dim=(1, 2)), noise()
    )


def test_the_gradient_is_that_of_the_clipped_prediction_with_respect_to_the_noisy_chunk() -> None:
    for flow_time in times(4):
        assert (clean(noise(), flow_time).abs() > 1.0).any()  # some components are saturated

        def value(point: Tensor, time: Tensor = flow_time) -> Tensor:
            return wavy(clean(point, time).clamp(*BOUNDS)).amin(dim=0)

        expected = numerical_gradient(value, noise())
        torch.testing.assert_close(guidance(flow_time), expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 2.0])
def test_the_regularised_gradient_adds_a_share_of_the_jacobians_to_the_plain_one(
    epsilon: float,
) -> None:
    for flow_time in times(4):
        found = guidance(flow_time, weight=0.7, jacobian="regularised", epsilon=epsilon)
        expected = 0.7 * (slope(flow_time) + epsilon * guidance(flow_time))
        torch.testing.assert_close(found, expected)


def test_the_orthogonal_gradient_is_turned_by_the_rotation_in_the_jacobian() -> None:
    """Against the polar factor of a Jacobian made of differences."""
    for flow_time in times(4):
        rows = []
        for component in range(6):
            one = torch.zeros(6, dtype=torch.float64)
            one[component] = 1.0
            rows.append(through(flow_time, one.view(1, 3, 2).expand(4, 3, 2)).flatten(1))
        left, _, right = torch.linalg.svd(torch.stack(rows, dim=1))
        expected = torch.einsum("bij,bi->bj", left @ right, slope(flow_time).flatten(1))
        found = guidance(flow_time, jacobian="orthogonal")
        torch.testing.assert_close(found.flatten(1), expected, atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(norm_per_sample(found), norm_per_sample(slope(flow_time)))


@pytest.mark.parametrize("stretch", [0.2, 3.0])
def test_stretching_alone_does_not_turn_the_orthogonal_gradient(stretch: float) -> None:
    def field(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        return (stretch - 1.0) * noisy_chunk / (1.0 - flow_time).view(-1, 1, 1)

    flow_time = torch.full((4,), 0.3, dtype=torch.float64)
    start = 0.1 * noise()
    rule = qgf_jacobian(hill(0.5), weight=1.0, jacobian="orthogonal")
    found = guide(field, rule)(start, flow_time) - field(start, flow_time)
    torch.testing.assert_close(found, -2.0 * (stretch * start - 0.5))


def test_the_smoothed_gradient_is_the_mean_over_perturbed_chunks() -> None:
    for flow_time in list(times(4))[1:]:
        shape, like = torch.Size((3, 1, 3, 2)), torch.zeros(1)
        shifts = 0.3 * StepNoise(5)(float(flow_time[0]), shape, like=like).double()
        found = guidance(flow_time, jacobian="smoothed", num_samples=3, perturbation=0.3, seed=5)
        each = [through(flow_time, slope(flow_time), shift) for shift in shifts]
        torch.testing.assert_close(found, torch.stack(each).mean(dim=0), atol=1e-7, rtol=1e-6)
        assert (each[0] - each[1]).abs().max() > 1e-2  # the perturbations matter


def test_smoothing_over_nothing_is_the_unclipped_jacobian() -> None:
    for flow_time in times(4):
        found = guidance(flow_time, jacobian="smoothed", perturbation=0.0)
        expected = through(flow_time, slope(flow_time))
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)


def test_smoothing_depends_on_its_seed_alone() -> None:
    flow_time = torch.full((4,), 0.4, dtype=torch.float64)
    once = guidance(flow_time, jacobian="smoothed", seed=1)
    assert torch.equal(once, guidance(flow_time, jacobian="smoothed", seed=1))
    assert not torch.allclose(once, guidance(flow_time, jacobian="smoothed", seed=2))


def test_smoothing_asks_the_field_at_the_chunk_and_at_each_perturbed_one() -> None:
    field = Counting(lambda chunk: chunk)

    def counted(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        field(noisy_chunk)
        return swirl(noisy_chunk, flow_time)

    flow_time = torch.full((4,), 0.4, dtype=torch.float64)
    rule = qgf_jacobian(wavy, weight=1.0, jacobian="smoothed", num_samples=3)
    guide(counted, rule)(noise(), flow_time)
    assert len(field.asked) == 4


def gaussian(mean: float, std: float) -> VelocityField:
    """Field of data that is normal with this mean and deviation in every component."""

    def field(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        tau = flow_time.view(-1, 1, 1)
        gain = tau * std**2 / ((1 - tau) ** 2 + tau**2 * std**2)
        return (mean + gain * (noisy_chunk - tau * mean) - noisy_chunk) / (1 - tau)

    return field


def tilted_error(steps: int) -> Tensor:
    """How far the tilt of N(-0.2, 0.6^2) by a linear critic is from the exact one."""
    slopes = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64).view(3, 2)
    rule = qgf_jacobian(
        lambda chunk: (slopes * chunk).sum(dim=(1, 2)).unsqueeze(0),
        weight=0.8,
        coefficient="tilt",
    )
    field = guide(gaussian(-0.2, 0.6), rule, bounds=(-100.0, 100.0))
    found = Sampler(steps).denoise(field, noise())
    exact = -0.2 + 0.8 * 0.6**2 * slopes + 0.6 * noise()
    return (found - exact).abs().max()


def test_on_gaussian_data_a_linear_critic_tilts_the_density_exactly() -> None:
    """Its mean moves by w std^2 grad Q; the error of Euler steps halves with their size."""
    errors = [tilted_error(steps) for steps in (40, 80, 160, 320)]
    assert errors[-1] < 1e-2
    for coarse, fine in itertools.pairwise(errors):
        assert 1.7 < coarse / fine < 2.3


def test_on_concentrated_data_nothing_is_pushed() -> None:
    field = guide(towards(0.3), qgf_jacobian(hill(0.8), weight=3.0))
    chunk = Sampler(10).denoise(field, noise())
    torch.testing.assert_close(chunk, torch.full_like(chunk, 0.3))


def test_without_a_field_the_jacobian_is_the_identity() -> None:
    def still(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        return torch.zeros_like(noisy_chunk)

    flow_time = torch.full((4,), 0.4, dtype=torch.float64)
    inside = 0.3 * noise()
    expected = guide(still, qgf(wavy, weight=1.0))(inside, flow_time)
    for jacobian, share in (("plain", 1.0), ("orthogonal", 1.0), ("regularised", 1.1)):
        field = guide(still, qgf_jacobian(wavy, weight=1.0, jacobian=jacobian))
        torch.testing.assert_close(field(inside, flow_time), share * expected)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("jacobian", "qr", "'jacobian' must be one of plain, regularised, orthogonal, smoothed"),
        ("coefficient", "linear", "'coefficient' must be one of constant, tilt: got 'linear'"),
        ("num_samples", 0, "'num_samples' must be at least 1: got 0"),
        ("perturbation", -1.0, "'perturbation' must be finite and at least 0: got -1.0"),
    ],
)
def test_an_option_that_means_nothing_is_refused(option: str, value: object, message: str) -> None:
    options = {"jacobian": "smoothed", option: value}
    with pytest.raises(ConfigError, match=message):
        qgf_jacobian(wavy, weight=1.0, **options)  # type: ignore[arg-type]


def test_a_negative_epsilon_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'epsilon' must be finite and at least 0: got -0.1"):
        qgf_jacobian(wavy, weight=1.0, jacobian="regularised", epsilon=-0.1)
