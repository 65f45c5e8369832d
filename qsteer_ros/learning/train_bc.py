r"""Behaviour cloning of the flow policy by flow matching.

.. math:: L = \operatorname{mean} \big( v(s, x_\tau, \tau) - (a - x_0) \big)^2,
          \qquad x_\tau = (1 - \tau) x_0 + \tau a
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from qsteer_ros.learning import states
from qsteer_ros.learning.buffer import Buffer, statistics
from qsteer_ros.learning.learner import Batch, Learner
from qsteer_ros.learning.settings import widths
from qsteer_ros.learning.settings_bc import PolicySettings
from qsteer_ros.learning.sources import load_chunks
from qsteer_ros.learning.trainer import provenance, run
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP, flow_matching_loss, sample_flow_time
from qsteer_ros.weights import ema_update


class PolicyLearner(Learner):
    """Regresses the velocity from noise to the data's chunks (see ``flow_matching_loss``)."""

    capturable: ClassVar[bool] = True
    mean: Tensor
    std: Tensor

    def __init__(self, transitions: Transitions, settings: PolicySettings) -> None:
        super().__init__()
        torch.manual_seed(settings.seed)
        self._settings = settings
        self._buffer = Buffer(transitions, device=settings.device)
        mean, std = statistics(self._buffer.features)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        space = transitions.interface
        self.network = FlowMLP(space.feature_dim, space.chunk_dim, widths(settings.hidden))
        self.average = (
            copy.deepcopy(self.network).requires_grad_(False) if settings.ema > 0.0 else None
        )
        self.network.to(settings.device)
        self._optimisers = {
            "network": torch.optim.Adam(
                self.network.parameters(), lr=settings.learning_rate, fused=True
            )
        }

    @property
    def policy_network(self) -> FlowMLP:
        """What becomes the policy: the average of the weights where one is kept."""
        return self.network if self.average is None else self.average

    def draw(self, source: torch.Generator) -> Batch:
        """Rows of the data, noise and flow times."""
        batch = self._buffer.take(self._buffer.rows(self._settings.batch, source))
        chunk = batch["chunk"].flatten(1)
        return {
            "features": batch["features"],
            "chunk": chunk,
            "noise": torch.randn(chunk.shape, generator=source).to(chunk.device),
            "flow_time": sample_flow_time(len(chunk), generator=source).to(chunk.device),
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The flow-matching loss."""
        loss = flow_matching_loss(
            self.network,
            (batch["features"] - self.mean) / self.std,
            batch["chunk"],
            noise=batch["noise"],
            flow_time=batch["flow_time"],
        )
        return {"loss": loss}

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One."""
        return self._optimisers

    def after_step(self) -> None:
        """The average follows the weights."""
        if self.average is not None:
            ema_update(self.average, self.network, rate=self._settings.ema)


def train_policy(
    settings: PolicySettings,
    *,
    resume: bool = False,
    command: str = "",
    transitions: Transitions | None = None,
) -> dict[str, float]:
    """Clone the data's chunks and write the policy's checkpoint.

    Args:
        settings: How, and from what.
        resume: Continue an interrupted run.
        command: Written into the checkpoint.
        transitions: Data that are loaded already; None loads what the settings name.

    Returns:
        The mean loss over the last tenth of the steps.

    Raises:
        ConfigError: There are no data, or the run to resume was another one.
    """
    data = load_chunks(settings) if transitions is None else transitions
    learner = PolicyLearner(data, settings)
    metrics = run(learner, settings, data_hash=data.data_hash, description="policy", resume=resume)
    training = provenance(settings, command=command, data_hash=data.data_hash, metrics=metrics)
    training |= data.origin()
    policy = FlowPolicy(
        learner.policy_network, learner.mean, learner.std, data.interface, training
    )
    states.finish(settings.out, policy.save)
    return metrics
