from __future__ import annotations

import pytest
import torch

from qsteer_ros import ensemble
from qsteer_ros.errors import ConfigError

VALUES = torch.tensor([[1.0, -4.0], [3.0, -4.0], [8.0, -4.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("reduction", "rho", "expected"),
    [
        ("min", 0.0, [1.0, -4.0]),
        ("mean", 0.0, [4.0, -4.0]),
        ("pessimistic", 0.0, [4.0, -4.0]),
        ("pessimistic", 0.5, [4.0 - 0.5 * (26.0 / 3.0) ** 0.5, -4.0]),
    ],
)
def test_an_aggregate_is_its_formula_with_the_population_deviation(
    reduction: str, rho: float, expected: list[float]
) -> None:
    found = ensemble.aggregate(reduction, rho=rho)(VALUES)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_where_members_agree_the_pessimistic_gradient_is_that_of_the_mean() -> None:
    values = torch.full((3, 2), 7.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(ensemble.pessimistic(2.0)(values).sum(), values)
    torch.testing.assert_close(gradient, torch.full((3, 2), 1 / 3))


def test_pessimism_prefers_members_that_agree() -> None:
    agree, differ = torch.tensor([[2.0], [2.0]]), torch.tensor([[1.0], [3.0]])
    reduce = ensemble.pessimistic(0.5)
    assert reduce(agree) > reduce(differ)


def test_an_unknown_reduction_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="one of min, mean, pessimistic: got 'max'"):
        ensemble.aggregate("max")


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
def test_a_rho_that_means_nothing_is_refused(rho: float) -> None:
    with pytest.raises(ConfigError, match="'rho' must be finite and at least 0"):
        ensemble.pessimistic(rho)
