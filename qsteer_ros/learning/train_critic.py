r"""Critics of action chunks, for any of the objectives, from play or from logged episodes.

All losses are of the weights before the step, and so are the weights that the target networks
follow. The checkpoint holds the slow target networks :math:`\bar Q`, which are what steering asks.

Source: QGF, arXiv:2606.11087, for the order of a step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.kinds import make_network
from qsteer_ros.critics.networks import QNetwork, ValueMLP
from qsteer_ros.learning import states
from qsteer_ros.learning.buffer import Buffer, statistics
from qsteer_ros.learning.critic_objectives import Networks
from qsteer_ros.learning.critic_plans import architecture_of, objective_of
from qsteer_ros.learning.learner import Batch, Learner
from qsteer_ros.learning.settings_critic import CriticSettings
from qsteer_ros.learning.sources import load_transitions
from qsteer_ros.learning.trainer import provenance, run
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.weights import ema_update


class CriticLearner(Learner):
    """Trains Q, its target networks and, where the objective has one, V.

    Attributes:
        buffer: Rows that batches are drawn from; more may be appended.
        q: Trained.
        target: Its slow copy.
        value: V, or None.
        mean: Of the features, (F,).
        std: Their standard deviation with its floor applied, (F,).
        taken: Steps taken.
    """

    capturable: ClassVar[bool] = True
    mean: Tensor
    std: Tensor
    taken: Tensor

    def __init__(self, transitions: Transitions, settings: CriticSettings) -> None:
        """Draw the weights from the settings' seed.

        Raises:
            ConfigError: The settings contradict each other or the data, or the data lack an array
                that the objective needs.
        """
        super().__init__()
        space = transitions.interface
        self._settings, self._objective = settings, objective_of(settings, space)
        architecture = architecture_of(settings, space.horizon)
        needs = dict.fromkeys(self._objective.needs)
        if settings.warm_start:
            needs["mc_return"] = None
        self.buffer = Buffer(transitions, tuple(needs), device=settings.device)
        mean, std = statistics(self.buffer.features)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
        torch.manual_seed(settings.seed)
        self.q: QNetwork = make_network(
            architecture, feature_dim=space.feature_dim, chunk_dim=space.chunk_dim
        )
        self.value: ValueMLP | None = None
        if self._objective.has_value:
            self.value = ValueMLP(
                space.feature_dim,
                architecture["hidden"],
                outputs=architecture["outputs"],
                activation=architecture["activation"],
                layer_norm=architecture["layer_norm"],
            )
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.to(settings.device)
        trained = {"q": self.q} | ({} if self.value is None else {"value": self.value})
        self._optimisers = {
            name: torch.optim.Adam(module.parameters(), lr=settings.learning_rate, fused=True)
            for name, module in trained.items()
        }
        self._count = 0  # of `taken`, without asking the device
        self.register_load_state_dict_post_hook(_count_again)  # type: ignore[no-untyped-call]

    @property
    def warm(self) -> bool:
        """Whether Q still regresses Monte-Carlo returns."""
        return self._count < self._settings.warm_start

    def phase(self) -> bool:
        """Whether it is warm."""
        return self.warm

    def draw(self, source: torch.Generator) -> Batch:
        """Rows of the data, and what is random in the objective."""
        batch = self.buffer.take(self.buffer.rows(self._settings.batch, source))
        return batch | self._objective.draw(batch, source, warm=self.warm)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of Q and V; all are of the weights before the step."""
        networks = Networks(self.q, self.target, self.value, self.mean, self.std)
        return self._objective.losses(networks, batch, warm=self.warm)

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One each for Q and V."""
        return self._optimisers

    def before_step(self) -> None:
        """The target networks follow the weights from before the step."""
        ema_update(self.target, self.q, rate=self._settings.ema)

    def after_step(self) -> None:
        """Count."""
        self._count += 1
        self.taken += 1


def _count_again(learner: Any, keys: Any) -> None:
    """A state was loaded: how many steps had it taken?"""
    learner._count = int(learner.taken)


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
    metrics = run(
        learner,
        settings,
        data_hash=data.data_hash,
        description=f"critic, {settings.objective}",
        resume=resume,
    )
    training = provenance(settings, command=command, data_hash=data.data_hash, metrics=metrics)
    training |= {"goal": settings.goal, **data.origin()}
    critic = Critic(learner.target, learner.mean, learner.std, data.interface, training)
    states.finish(settings.out, critic.save)
    return metrics
