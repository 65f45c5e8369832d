"""The camera encoder: from two pictures and the joints to the features of policy and critic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.policies.cameras import check_cameras, pictures_of
from qsteer_ros.policies.encoder_network import CubeNetwork
from qsteer_ros.policies.features import (
    FEATURE_NAMES,
    PROPRIO_NAMES,
    ToolKinematics,
    proprioception,
)
from qsteer_ros.types import Image, Observation

ARCHITECTURE = "soft_argmax_two_frames_v1"


class Encoder:
    """A trained camera encoder.

    Attributes:
        cameras: Camera name -> (height, width) it was trained with.
        feature_names: Names of the 27 features.
        hash: SHA-256 of the checkpoint; critics trained on its features name it by that.
    """

    def __init__(
        self,
        network: CubeNetwork,
        cameras: Mapping[str, tuple[int, int]],
        kinematics: ToolKinematics,
        *,
        checkpoint_hash: str,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cameras = dict(cameras)
        self.feature_names = FEATURE_NAMES
        self.hash = checkpoint_hash
        self._network = network.to(device).eval().requires_grad_(False)
        self._kinematics = kinematics
        self._device = torch.device(device)

    @classmethod
    def load(
        cls, folder: str | Path, robot: Any, *, device: torch.device | str = "cpu"
    ) -> Encoder:
        """Read a checkpoint and hold it against a robot.

        Args:
            folder: What ``qsteer train encoder`` wrote.
            robot: A :class:`~qsteer_ros.motion.robot.RobotFile`.
            device: Where the network runs.

        Raises:
            ConfigError: The folder is no encoder, or the robot's cameras are not the ones it was
                trained with.
            DataError: The weights do not fit the architecture.
        """
        from qsteer_ros.motion.kinematics import Kinematics

        network, shapes, digest = load_network(folder)
        check_cameras(shapes, robot, folder=folder)
        return cls(network, shapes, Kinematics(robot), checkpoint_hash=digest, device=device)

    @torch.no_grad()
    def features(self, observation: Observation) -> Tensor:
        """The features of one observation, (1, 27) float32.

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
            (N, 27) float32 on the encoder's device. The yaw entries have length 1.
        """
        pictures = {
            name: torch.from_numpy(np.ascontiguousarray(images[name])).to(self._device)
            for name in self.cameras
        }
        measured = torch.from_numpy(np.asarray(proprio, dtype=np.float32)).to(self._device)
        position, yaw = self._network(pictures, measured)
        yaw = yaw / yaw.norm(dim=1, keepdim=True).clamp_min(1e-6)
        return torch.cat([measured, position, position - measured[:, 12:15], yaw], dim=1)


def load_network(folder: str | Path) -> tuple[CubeNetwork, dict[str, tuple[int, int]], str]:
    """Network, camera sizes (height, width) and hash of an encoder checkpoint.

    Raises:
        ConfigError: It is no encoder checkpoint, or of an architecture this version does not know.
        DataError: Weights are missing or of the wrong shape.
    """
    saved = checkpoints.load(folder, kind="encoder")
    if saved.config.get("architecture") != ARCHITECTURE:
        raise ConfigError(
            f"encoder '{folder}' must have architecture '{ARCHITECTURE}': it has "
            f"'{saved.config.get('architecture')}'. Train it again with this version."
        )
    if tuple(saved.config["feature_names"]) != FEATURE_NAMES:
        raise ConfigError(
            f"encoder '{folder}' must produce the {len(FEATURE_NAMES)} features of this version: "
            f"it names {saved.config['feature_names']}. Train it again with this version."
        )
    shapes = {name: (int(h), int(w)) for name, (h, w) in saved.config["cameras"].items()}
    network = CubeNetwork(sorted(shapes))
    try:
        network.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in saved.tensors.items()})
    except RuntimeError as error:
        raise DataError(
            f"encoder '{folder}' does not fit its architecture: {error}. Copy or train it again."
        ) from error
    return network, shapes, saved.hash


def encoder_config(
    cameras: Mapping[str, tuple[int, int]], training: Mapping[str, Any]
) -> dict[str, Any]:
    """The ``config.json`` of an encoder checkpoint."""
    return {
        "kind": "encoder",
        "architecture": ARCHITECTURE,
        "cameras": {name: list(shape) for name, shape in cameras.items()},
        "proprio_names": list(PROPRIO_NAMES),
        "feature_names": list(FEATURE_NAMES),
        "training": dict(training),
    }
