"""Objectives of a critic that ask a frozen policy what it would do: TD and Cal-QL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qsteer_ros.critics.calql import conservative_loss, local_log_density, uniform_log_density
from qsteer_ros.critics.losses import critic_loss
from qsteer_ros.critics.monte_carlo import monte_carlo_loss
from qsteer_ros.critics.td import td_target
from qsteer_ros.flow import Sampler
from qsteer_ros.learning.critic_objectives import Networks, Objective, Sarsa
from qsteer_ros.learning.learner import Batch
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.settings import SteeringSettings


@dataclass(frozen=True)
class Td(Objective):
    """See `critics.td`.

    Attributes:
        policy: Frozen.
        steering: How the target networks steer it; their pessimism is that of the target.
        sampler: How its field is integrated.
    """

    policy: FlowPolicy
    steering: SteeringSettings
    sampler: Sampler
    needs: ClassVar[tuple[str, ...]] = ("reward", "bootstrap", "next_features")

    def draw(self, batch: Batch, source: torch.Generator, *, warm: bool) -> Batch:
        """Noise that the bootstrap chunks start from, (B, H, A)."""
        return {} if warm else {"noise": _normal(batch["chunk"].shape, batch["chunk"], source)}

    def losses(self, networks: Networks, batch: Batch, *, warm: bool) -> dict[str, Tensor]:
        """Loss of Q."""
        values = networks.q.q(networks.standardised(batch["features"]), batch["chunk"])
        if warm:
            loss = monte_carlo_loss(values, batch["mc_return"])
        else:
            loss = critic_loss(values, self.target(networks, batch))
        return {"loss": loss, "q": loss, "value": values.mean()}

    def target(self, networks: Networks, batch: Batch) -> Tensor:
        """See `critics.td`, (B,)."""
        after = networks.standardised(batch["next_features"])
        return td_target(
            lambda chunk: networks.target.q(after, chunk),
            self.next_chunk(networks, batch),
            reward=batch["reward"],
            bootstrap=batch["bootstrap"],
            aggregate=self.steering.aggregate,
        )

    @torch.no_grad()
    def next_chunk(self, networks: Networks, batch: Batch) -> Tensor:
        """What the policy would do after the chunk, steered by the target networks, (B, H, A)."""
        after = networks.standardised(batch["next_features"])
        steered = steer(
            self.policy.condition(batch["next_features"]),
            lambda chunk: networks.target.q(after, chunk),
            self.steering,
            sampler=self.sampler,
            bounds=self.policy.bounds,
        )
        return self.sampler.denoise(steered, batch["noise"]).clamp(*self.policy.bounds)


@dataclass(frozen=True)
class CalQl(Objective):
    """See `critics.calql`.

    Candidates are drawn per row: ``number`` uniform ones, and as many of a policy. The policy's
    are its chunks at this state and, again as many, at the next one. Without a policy they are the
    data's chunk and noise, which is the policy that made the data, a little wider.

    Attributes:
        regression: The squared error that goes with it.
        alpha: Weight of the conservative loss.
        number: Candidates of each kind, N.
        local_std: Noise of candidates near the data's chunk, per component.
        densities: Whether the sum is corrected for how candidates were drawn.
        policy: Frozen; None takes candidates near the data's chunk. Its densities are not known.
        sampler: How its field is integrated.
    """

    regression: Sarsa
    alpha: float
    number: int
    local_std: float
    densities: bool
    policy: FlowPolicy | None
    sampler: Sampler
    needs: ClassVar[tuple[str, ...]] = (*Sarsa.needs, "mc_return")

    def draw(self, batch: Batch, source: torch.Generator, *, warm: bool) -> Batch:
        """Uniform candidates, (B, N, H, A), and noise for the others."""
        if warm:
            return {}
        rows, *shape = batch["chunk"].shape
        others = self.number if self.policy is None else 2 * self.number
        uniform = torch.rand(rows, self.number, *shape, generator=source) * 2.0 - 1.0
        return {
            "uniform": uniform.to(batch["chunk"]),
            "noise": _normal((rows, others, *shape), batch["chunk"], source),
        }

    def losses(self, networks: Networks, batch: Batch, *, warm: bool) -> dict[str, Tensor]:
        """The squared error and the conservative loss."""
        now = networks.standardised(batch["features"])
        values = networks.q.q(now, batch["chunk"])
        error = self.regression.regression(networks, batch, values, warm=warm)
        if warm:
            return {"loss": error, "q": error, "value": values.mean()}
        others = self.others(batch)
        gap = conservative_loss(
            values,
            uniform=_judged(networks.q.q, now, batch["uniform"]),
            policy=_judged(networks.q.q, now, others),
            mc_return=batch["mc_return"],
            log_density=self._log_density(batch) if self.densities else None,
        )
        return {
            "loss": error + self.alpha * gap,
            "q": error,
            "conservative": gap,
            "value": values.mean(),
        }

    @torch.no_grad()
    def others(self, batch: Batch) -> Tensor:
        """Candidates that stand for a policy, (B, N or 2 N, H, A)."""
        noise = batch["noise"]
        if self.policy is None:
            return batch["chunk"].unsqueeze(1) + self.local_std * noise
        parts = []
        for features, start in (
            (batch["features"], noise[:, : self.number]),
            (batch["next_features"], noise[:, self.number :]),
        ):
            chunk = self.sampler.denoise(self.policy.condition(features), start.flatten(0, 1))
            parts.append(chunk.clamp(*self.policy.bounds).view_as(start))
        return torch.cat(parts, dim=1)

    def _log_density(self, batch: Batch) -> Tensor:
        """Of all candidates, (B, 2 N)."""
        uniform = uniform_log_density(batch["chunk"][0].numel())
        local = local_log_density(self.local_std * batch["noise"], self.local_std)
        return torch.cat([torch.full_like(local, uniform), local], dim=1)


def _judged(q: Callable[[Tensor, Tensor], Tensor], now: Tensor, candidates: Tensor) -> Tensor:
    """Values of candidates (B, N, H, A) of each row, (E, B, N)."""
    values = q(now, candidates.flatten(0, 1))
    return values.view(len(values), *candidates.shape[:2])


def _normal(shape: tuple[int, ...], like: Tensor, source: torch.Generator) -> Tensor:
    """Standard normal numbers, drawn on the CPU, where ``like`` is."""
    return torch.randn(shape, generator=source).to(like)
