"""Features of a small convolutional encoder: 50 numbers per view, then the 19 measured ones."""

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
from qsteer_ros.policies.cameras import Shapes, check_cameras, pictures_of
from qsteer_ros.policies.conv_network import FEATURES_PER_VIEW, ConvNetwork, shrink
from qsteer_ros.policies.features import PROPRIO_NAMES, ToolKinematics, proprioception
from qsteer_ros.types import Image, Observation
from qsteer_ros.weights import arrays_of, load_frozen

ARCHITECTURE = "conv3x3_v1"
PREFIX = "views"


def conv_feature_names(cameras: Sequence[str]) -> tuple[str, ...]:
    """Names of the features in their order: views first, then what is measured, (50 V + 19,)."""
    seen = (f"{name}_{i}" for name in cameras for i in range(FEATURES_PER_VIEW))
    return (*seen, *PROPRIO_NAMES)


class ConvFeatures:
    """A trained convolutional encoder.

    Attributes:
        cameras: Camera name -> (height, width) it was trained with.
        feature_names: See :func:`conv_feature_names`.
        hash: SHA-256 of the checkpoint; policies and critics trained on its features name it.
    """

    def __init__(
        self,
        network: ConvNetwork,
        cameras: Shapes,
        kinematics: ToolKinematics,
        *,
        checkpoint_hash: str,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cameras = dict(cameras)
        self.feature_names = conv_feature_names(network.cameras)
        self.hash = checkpoint_hash
        self._network = network.to(device).eval().requires_grad_(False)
        self._kinematics = kinematics
        self._device = torch.device(device)

    @classmethod
    def load(
        cls, folder: str | Path, robot: Any, *, device: torch.device | str = "cpu"
    ) -> ConvFeatures:
        """Read a checkpoint and hold it against a robot.

        Args:
            folder: The folder ``encoder`` that ``qsteer train image-bc`` wrote.
            robot: A :class:`~qsteer_ros.motion.robot.RobotFile`.
            device: Where the network runs.

        Raises:
            ConfigError: The folder is no such encoder, or the robot's cameras are not the ones it
                was trained with.
            DataError: The weights do not fit the architecture.
        """
        from qsteer_ros.motion.kinematics import Kinematics

        saved = checkpoints.load(folder, kind="encoder")
        architecture = checkpoints.architecture(saved, ("name", "size"))
        if architecture["name"] != ARCHITECTURE:
            raise ConfigError(
                f"encoder '{folder}' must have architecture '{ARCHITECTURE}': it has "
                f"'{architecture['name']}'. Train it again with this version."
            )
        shapes = {name: (int(h), int(w)) for name, (h, w) in saved.config["cameras"].items()}
        check_cameras(shapes, robot, folder=folder)
        with torch.inference_mode(False):
            network = ConvNetwork(sorted(shapes), int(architecture["size"]))
            load_frozen(network.views, saved, prefix=PREFIX, device=device)
        if tuple(saved.config["feature_names"]) != conv_feature_names(network.cameras):
            raise ConfigError(
                f"encoder '{folder}' must produce the features of this version: it names "
                f"{len(saved.config['feature_names'])} others. Train it again with this version."
            )
        return cls(network, shapes, Kinematics(robot), checkpoint_hash=saved.hash, device=device)

    @torch.no_grad()
    def features(self, observation: Observation) -> Tensor:
        """The features of one observation, (1, F) float32.

        Raises:
            DataError: A camera is missing or its picture has another size.
        """
        return self.features_from_arrays(
            pictures_of(observation, self.cameras),
            proprioception(observation.robot, self._kinematics)[None],
        )

    @torch.no_grad()
    def features_from_arrays(
        self, images: Mapping[str, Image], proprio: NDArray[np.float32]
    ) -> Tensor:
        """The features of N observations.

        Args:
            images: Camera name -> (N, height, width, 3) uint8 RGB.
            proprio: The 19 measured features, (N, 19).

        Returns:
            (N, 50 V + 19) float32 on the encoder's device.
        """
        pictures = {
            name: shrink(
                torch.from_numpy(np.ascontiguousarray(images[name])).to(self._device),
                self._network.size,
            )
            for name in self._network.cameras
        }
        measured = torch.from_numpy(np.asarray(proprio, dtype=np.float32)).to(self._device)
        return torch.cat([self._network(pictures), measured], dim=1)


def save_conv_features(
    folder: str | Path, network: ConvNetwork, cameras: Shapes, training: Mapping[str, Any]
) -> str:
    """Write a checkpoint folder atomically.

    Args:
        folder: Where; one that is there is replaced.
        network: Its weights.
        cameras: Sizes of the pictures before they are shrunk.
        training: Command, settings, data hash and metrics.

    Returns:
        The checkpoint's hash.

    Raises:
        DataError: A weight is not finite. Nothing has been written.
    """
    config = {
        "kind": "encoder",
        "architecture": {"name": ARCHITECTURE, "size": network.size},
        "cameras": {name: list(shape) for name, shape in cameras.items()},
        "proprio_names": list(PROPRIO_NAMES),
        "feature_names": list(conv_feature_names(network.cameras)),
        "training": dict(training),
    }
    checkpoints.save(folder, arrays_of(network.views, prefix=PREFIX), config)
    return checkpoints.load(folder, kind="encoder").hash
