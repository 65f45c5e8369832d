"""Critics trained from a chain of states find the values that its equations have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import chains
import numpy as np
import pytest
import torch
from chains import DISCOUNT, STATES
from torch import Tensor, nn

from qsteer_ros.learning.settings_critic import CriticSettings
from qsteer_ros.learning.train_critic import CriticLearner
from qsteer_ros.learning.trainer import Trainer
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP

SETTINGS = CriticSettings(
    steps=300,
    batch=128,
    hidden="32",
    learning_rate=2e-2,
    warmup=10,
    ema=0.2,
    discount=DISCOUNT,
    horizon=1,
    rho=0.0,
)


def trained(data: Transitions, settings: CriticSettings) -> CriticLearner:
    learner = CriticLearner(data, settings)
    trainer = Trainer(learner, settings)
    for step in range(settings.steps):
        trainer.step(step)
    return learner


@torch.no_grad()
def table(learner: CriticLearner) -> np.ndarray:
    """Mean over members of every state's value of +1 and -1, (S, 2)."""
    features = (torch.eye(STATES) - learner.mean) / learner.std
    chunk = torch.tensor(chains.ACTIONS).view(2, 1, 1).repeat(STATES, 1, 1)
    return learner.q.q(features, chunk).mean(dim=0).view(STATES, 2).numpy()


def constant_policy(folder: Path, push: float) -> Path:
    """A policy whose velocity is the same everywhere."""
    network = FlowMLP(STATES, 1, (4,))
    nn.init.zeros_(network.head.weight)
    nn.init.constant_(network.head.bias, push)
    network.requires_grad_(False)
    zeros, ones = torch.zeros(STATES), torch.ones(STATES)
    return FlowPolicy(network, zeros, ones, chains.interface()).save(folder)


def test_iql_finds_the_expectile_values() -> None:
    learner = trained(chains.transitions(), replace(SETTINGS, expectile=0.8))
    expected = chains.solved(lambda row: chains.expectile(row, 0.8))
    np.testing.assert_allclose(table(learner), expected, atol=0.12)
    assert np.abs(expected - chains.behaviour()).max() > 1.0  # another problem's answer is far
    assert learner.value is not None
    value = learner.value((torch.eye(STATES) - learner.mean) / learner.std)
    by_hand = [chains.expectile(row, 0.8) for row in expected]
    np.testing.assert_allclose(value.detach().numpy(), by_hand, atol=0.12)


def test_sarsa_finds_the_values_of_the_behaviour() -> None:
    """Rows without a next chunk are in the data and must not count."""
    data = chains.with_rows_that_lead_nowhere(chains.transitions())
    assert not data.next_valid.all()  # type: ignore[union-attr]
    settings = replace(SETTINGS, objective="sarsa")
    np.testing.assert_allclose(table(trained(data, settings)), chains.behaviour(), atol=0.15)


def test_monte_carlo_finds_the_mean_return() -> None:
    learner = trained(chains.transitions(), replace(SETTINGS, objective="monte_carlo"))
    np.testing.assert_allclose(table(learner), chains.behaviour(), atol=0.02)


@pytest.mark.parametrize(("push", "action"), [(9.0, 0), (-9.0, 1)])
def test_td_finds_the_values_of_the_policy_whatever_the_data_do_next(
    push: float, action: int, tmp_path: Path
) -> None:
    """A policy that always goes forward, and one that always stays."""
    settings = replace(
        SETTINGS,
        objective="td",
        policy=str(constant_policy(tmp_path / "policy", push)),
        steering="off",
        denoising_steps=1,
    )
    found = table(trained(chains.transitions(), settings))
    expected = chains.solved(lambda row: float(row[action]))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=0.04)


def test_stepwise_iql_finds_the_values_of_a_chunk_that_ends_early() -> None:
    """Rewards -1, -1, then nothing: positions are worth -1 - gamma, -1 and 0."""
    count = 64
    data = Transitions(
        features=np.zeros((count, 1), dtype=np.float32),
        chunk=np.zeros((count, 3, 1), dtype=np.float32),
        interface=chains.interface(1, 3),
        data_hash="chunk",
        next_features=np.zeros((count, 1), dtype=np.float32),
        rewards=np.tile(np.array([-1, -1, 0], dtype=np.float32), (count, 1)),
        ended=np.tile(np.array([False, True, True]), (count, 1)),
        mc_return=np.full(count, -1 - DISCOUNT, dtype=np.float32),
    )
    settings = replace(SETTINGS, objective="stepwise_iql", horizon=3)
    learner = trained(data, settings)
    features, chunk = torch.zeros(1, 1), torch.zeros(1, 3, 1)
    with torch.no_grad():
        found = learner.q.positions(features, chunk)[0, 0]
        steering: Tensor = learner.target.q(features, chunk)
    np.testing.assert_allclose(found.numpy(), [-1 - DISCOUNT, -1.0, 0.0], atol=0.03)
    np.testing.assert_allclose(steering.numpy(), [[-2 - DISCOUNT]], atol=0.06)
