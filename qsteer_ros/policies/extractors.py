"""Everything that turns an observation into features, behind one protocol and one loader.

============================  ==============================  ==================================
architecture                  reads                           made by
============================  ==============================  ==================================
soft_argmax_two_frames_v1     cameras, joints                 ``qsteer train encoder``
conv3x3_v1                    cameras, joints                 ``qsteer train image-bc``
pooled_prefix_v1              a VLA's prefix, proprioception  ``prefix.save_pooled_prefix``
rl_token_v1                   a VLA's prefix, proprioception  ``qsteer train rl-token``
state_vector_v1               the state                       ``state_vector.save_state_vector``
============================  ==============================  ==================================

All are checkpoints of kind ``encoder``. Policies and critics name the one they were trained on by
its hash and do not ask which it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError
from qsteer_ros.policies import conv_features, encoder, prefix, rl_token, state_vector
from qsteer_ros.types import Observation


class Extractor(Protocol):
    """What gives the features that policies and critics are trained on.

    Attributes:
        hash: Of its checkpoint.
        feature_names: Name of each feature, (F,).
    """

    hash: str
    feature_names: tuple[str, ...]

    def features_from_arrays(
        self, inputs: Mapping[str, NDArray[Any]], proprio: NDArray[np.float32], /
    ) -> Tensor:
        """Features of N observations, (N, F) float32.

        Args:
            inputs: By name, each with N rows: pictures of cameras, or ``prefix`` and ``mask``.
            proprio: What is measured, (N, P).
        """
        ...


class CameraExtractor(Extractor, Protocol):
    """An extractor that reads the cameras of a robot.

    Attributes:
        cameras: Camera name -> (height, width) it needs.
    """

    cameras: dict[str, tuple[int, int]]

    def features(self, observation: Observation) -> Tensor:
        """Features of one observation, (1, F)."""
        ...


def load_camera_extractor(
    folder: str | Path, robot: Any, *, device: torch.device | str = "cpu"
) -> CameraExtractor:
    """Read an encoder of camera pictures and hold it against a robot.

    Args:
        folder: Its checkpoint.
        robot: A :class:`~qsteer_ros.motion.robot.RobotFile`.
        device: Where its network runs.

    Raises:
        ConfigError: It reads something else, or its cameras are not the robot's.
        DataError: It is damaged.
    """
    match name := architecture_name(folder):
        case encoder.ARCHITECTURE:
            return encoder.Encoder.load(folder, robot, device=device)
        case conv_features.ARCHITECTURE:
            return conv_features.ConvFeatures.load(folder, robot, device=device)
        case _:
            raise ConfigError(
                f"encoder '{folder}' must read cameras: its architecture is '{name}'. "
                "Give one that 'qsteer train encoder' or 'qsteer train image-bc' wrote."
            )


def load_extractor(
    folder: str | Path, robot: Any = None, *, device: torch.device | str = "cpu"
) -> Extractor:
    """Read an extractor, whatever it reads.

    Args:
        folder: Its checkpoint.
        robot: Needed where it reads cameras; otherwise not looked at.
        device: Where it computes.

    Raises:
        ConfigError: It is no extractor of this version, it reads cameras and there is no robot or
            another one, or its token says nothing.
        DataError: It is damaged.
    """
    match name := architecture_name(folder):
        case prefix.ARCHITECTURE:
            return prefix.PooledPrefix.load(folder, device=device)
        case rl_token.ARCHITECTURE:
            return rl_token.RLToken.load(folder, device=device)
        case state_vector.ARCHITECTURE:
            return state_vector.StateVector.load(folder, device=device)
        case encoder.ARCHITECTURE | conv_features.ARCHITECTURE:
            if robot is None:
                raise ConfigError(
                    f"encoder '{folder}' reads cameras and joints: it needs a robot file."
                )
            return load_camera_extractor(folder, robot, device=device)
        case _:
            raise ConfigError(
                f"encoder '{folder}' must have an architecture of this version: it has '{name}'. "
                "Train it again."
            )


def architecture_name(folder: str | Path) -> str | None:
    """Which of the architectures an encoder's checkpoint is; None where it does not say.

    Raises:
        ConfigError: It is no encoder's checkpoint.
        DataError: It is damaged.
    """
    found = checkpoints.config_of(folder, kind="encoder").get("architecture")
    name = found.get("name") if isinstance(found, Mapping) else found
    return name if isinstance(name, str) else None
