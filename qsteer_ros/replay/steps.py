"""One logged episode on the grid of control steps: state, frames, executed action, reward.

The grid begins at the stamp of the first decision's observation and has one row per control
period. Row :math:`i` holds what was true at its stamp and the action executed until the next row.
It ends with the episode, or where a stream ends; pictures may be missing in the last row: a
success ends the episode, and pictures of that very moment come when recording is over.

*Action.* A chunk is stamped with its observation and its row :math:`j` leads from the stamp plus
:math:`j` periods to the next. The action of a step is therefore the row of the newest decision
whose stamp is not after the step; rows of the chunk before it are cut off there. The path begins
some milliseconds later, but it joins the points of that chunk, so the state after a few steps is
the one its rows lead to. A step that no row covers has ``acting`` false: the arm was at rest.

*Reward.* ``reward`` and ``success`` have no stamp. At the control rate their place is told by the
publisher's count, and the count's place by the log times that were delayed least. At any other
rate the last value before the step's stamp holds. An episode without them is judged by its
outcome: -1 per step and, when it was a success, success in its last row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import DataError
from qsteer_ros.replay.episode import CLOSED, EPISODE, REQUIRED_PROVENANCE, Episode
from qsteer_ros.replay.reader import Decision, EpisodeReader, JointTrack, Stamps, decode_frame
from qsteer_ros.replay.records import LoggedMessage
from qsteer_ros.types import Array, Image

LAYOUT = ("joints", "gripper_joint", "gripper_closed_rad", "effort_full_scale_n", "control_dt_s")


@dataclass(frozen=True, eq=False)
class EpisodeSteps:
    """The control steps of one episode.

    Attributes:
        folder: The episode's folder.
        info: Its ``episode.json``.
        control_dt_ns: Time between two rows.
        horizon: Actions in a chunk of the policy that acted; its longest one's.
        stamp_ns: (N,), exact multiples of the period after the first.
        position: Arm joints, (N, J), rad, in the robot file's order.
        velocity: (N, J), rad/s.
        gripper: Closure, (N,), 0 open to 1 closed.
        gripper_effort: (N,), fraction of full scale, 0 to 1.
        action: Executed normalised actions, (N, A); zero where not acting.
        acting: (N,), whether a chunk covered the step.
        reward: (N,), of the state at the stamp.
        success: (N,), whether the goal was reached at the stamp.
        complete: (N,), whether joints and every camera were measured at the stamp.
        frames: Camera -> its frame of each row; the nearest one where ``complete`` is false.
    """

    folder: Path
    info: Episode
    control_dt_ns: int
    horizon: int
    stamp_ns: Stamps
    position: Array
    velocity: Array
    gripper: Array
    gripper_effort: Array
    action: NDArray[np.float32]
    acting: NDArray[np.bool_]
    reward: Array
    success: NDArray[np.bool_]
    complete: NDArray[np.bool_]
    frames: Mapping[str, tuple[LoggedMessage, ...]]

    def __len__(self) -> int:
        """Number of control steps."""
        return len(self.stamp_ns)

    def images(self, camera: str) -> Image:
        """Decoded frames of one camera, (N, height, width, 3) uint8 RGB.

        Raises:
            DataError: A frame is damaged.
        """
        return np.stack([decode_frame(message) for message in self.frames[camera]])


def read_steps(folder: str | Path) -> EpisodeSteps:
    """Read one episode.

    Raises:
        DataError: It is not closed, damaged, without decisions, without joint states or frames,
            does not say where it comes from or what its robot's joints are, its decisions are of
            different policies, or a reward or joint state is not finite.
    """
    reader = EpisodeReader(folder)
    info = reader.info
    if info.state != CLOSED:
        raise DataError(
            f"episode '{info.episode_id}' must be closed: it was interrupted, or it is being "
            "recorded. Run 'qsteer verify --recover' and use the recovered copy."
        )
    unknown = [key for key in REQUIRED_PROVENANCE if not info.provenance.get(key)]
    if unknown:
        raise DataError(
            f"'{reader.folder / EPISODE}' must say where the episode comes from: its provenance "
            f"lacks {', '.join(unknown)}. Restore the file from a copy, or leave the episode out."
        )
    absent = [key for key in LAYOUT if key not in info.robot]
    if absent:
        raise DataError(f"episode '{info.episode_id}' must know its robot: it lacks {absent}.")
    decisions = [d for d in reader.decisions() if _executed(d)]
    if not decisions or not info.cameras:
        raise DataError(
            f"episode '{info.episode_id}' must hold decisions and camera frames: it has "
            f"{len(decisions)} decisions and {len(info.cameras)} cameras. Record it with a policy."
        )
    widths = {decision.record.chunk.shape[1] for decision in decisions}
    if len(widths) > 1:
        raise DataError(
            f"actions of episode '{info.episode_id}' must have one width: found {sorted(widths)}. "
            "Two policies have acted in it: leave it out."
        )
    dt_ns = round(info.robot["control_dt_s"] * 1e9)
    track = reader.joints((*info.robot["joints"], info.robot["gripper_joint"]))
    frames = {camera: reader.frame_messages(camera) for camera in info.cameras}
    if len(track.stamp_ns) == 0 or not all(frames.values()):
        raise DataError(
            f"episode '{info.episode_id}' must hold frames of every camera and joint states: one "
            "of them is empty. Run 'qsteer verify' on it."
        )
    seen_ns = min(max(messages) for messages in frames.values())
    last_ns = min(int(track.stamp_ns[-1]), seen_ns + dt_ns)
    stamps = _grid(info, decisions[0].record.stamp_ns, dt_ns, last_ns)
    complete = np.ones(len(stamps), dtype=np.bool_)
    chosen = {}
    for camera, messages in frames.items():
        keys = np.fromiter(messages, dtype=np.int64)
        nearest, near = _nearest(keys, stamps, dt_ns)
        complete &= near
        values = list(messages.values())
        chosen[camera] = tuple(values[i] for i in nearest)
    complete &= _nearest(track.stamp_ns, stamps, dt_ns)[1]
    position, velocity, effort = _at(track, stamps)
    action, acting = _actions(decisions, stamps, dt_ns)
    reward, success = _rewards(reader, stamps, dt_ns)
    joints = np.concatenate([position, velocity, effort[:, -1:]], axis=1)
    for name, numbers in (("rewards", reward), ("joint states", joints)):
        odd = int((~np.isfinite(numbers)).sum())
        if odd:
            raise DataError(
                f"{name} of episode '{info.episode_id}' must be finite: {odd} of {numbers.size} "
                "are not. Correct what publishes them and record again, or leave the episode out."
            )
    return EpisodeSteps(
        folder=Path(folder),
        info=info,
        control_dt_ns=dt_ns,
        horizon=max(len(decision.record.chunk) for decision in decisions),
        stamp_ns=stamps,
        position=position[:, :-1],
        velocity=velocity[:, :-1],
        gripper=np.clip(position[:, -1] / info.robot["gripper_closed_rad"], 0.0, 1.0),
        gripper_effort=np.clip(
            np.abs(effort[:, -1]) / info.robot["effort_full_scale_n"], 0.0, 1.0
        ),
        action=action,
        acting=acting,
        reward=reward,
        success=success,
        complete=complete,
        frames=chosen,
    )


def _executed(decision: Decision) -> bool:
    """Whether any row of the chunk was still ahead when its path took effect."""
    meta, chunk = decision.record.meta, decision.record.chunk
    over_ns = decision.record.stamp_ns + len(chunk) * int(meta["control_dt_ns"])
    return int(meta.get("effective_ns") or 0) < over_ns


def _grid(info: Episode, first_ns: int, dt_ns: int, last_ns: int) -> Stamps:
    """Stamps from the first decision to the end, or to the last measurement."""
    last_ns += dt_ns // 2
    if info.end_ns is not None:
        last_ns = min(last_ns, info.end_ns)
    return np.arange(first_ns, last_ns + 1, dt_ns, dtype=np.int64)


def _nearest(
    keys: Stamps, stamps: Stamps, dt_ns: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Index of the measurement nearest to each stamp, and whether it is within half a period."""
    right = np.clip(np.searchsorted(keys, stamps), 0, len(keys) - 1)
    left = np.maximum(right - 1, 0)
    closer_left = np.abs(keys[left] - stamps) <= np.abs(keys[right] - stamps)
    nearest = np.where(closer_left, left, right)
    return nearest, np.abs(keys[nearest] - stamps) <= dt_ns // 2


def _at(track: JointTrack, stamps: Stamps) -> tuple[Array, Array, Array]:
    """Positions, velocities and efforts interpolated linearly to the stamps."""
    origin = stamps[0] if len(stamps) else 0
    times, wanted = (track.stamp_ns - origin) * 1e-9, (stamps - origin) * 1e-9

    def sampled(values: Array) -> Array:
        return np.stack([np.interp(wanted, times, column) for column in values.T], axis=1)

    return sampled(track.position), sampled(track.velocity), sampled(track.effort)


def _actions(
    decisions: list[Decision], stamps: Stamps, dt_ns: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    action = np.zeros((len(stamps), decisions[0].record.chunk.shape[1]), dtype=np.float32)
    acting = np.zeros(len(stamps), dtype=np.bool_)
    for decision in decisions:
        first = (decision.record.stamp_ns - int(stamps[0]) + dt_ns // 2) // dt_ns
        rows = decision.record.chunk[: max(0, len(stamps) - first)]
        action[first:], acting[first:] = 0.0, False
        action[first : first + len(rows)] = rows
        acting[first : first + len(rows)] = True
    return action, acting


def _rewards(reader: EpisodeReader, stamps: Stamps, dt_ns: int) -> tuple[Array, NDArray[np.bool_]]:
    reward = _on_grid(*reader.numbers("reward"), stamps, dt_ns)
    success = _on_grid(*reader.numbers("success"), stamps, dt_ns)
    if reward is None:
        reward = np.full(len(stamps), -1.0)
    if success is None:
        success = np.zeros(len(stamps))
        success[-1:] = reader.info.outcome == "success"
        if not reader.of_role("reward"):
            reward = np.where(success > 0.0, 0.0, reward)
    return reward, success > 0.5


def _on_grid(
    log_ns: Stamps, values: Array, sequence: Stamps, stamps: Stamps, dt_ns: int
) -> Array | None:
    """Values of a stampless topic at the grid's stamps; None when there are none."""
    if len(log_ns) == 0:
        return None
    counts = sequence - sequence[0]
    regular = len(log_ns) > 1 and bool(np.all(np.diff(counts) > 0))
    if regular:
        period_ns = (log_ns[-1] - log_ns[0]) / counts[-1]
        regular = abs(period_ns - dt_ns) < 0.1 * dt_ns
    if regular:
        first_ns = np.percentile(log_ns - counts * dt_ns, 10)
        row = counts + round((first_ns - int(stamps[0])) / dt_ns)
    else:
        row = -((int(stamps[0]) - log_ns) // dt_ns)  # the first step at or after it
    place = np.searchsorted(row, np.arange(len(stamps)), side="right") - 1
    found: Array = values[np.maximum(place, 0)]
    return found
