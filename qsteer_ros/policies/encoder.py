r"""The camera encoder: from two pictures and the joints to the features of policy and critic.

Each view passes through a small convolutional network that ends in 16 maps. Of every map the
*spatial soft-argmax* is taken, the mean picture coordinate under the softmax of the map,

.. math:: \bar u = \sum_{ij} \mathrm{softmax}(m)_{ij} \, u_{ij},

and for 6 of them also the mean of the feature vectors under it. Together with 13 measured numbers
(joint positions, pinch point, its yaw, gripper and effort) an MLP turns this into the cube's
position and four-fold yaw: once in the frame of the world, once in that of the gripper, blended by
a learned gate. Far from the cube the fixed camera knows best; in the hand the wrist camera does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.policies.features import (
    FEATURE_NAMES,
    PROPRIO_NAMES,
    ToolKinematics,
    proprioception,
)
from qsteer_ros.types import Image, Observation

ARCHITECTURE = "soft_argmax_two_frames_v1"
PROPRIO_INDEX = (*range(6), *range(12, 19))
"""Which of the 19 measured features the network sees: all but the joint velocities."""
MAPS, POOLED_MAPS, CHANNELS = 16, 6, 32


def soft_argmax(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean coordinate under the softmax of each map.

    Args:
        maps: (B, M, h, w), logits.

    Returns:
        Coordinates (B, M, 2): x to the right and y down, -1 to 1 from the centre of the first
        pixel to that of the last. And the softmax itself, (B, M, h * w).
    """
    height, width = maps.shape[-2:]
    weight = torch.softmax(maps.flatten(2), dim=-1)
    x = torch.linspace(-1.0, 1.0, width, dtype=maps.dtype, device=maps.device)
    y = torch.linspace(-1.0, 1.0, height, dtype=maps.dtype, device=maps.device)
    grid = torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1)  # (h w, 2)
    return weight @ grid, weight


class ViewNetwork(nn.Module):
    """One camera's picture to 16 image points and 6 feature vectors, (B, 32 + 6 * 32).

    Attributes:
        in_bfloat16: Run the convolutions in bfloat16, to train faster. Coordinates never are:
            eight bits of them would be a centimetre.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_bfloat16 = False
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 48, 8, stride=4, padding=2),
            nn.ReLU(),
            nn.Conv2d(48, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.ReLU(),
        )
        self.maps = nn.Conv2d(CHANNELS, MAPS, 1)

    def forward(self, picture: Tensor) -> Tensor:
        """(B, 3, H, W), roughly in [-1, 3], to (B, 224)."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.in_bfloat16):
            signal = self.trunk(picture)
            maps = self.maps(signal)
        points, weight = soft_argmax(maps.float())
        pooled = weight[:, :POOLED_MAPS] @ signal.float().flatten(2).transpose(1, 2)
        return torch.cat([points.flatten(1), pooled.flatten(1)], dim=1)


class CubeNetwork(nn.Module):
    """Pictures and 13 measured numbers to the cube's pose.

    Args:
        cameras: Names of the views, in the order of their networks.
    """

    proprio_mean: Tensor
    proprio_std: Tensor

    def __init__(self, cameras: Sequence[str]) -> None:
        super().__init__()
        self.cameras = tuple(cameras)
        self.views = nn.ModuleDict({name: ViewNetwork() for name in cameras})
        inputs = len(self.cameras) * (2 * MAPS + POOLED_MAPS * CHANNELS) + len(PROPRIO_INDEX)
        self.body = nn.Sequential(
            nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()
        )
        self.head = nn.Linear(128, 12)
        self.register_buffer("proprio_mean", torch.zeros(len(PROPRIO_INDEX)))
        self.register_buffer("proprio_std", torch.ones(len(PROPRIO_INDEX)))

    def forward(self, pictures: Mapping[str, Tensor], proprio: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate the cube's pose.

        Args:
            pictures: Camera name -> (B, H, W, 3) uint8.
            proprio: The 19 measured features, (B, 19).

        Returns:
            The scaled cube position 10 (k - c), (B, 3), and an estimate of (cos, sin) of 4 x yaw,
            (B, 2), whose length is below 1 where the network is unsure.
        """
        views = [self.views[name](_normalised(pictures[name])) for name in self.cameras]
        measured = (proprio[:, PROPRIO_INDEX] - self.proprio_mean) / self.proprio_std
        out = self.head(self.body(torch.cat([*views, measured], dim=1))).float()
        tool, cos, sin = proprio[:, 12:15], proprio[:, 15:16], proprio[:, 16:17]
        gate = torch.sigmoid(out[:, 10:12])
        ahead = _turned(out[:, 3:5], cos, sin)
        in_gripper = tool + torch.cat([ahead, out[:, 5:6]], dim=1)
        position = gate[:, :1] * out[:, :3] + (1 - gate[:, :1]) * in_gripper
        cos_2, sin_2 = cos * cos - sin * sin, 2 * sin * cos
        cos_4, sin_4 = cos_2 * cos_2 - sin_2 * sin_2, 2 * sin_2 * cos_2
        turned = _turned(out[:, 8:10], cos_4, sin_4)
        return position, gate[:, 1:] * out[:, 6:8] + (1 - gate[:, 1:]) * turned


def _normalised(picture: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) around 0; the table is dark."""
    return picture.permute(0, 3, 1, 2).float().mul_(4.0 / 255.0).sub_(0.8)


def _turned(vector: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, 2) by an angle given by its cosine and sine, (B, 1)."""
    x, y = vector[:, :1], vector[:, 1:]
    return torch.cat([cos * x - sin * y, sin * x + cos * y], dim=1)


class CameraShape(Protocol):
    """What the encoder needs to know of a camera of the robot file."""

    @property
    def width(self) -> int:
        """Pixels."""
        ...

    @property
    def height(self) -> int:
        """Pixels."""
        ...


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
        for name, (height, width) in shapes.items():
            if name not in robot.cameras:
                raise ConfigError(
                    f"the encoder '{folder}' needs camera '{name}': robot '{robot.name}' has "
                    f"{sorted(robot.cameras)}. Fix 'cameras' in the robot file."
                )
            camera: CameraShape = robot.cameras[name]
            if (camera.height, camera.width) != (height, width):
                raise ConfigError(
                    f"the encoder '{folder}' was trained with {width}x{height} pictures of camera "
                    f"'{name}': the robot file says {camera.width}x{camera.height}. Set the "
                    "camera to that size, or train an encoder for this one."
                )
        return cls(network, shapes, Kinematics(robot), checkpoint_hash=digest, device=device)

    @torch.no_grad()
    def features(self, observation: Observation) -> Tensor:
        """The features of one observation, (1, 27) float32.

        Raises:
            DataError: A camera is missing or its picture has another size.
        """
        for name, shape in self.cameras.items():
            found = observation.images[name].shape[:2] if name in observation.images else None
            if found != shape:
                raise DataError(
                    f"the encoder needs a {shape[1]}x{shape[0]} picture of camera '{name}': got "
                    f"{'none' if found is None else f'{found[1]}x{found[0]}'}. "
                    "Check the camera's topic and settings."
                )
        return self.features_from_arrays(
            {name: observation.images[name][None] for name in self.cameras},
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
