"""How far two runs of the same commands lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsteer_ros.errors import DataError
from qsteer_ros.replay.reader import JointTrack


@dataclass(frozen=True)
class Divergence:
    """Difference of joint positions between a logged and a repeated run.

    Attributes:
        joints: Names, in the order of the tuples below.
        largest_rad: Largest difference per joint, rad.
        rms_rad: Root mean square per joint, rad.
        worst_joint: The joint with the largest difference.
        worst_at_s: When that was, s after the first logged state.
        compared: States compared.
        unmatched: Logged states without a repeated one at the same moment.
    """

    joints: tuple[str, ...]
    largest_rad: tuple[float, ...]
    rms_rad: tuple[float, ...]
    worst_joint: str
    worst_at_s: float
    compared: int
    unmatched: int

    @property
    def worst_rad(self) -> float:
        """The largest difference of all joints, rad."""
        return max(self.largest_rad)


def compare(
    joints: tuple[str, ...], logged: JointTrack, repeated: JointTrack, shift_ns: int
) -> Divergence:
    """Compare two runs state by state.

    Args:
        joints: Names of the columns of both tracks.
        logged: The run in the log.
        repeated: The run of now.
        shift_ns: A logged state with stamp t belongs to the repeated one with t + shift.

    Raises:
        DataError: No two states belong together.
    """
    _, ours, theirs = np.intersect1d(
        logged.stamp_ns + shift_ns, repeated.stamp_ns, return_indices=True
    )
    if ours.size == 0:
        raise DataError(
            "the repeated run must share stamps with the log: none of "
            f"{logged.stamp_ns.size} logged states was met. Check that the simulator ran."
        )
    difference = np.abs(logged.position[ours] - repeated.position[theirs])  # (N, J)
    row, column = np.unravel_index(int(difference.argmax()), difference.shape)
    at_ns = int(logged.stamp_ns[ours[row]] - logged.stamp_ns[0])
    return Divergence(
        joints,
        tuple(float(v) for v in difference.max(axis=0)),
        tuple(float(v) for v in np.sqrt(np.mean(difference**2, axis=0))),
        joints[int(column)],
        at_ns * 1e-9,
        int(ours.size),
        int(logged.stamp_ns.size - ours.size),
    )
