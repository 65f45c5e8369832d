"""What SARSA, TD and Cal-QL ask of networks and of a policy, put together by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parts import make_policy
from torch import Tensor, nn

from qsteer_ros.ensemble import pessimistic
from qsteer_ros.flow import Sampler
from qsteer_ros.learning.critic_objectives import Networks, Sarsa
from qsteer_ros.learning.policy_objectives import CalQl, Td
from qsteer_ros.learning.trainer import generator
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.steering.settings import SteeringSettings

ROWS, SHAPE = 5, (3, 2)


class Linear(nn.Module):
    """Two members: k and 2 k times the sum of the chunk, and k times the first feature."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = slope

    def q(self, features: Tensor, chunk: Tensor) -> Tensor:
        rows = features.repeat_interleave(len(chunk) // len(features), dim=0)
        one = self.slope * (chunk.sum(dim=(1, 2)) + rows[:, 0])
        return torch.stack([one, 2.0 * one])


def linear_networks(slope: float = 1.0) -> Networks:
    """The trained copy differs from the target, which alone may be asked in a bootstrap."""
    trained, target = Linear(100.0), Linear(slope)
    return Networks(trained, target, None, torch.zeros(4), torch.ones(4))  # type: ignore[arg-type]


def batch_of(policy: FlowPolicy) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(3)
    shape = (ROWS, *SHAPE)
    return {
        "features": torch.randn(ROWS, 4, generator=source),
        "next_features": torch.randn(ROWS, 4, generator=source),
        "chunk": torch.rand(shape, generator=source) * 2 - 1,
        "next_chunk": torch.full(shape, 77.0),
        "reward": -torch.rand(ROWS, generator=source),
        "bootstrap": torch.tensor([0.9, 0.0, 0.9, 0.9, 0.5]),
        "noise": torch.randn(shape, generator=source),
    }


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_td_bootstraps_with_the_steered_policys_own_chunk(weight: float) -> None:
    """Against the loop by hand: of a linear critic the guidance is constant, k (1.5 - 0.5 rho)."""
    policy, rho = make_policy(), 0.5
    steering = SteeringSettings("qgf", weight=weight, reduction="pessimistic", rho=rho)
    objective, networks = Td(policy, steering, Sampler(4)), linear_networks()
    batch = batch_of(policy)
    target = objective.target(networks, batch)
    x = batch["noise"]
    for step in range(4):
        velocity = policy.condition(batch["next_features"])(x, torch.full((ROWS,), step / 4))
        clean = (x + (1 - step / 4) * velocity).clamp(-1, 1).requires_grad_(True)
        one = clean.sum(dim=(1, 2)) + batch["next_features"][:, 0]
        (gradient,) = torch.autograd.grad((1.5 * one - rho * 0.5 * one.abs()).sum(), clean)
        x = x + (velocity + weight * gradient) / 4
    a = x.clamp(-1, 1)
    one = a.sum(dim=(1, 2)) + batch["next_features"][:, 0]
    expected = batch["reward"] + batch["bootstrap"] * (1.5 * one - rho * 0.5 * one.abs())
    torch.testing.assert_close(target, expected, atol=2e-3, rtol=1e-3)
    assert target[1] == batch["reward"][1]  # terminated
    assert not target.requires_grad


def test_steering_changes_the_bootstrap_and_raises_it() -> None:
    policy = make_policy()
    targets = [
        Td(policy, SteeringSettings("qpilots_u", weight=w), Sampler(4)).target(
            linear_networks(), batch_of(policy)
        )
        for w in (0.0, 0.5)
    ]
    gain = targets[1] - targets[0]
    assert gain[1] == 0.0  # terminated
    assert float(gain.sum()) > 0.1


def test_sarsa_bootstraps_with_the_datas_next_chunk_and_the_target_networks() -> None:
    objective, networks, batch = (
        Sarsa(pessimistic(0.0)),
        linear_networks(),
        batch_of(make_policy()),
    )
    batch["next_valid"] = torch.tensor([True, False, True, True, False])
    values = torch.zeros(2, ROWS)
    loss = objective.regression(networks, batch, values, warm=False)
    one = batch["next_chunk"].sum(dim=(1, 2)) + batch["next_features"][:, 0]
    target = batch["reward"] + batch["bootstrap"] * 1.5 * one
    counted = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(loss, (counted * target.square()).mean())


def calql(policy: FlowPolicy | None, **changes: Any) -> CalQl:
    options: dict[str, Any] = {"alpha": 0.1, "number": 2, "local_std": 0.05, "densities": False}
    regression = Sarsa(pessimistic(0.0))
    return CalQl(regression, policy=policy, sampler=Sampler(3), **(options | changes))


def test_calqls_policy_candidates_are_its_chunks_here_and_after_in_that_order() -> None:
    policy = make_policy()
    objective, batch = calql(policy), batch_of(policy)
    batch |= objective.draw(batch, generator(0, 0), warm=False)
    assert batch["uniform"].shape == (ROWS, 2, *SHAPE)
    assert -1.0 <= float(batch["uniform"].min()) < -0.8
    assert 0.8 < float(batch["uniform"].max()) <= 1.0
    found = objective.others(batch)
    assert found.shape == (ROWS, 4, *SHAPE)
    for row in range(ROWS):
        for column in range(4):
            features = batch["features" if column < 2 else "next_features"][row : row + 1]
            noise = batch["noise"][row, column].unsqueeze(0)
            alone = Sampler(3).denoise(policy.condition(features), noise).clamp(-1, 1)
            torch.testing.assert_close(found[row, column], alone[0])


def test_calqls_local_candidates_are_the_datas_chunk_and_noise() -> None:
    objective, batch = calql(None, number=200), batch_of(make_policy())
    batch |= objective.draw(batch, generator(0, 0), warm=False)
    offset = objective.others(batch) - batch["chunk"].unsqueeze(1)
    assert offset.shape == (ROWS, 200, *SHAPE)
    assert float(offset.std()) == pytest.approx(0.05, rel=0.05)
    assert abs(float(offset.mean())) < 0.002


@pytest.mark.parametrize("densities", [False, True])
def test_calqls_loss_is_put_together_by_hand(densities: bool) -> None:
    """Regression, and alpha times a sum over uniform and lifted local candidates."""
    objective, networks = calql(None, densities=densities), linear_networks()
    batch = batch_of(make_policy()) | {
        "next_valid": torch.ones(ROWS, dtype=torch.bool),
        "mc_return": torch.full((ROWS,), 50.0),
    }
    batch |= objective.draw(batch, generator(0, 0), warm=False)
    found = objective.losses(networks, batch, warm=False)
    gaps = []
    local = objective.others(batch)
    for row in range(ROWS):
        first = batch["features"][row, 0]
        for member in (1.0, 2.0):
            terms = []
            for j in range(2):
                value = member * 100.0 * (batch["uniform"][row, j].sum() + first)
                terms.append(value + (6 * torch.tensor(2.0).log() if densities else 0.0))
            for j in range(2):
                value = (member * 100.0 * (local[row, j].sum() + first)).clamp_min(50.0)
                normal = torch.distributions.Normal(batch["chunk"][row], 0.05)
                density = normal.log_prob(local[row, j]).sum() if densities else 0.0
                terms.append(value - density)
            own = member * 100.0 * (batch["chunk"][row].sum() + first)
            gaps.append(torch.stack(terms).logsumexp(0) - own)
    expected = torch.stack(gaps).mean()
    torch.testing.assert_close(found["conservative"], expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["loss"], found["q"] + 0.1 * expected, rtol=1e-4, atol=1e-3)
