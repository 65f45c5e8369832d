"""A trained critic: a frozen ensemble with everything needed to ask it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from qsteer_ros.critics.injected import InjectedMLP
from qsteer_ros.critics.kinds import make_network
from qsteer_ros.critics.networks import QNetwork
from qsteer_ros.ensemble import QFunction
from qsteer_ros.errors import ConfigError
from qsteer_ros.interface import Interface
from qsteer_ros.trained import Trained


@dataclass(frozen=True, eq=False)
class Critic(Trained):
    """Values of action chunks, given features of an observation.

    Attributes:
        network: Target (EMA) networks: they are what steering asks.

    Raises:
        ConfigError: The network does not fit the interface.
    """

    KIND: ClassVar[str] = "critic"
    PREFIX: ClassVar[str] = "target"
    ARCHITECTURE: ClassVar[tuple[str, ...]] = ("members", "hidden")

    network: QNetwork

    def __post_init__(self) -> None:
        """Refuse a network that was made for other features or chunks."""
        network, space = self.network, self.interface
        expected = space.feature_dim + space.chunk_dim
        split = isinstance(network, InjectedMLP) and network.chunk_dim != space.chunk_dim
        if network.in_dim != expected or split:
            raise ConfigError(
                f"a critic for {space.feature_dim} features and chunks of {space.chunk_dim} must "
                f"have {expected} inputs: its network has {network.in_dim}"
                + (f", {network.chunk_dim} of them for the chunk." if split else ".")
            )
        if network.outputs not in (1, space.horizon):
            raise ConfigError(
                f"a critic of chunks of {space.horizon} actions must have 1 output, or one per "
                f"action: its network has {network.outputs}."
            )

    @staticmethod
    def build(architecture: Mapping[str, Any], interface: Interface) -> QNetwork:
        """The ensemble that ``config.json`` describes."""
        return make_network(
            architecture, feature_dim=interface.feature_dim, chunk_dim=interface.chunk_dim
        )

    def condition(self, features: Tensor) -> QFunction:
        """Fix the observation; what remains is a function of the chunk.

        Args:
            features: As the encoder gives them, not standardised: one row for all chunks, (1, F),
                or (B, F), of which row b serves chunks b k to b k + k - 1 of the k B asked about.

        Returns:
            Chunk (k B, H, A), normalised -> value of each member (E, k B), return units. Members
            that judge every position of a chunk answer as one, E = 1 (see `QNetwork.q`).

        Raises:
            ConfigError: Features or, later, chunks have another shape or number.
        """
        rows = self.standardised(features)
        shape = (self.horizon, self.action_dim)

        def q(chunk: Tensor) -> Tensor:
            if tuple(chunk.shape[1:]) != shape:
                raise ConfigError(
                    f"the critic judges chunks of shape (B, {shape[0]}, {shape[1]}): got "
                    f"{tuple(chunk.shape)}. Train a critic for this policy."
                )
            return self.network.q(rows, chunk)

        return q
