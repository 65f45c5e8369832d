"""Mean and spread of a stream of values."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from qsteer_ros.critics.statistics import RunningStatistics
from qsteer_ros.errors import DataError


def values(count: int = 1000, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3.0 * torch.randn(count, dtype=torch.float64, generator=generator) - 40.0


def collected(*batches: Tensor) -> RunningStatistics:
    statistics = RunningStatistics()
    for batch in batches:
        statistics.update(batch)
    return statistics


@pytest.mark.parametrize("cuts", [[1000], [1] * 1000, [1, 7, 0, 492, 500]])
def test_batches_of_any_size_give_the_mean_and_deviation_of_all(cuts: list[int]) -> None:
    found = collected(*values().split(cuts))
    assert found.count == 1000
    assert found.mean == pytest.approx(float(values().mean()), rel=1e-12)
    assert found.std == pytest.approx(float(values().std(unbiased=False)), rel=1e-12)


def test_the_shape_of_a_batch_does_not_matter() -> None:
    assert collected(values().view(10, 100)) == collected(values())


def test_merged_statistics_are_those_of_both_streams_and_leave_the_other_alone() -> None:
    first, second = collected(values(300)), collected(values(50, seed=1) + 100.0)
    kept = RunningStatistics.from_json(second.to_json())
    first.merge(second)
    both = torch.cat([values(300), values(50, seed=1) + 100.0])
    assert first.count == 350
    assert first.mean == pytest.approx(float(both.mean()), rel=1e-12)
    assert first.std == pytest.approx(float(both.std(unbiased=False)), rel=1e-12)
    assert second == kept


def test_nothing_merges_with_nothing_and_changes_nothing() -> None:
    empty, some = RunningStatistics(), collected(values())
    empty.merge(RunningStatistics())
    assert empty == RunningStatistics()
    some.merge(empty)
    assert some == collected(values())
    empty.merge(some)
    assert empty == some


def test_a_large_offset_costs_no_digits() -> None:
    """The difference of two sums of squares would be left with none."""
    near = torch.tensor([1e9 - 1.0, 1e9, 1e9 + 1.0], dtype=torch.float64)
    assert collected(*near.split(1)).std == pytest.approx(math.sqrt(2.0 / 3.0), rel=1e-7)


def test_single_precision_values_are_summed_in_double() -> None:
    single = values(100_000).float()
    exact = single.double()
    assert collected(single).mean == pytest.approx(float(exact.mean()), rel=1e-12)
    assert collected(single).std == pytest.approx(float(exact.std(unbiased=False)), rel=1e-12)


def test_equal_values_have_no_deviation() -> None:
    assert collected(torch.full((5,), 2.5), torch.full((3,), 2.5)).std == 0.0


def test_statistics_survive_a_file_bit_for_bit() -> None:
    original = collected(values())
    assert RunningStatistics.from_json(json.loads(json.dumps(original.to_json()))) == original
    assert RunningStatistics.from_json(RunningStatistics().to_json()) == RunningStatistics()


def test_values_with_a_graph_are_taken_in_without_it() -> None:
    assert collected(values().requires_grad_(True)) == collected(values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_and_nothing_is_taken_in(bad: float) -> None:
    statistics = collected(values())
    with pytest.raises(DataError, match="values must be finite: 1 of 3 are not"):
        statistics.update(torch.tensor([1.0, bad, 2.0]))
    assert statistics == collected(values())


def test_no_values_have_no_deviation_to_speak_of() -> None:
    with pytest.raises(DataError, match="needs values: none has been seen"):
        _ = RunningStatistics().std


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"count": 3, "mean": 0.0}, "must have the names count, mean, squares: got count, mean"),
        ({}, "must have the names count, mean, squares: got none"),
        ({"count": 3, "mean": 0.0, "squares": 1.0, "std": 1.0}, "must have the names"),
        ({"count": -1, "mean": 0.0, "squares": 0.0}, "a count of at least 0"),
        ({"count": 2.5, "mean": 0.0, "squares": 0.0}, "a whole count: got 2.5"),
        ({"count": True, "mean": 0.0, "squares": 0.0}, "must be numbers"),
        ({"count": 3, "mean": "1", "squares": 0.0}, "must be numbers"),
        ({"count": 3, "mean": math.nan, "squares": 1.0}, "a finite mean"),
        ({"count": 3, "mean": 0.0, "squares": -1.0}, "squares of at least 0"),
        ({"count": 0, "mean": 1.0, "squares": 0.0}, "both 0 without values"),
    ],
)
def test_numbers_that_are_no_statistics_are_refused(plain: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        RunningStatistics.from_json(plain)
