"""Behaviour cloning: what a step regresses, and which weights become the policy."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from played import random_transitions

from qsteer_ros.learning.settings_bc import PolicySettings
from qsteer_ros.learning.train_bc import PolicyLearner, train_policy
from qsteer_ros.learning.trainer import Trainer, generator
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.policies.flow_policy import FlowPolicy

SMALL = PolicySettings(hidden="8", steps=4, batch=40, warmup=0, log_every=0)


def shifted() -> Transitions:
    """Features that are far from mean 0 and deviation 1."""
    made = random_transitions(30)
    scale = np.linspace(0.5, 4.0, 27, dtype=np.float32)
    return replace(made, features=made.features * scale + 3.0)


def test_the_loss_is_the_velocity_error_on_standardised_features_written_out() -> None:
    data = shifted()
    learner = PolicyLearner(data, SMALL)
    batch = learner.draw(generator(0, 0))
    features, time = batch["features"], batch["flow_time"].unsqueeze(1)
    assert bool((time >= 0).all() and (time < 1).all())
    policy = FlowPolicy(learner.network, learner.mean, learner.std, data.interface)
    noisy = (1 - time) * batch["noise"] + time * batch["chunk"]
    with torch.no_grad():
        asked = policy.condition(features)(noisy.view(-1, 5, 5), time[:, 0]).flatten(1)
        expected = (asked - (batch["chunk"] - batch["noise"])).square().mean()
        torch.testing.assert_close(learner(batch)["loss"], expected)
    rows = {tuple(row) for row in data.features.tolist()}
    assert {tuple(row) for row in features.tolist()} <= rows
    torch.testing.assert_close(learner.mean, torch.from_numpy(data.features).mean(dim=0))
    assert abs(float(batch["noise"].std()) - 1.0) < 0.1


def test_the_average_follows_the_weights_after_the_step_and_becomes_the_policy(
    tmp_path: Path,
) -> None:
    settings = replace(SMALL, ema=0.25, out=str(tmp_path / "policy"))
    learner = PolicyLearner(shifted(), settings)
    trainer = Trainer(learner, settings)
    slow = copy.deepcopy(learner.network)
    for step in range(settings.steps):
        trainer.step(step)
        for old, new in zip(slow.parameters(), learner.network.parameters(), strict=True):
            old.data += 0.25 * (new.data - old.data)
    train_policy(settings, transitions=shifted())
    kept = FlowPolicy.load(tmp_path / "policy").network
    for found, expected in zip(kept.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5)
    apart = [
        not torch.allclose(a, b, atol=1e-7)
        for a, b in zip(kept.parameters(), learner.network.parameters(), strict=True)
    ]
    assert all(apart)
