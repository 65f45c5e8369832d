r"""Implicit Q-learning on action chunks, from play or from logged episodes.

.. math::

    y &= R + b \, V(s') \\
    L_Q &= \operatorname{mean}_e (Q_e(s, a) - y)^2 \\
    L_V &= |\kappa - 1[u \le 0]| \, u^2, \qquad u = \min_e \bar Q_e(s, a) - V(s)

No action outside the data is ever judged in training. The checkpoint holds the slow target
networks :math:`\bar Q`, which are what steering asks.

Source: QGF, arXiv:2606.11087; IQL, arXiv:2110.06169.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.losses import chunk_target, critic_loss, expectile_loss
from qsteer_ros.critics.networks import EnsembleMLP, ValueMLP, critic_input
from qsteer_ros.learning import states
from qsteer_ros.learning.buffer import Buffer, statistics
from qsteer_ros.learning.learner import Batch, Learner
from qsteer_ros.learning.settings import widths
from qsteer_ros.learning.settings_critic import CriticSettings
from qsteer_ros.learning.sources import load_transitions
from qsteer_ros.learning.trainer import provenance, run
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.weights import ema_update

NEEDS = ("reward", "bootstrap", "next_features")


class CriticLearner(Learner):
    """Trains Q, V and the target networks, one step each at a time."""

    mean: Tensor
    std: Tensor

    def __init__(self, transitions: Transitions, settings: CriticSettings) -> None:
        super().__init__()
        torch.manual_seed(settings.seed)
        self._settings = settings
        self.buffer = Buffer(transitions, NEEDS, device=settings.device)
        mean, std = statistics(self.buffer.features)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        space, hidden = transitions.interface, widths(settings.hidden)
        self.q = EnsembleMLP(settings.ensemble, space.feature_dim + space.chunk_dim, hidden)
        self.value = ValueMLP(space.feature_dim, hidden)
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.to(settings.device)
        self._optimisers = {
            name: torch.optim.Adam(module.parameters(), lr=settings.learning_rate, fused=True)
            for name, module in (("q", self.q), ("value", self.value))
        }

    def draw(self, source: torch.Generator) -> Batch:
        """Rows of the data."""
        return self.buffer.take(self.buffer.rows(self._settings.batch, source))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of Q and V; all are of the weights before the step."""
        now = (batch["features"] - self.mean) / self.std
        after = (batch["next_features"] - self.mean) / self.std
        inputs = critic_input(now, batch["chunk"])
        with torch.no_grad():
            next_value = self.value(after)
            slow = self.target(inputs).amin(dim=0)
        target = chunk_target(batch["reward"], batch["bootstrap"], next_value)
        q_loss = critic_loss(self.q(inputs), target)
        value = self.value(now)
        value_loss = expectile_loss(slow, value, expectile=self._settings.expectile)
        return {"loss": q_loss + value_loss, "q": q_loss, "v": value_loss, "value": value.mean()}

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One each for Q and V."""
        return self._optimisers

    def before_step(self) -> None:
        """The target networks follow the weights from before the step."""
        ema_update(self.target, self.q, rate=self._settings.ema)


def train_critic(
    settings: CriticSettings,
    *,
    resume: bool = False,
    command: str = "",
    transitions: Transitions | None = None,
) -> dict[str, float]:
    """Train a critic and write its checkpoint.

    Args:
        settings: How, and from what.
        resume: Continue an interrupted run.
        command: Written into the checkpoint.
        transitions: Data that are loaded already; None loads what the settings name.

    Returns:
        Losses and mean value over the last tenth of the steps.

    Raises:
        ConfigError: There are no data, or the run to resume was another one.
    """
    data = load_transitions(settings) if transitions is None else transitions
    learner = CriticLearner(data, settings)
    metrics = run(learner, settings, data_hash=data.data_hash, description="critic", resume=resume)
    training = provenance(settings, command=command, data_hash=data.data_hash, metrics=metrics)
    training |= {
        "goal": settings.goal,
        "transitions": len(data),
        "episodes": list(data.episodes),
    }
    critic = Critic(learner.target, learner.mean, learner.std, data.interface, training)
    states.finish(settings.out, critic.save)
    return metrics
