from __future__ import annotations

import pytest
import torch
from fields import hill, noise, wavy

from qsteer_ros import ensemble
from qsteer_ros.errors import DataError
from qsteer_ros.steering.best_of_n import best_of_n


def test_the_chunk_nearest_to_the_top_wins() -> None:
    chunks = torch.tensor([0.0, 0.9, 0.4, -1.0], dtype=torch.float64).view(4, 1, 1).expand(4, 3, 2)
    winner, index = best_of_n(chunks, hill(0.5))
    assert index == 2
    assert torch.equal(winner, chunks[2:3])


def test_one_candidate_wins_unchanged() -> None:
    winner, index = best_of_n(noise(1), wavy)
    assert index == 0
    assert torch.equal(winner, noise(1))


def test_the_first_of_equals_wins() -> None:
    assert best_of_n(noise(1).expand(3, -1, -1), wavy)[1] == 0


def test_the_aggregate_decides() -> None:
    values = torch.tensor([[0.0, 5.0], [1.0, -5.0]])
    chunks = torch.zeros(2, 1, 1)
    assert best_of_n(chunks, lambda _: values, aggregate=ensemble.minimum)[1] == 0
    assert best_of_n(chunks, lambda _: values + torch.tensor([[0, 9], [0, 0]]),
                     aggregate=ensemble.mean)[1] == 1  # fmt: skip


def test_the_candidates_are_judged_without_recording_gradients() -> None:
    def q(chunk: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return wavy(chunk)

    assert best_of_n(noise(3), q)[0].shape == (1, 3, 2)


def test_values_that_are_not_finite_are_refused() -> None:
    values = torch.tensor([[0.0, float("nan")]])
    with pytest.raises(DataError, match=r"must be finite: 1 of 2 are not. Check the critic"):
        best_of_n(torch.zeros(2, 1, 1), lambda _: values)
