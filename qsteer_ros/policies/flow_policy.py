"""A trained flow policy: a frozen velocity network with everything needed to act with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import VelocityField
from qsteer_ros.interface import Interface
from qsteer_ros.policies.networks import FlowMLP
from qsteer_ros.weights import arrays_of, load_frozen, standardise, statistics_of


@dataclass(frozen=True, eq=False)
class FlowPolicy:
    """Behaviour cloned from data, as a velocity field per observation.

    Attributes:
        network: Velocity network; flow time 0 noise, 1 action.
        feature_mean: Statistics of the training features, (F,).
        feature_std: Their standard deviation with its floor applied, (F,).
        interface: The space it lives in.
        training: Command, seed, steps, data hash and metrics, as ``config.json`` keeps them.
        hash: Of the checkpoint it was loaded from; empty before it has been saved.

    Raises:
        ConfigError: The network does not fit the interface.
    """

    network: FlowMLP
    feature_mean: Tensor
    feature_std: Tensor
    interface: Interface
    training: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""

    def __post_init__(self) -> None:
        """Refuse a network that was made for other features or chunks."""
        network = (self.network.feature_dim, self.network.chunk_dim)
        stated = (self.interface.feature_dim, self.interface.chunk_dim)
        if network != stated:
            raise ConfigError(
                f"a policy for {stated[0]} features and chunks of {stated[1]} must have a network "
                f"of these sizes: its network has {network[0]} and {network[1]}."
            )

    @property
    def horizon(self) -> int:
        """H, actions in a chunk."""
        return self.interface.horizon

    @property
    def action_dim(self) -> int:
        """A."""
        return self.interface.action_dim

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of an action component: the normalised interval."""
        return (-1.0, 1.0)

    def condition(self, features: Tensor) -> VelocityField:
        """Fix the observation; what remains is a velocity field.

        Args:
            features: As the encoder gives them, not standardised, (1, F) or one row per chunk,
                (B, F).

        Returns:
            Noisy chunk (B, H, A) and flow time (B,) -> velocity (B, H, A).

        Raises:
            ConfigError: Features or, later, chunks have another shape.
        """
        if features.ndim != 2 or features.shape[1] != self.interface.feature_dim:
            raise ConfigError(
                f"the policy expects features of shape (B, {self.interface.feature_dim}): got "
                f"{tuple(features.shape)}. Use the encoder it was trained with."
            )
        rows = standardise(features, self.feature_mean, self.feature_std)
        shape = (self.horizon, self.action_dim)

        def velocity(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
            if tuple(noisy_chunk.shape[1:]) != shape:
                raise ConfigError(
                    f"the policy moves chunks of shape (B, {shape[0]}, {shape[1]}): got "
                    f"{tuple(noisy_chunk.shape)}."
                )
            batch = rows.expand(noisy_chunk.shape[0], -1)
            flat: Tensor = self.network(batch, noisy_chunk.flatten(1), flow_time)
            return flat.view_as(noisy_chunk)

        return velocity

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint folder atomically, replacing one that is there.

        Raises:
            DataError: A weight is not finite. Nothing has been written.
        """
        tensors = arrays_of(self.network, prefix="velocity") | {
            "feature_mean": np.asarray(self.feature_mean.cpu()),
            "feature_std": np.asarray(self.feature_std.cpu()),
        }
        config = self.interface.to_config() | {
            "kind": "policy",
            "architecture": self.network.architecture,
            "training": dict(self.training),
        }
        return checkpoints.save(folder, tensors, config)

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> FlowPolicy:
        """Read a checkpoint folder; its network is frozen.

        Raises:
            ConfigError: It is missing, of another kind, or incomplete.
            DataError: It is damaged or contradicts itself.
        """
        checkpoint = checkpoints.load(folder, kind="policy")
        interface = Interface.from_config(checkpoint.config, source=str(folder))
        architecture = checkpoints.architecture(checkpoint, ("hidden", "time_embedding"))
        with torch.inference_mode(False):  # weights of inference mode cannot be differentiated
            network = FlowMLP(
                interface.feature_dim,
                interface.chunk_dim,
                tuple(architecture["hidden"]),
                time_embedding=architecture["time_embedding"],
            )
            load_frozen(network, checkpoint, prefix="velocity", device=device)
            mean, deviation = statistics_of(checkpoint, interface.feature_dim, device=device)
        training = checkpoint.config.get("training", {})
        return cls(network, mean, deviation, interface, training, checkpoint.hash)
