"""Losses, their gradients and whole updates agree with the official QGF code."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from golden_loader import DTYPES, TOLERANCE, Golden
from torch import Tensor, nn

from qsteer_ros.critics.losses import (
    bootstrap_factor,
    chunk_target,
    critic_loss,
    expectile_loss,
)
from qsteer_ros.critics.networks import EnsembleMLP, ValueMLP, critic_input
from qsteer_ros.ensemble import minimum
from qsteer_ros.policies.networks import FlowMLP, flow_matching_loss
from qsteer_ros.weights import ema_update

DISCOUNT, HORIZON, EXPECTILE, RATE, LEARNING_RATE = 0.97, 5, 0.9, 0.05, 3e-3
BOTH = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in DTYPES]


@dataclass
class Learner:
    """The official agent, put together from our parts."""

    file: Golden

    def __post_init__(self) -> None:
        self.policy: FlowMLP = self.file.flow("w/init/policy").requires_grad_(True)
        self.critic: EnsembleMLP = self.file.ensemble("w/init/critic").requires_grad_(True)
        self.value: ValueMLP = self.file.value("w/init/value").requires_grad_(True)
        self.target: EnsembleMLP = self.file.ensemble("w/init/target_critic")
        self.observation = self.batch("seq/out/observations")
        self.chunk = self.batch("seq/out/actions")
        self.inputs = critic_input(self.observation, self.chunk)
        self.valid = self.batch("seq/out/valid")[:, -1]
        self.optimisers = [
            torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, eps=1e-8)
            for network in (self.policy, self.critic, self.value)
        ]

    def batch(self, key: str) -> Tensor:
        """The official batch is cast to float32 first."""
        return self.file.tensor(key).float().to(self.file.dtype)

    def losses(self, noise_key: str, time_key: str) -> dict[str, Tensor]:
        bootstrap = bootstrap_factor(
            self.batch("seq/out/masks")[:, -1] == 0.0, discount=DISCOUNT, steps=HORIZON
        ).to(self.file.dtype)
        target = chunk_target(
            self.batch("seq/out/rewards")[:, -1],
            bootstrap,
            self.value(self.batch("seq/out/next_observations")[:, -1]),
        )
        return {
            "bc_loss": flow_matching_loss(
                self.policy,
                self.observation,
                self.chunk.flatten(1),
                noise=self.batch(noise_key),
                flow_time=self.file.tensor(time_key) / 10,
            ),
            "critic_loss": critic_loss(self.critic(self.inputs), target, valid=self.valid),
            "value_loss": expectile_loss(
                minimum(self.target(self.inputs)),
                self.value(self.observation),
                expectile=EXPECTILE,
                valid=self.valid,
            ),
        }

    def update(self, step: int) -> dict[str, Tensor]:
        """All losses and the target's step use the parameters from before the update."""
        losses = self.losses(f"update/in/eps_{step}", f"update/in/t_idx_{step}")
        ema_update(self.target, self.critic, rate=RATE)
        for optimiser, loss in zip(self.optimisers, losses.values(), strict=True):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return losses


@pytest.fixture(params=BOTH)
def learner(request: pytest.FixtureRequest) -> Learner:
    return Learner(Golden("training", request.param))


def compare_parameters(learner: Learner, network: nn.Module, prefix: str) -> None:
    """Every parameter of a network against the golden ones stored under a prefix."""
    tolerance = TOLERANCE[learner.file.dtype]
    expected = learner.file.parameters(prefix)
    for name, found in network.named_parameters():
        golden = expected[name.removeprefix("body.")]
        torch.testing.assert_close(found.detach(), golden, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["bc_loss", "critic_loss", "value_loss"])
def test_the_loss_is_the_official_one(learner: Learner, name: str) -> None:
    loss = learner.losses("loss/in/eps", "loss/in/t_idx")[name]
    expected = float(learner.file.arrays[f"loss/out/{name}"])
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "network"),
    [("bc_loss", "policy"), ("critic_loss", "critic"), ("value_loss", "value")],
)
def test_the_gradient_of_a_loss_is_the_official_one(
    learner: Learner, name: str, network: str
) -> None:
    module: nn.Module = getattr(learner, network)
    learner.losses("loss/in/eps", "loss/in/t_idx")[name].backward()
    tolerance = 1e-5 if learner.file.dtype == torch.float64 else 2e-5
    expected = learner.file.parameters(f"loss/grad/{network}")
    for key, parameter in module.named_parameters():
        golden = expected[key.removeprefix("body.")]
        torch.testing.assert_close(parameter.grad, golden, atol=tolerance, rtol=1e-4)


def test_three_updates_give_the_official_parameters(learner: Learner) -> None:
    for step in range(3):
        losses = learner.update(step)
        for name, loss in losses.items():
            expected = float(learner.file.arrays[f"update/out/info_{step}/{name}"])
            assert float(loss.detach()) == pytest.approx(expected, rel=2e-5), (step, name)
        if step == 0:
            for network in ("policy", "critic", "value"):
                compare_parameters(
                    learner, getattr(learner, network), f"update/out/params_after1/{network}"
                )
            compare_parameters(learner, learner.target, "update/out/params_after1/target_critic")
    for network in ("policy", "critic", "value"):
        compare_parameters(
            learner, getattr(learner, network), f"update/out/params_after3/{network}"
        )
    compare_parameters(learner, learner.target, "update/out/params_after3/target_critic")
