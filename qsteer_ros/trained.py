"""What a trained network is kept as: frozen, with everything needed to ask it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError
from qsteer_ros.interface import Interface
from qsteer_ros.weights import arrays_of, load_frozen, standardise, statistics_of


@dataclass(frozen=True, eq=False)
class Trained:
    """A frozen network on features of an observation; policies and critics derive from it.

    A class that derives says what it is called (``KIND``), under which name its weights are kept
    (``PREFIX``), which keys its architecture must have (``ARCHITECTURE``), and how its network is
    built (:meth:`build`).

    Attributes:
        network: What is asked.
        feature_mean: Statistics of the training features, (F,).
        feature_std: Their standard deviation with its floor applied, (F,).
        interface: The space it lives in.
        training: Command, seed, steps, data hash and metrics, as ``config.json`` keeps them.
        hash: Of the checkpoint it was loaded from; empty before it has been saved.
    """

    KIND: ClassVar[str]
    PREFIX: ClassVar[str]
    ARCHITECTURE: ClassVar[tuple[str, ...]]

    network: nn.Module
    feature_mean: Tensor
    feature_std: Tensor
    interface: Interface
    training: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""

    @staticmethod
    def build(architecture: Mapping[str, Any], interface: Interface) -> nn.Module:
        """The network that ``config.json`` describes, with weights to be filled in.

        Raises:
            ConfigError: There is no such network.
        """
        raise NotImplementedError

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

    def standardised(self, features: Tensor) -> Tensor:
        """Features in units of the training data's spread, (B, F).

        Raises:
            ConfigError: They are not (B, F).
        """
        if features.ndim != 2 or features.shape[1] != self.interface.feature_dim:
            raise ConfigError(
                f"the {self.KIND} expects features of shape (B, {self.interface.feature_dim}): "
                f"got {tuple(features.shape)}. Use the encoder it was trained with."
            )
        return standardise(features, self.feature_mean, self.feature_std)

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint folder atomically, replacing one that is there.

        Raises:
            DataError: A weight is not finite. Nothing has been written.
        """
        tensors = arrays_of(self.network, prefix=self.PREFIX) | {
            "feature_mean": np.asarray(self.feature_mean.cpu()),
            "feature_std": np.asarray(self.feature_std.cpu()),
        }
        config = self.interface.to_config() | {
            "kind": self.KIND,
            "architecture": self.network.architecture,
            "training": dict(self.training),
        }
        return checkpoints.save(folder, tensors, config)

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Read a checkpoint folder; its network is frozen.

        Raises:
            ConfigError: It is missing, of another kind, or incomplete.
            DataError: It is damaged or contradicts itself.
        """
        checkpoint = checkpoints.load(folder, kind=cls.KIND)
        interface = Interface.from_config(checkpoint.config, source=str(folder))
        architecture = checkpoints.architecture(checkpoint, cls.ARCHITECTURE)
        with torch.inference_mode(False):  # weights of inference mode cannot be differentiated
            network = cls.build(architecture, interface)
            load_frozen(network, checkpoint, prefix=cls.PREFIX, device=device)
            mean, deviation = statistics_of(checkpoint, interface.feature_dim, device=device)
        training = checkpoint.config.get("training", {})
        return cls(network, mean, deviation, interface, training, checkpoint.hash)
