"""A trained flow policy: a frozen velocity network with everything needed to act with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import VelocityField
from qsteer_ros.interface import Interface
from qsteer_ros.policies.networks import FlowMLP
from qsteer_ros.trained import Trained
from qsteer_ros.weights import rows_for


@dataclass(frozen=True, eq=False)
class FlowPolicy(Trained):
    """Behaviour cloned from data, as a velocity field per observation.

    Attributes:
        network: Velocity network; flow time 0 noise, 1 action.

    Raises:
        ConfigError: The network does not fit the interface.
    """

    KIND: ClassVar[str] = "policy"
    PREFIX: ClassVar[str] = "velocity"
    ARCHITECTURE: ClassVar[tuple[str, ...]] = ("hidden", "time_embedding")

    network: FlowMLP

    def __post_init__(self) -> None:
        """Refuse a network that was made for other features or chunks."""
        network = (self.network.feature_dim, self.network.chunk_dim)
        stated = (self.interface.feature_dim, self.interface.chunk_dim)
        if network != stated:
            raise ConfigError(
                f"a policy for {stated[0]} features and chunks of {stated[1]} must have a network "
                f"of these sizes: its network has {network[0]} and {network[1]}."
            )

    @staticmethod
    def build(architecture: Mapping[str, Any], interface: Interface) -> FlowMLP:
        """The velocity network that ``config.json`` describes."""
        return FlowMLP(
            interface.feature_dim,
            interface.chunk_dim,
            tuple(architecture["hidden"]),
            time_embedding=architecture["time_embedding"],
        )

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of an action component: the normalised interval."""
        return (-1.0, 1.0)

    def condition(self, features: Tensor) -> VelocityField:
        """Fix the observation; what remains is a velocity field.

        Args:
            features: As the encoder gives them, not standardised: one row for all chunks, (1, F),
                or (B, F), of which row b serves chunks b k to b k + k - 1 of the k B asked about.

        Returns:
            Noisy chunk (k B, H, A) and flow time (k B,) -> velocity (k B, H, A).

        Raises:
            ConfigError: Features or, later, chunks have another shape or number.
        """
        rows = self.standardised(features)
        shape = (self.horizon, self.action_dim)

        def velocity(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
            if tuple(noisy_chunk.shape[1:]) != shape:
                raise ConfigError(
                    f"the policy moves chunks of shape (B, {shape[0]}, {shape[1]}): got "
                    f"{tuple(noisy_chunk.shape)}."
                )
            batch = rows_for(rows, len(noisy_chunk))
            flat: Tensor = self.network(batch, noisy_chunk.flatten(1), flow_time)
            return flat.view_as(noisy_chunk)

        return velocity
