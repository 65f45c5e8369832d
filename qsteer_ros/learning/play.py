"""Reading a data set of play: the arrays the policy, the critic and the servo model learn from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import ConfigError
from qsteer_ros.interface import Interface
from qsteer_ros.learning.npz import check_rows, read_npz
from qsteer_ros.policies.features import (
    FEATURE_NAMES,
    Float32,
    proprioception_rows,
    teacher_features,
)

GRIPPER_CLOSED_RAD = 0.8
ACTION_NAMES = ("dx", "dy", "dz", "dyaw", "dgripper")
ACTION_SCALE = (0.05, 0.05, 0.05, 0.3, 1.0)
CONTROL_DT_S = 0.05
ARM = slice(0, 6)
GRIPPER = 6
CUBE_XYZ = slice(14, 17)
CUBE_QUAT_WXYZ = slice(17, 21)
SHAPES: dict[str, tuple[int | None, ...]] = {
    "action": (5,),
    "qpos": (21,),
    "qvel": (20,),
    "ctrl": (7,),
    "effort": (),
    "tool_xyz": (3,),
    "tool_yaw": (),
}
"""Of a row of every array that an episode's file holds."""

REMEDY = "Delete it and run qsteer data again."


@dataclass(frozen=True)
class Play:
    """Episodes of play laid end to end.

    Attributes:
        qpos: Simulator positions, (N, 21).
        ctrl: Commands of the step that begins at the row, (N, 7).
        action: Normalised end-effector deltas, (N, 5).
        proprio: Measured features, (N, 19).
        cube_xyz: (N, 3), m.
        cube_yaw: (N,), rad.
        episode: Index of the episode a row belongs to, (N,).
        hash: SHA-256 of the numbers, hexadecimal.
    """

    qpos: Float32
    ctrl: Float32
    action: Float32
    proprio: Float32
    cube_xyz: Float32
    cube_yaw: Float32
    episode: NDArray[np.int64]
    hash: str

    def interface(self, horizon: int) -> Interface:
        """The space of its chunks; no encoder made its features."""
        return arm_interface(horizon)

    def features(self) -> Float32:
        """The 27 features of each row, from the simulator's truth, (N, 27)."""
        return teacher_features(self.proprio, self.cube_xyz, self.cube_yaw)


def arm_interface(horizon: int, *, encoder_hash: str | None = None) -> Interface:
    """The space in which policies and critics of the simulated arm live.

    Args:
        horizon: Actions per chunk.
        encoder_hash: Encoder whose features were trained on; None for the simulator's truth.
    """
    return Interface(
        horizon=horizon,
        action_names=ACTION_NAMES,
        action_scale=ACTION_SCALE,
        feature_names=FEATURE_NAMES,
        control_dt_s=CONTROL_DT_S,
        encoder_hash=encoder_hash,
    )


def yaw_of(quat_wxyz: NDArray[np.floating]) -> Float32:
    """Yaw of unit quaternions, (N, 4) -> (N,), rad."""
    w, x, y, z = quat_wxyz.T.astype(np.float64)
    yaw: Float32 = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)).astype(np.float32)
    return yaw


def load_play(folder: Path, *, limit: int | None = None) -> Play:
    """Read the episodes of a folder that ``qsteer data`` wrote, in the order of their names.

    Args:
        folder: It holds ``episode_*.npz``.
        limit: Read no more than this many episodes.

    Raises:
        ConfigError: There is no episode in it.
        DataError: An episode is damaged, lacks an array, or holds a number that is not finite.
    """
    paths = sorted(folder.glob("episode_*.npz"))[:limit]
    if not paths:
        raise ConfigError(
            f"'{folder}' must hold episodes of play: none found. Generate them with: qsteer data"
        )
    parts: dict[str, list[NDArray[np.float32]]] = {}
    digest = hashlib.sha256()
    lengths = []
    for path in paths:
        arrays = read_npz(path, remedy=REMEDY)
        lengths.append(check_rows(path, arrays, SHAPES, remedy=REMEDY))
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array)
            digest.update(np.ascontiguousarray(array).tobytes())
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    qpos = whole["qpos"]
    return Play(
        qpos=qpos,
        ctrl=whole["ctrl"],
        action=whole["action"],
        proprio=proprioception_rows(
            position=qpos[:, ARM],
            velocity=whole["qvel"][:, ARM],
            tool_xyz=whole["tool_xyz"],
            tool_yaw=whole["tool_yaw"],
            gripper=np.clip(qpos[:, GRIPPER] / GRIPPER_CLOSED_RAD, 0.0, 1.0),
            effort=whole["effort"],
        ),
        cube_xyz=qpos[:, CUBE_XYZ],
        cube_yaw=yaw_of(qpos[:, CUBE_QUAT_WXYZ]),
        episode=np.repeat(np.arange(len(paths)), lengths),
        hash=digest.hexdigest(),
    )


def window_starts(episode: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Rows from which ``length`` further rows follow in the same episode, (M,)."""
    last = len(episode) - length
    if last <= 0:
        return np.empty(0, dtype=np.int64)
    starts = np.arange(last)
    inside: NDArray[np.int64] = starts[episode[starts] == episode[starts + length]]
    return inside


def windows(values: Float32, starts: NDArray[np.int64], length: int) -> Float32:
    """``length`` consecutive rows from each start, (M, length, ...)."""
    rows: Float32 = values[starts[:, None] + np.arange(length)]
    return rows
