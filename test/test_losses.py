from __future__ import annotations

import pytest
import torch
from torch import nn

from qsteer_ros.critics.losses import (
    bootstrap_factor,
    chunk_return,
    chunk_target,
    critic_loss,
    expectile_loss,
)
from qsteer_ros.critics.networks import EnsembleMLP
from qsteer_ros.errors import ConfigError
from qsteer_ros.weights import ema_update


def test_the_chunk_return_discounts_from_the_first_action() -> None:
    rewards = torch.tensor([[-1.0, -1.0, 0.0], [0.0, 0.0, -1.0]])
    torch.testing.assert_close(chunk_return(rewards, discount=0.5), torch.tensor([-1.5, -0.25]))


def test_only_a_real_end_stops_the_bootstrap() -> None:
    """A truncated episode is not terminated: its next value counts with gamma^K."""
    terminated = torch.tensor([False, True])
    found = bootstrap_factor(terminated, discount=0.9, steps=5)
    torch.testing.assert_close(found, torch.tensor([0.9**5, 0.0]))


def test_a_chunk_cut_short_bootstraps_with_the_steps_it_took() -> None:
    found = bootstrap_factor(
        torch.tensor([False, False]), discount=0.9, steps=torch.tensor([5, 2])
    )
    torch.testing.assert_close(found, torch.tensor([0.9**5, 0.9**2]))


def test_the_target_is_reward_plus_bootstrapped_value_without_gradient() -> None:
    next_value = torch.tensor([-10.0, -10.0], requires_grad=True)
    target = chunk_target(torch.tensor([-4.0, -2.0]), torch.tensor([0.5, 0.0]), next_value)
    torch.testing.assert_close(target, torch.tensor([-9.0, -2.0]))
    assert not target.requires_grad


def test_the_critic_loss_is_the_mean_over_members_and_batch() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    target = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(critic_loss(values, target), torch.tensor((0 + 4 + 4 + 4) / 4))


def test_invalid_rows_count_nothing_but_stay_in_the_denominator() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    target, valid = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
    torch.testing.assert_close(critic_loss(values, target, valid=valid), torch.tensor(1.0))


def test_the_critic_loss_moves_the_critic_only() -> None:
    values = torch.zeros(2, 3, requires_grad=True)
    target = torch.ones(3, requires_grad=True)
    critic_loss(values, target).backward()
    assert values.grad is not None
    assert target.grad is None


def test_the_value_is_pulled_up_harder_than_down() -> None:
    above = expectile_loss(torch.tensor([1.0]), torch.tensor([0.0]), expectile=0.9)
    below = expectile_loss(torch.tensor([-1.0]), torch.tensor([0.0]), expectile=0.9)
    torch.testing.assert_close(torch.stack([above, below]), torch.tensor([0.9, 0.1]))


def test_the_expectile_loss_moves_the_value_only() -> None:
    q, value = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    expectile_loss(q, value, expectile=0.9).backward()
    assert q.grad is None
    assert value.grad is not None
    assert (value.grad < 0).all()  # descending raises V towards Q


def test_minimising_it_finds_the_expectile() -> None:
    """For Q = 0 or 1 equally often, the tau-expectile is tau."""
    q = torch.tensor([0.0, 1.0], dtype=torch.float64)
    value = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([value], lr=0.5)
    for _ in range(200):
        optimiser.zero_grad()
        expectile_loss(q, value.expand(2), expectile=0.8).backward()
        optimiser.step()
    assert float(value.detach()) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("expectile", [0.0, 1.0, -0.5])
def test_an_expectile_outside_its_interval_is_refused(expectile: float) -> None:
    with pytest.raises(ConfigError, match=r"'expectile' must be inside \(0, 1\): got"):
        expectile_loss(torch.zeros(1), torch.zeros(1), expectile=expectile)


def test_the_target_moves_by_its_rate_and_the_online_network_stays() -> None:
    target, online = nn.Linear(2, 1), nn.Linear(2, 1)
    before, fixed = target.weight.detach().clone(), online.weight.detach().clone()
    ema_update(target, online, rate=0.25)
    torch.testing.assert_close(target.weight.detach(), 0.75 * before + 0.25 * fixed)
    assert torch.equal(online.weight.detach(), fixed)
    ema_update(target, online, rate=1.0)
    torch.testing.assert_close(target.weight.detach(), fixed)


def test_the_target_moves_every_parameter_of_an_ensemble() -> None:
    target, online = EnsembleMLP(2, 3, (4,)), EnsembleMLP(2, 3, (4,))
    for parameter in online.parameters():
        nn.init.constant_(parameter, 2.0)
    ema_update(target, online, rate=1.0)
    assert all((parameter == 2.0).all() for parameter in target.parameters())


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_a_rate_outside_its_interval_is_refused_before_anything_moves(rate: float) -> None:
    target, online = nn.Linear(2, 1), nn.Linear(2, 1)
    before = target.weight.detach().clone()
    with pytest.raises(ConfigError, match=r"'rate' must be inside \(0, 1\]: got"):
        ema_update(target, online, rate=rate)
    assert torch.equal(target.weight.detach(), before)
