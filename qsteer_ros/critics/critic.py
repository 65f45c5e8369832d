"""A trained critic: a frozen ensemble with everything needed to ask it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qsteer_ros import checkpoints
from qsteer_ros.critics.networks import EnsembleMLP, critic_input
from qsteer_ros.ensemble import QFunction
from qsteer_ros.errors import ConfigError
from qsteer_ros.interface import Interface
from qsteer_ros.weights import arrays_of, load_frozen, standardise, statistics_of


@dataclass(frozen=True, eq=False)
class Critic:
    """Values of action chunks, given features of an observation.

    Attributes:
        network: Target (EMA) networks: they are what steering asks.
        feature_mean: Statistics of the training features, (F,).
        feature_std: Their standard deviation with its floor applied, (F,).
        interface: The space it lives in.
        training: Command, seed, steps, data hash and metrics, as ``config.json`` keeps them.
        hash: Of the checkpoint it was loaded from; empty before it has been saved.

    Raises:
        ConfigError: The network's input does not fit the interface.
    """

    network: EnsembleMLP
    feature_mean: Tensor
    feature_std: Tensor
    interface: Interface
    training: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""

    def __post_init__(self) -> None:
        """Refuse a network that was made for other features or chunks."""
        expected = self.interface.feature_dim + self.interface.chunk_dim
        if self.network.in_dim != expected:
            raise ConfigError(
                f"a critic for {self.interface.feature_dim} features and chunks of "
                f"{self.interface.chunk_dim} must have {expected} inputs: its network has "
                f"{self.network.in_dim}."
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
    def feature_names(self) -> tuple[str, ...]:
        """Name of each feature."""
        return self.interface.feature_names

    def condition(self, features: Tensor) -> QFunction:
        """Fix the observation; what remains is a function of the chunk.

        Args:
            features: As the encoder gives them, not standardised, (1, F) or one row per chunk,
                (B, F).

        Returns:
            Chunk (B, H, A), normalised -> value of each member (E, B), return units.

        Raises:
            ConfigError: Features or, later, chunks have another shape.
        """
        if features.ndim != 2 or features.shape[1] != self.interface.feature_dim:
            raise ConfigError(
                f"the critic expects features of shape (B, {self.interface.feature_dim}): got "
                f"{tuple(features.shape)}. Use the encoder it was trained with."
            )
        rows = standardise(features, self.feature_mean, self.feature_std)
        shape = (self.horizon, self.action_dim)

        def q(chunk: Tensor) -> Tensor:
            if tuple(chunk.shape[1:]) != shape:
                raise ConfigError(
                    f"the critic judges chunks of shape (B, {shape[0]}, {shape[1]}): got "
                    f"{tuple(chunk.shape)}. Train a critic for this policy."
                )
            values: Tensor = self.network(critic_input(rows, chunk))
            return values

        return q

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint folder atomically, replacing one that is there.

        Raises:
            DataError: A weight is not finite. Nothing has been written.
        """
        tensors = arrays_of(self.network, prefix="target") | {
            "feature_mean": np.asarray(self.feature_mean.cpu()),
            "feature_std": np.asarray(self.feature_std.cpu()),
        }
        config = self.interface.to_config() | {
            "kind": "critic",
            "architecture": self.network.architecture,
            "training": dict(self.training),
        }
        return checkpoints.save(folder, tensors, config)

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> Critic:
        """Read a checkpoint folder; its networks are frozen.

        Raises:
            ConfigError: It is missing, of another kind, or incomplete.
            DataError: It is damaged or contradicts itself.
        """
        checkpoint = checkpoints.load(folder, kind="critic")
        interface = Interface.from_config(checkpoint.config, source=str(folder))
        architecture = checkpoints.architecture(checkpoint, ("members", "hidden"))
        with torch.inference_mode(False):  # weights of inference mode cannot be differentiated
            network = EnsembleMLP(
                int(architecture["members"]),
                interface.feature_dim + interface.chunk_dim,
                tuple(architecture["hidden"]),
            )
            load_frozen(network, checkpoint, prefix="target", device=device)
            mean, deviation = statistics_of(checkpoint, interface.feature_dim, device=device)
        training = checkpoint.config.get("training", {})
        return cls(network, mean, deviation, interface, training, checkpoint.hash)
