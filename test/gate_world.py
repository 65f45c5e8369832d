"""Held-out windows and critics in closed form, for the gate.

In units of the training data's spread, a state s is worth V(s) = -30 + 8 w.s and the best chunk in
it is a*(s) = tanh(M s) / 2. The critics are V(s) less something of how far a chunk is from a*(s).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from parts import INTERFACE, MEAN, STD
from torch import Tensor

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.gate import HeldOutEpisode
from qsteer_ros.critics.gate_settings import GateSettings
from qsteer_ros.critics.networks import QNetwork
from qsteer_ros.evaluation.gate_held_out import HeldOut

FEATURES, HORIZON, ACTIONS = INTERFACE.feature_dim, INTERFACE.horizon, INTERFACE.action_dim
SETTINGS = GateSettings(resamples=100, rows=120)
TRAINING = {"data_hash": "t" * 64, "episodes": [], "settings": {"discount": 0.99}}
_SOURCE = torch.Generator().manual_seed(5)
WORTH = torch.tensor([0.6, 0.5, -0.5, 0.4], dtype=torch.float64)
BEST = torch.randn(HORIZON * ACTIONS, FEATURES, generator=_SOURCE).double()

Formula = Callable[[Tensor, Tensor], Tensor]
"""standardised features (B, F), chunk (B, H A) -> (E, B)."""


def worth(s: Tensor) -> Tensor:
    return -30.0 + 8.0 * s @ WORTH.to(s)


def best(s: Tensor) -> Tensor:
    return torch.tanh(s @ BEST.to(s).T) / 2.0


def apart(s: Tensor, a: Tensor) -> Tensor:
    """Squared distance from the best chunk, (B,)."""
    return (a - best(s)).square().sum(1)


def good(s: Tensor, a: Tensor) -> Tensor:
    return torch.stack([worth(s) - 4.0 * apart(s, a), worth(s) - 6.0 * apart(s, a)])


class Closed(QNetwork):
    """A network that is a formula."""

    in_dim = FEATURES + HORIZON * ACTIONS
    outputs = 1

    def __init__(self, formula: Formula) -> None:
        torch.nn.Module.__init__(self)
        self.formula = formula

    def q(self, features: Tensor, chunk: Tensor) -> Tensor:
        rows = features.repeat_interleave(len(chunk) // len(features), dim=0)
        return self.formula(rows, chunk.flatten(1))


def critic_of(formula: Formula = good, **training: Any) -> Critic:
    return Critic(Closed(formula), MEAN, STD, INTERFACE, TRAINING | training, "c" * 64)


def windows(successes: int = 6, failures: int = 6, steps: int = 16, **changes: Any) -> HeldOut:
    """Episodes whose states are worth more when they succeed, and chunks close to the best."""
    count = successes + failures
    rng = np.random.default_rng(11)
    success = np.arange(count) < successes
    side = np.where(success, 0.7, -0.7)[:, None, None] * WORTH.numpy()
    s = torch.from_numpy(rng.normal(size=(count, steps, FEATURES)) + side).flatten(0, 1)
    a = (best(s) + 0.1 * torch.from_numpy(rng.normal(size=(len(s), HORIZON * ACTIONS)))).clamp(
        -1, 1
    )
    observed = good(s, a).amin(0).numpy() + 2.0 * rng.normal(size=len(s))
    number = np.repeat(np.arange(count), steps)
    found = HeldOut(
        features=(s.float() * STD + MEAN).numpy(),
        chunk=a.float().view(-1, HORIZON, ACTIONS).numpy(),
        observed=observed,
        tail=np.zeros(len(s)),
        reward=np.full((len(s), HORIZON), -1.0),
        episode=number,
        step=np.tile(np.arange(steps), count),
        success=success[number],
        steered=np.zeros(len(s), dtype=bool),
        interface=INTERFACE,
        data_hash="d" * 64,
        episodes=tuple(
            HeldOutEpisode(f"e{i}", f"{i:064d}", bool(success[i]), steps) for i in range(count)
        ),
    )
    return replace(found, **changes)
