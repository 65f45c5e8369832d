"""What a critic can be trained for: from networks and a batch to losses.

The equations are in :mod:`qsteer_ros.critics`, a file each; here networks are asked for what they
need. An objective is told when the run is still warm: then Q regresses Monte-Carlo returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qsteer_ros.critics.iql import iql_losses
from qsteer_ros.critics.losses import expectile_loss
from qsteer_ros.critics.monte_carlo import monte_carlo_loss, returns_by_position
from qsteer_ros.critics.networks import QNetwork, ValueMLP
from qsteer_ros.critics.sarsa import sarsa_loss
from qsteer_ros.critics.stepwise_iql import stepwise_iql_losses, stepwise_targets
from qsteer_ros.ensemble import Aggregate
from qsteer_ros.learning.learner import Batch


@dataclass(frozen=True)
class Networks:
    """What is trained, and the statistics of its features.

    Attributes:
        q: The critic.
        target: Its slow copy.
        value: V, for objectives that have one.
        mean: Of the features, (F,).
        std: Their standard deviation, (F,).
    """

    q: QNetwork
    target: QNetwork
    value: ValueMLP | None
    mean: Tensor
    std: Tensor

    def standardised(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, F)."""
        return (features - self.mean) / self.std


class Objective:
    """Base of all objectives.

    Attributes:
        needs: Arrays of the transitions it reads, besides features and chunk.
        has_value: Whether it trains a V.
        stepwise: Whether networks have one output per position of a chunk.
    """

    needs: ClassVar[tuple[str, ...]]
    has_value: ClassVar[bool] = False
    stepwise: ClassVar[bool] = False

    def draw(self, batch: Batch, source: torch.Generator, *, warm: bool) -> Batch:
        """What is random in a step, to be added to the rows drawn; batch first."""
        return {}

    def losses(self, networks: Networks, batch: Batch, *, warm: bool) -> dict[str, Tensor]:
        """Scalars to show; ``loss`` is differentiated."""
        raise NotImplementedError


@dataclass(frozen=True)
class Iql(Objective):
    """See `critics.iql`."""

    expectile: float
    aggregate: Aggregate
    needs: ClassVar[tuple[str, ...]] = ("reward", "bootstrap", "next_features")
    has_value: ClassVar[bool] = True

    def losses(self, networks: Networks, batch: Batch, *, warm: bool) -> dict[str, Tensor]:
        """Losses of Q and V; all are of the weights before the step."""
        assert networks.value is not None
        now, chunk = networks.standardised(batch["features"]), batch["chunk"]
        with torch.no_grad():
            slow = networks.target.q(now, chunk)
        values, value = networks.q.q(now, chunk), networks.value(now)
        if warm:
            q_loss = monte_carlo_loss(values, batch["mc_return"])
            v_loss = expectile_loss(self.aggregate(slow), value, expectile=self.expectile)
        else:
            with torch.no_grad():
                next_value = networks.value(networks.standardised(batch["next_features"]))
            q_loss, v_loss = iql_losses(
                values,
                value,
                slow=slow,
                next_value=next_value,
                reward=batch["reward"],
                bootstrap=batch["bootstrap"],
                expectile=self.expectile,
                aggregate=self.aggregate,
            )
        return {"loss": q_loss + v_loss, "q": q_loss, "v": v_loss, "value": value.mean()}


@dataclass(frozen=True)
class StepwiseIql(Objective):
    """See `critics.stepwise_iql`."""

    expectile: float
    discount: float
    needs: ClassVar[tuple[str, ...]] = ("rewards", "ended", "next_features")
    has_value: ClassVar[bool] = True
    stepwise: ClassVar[bool] = True

    def losses(self, networks: Networks, batch: Batch, *, warm: bool) -> dict[str, Tensor]:
        """Losses of Q and V; all are of the weights before the step."""
        assert networks.value is not None
        now, chunk = networks.standardised(batch["features"]), batch["chunk"]
        values, value = networks.q.positions(now, chunk), networks.value(now)
        rewards, ended = batch["rewards"], batch["ended"]
        with torch.no_grad():
            slow = networks.target.positions(now, chunk)
            if warm:
                targets = returns_by_position(
                    batch["mc_return"], rewards, ended, discount=self.discount
                )
            else:
                after = networks.standardised(batch["next_features"])
                next_value = networks.value(after)[:, 0]
                targets = stepwise_targets(
                    rewards, ended, value=value, next_value=next_value, discount=self.discount
                )
        q_loss, v_loss = stepwise_iql_losses(
            values, value, slow=slow, targets=targets, expectile=self.expectile
        )
        return {"loss": q_loss + v_loss, "q": q_loss, "v": v_loss, "value": value[:, 0].mean()}


@dataclass(frozen=True)
class Sarsa(Objective):
    """See `critics.sarsa`."""

    aggregate: Aggregate
    needs: ClassVar[tuple[str, ...]] = (
        "reward",
        "bootstrap",
        "next_features",
        "next_chunk",
        "next_valid",
    )

    def losses(self, networks: Networks, batch: Batch, *, warm: bool) -> dict[str, Tensor]:
        """Loss of Q."""
        now = networks.standardised(batch["features"])
        values = networks.q.q(now, batch["chunk"])
        loss = self.regression(networks, batch, values, warm=warm)
        return {"loss": loss, "q": loss, "value": values.mean()}

    def regression(
        self, networks: Networks, batch: Batch, values: Tensor, *, warm: bool
    ) -> Tensor:
        """The squared error alone, of values (E, B)."""
        if warm:
            return monte_carlo_loss(values, batch["mc_return"])
        with torch.no_grad():
            after = networks.standardised(batch["next_features"])
            next_values = networks.target.q(after, batch["next_chunk"])
        return sarsa_loss(
            values,
            next_values=next_values,
            reward=batch["reward"],
            bootstrap=batch["bootstrap"],
            next_valid=batch["next_valid"],
            aggregate=self.aggregate,
        )


@dataclass(frozen=True)
class MonteCarlo(Objective):
    """See `critics.monte_carlo`."""

    needs: ClassVar[tuple[str, ...]] = ("mc_return",)

    def losses(self, networks: Networks, batch: Batch, *, warm: bool) -> dict[str, Tensor]:
        """Loss of Q."""
        values = networks.q.q(networks.standardised(batch["features"]), batch["chunk"])
        loss = monte_carlo_loss(values, batch["mc_return"])
        return {"loss": loss, "q": loss, "value": values.mean()}
