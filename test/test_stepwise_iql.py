"""Stepwise IQL: one value per position, what comes after the end, chunks that are cut off."""

from __future__ import annotations

import pytest
import torch
from objective_numbers import BATCH, ENDED, MEMBERS, POSITIONS, VALID, asymmetric, drawn, plain
from torch import Tensor

from qsteer_ros.critics.stepwise_iql import (
    position_weights,
    stepwise_iql_losses,
    stepwise_targets,
)


def test_stepwise_targets_are_what_a_loop_over_positions_computes() -> None:
    rewards = torch.where(ENDED.roll(1, 1) & ENDED, 0.0, drawn(BATCH, POSITIONS))
    value, after = drawn(BATCH, POSITIONS, seed=1), drawn(BATCH, seed=2)
    found = stepwise_targets(rewards, ENDED, value=value, next_value=after, discount=0.9)
    for b in range(BATCH):
        for i in range(POSITIONS):
            follows = float(value[b, i + 1]) if i + 1 < POSITIONS else float(after[b])
            going = 0.0 if ENDED[b, i] else 1.0
            expected = float(rewards[b, i]) + 0.9 * going * follows
            assert float(found[b, i]) == pytest.approx(expected), (b, i)


def test_positions_after_the_end_of_the_task_are_regressed_to_zero_and_count() -> None:
    """Solved at the second step: -1, then the last reward 0, then nothing."""
    rewards = torch.tensor([[-1.0, -1.0, 0.0, 0.0]])
    ended = torch.tensor([[False, True, True, True]])
    value = torch.full((1, 4), -7.0)
    targets = stepwise_targets(
        rewards, ended, value=value, next_value=torch.tensor([-9.0]), discount=0.5
    )
    assert targets.tolist() == [[-1 - 3.5, -1.0, 0.0, 0.0]]
    values = torch.ones(2, 1, 4, requires_grad=True)
    loss, _ = stepwise_iql_losses(
        values, value, slow=torch.zeros(2, 1, 4), targets=targets, expectile=0.8
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert (values.grad[:, 0, 2:] > 0).all()


def test_a_chunk_cut_off_early_bootstraps_there_and_the_rest_has_no_weight() -> None:
    """Truncated after 2 of 4 steps: position 1 sees the next state, positions 2 and 3 nothing."""
    rewards = torch.tensor([[-1.0, -2.0, 0.0, 0.0]])
    ended, steps = torch.zeros(1, 4, dtype=torch.bool), torch.tensor([2])
    value = torch.tensor([[-10.0, -20.0, -30.0, -40.0]])
    targets = stepwise_targets(
        rewards, ended, value=value, next_value=torch.tensor([-4.0]), discount=0.5, steps=steps
    )
    assert targets[0, :2].tolist() == [-1 - 10.0, -2 - 2.0]
    weights = position_weights(ended, steps=steps, valid=None)
    assert weights is not None
    assert weights.tolist() == [[1, 1, 0, 0]]
    values, v = torch.zeros(2, 1, 4, requires_grad=True), value.clone().requires_grad_(True)
    losses = stepwise_iql_losses(
        values, v, slow=torch.zeros(2, 1, 4), targets=targets, expectile=0.8, weights=weights
    )
    sum(losses).backward()  # type: ignore[union-attr, no-untyped-call]
    assert values.grad is not None
    assert v.grad is not None
    assert (values.grad[:, 0, 2:] == 0).all()
    assert (v.grad[0, 2:] == 0).all()
    assert (values.grad[:, 0, :2] != 0).all()
    over = torch.tensor([[False, True, True, True]])  # ended, not cut off: all positions count
    assert position_weights(over, steps=steps, valid=None).tolist() == [[1, 1, 1, 1]]  # type: ignore[union-attr]


@pytest.mark.parametrize("valid", [None, VALID])
def test_stepwise_losses_are_what_a_loop_computes(valid: Tensor | None) -> None:
    values, slow = (drawn(MEMBERS, BATCH, POSITIONS, seed=s) for s in (0, 1))
    value, targets = (drawn(BATCH, POSITIONS, seed=s) for s in (2, 3))
    weights = position_weights(ENDED, steps=None, valid=valid)
    q_loss, v_loss = stepwise_iql_losses(
        values, value, slow=slow, targets=targets, expectile=0.8, weights=weights
    )
    q_by_hand = v_by_hand = 0.0
    for b in range(BATCH):
        weight = 1.0 if valid is None else float(valid[b])
        for i in range(POSITIONS):
            errors = (plain(values[:, b, i]) - float(targets[b, i])) ** 2
            q_by_hand += weight * errors.mean()
            least = float(plain(slow[:, b, i]).min())
            v_by_hand += weight * asymmetric(least - float(value[b, i]), 0.8)
    assert float(q_loss) == pytest.approx(q_by_hand / (BATCH * POSITIONS))
    assert float(v_loss) == pytest.approx(v_by_hand / (BATCH * POSITIONS))
