"""Pictures, joints and chunks of logged episodes, for policies that learn to see."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.learning.logged import check_joints, episode_proprio, left_out
from qsteer_ros.learning.play import windows
from qsteer_ros.learning.settings_image_bc import ImageBcSettings
from qsteer_ros.motion.kinematics import Kinematics
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.policies.conv_network import shrink
from qsteer_ros.policies.features import Float32
from qsteer_ros.replay.steps import EpisodeSteps
from qsteer_ros.replay.transitions import check_alike, logged_steps

ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class PictureChunks:
    """What a policy that sees is cloned from.

    Attributes:
        pictures: Camera name -> (M, 3, S, S) uint8.
        shapes: Camera name -> (height, width) before they were shrunk.
        proprio: The 19 measured features, (M, 19).
        chunk: Executed actions, (M, H, A), normalised.
        data_hash: Names the episodes.
        episodes: How many were used.
        left_out: Name of each episode that was not, and why.
    """

    pictures: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, int]]
    proprio: Float32
    chunk: Float32
    data_hash: str
    episodes: int
    left_out: tuple[str, ...] = ()


def load_picture_chunks(settings: ImageBcSettings, robot: RobotFile) -> PictureChunks:
    """Every moment of the episodes from which a chunk was executed whole.

    Unlike a critic's windows they may lie after the goal was reached: the arm then still did what
    the policy said.

    Raises:
        ConfigError: There is no such folder, or its episodes are of another arm.
        DataError: No episode can be used; the message says why.
    """
    if not settings.episodes:
        raise ConfigError("image-bc needs logged episodes: 'episodes' is empty. Add episodes=DIR.")
    kinematics = Kinematics(robot)
    shapes = {name: (camera.height, camera.width) for name, camera in robot.cameras.items()}
    pictures: dict[str, list[Tensor]] = {name: [] for name in shapes}
    proprio: list[Float32] = []
    chunk: list[Float32] = []
    skipped: list[tuple[str, str]] = []
    first: EpisodeSteps | None = None
    digest = hashlib.sha256()
    with tqdm(desc="episodes", unit="chunk") as bar:
        for steps in logged_steps(Path(settings.episodes), goal=settings.goal or None):
            if isinstance(steps, tuple):
                skipped.append((steps[0].name, steps[1]))
                continue
            check_joints(steps, robot)
            starts = chunk_starts(steps, settings.horizon)
            reached = bool(steps.success.any())
            if len(starts) == 0 or (settings.successes_only and not reached):
                why = "it did not reach its goal" if len(starts) else "no chunk was executed whole"
                skipped.append((steps.folder.name, why))
                continue
            first = first or steps
            check_alike(steps, first)
            for name, shape in shapes.items():
                pictures[name].append(_shrunk(steps, name, shape, starts, settings.size))
            proprio.append(episode_proprio(steps, kinematics)[starts])
            chunk.append(windows(steps.action, starts, settings.horizon))
            digest.update(str(steps.info.bag["sha256"]).encode())
            bar.update(len(starts))
    if not chunk:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped[:3])
        raise DataError(
            f"'{settings.episodes}' must hold episodes to clone: none can be used"
            f"{f' ({reasons})' if reasons else ''}. Record some with a policy."
        )
    return PictureChunks(
        pictures={name: torch.cat(parts) for name, parts in pictures.items()},
        shapes=shapes,
        proprio=np.concatenate(proprio),
        chunk=np.concatenate(chunk),
        data_hash=digest.hexdigest(),
        episodes=len(chunk),
        left_out=left_out(settings.episodes, skipped, len(chunk)),
    )


def chunk_starts(steps: EpisodeSteps, horizon: int) -> NDArray[np.int64]:
    """Rows that were measured at their stamp and from which ``horizon`` actions followed, (M,)."""
    count = len(steps) - horizon + 1
    if count < 1:
        return np.empty(0, dtype=np.int64)
    acting = np.lib.stride_tricks.sliding_window_view(steps.acting, horizon).all(axis=1)
    found: NDArray[np.int64] = np.flatnonzero(acting & steps.complete[:count])
    return found


def _shrunk(
    steps: EpisodeSteps,
    camera: str,
    shape: tuple[int, int],
    starts: NDArray[np.int64],
    size: int,
) -> Tensor:
    """Pictures of one camera at the starts, (M, 3, S, S) uint8."""
    if camera not in steps.frames:
        raise DataError(
            f"episode '{steps.folder.name}' must have camera '{camera}' of the robot file: it has "
            f"{sorted(steps.frames)}. Give the robot file it was recorded with: robot=FILE."
        )
    images = steps.images(camera)
    if images.shape[1:3] != shape:
        raise DataError(
            f"pictures of camera '{camera}' must be {shape[1]}x{shape[0]} as the robot file says: "
            f"episode '{steps.folder.name}' has {images.shape[2]}x{images.shape[1]}. "
            "Give the robot file it was recorded with: robot=FILE."
        )
    parts = [
        shrink(torch.from_numpy(images[starts[first : first + ROWS_AT_ONCE]]), size)
        for first in range(0, len(starts), ROWS_AT_ONCE)
    ]
    return torch.cat(parts)
