"""Objectives of critics: hand-computed cases, loops in plain numbers, what gets no gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from objective_numbers import (
    BATCH,
    BOOTSTRAP,
    CANDIDATES,
    ENDED,
    MEMBERS,
    NEXT_VALID,
    POSITIONS,
    VALID,
    asymmetric,
    drawn,
    leaf,
    plain,
)
from torch import Tensor

from qsteer_ros.critics.calql import (
    calibrated,
    conservative_loss,
    local_log_density,
    uniform_log_density,
)
from qsteer_ros.critics.iql import iql_losses
from qsteer_ros.critics.monte_carlo import monte_carlo_loss, returns_by_position
from qsteer_ros.critics.sarsa import countable, sarsa_loss
from qsteer_ros.critics.stepwise_iql import (
    position_weights,
    stepwise_iql_losses,
)
from qsteer_ros.critics.td import td_target
from qsteer_ros.ensemble import minimum, pessimistic


@pytest.mark.parametrize("valid", [None, VALID])
def test_iql_is_what_a_loop_over_rows_computes(valid: Tensor | None) -> None:
    values, value = leaf(MEMBERS, BATCH), leaf(BATCH, seed=1)
    slow, after, reward = drawn(MEMBERS, BATCH, seed=2), leaf(BATCH, seed=3), drawn(BATCH, seed=4)
    q_loss, v_loss = iql_losses(
        values,
        value,
        slow=slow,
        next_value=after,
        reward=reward,
        bootstrap=BOOTSTRAP,
        expectile=0.8,
        valid=valid,
    )
    counts = np.ones(BATCH) if valid is None else plain(valid)
    q_by_hand = v_by_hand = 0.0
    for b in range(BATCH):
        y = float(reward[b]) + float(BOOTSTRAP[b]) * float(after[b].detach())
        q_by_hand += counts[b] * sum((float(values[e, b].detach()) - y) ** 2 for e in range(3)) / 3
        least = min(float(slow[e, b]) for e in range(MEMBERS))
        v_by_hand += counts[b] * asymmetric(least - float(value[b].detach()), 0.8)
    assert float(q_loss.detach()) == pytest.approx(q_by_hand / BATCH)
    assert float(v_loss.detach()) == pytest.approx(v_by_hand / BATCH)
    (q_loss + v_loss).backward()  # type: ignore[no-untyped-call]
    assert after.grad is None  # nothing flows through the bootstrap


def test_iql_of_one_row_by_hand() -> None:
    """The target is -2 + 0.5 * -4 = -4; errors are 1 and 3; V = -5 lies 2 below the least, -3."""
    q_loss, v_loss = iql_losses(
        torch.tensor([[-3.0], [-1.0]]),
        torch.tensor([-5.0]),
        slow=torch.tensor([[-3.0], [-2.0]]),
        next_value=torch.tensor([-4.0]),
        reward=torch.tensor([-2.0]),
        bootstrap=torch.tensor([0.5]),
        expectile=0.9,
    )
    assert float(q_loss) == pytest.approx((1 + 9) / 2)
    assert float(v_loss) == pytest.approx(0.9 * 4)


def sarsa(values: Tensor, after: Tensor, reward: Tensor, valid: Tensor | None = None) -> Tensor:
    return sarsa_loss(
        values,
        next_values=after,
        reward=reward,
        bootstrap=BOOTSTRAP,
        next_valid=NEXT_VALID,
        aggregate=pessimistic(0.5),
        valid=valid,
    )


@pytest.mark.parametrize("valid", [None, VALID])
def test_sarsa_is_what_a_loop_over_rows_computes(valid: Tensor | None) -> None:
    values, after = leaf(MEMBERS, BATCH), drawn(MEMBERS, BATCH, seed=2)
    reward, by_hand = drawn(BATCH, seed=4), 0.0
    for b in range(BATCH):
        if (BOOTSTRAP[b] > 0 and not NEXT_VALID[b]) or (valid is not None and valid[b] == 0):
            continue
        column = plain(after[:, b])
        known = column.mean() - 0.5 * math.sqrt(((column - column.mean()) ** 2).mean() + 1e-8)
        y = float(reward[b]) + float(BOOTSTRAP[b]) * known
        by_hand += ((plain(values[:, b]) - y) ** 2).mean() / BATCH
    assert float(sarsa(values, after, reward, valid).detach()) == pytest.approx(by_hand)


def test_sarsa_by_hand() -> None:
    """Mean 3, deviation 1: y = 1 + 0.5 (3 - 0.5) = 2.25."""
    loss = sarsa_loss(
        torch.tensor([[2.0], [3.0]]),
        next_values=torch.tensor([[2.0], [4.0]]),
        reward=torch.tensor([1.0]),
        bootstrap=torch.tensor([0.5]),
        next_valid=torch.tensor([True]),
        aggregate=pessimistic(0.5),
    )
    assert float(loss) == pytest.approx((0.25**2 + 0.75**2) / 2)


def test_a_row_without_a_next_chunk_counts_only_where_the_task_has_ended() -> None:
    assert countable(BOOTSTRAP, NEXT_VALID).tolist() == [1, 1, 0, 1, 1, 0]


def test_the_td_target_is_the_pessimistic_value_of_the_policys_chunk() -> None:
    """Members give the sum and its double: mean 1.5 s, deviation 0.5 s, so 1.25 s for rho 0.5."""

    def q(chunk: Tensor) -> Tensor:
        total = chunk.sum(dim=(1, 2))
        return torch.stack([total, 2.0 * total])

    chunk = torch.tensor([[[1.0]], [[2.0]], [[7.0]]], requires_grad=True)
    target = td_target(
        q,
        chunk,
        reward=torch.tensor([-1.0, -1.0, -3.0]),
        bootstrap=torch.tensor([0.5, 0.9, 0.0]),
        aggregate=pessimistic(0.5),
    )
    torch.testing.assert_close(target, torch.tensor([-1 + 0.5 * 1.25, -1 + 0.9 * 2.5, -3.0]))
    assert not target.requires_grad


def test_monte_carlo_regresses_the_return_of_the_data() -> None:
    loss = monte_carlo_loss(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1.0, 1.0]))
    assert float(loss) == pytest.approx((0 + 1 + 4 + 1) / 4)


def test_returns_by_position_are_what_is_left_after_each_reward() -> None:
    """Rewards -1 each, gamma 1/2; the second chunk is over after two steps."""
    rewards = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, -1.0, 0.0]])
    ended = torch.tensor([[False, False, False], [False, True, True]])
    after = -8.0  # what the first chunk's last state is worth
    returns = torch.tensor([-1 - 0.5 - 0.25 + 0.125 * after, -1.5])
    found = returns_by_position(returns, rewards, ended, discount=0.5)
    expected = torch.tensor([[-2.75, -3.5, -5.0], [-1.5, -1.0, 0.0]])
    torch.testing.assert_close(found, expected)


def conservative(
    values: Tensor, uniform: Tensor, policy: Tensor, valid: Tensor | None = None
) -> Tensor:
    return conservative_loss(
        values,
        uniform=uniform,
        policy=policy,
        mc_return=drawn(BATCH, seed=7),
        log_density=drawn(BATCH, 2 * CANDIDATES, seed=8),
        valid=valid,
    )


@pytest.mark.parametrize("valid", [None, VALID])
def test_the_conservative_loss_is_what_a_loop_over_candidates_computes(
    valid: Tensor | None,
) -> None:
    values = drawn(MEMBERS, BATCH)
    uniform, policy = (drawn(MEMBERS, BATCH, CANDIDATES, seed=s) for s in (1, 2))
    returns, density = plain(drawn(BATCH, seed=7)), plain(drawn(BATCH, 2 * CANDIDATES, seed=8))
    by_hand = 0.0
    for e in range(MEMBERS):
        for b in range(BATCH):
            lifted = [max(float(q), returns[b]) for q in policy[e, b]]
            candidates = [*(float(q) for q in uniform[e, b]), *lifted]
            total = sum(math.exp(c - d) for c, d in zip(candidates, density[b], strict=True))
            weight = 1.0 if valid is None else float(valid[b])
            by_hand += weight * (math.log(total) - float(values[e, b])) / (MEMBERS * BATCH)
    assert float(conservative(values, uniform, policy, valid)) == pytest.approx(by_hand)


def test_exactly_a_policys_candidates_below_the_return_are_lifted() -> None:
    """G = 1. Candidates 0 and 2 of either kind: only the policy's 0 counts as 1."""
    kinds = {
        name: torch.tensor([[[0.0, 2.0]]], dtype=torch.float64, requires_grad=True)
        for name in ("uniform", "policy")
    }
    values = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    loss = conservative_loss(values, mc_return=torch.ones(1, dtype=torch.float64), **kinds)
    e = math.exp
    total = e(0) + e(2) + e(1) + e(2)
    assert float(loss.detach()) == pytest.approx(math.log(total))
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: plain(tensor.grad)[0, 0].tolist() for name, tensor in kinds.items()}  # type: ignore[arg-type]
    assert found["uniform"] == pytest.approx([e(0) / total, e(2) / total])
    assert found["policy"] == pytest.approx([0.0, e(2) / total])
    assert found["policy"][0] == 0.0  # lifted: pushed no further
    assert values.grad is not None
    assert float(values.grad) == -1.0  # the data's own chunk is pushed up


def test_calibration_changes_nothing_above_the_return_and_gives_it_no_gradient() -> None:
    returns = torch.tensor([0.5, -0.5], requires_grad=True)
    values = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], requires_grad=True)
    found = calibrated(values, returns)
    assert found.tolist() == [[[1.0, 0.5], [-0.5, 0.0]]]
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad.tolist() == [[[1.0, 0.0], [0.0, 1.0]]]
    assert returns.grad is None


def test_without_densities_the_sum_is_a_plain_one() -> None:
    loss = conservative_loss(
        torch.tensor([[0.5]]),
        uniform=torch.tensor([[[0.0, 1.0]]]),
        policy=torch.zeros(1, 1, 0),
        mc_return=torch.tensor([9.0]),
    )
    assert float(loss) == pytest.approx(math.log(1 + math.e) - 0.5)


def test_densities_of_candidates_are_those_of_their_distributions() -> None:
    assert uniform_log_density(3) == pytest.approx(math.log(1 / 8))
    offset = 0.1 * drawn(BATCH, 2, 3, 2)
    expected = (
        torch.distributions.Normal(torch.zeros(()).double(), 0.1).log_prob(offset).sum(dim=(2, 3))
    )
    torch.testing.assert_close(local_log_density(offset, 0.1), expected)


def masked_iql(values: Tensor, valid: Tensor) -> Tensor:
    value = values.mean(dim=0) + 0.3
    return sum(
        iql_losses(
            values,
            value,
            slow=drawn(MEMBERS, BATCH, seed=2),
            next_value=drawn(BATCH, seed=3),
            reward=drawn(BATCH, seed=4),
            bootstrap=BOOTSTRAP,
            expectile=0.8,
            aggregate=minimum,
            valid=valid,
        ),
        start=torch.zeros(()),
    )


def masked_stepwise(values: Tensor, valid: Tensor) -> Tensor:
    wide = values.unsqueeze(2) + torch.arange(POSITIONS)
    losses = stepwise_iql_losses(
        wide,
        wide[0],
        slow=drawn(MEMBERS, BATCH, POSITIONS, seed=2),
        targets=drawn(BATCH, POSITIONS, seed=3),
        expectile=0.8,
        weights=position_weights(ENDED, steps=None, valid=valid),
    )
    return sum(losses, start=torch.zeros(()))


MASKED: list[Callable[[Tensor, Tensor], Tensor]] = [
    masked_iql,
    masked_stepwise,
    lambda values, valid: sarsa(values, drawn(MEMBERS, BATCH, seed=1), drawn(BATCH), valid),
    lambda values, valid: monte_carlo_loss(values, drawn(BATCH, seed=1), valid=valid),
    lambda values, valid: conservative(
        values, *(values.unsqueeze(2) + drawn(1, BATCH, CANDIDATES, seed=s) for s in (1, 2)), valid
    ),
]


@pytest.mark.parametrize("loss", MASKED)
def test_a_masked_row_is_in_no_gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    values = leaf(MEMBERS, BATCH)
    loss(values, VALID).backward()  # type: ignore[no-untyped-call]
    whole = leaf(MEMBERS, BATCH)
    loss(whole, torch.ones_like(VALID)).backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert whole.grad is not None
    assert (values.grad[:, VALID == 0] == 0).all()
    assert torch.equal(values.grad[:, VALID == 1], whole.grad[:, VALID == 1])
    assert values.grad.abs().sum() > 0
