"""A trained posterior map: samples of the clean chunk behind a noisy one, in one evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.interface import Interface
from qsteer_ros.policies.average_velocity import AverageVelocity
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.posterior import PosteriorMap
from qsteer_ros.trained import Trained
from qsteer_ros.weights import rows_for


@dataclass(frozen=True, eq=False)
class MetaFlowMap(Trained):
    r"""The posterior flow of one frozen policy, distilled into one step.

    .. math:: \text{sample} = \epsilon + u(0, 1, \epsilon; t, x, s), \qquad
              \epsilon \sim \mathcal N(0, I)

    Attributes:
        network: Average velocities of the posterior flow.

    Raises:
        ConfigError: The network does not fit the interface, or ``training`` does not name the
            policy.
        DataError: The network's statistics of chunks are damaged.

    Source:
        Meta Flow Maps, arXiv:2601.14430, as QPILOTS-M, arXiv:2606.14801, uses them.
    """

    KIND: ClassVar[str] = "posterior_map"
    PREFIX: ClassVar[str] = "average_velocity"
    ARCHITECTURE: ClassVar[tuple[str, ...]] = ("hidden", "time_embedding")

    network: AverageVelocity

    def __post_init__(self) -> None:
        """Refuse a network made for something else, and a map of no known policy."""
        network = (self.network.feature_dim, self.network.chunk_dim)
        stated = (self.interface.feature_dim, self.interface.chunk_dim)
        if network != stated:
            raise ConfigError(
                f"a posterior map for {stated[0]} features and chunks of {stated[1]} must have a "
                f"network of these sizes: its network has {network[0]} and {network[1]}."
            )
        if not self.training.get("policy_hash"):
            raise ConfigError(
                "a posterior map must name the policy it was distilled from: its training has no "
                "'policy_hash'. Train it again with 'qsteer train posterior-map'."
            )
        if not bool((self.network.chunk_std > 0.0).all()):
            raise DataError(
                "'chunk_std' of a posterior map must be positive: got "
                f"{float(self.network.chunk_std.min())}. Train it again."
            )

    @property
    def policy_hash(self) -> str:
        """Hash of the checkpoint of the policy it was distilled from."""
        return str(self.training["policy_hash"])

    @staticmethod
    def build(architecture: Mapping[str, Any], interface: Interface) -> AverageVelocity:
        """The network that ``config.json`` describes."""
        return AverageVelocity(
            interface.feature_dim,
            torch.zeros(interface.chunk_dim),
            torch.ones(interface.chunk_dim),
            tuple(architecture["hidden"]),
            time_embedding=architecture["time_embedding"],
        )

    def check_policy(self, policy: FlowPolicy) -> None:
        """Refuse to sample the posterior of a policy it does not know.

        Raises:
            ConfigError: The map was distilled from another policy.
        """
        if policy.hash != self.policy_hash:
            raise ConfigError(
                "a posterior map must be used with the policy it was distilled from: it is of "
                f"policy {self.policy_hash[:12]}, the policy is {policy.hash[:12] or 'unsaved'}. "
                "Train the map again with policy=, or steer without it."
            )

    def condition(self, features: Tensor) -> PosteriorMap:
        """Fix the observation; what remains is a posterior map.

        Args:
            features: As the encoder gives them, not standardised: one row for all chunks, (1, F),
                or (B, F), of which row b serves noisy chunks b k to b k + k - 1 of k B.

        Returns:
            Noise (k B, N, H, A), noisy chunk (k B, H, A) and flow time (k B,) in [0, 1), not
            examined -> samples (k B, N, H, A), differentiable in the noisy chunk. The N k B rows
            are one evaluation.

        Raises:
            ConfigError: Features or, later, noisy chunks have another shape or number.
            DataError: (From the map) noise and noisy chunks do not belong together.
        """
        rows = self.standardised(features)
        shape = (self.horizon, self.action_dim)

        def samples(noise: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
            _check_shapes(noise, noisy_chunk, shape)
            count = noise.shape[0] * noise.shape[1]
            start = noise.flatten(0, 1).flatten(1)  # (B N, D)
            zero = start.new_zeros(count)
            velocity: Tensor = self.network(
                rows_for(rows_for(rows, len(noise)), count),
                rows_for(noisy_chunk.flatten(1), count),
                rows_for(flow_time.unsqueeze(1), count).squeeze(1),
                start,
                zero,
                zero + 1.0,
            )
            return (start + velocity).view_as(noise)

        return samples


def _check_shapes(noise: Tensor, noisy_chunk: Tensor, shape: tuple[int, int]) -> None:
    if tuple(noisy_chunk.shape[1:]) != shape:
        raise ConfigError(
            f"the posterior map knows chunks of shape (B, {shape[0]}, {shape[1]}): got "
            f"{tuple(noisy_chunk.shape)}."
        )
    if noise.ndim != 4 or noise.shape[:1] + noise.shape[2:] != noisy_chunk.shape:
        raise DataError(
            "noise must have shape (B, N, H, A) for noisy chunks (B, H, A): got "
            f"{tuple(noise.shape)} and {tuple(noisy_chunk.shape)}."
        )
