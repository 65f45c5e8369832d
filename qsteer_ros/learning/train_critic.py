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
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.losses import chunk_target, critic_loss, ema_update, expectile_loss
from qsteer_ros.critics.networks import EnsembleMLP, ValueMLP, critic_input
from qsteer_ros.learning.play import load_play
from qsteer_ros.learning.settings import CriticSettings
from qsteer_ros.learning.train_bc import interface, noisy_cube, statistics
from qsteer_ros.learning.trainer import (
    generator,
    set_learning_rate,
    single_threaded,
    train,
    warmup_cosine,
)
from qsteer_ros.learning.transitions import Transitions, from_play

WARMUP_STEPS = 200


class CriticLearner:
    """Trains Q, V and the target networks, one step each at a time."""

    def __init__(self, transitions: Transitions, settings: CriticSettings) -> None:
        torch.manual_seed(settings.seed)
        self._settings = settings
        self._features = torch.from_numpy(transitions.features)
        self._next_features = torch.from_numpy(transitions.next_features)
        self._chunk = torch.from_numpy(transitions.chunk)
        self._reward = torch.from_numpy(transitions.reward)
        self._bootstrap = torch.from_numpy(transitions.bootstrap)
        self.mean, self.std = statistics(self._features)
        features = self._features.shape[1]
        hidden = (settings.hidden,) * 3
        inputs = features + self._chunk[0].numel()
        self.q = EnsembleMLP(settings.ensemble, inputs, hidden)
        self.value = ValueMLP(features, hidden)
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self._optimisers = {
            "q": torch.optim.Adam(self.q.parameters(), lr=settings.learning_rate, fused=True),
            "value": torch.optim.Adam(
                self.value.parameters(), lr=settings.learning_rate, fused=True
            ),
        }

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What is trained."""
        return {"q": self.q, "value": self.value, "target": self.target}

    @property
    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """What trains it."""
        return self._optimisers

    def update(self, step: int) -> Mapping[str, Tensor]:
        """One step of each network; all losses are of the weights before the step."""
        settings = self._settings
        factor = warmup_cosine(step, steps=settings.steps, warmup=WARMUP_STEPS, floor=0.05)
        for optimiser in self._optimisers.values():
            set_learning_rate(optimiser, settings.learning_rate * factor)
        source = generator(settings.seed, step)
        rows = torch.randint(len(self._features), (settings.batch,), generator=source)
        now = self._standardised(self._features[rows], source)
        after = self._standardised(self._next_features[rows], source)
        inputs = critic_input(now, self._chunk[rows])
        with torch.no_grad():
            next_value = self.value(after)
            slow = self.target(inputs).amin(dim=0)
        target = chunk_target(self._reward[rows], self._bootstrap[rows], next_value)
        q_loss = critic_loss(self.q(inputs), target)
        value = self.value(now)
        value_loss = expectile_loss(slow, value, expectile=settings.expectile)
        for optimiser in self._optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        (q_loss + value_loss).backward()  # type: ignore[no-untyped-call]
        ema_update(self.target, self.q, rate=settings.ema)
        for optimiser in self._optimisers.values():
            optimiser.step()
        return {"q": q_loss.detach(), "v": value_loss.detach(), "value": value.detach().mean()}

    def _standardised(self, features: Tensor, source: torch.Generator) -> Tensor:
        noisy = noisy_cube(features, self._settings.cube_noise_m, source)
        return (noisy - self.mean) / self.std


def train_critic(
    transitions: Transitions,
    out: Path,
    settings: CriticSettings,
    *,
    resume: bool = False,
    command: str = "",
) -> dict[str, float]:
    """Train a critic and write its checkpoint.

    Args:
        transitions: From play (:func:`play_transitions`) or from logged episodes
            (:func:`~qsteer_ros.learning.logged.logged_transitions`).
        out: Folder of the checkpoint.
        settings: How.
        resume: Continue an interrupted run.
        command: Written into the checkpoint.

    Returns:
        Losses and mean value over the last tenth of the steps.

    Raises:
        ConfigError: The run to resume was another one.
    """
    single_threaded(settings.threads)
    learner = CriticLearner(transitions, settings)
    metrics = train(
        learner,
        out,
        settings=settings,
        data_hash=transitions.data_hash,
        description=f"critic, goal {settings.goal}",
        resume=resume,
    )
    training = {
        "command": command,
        "goal": settings.goal,
        "seed": settings.seed,
        "steps": settings.steps,
        "settings": asdict(settings),
        "data_hash": transitions.data_hash,
        "transitions": len(transitions.reward),
        "metrics": metrics,
    }
    space = interface(settings.horizon, encoder_hash=transitions.encoder_hash)
    Critic(learner.target, learner.mean, learner.std, space, training).save(out)
    return metrics


def play_transitions(data: Path, settings: CriticSettings) -> Transitions:
    """Play relabelled with the reward of ``settings.goal``.

    Raises:
        ConfigError: There is no play, or no such goal.
    """
    from qsteer_ros.sim.goals import SUCCESS_DISTANCE_M, find_goal
    from qsteer_ros.sim.scene import goal_position

    return from_play(
        load_play(data / "play"),
        goal_xyz=goal_position(find_goal(settings.goal).task_id),
        radius_m=SUCCESS_DISTANCE_M,
        horizon=settings.horizon,
        discount=settings.discount,
    )
