"""The state vector as features: what is measured, unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError

ARCHITECTURE = "state_vector_v1"


class StateVector:
    """Nothing is computed; it says which numbers, in which order, a critic was trained on.

    Attributes:
        feature_names: Name of each number of the state, (F,).
        hash: SHA-256 of the checkpoint.
    """

    def __init__(
        self,
        feature_names: Sequence[str],
        *,
        checkpoint_hash: str,
        device: torch.device | str = "cpu",
    ) -> None:
        self.feature_names = tuple(feature_names)
        self.hash = checkpoint_hash
        self._device = torch.device(device)

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> StateVector:
        """Read a checkpoint that :func:`save_state_vector` wrote.

        Raises:
            ConfigError: It is another kind of checkpoint.
        """
        saved = checkpoints.load(folder, kind="encoder")
        name = checkpoints.architecture(saved, ("name",))["name"]
        if name != ARCHITECTURE:
            raise ConfigError(
                f"'{folder}' must have architecture '{ARCHITECTURE}': it has '{name}'."
            )
        return cls(saved.config["feature_names"], checkpoint_hash=saved.hash, device=device)

    def features_from_arrays(
        self, inputs: Mapping[str, NDArray[Any]], proprio: NDArray[np.floating]
    ) -> Tensor:
        """The features of N observations.

        Args:
            inputs: Not used.
            proprio: The state, (N, F).

        Returns:
            (N, F) float32.

        Raises:
            ConfigError: The state has another length.
        """
        if proprio.ndim != 2 or proprio.shape[1] != len(self.feature_names):
            raise ConfigError(
                f"the state must have the {len(self.feature_names)} numbers {self.feature_names}: "
                f"got an array of shape {proprio.shape}."
            )
        return torch.from_numpy(np.ascontiguousarray(proprio)).to(self._device, torch.float32)


def save_state_vector(folder: str | Path, feature_names: Sequence[str]) -> StateVector:
    """Make a checkpoint; it holds names only.

    Raises:
        ConfigError: There is no name, or one comes twice.
    """
    if not feature_names or len(set(feature_names)) < len(feature_names):
        raise ConfigError(
            f"a state vector needs a name of its own for each number: got {tuple(feature_names)}."
        )
    config = {
        "kind": "encoder",
        "architecture": {"name": ARCHITECTURE},
        "feature_names": list(feature_names),
        "training": {},
    }
    checkpoints.save(folder, {}, config)
    return StateVector.load(folder)
