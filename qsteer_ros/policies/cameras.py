"""What every camera encoder asks of a robot's cameras and of the pictures it is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.types import Image, Observation

Shapes = Mapping[str, tuple[int, int]]
"""Camera name -> (height, width), pixels."""


class CameraShape(Protocol):
    """What an encoder needs to know of a camera of the robot file."""

    @property
    def width(self) -> int:
        """Pixels."""
        ...

    @property
    def height(self) -> int:
        """Pixels."""
        ...


class RobotCameras(Protocol):
    """The part of a robot file that is about cameras."""

    @property
    def name(self) -> str:
        """Of the robot."""
        ...

    @property
    def cameras(self) -> Mapping[str, CameraShape]:
        """By name."""
        ...


def check_cameras(shapes: Shapes, robot: RobotCameras, *, folder: str | Path) -> None:
    """Refuse a robot whose cameras are not those an encoder was trained with.

    Args:
        shapes: Cameras of the encoder.
        robot: The robot file.
        folder: The encoder's checkpoint, for messages.

    Raises:
        ConfigError: A camera is missing or has another size.
    """
    for name, (height, width) in shapes.items():
        if name not in robot.cameras:
            raise ConfigError(
                f"the encoder '{folder}' needs camera '{name}': robot '{robot.name}' has "
                f"{sorted(robot.cameras)}. Fix 'cameras' in the robot file."
            )
        camera = robot.cameras[name]
        if (camera.height, camera.width) != (height, width):
            raise ConfigError(
                f"the encoder '{folder}' was trained with {width}x{height} pictures of camera "
                f"'{name}': the robot file says {camera.width}x{camera.height}. Set the "
                "camera to that size, or train an encoder for this one."
            )


def pictures_of(observation: Observation, shapes: Shapes) -> dict[str, Image]:
    """The pictures an encoder needs, each (1, height, width, 3) uint8.

    Raises:
        DataError: A camera is missing or its picture has another size.
    """
    for name, shape in shapes.items():
        found = observation.images[name].shape[:2] if name in observation.images else None
        if found != tuple(shape):
            raise DataError(
                f"the encoder needs a {shape[1]}x{shape[0]} picture of camera '{name}': got "
                f"{'none' if found is None else f'{found[1]}x{found[0]}'}. "
                "Check the camera's topic and settings."
            )
    return {name: observation.images[name][None] for name in shapes}
