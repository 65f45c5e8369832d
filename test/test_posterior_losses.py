"""Targets and times of the posterior map's training, by hand and in another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qsteer_ros.learning.posterior_losses import (
    between,
    conditioning_time,
    scaled_error,
    semigroup_target,
    step_times,
)


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def decay(inner: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Average velocity of dy/dr = -y: a flow that composes."""
    gap = (end - start).unsqueeze(1)
    safe = torch.where(gap > 0.0, gap, torch.ones_like(gap))
    return inner * torch.where(gap > 0.0, (torch.exp(-gap) - 1.0) / safe, -torch.ones_like(gap))


def test_two_steps_are_put_together_by_hand() -> None:
    """U = y + q: from y = 1 over (0, 1) with half way at a quarter."""

    def average(inner: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return inner + end.unsqueeze(1)

    found = semigroup_target(average, row(1.0).view(1, 1), row(0.0), row(1.0), row(0.25))
    first = 1.0 + 0.25  # at y = 1, end 0.25
    halfway = 1.0 + 0.25 * first
    second = halfway + 1.0  # end 1
    assert float(found) == pytest.approx(0.25 * first + 0.75 * second)


def test_an_average_velocity_that_composes_is_its_own_target() -> None:
    y = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start, end = row(0, 0.1, 0.2, 0.3, 0, 0.5, 1), row(1, 0.1, 0.9, 0.4, 0.5, 0.6, 1)
    share = row(0.3, 0.5, 0.0, 1.0, 0.7, 0.2, 0.5)
    target = semigroup_target(decay, y, start, end, share)
    torch.testing.assert_close(target, decay(y, start, end), atol=1e-12, rtol=0)
    instant = semigroup_target(lambda y, _, __: -y, y, start, end, share)
    assert (instant - (-y))[[0, 2, 4]].abs().max() > 0.01  # one that does not is told so


def test_the_target_carries_no_gradient() -> None:
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    target = semigroup_target(
        lambda y, _, __: weight * y, row(1.0).view(1, 1), row(0.0), row(1.0), row(0.5)
    )
    assert not target.requires_grad


def test_errors_are_counted_in_the_unit_of_each_row_and_component() -> None:
    found, target = torch.tensor([[1.0, 2.0], [0.0, 0.5]]), torch.zeros(2, 2)
    unit = torch.tensor([[1.0, 4.0], [1.0, 0.1]])
    assert float(scaled_error(found, target, unit)) == pytest.approx((1 + 0.25 + 0 + 25) / 4)


def test_noise_and_chunk_are_mixed_by_each_rows_time() -> None:
    mixed = between(torch.zeros(2, 1), torch.full((2, 1), 4.0), torch.tensor([0.25, 1.0]))
    assert mixed.flatten().tolist() == [1.0, 4.0]


def test_flow_times_are_squares_below_the_highest_and_zero_in_a_share() -> None:
    source = torch.Generator().manual_seed(0)
    uniform, other = torch.rand(2, 100_000, generator=source)
    found = conditioning_time(uniform, other, highest=0.9, zero_share=0.1)
    assert float((found == 0.0).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert 0.89 < float(found.max()) < 0.9
    assert float(found[found > 0].mean()) == pytest.approx(0.9 / 3, abs=0.005)  # E U^2
    assert float(found[found > 0].median()) == pytest.approx(0.9 / 4, abs=0.005)


def test_steps_run_forward_and_a_share_of_them_all_the_way() -> None:
    source = torch.Generator().manual_seed(0)
    one, two, other = torch.rand(3, 100_000, generator=source)
    start, end = step_times(one, two, other, whole_share=0.25)
    assert bool((start <= end).all())
    whole = (start == 0.0) & (end == 1.0)
    assert float(whole.float().mean()) == pytest.approx(0.25, abs=0.005)
    assert float(start[~whole].mean()) == pytest.approx(1 / 3, abs=0.01)
    assert float(end[~whole].mean()) == pytest.approx(2 / 3, abs=0.01)
