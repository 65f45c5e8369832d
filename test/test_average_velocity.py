"""The network of a meta flow map: exact where the data are Gaussian, of order one elsewhere."""

from __future__ import annotations

import pytest
import torch
from fields import noise
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.policies.average_velocity import AverageVelocity

TIMES = (0.0, 1e-4, 0.2, 0.6, 0.95)
STEPS = ((0.0, 1.0), (0.0, 0.3), (0.3, 0.3), (0.2, 0.9), (0.9, 1.0), (1.0, 1.0))
MEAN = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
STD = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64)


def network(*, silent: bool = True, hidden: tuple[int, ...] = (8, 8)) -> AverageVelocity:
    """In float64; silent: what is learned adds nothing."""
    torch.manual_seed(0)
    made = AverageVelocity(2, MEAN, STD, hidden).double().requires_grad_(False)
    if silent:
        made.body.head.weight.zero_()
    return made


def states(count: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Features, noisy chunks and inner states."""
    rows = noise(2 * count).flatten(1)[:, :3]
    return noise(count, seed=1).flatten(1)[:, :2], rows[:count], rows[count:]


def at(time: float, count: int = 5) -> Tensor:
    return torch.full((count,), time, dtype=torch.float64)


def posterior(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of the clean action behind x, from adding precisions."""
    if t == 0.0:
        return MEAN.expand_as(x), STD.square().expand_as(x)
    precision = 1 / STD**2 + t**2 / (1 - t) ** 2
    return (MEAN / STD**2 + t / (1 - t) ** 2 * x) / precision, (1 / precision).expand_as(x)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize(("r", "q"), STEPS)
def test_before_it_has_learned_it_is_the_flow_of_a_gaussian_posterior(
    t: float, r: float, q: float
) -> None:
    """The flow of a Gaussian keeps each state's score: its distance in standard deviations."""
    features, x, y = states()
    mean, variance = posterior(x, t)
    here, there = ((s**2 * variance + (1 - s) ** 2).sqrt() for s in (r, q))
    found = network()(features, x, at(t), y, at(r), at(q))
    if q > r:
        arrived = q * mean + there * (y - r * mean) / here
        torch.testing.assert_close(y + (q - r) * found, arrived, atol=1e-12, rtol=1e-12)
    else:
        bump = 1e-6
        deviation = [(s**2 * variance + (1 - s) ** 2).sqrt() for s in (r + bump, r - bump)]
        slope = (deviation[0] - deviation[1]) / (2 * bump)
        instant = mean + slope * (y - r * mean) / here
        torch.testing.assert_close(found, instant, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("r", [0.0, 0.2, 0.9, 1.0])
def test_the_unit_it_writes_in_is_what_both_views_leave_open_per_inner_time(
    t: float, r: float
) -> None:
    """Precisions of data, x and y add up; what is left has 1 - r to go."""
    features, x, y = states()
    unit = network().unit(at(t), at(r))
    if r < 1.0:
        precision = 1 / STD**2 + t**2 / (1 - t) ** 2 + r**2 / (1 - r) ** 2
        torch.testing.assert_close(unit, (precision.rsqrt() / (1 - r)).expand_as(unit))
    inputs = (features, x, at(t), y, at(r), at(1.0))
    loud, still = network(silent=False), network()(*inputs)
    once = loud(*inputs) - still
    loud.body.head.weight.mul_(2.0)
    torch.testing.assert_close(loud(*inputs) - still, 2.0 * once)
    output: list[Tensor] = []
    loud.body.register_forward_hook(lambda _, __, found: output.append(found))
    torch.testing.assert_close(loud(*inputs) - still, unit * output.pop())


def test_what_it_reads_is_of_order_one_where_the_posterior_is_narrow() -> None:
    """Inputs of the first layer, for states as they occur at flow time 0.999."""
    read: list[Tensor] = []
    made = network()
    made.body.layers[0].register_forward_hook(lambda _, inputs, __: read.append(inputs[0]))
    clean = MEAN + STD * noise(64).flatten(1)[:, :3]
    t, r = 0.999, 0.999
    x = t * clean + (1 - t) * noise(64, seed=1).flatten(1)[:, :3]
    y = r * clean + (1 - r) * noise(64, seed=2).flatten(1)[:, :3]
    made(torch.zeros(64, 2, dtype=torch.float64), x, at(t, 64), y, at(r, 64), at(1.0, 64))
    own = read[0][:, -19:-16]
    assert own.square().mean() == pytest.approx(1.0, abs=0.3)


def test_it_depends_on_every_input() -> None:
    features, x, y = states()
    made = network(silent=False)
    inputs = [features, x, at(0.4), y, at(0.3), at(0.8)]
    found = made(*inputs)
    for index, value in enumerate(inputs):
        moved = [*inputs[:index], value + 0.05, *inputs[index + 1 :]]
        assert (made(*moved) - found).abs().max() > 1e-4


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one feature, action and hidden unit"):
        AverageVelocity(2, MEAN, STD, ())
