"""Assembles observations by stamp: the newest complete set of camera frames and the joints then.

Frames and joint measurements arrive in any order and at different rates. A set is complete when
every camera has a frame within the allowed skew of the set's newest one; that one's stamp is the
observation's. The joints are interpolated to it, or the nearest measurement is taken where there
is one on one side only. Nothing is filled in, and whatever may not be acted on is refused with the
reason.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsteer_ros.errors import DataError, StaleObservation
from qsteer_ros.types import Image, Observation, RobotState

#: Frames and joint measurements kept while others are waited for.
_FRAMES, _JOINTS = 16, 64
#: A stamp may lie this far ahead of the clock: messages can overtake ``/clock``.
FUTURE_NS = 100_000_000
#: A stamp this much before its predecessor means that the clock was set back.
SET_BACK_NS = 1_000_000_000


@dataclass(frozen=True)
class AgeLimits:
    """How old and how far apart the parts of an observation may be, integer nanoseconds.

    Attributes:
        age_ns: Age of the set's newest frame when it is acted on.
        skew_ns: Between the oldest and the newest frame of a set, and from the set's stamp to the
            joint measurement.
    """

    age_ns: int
    skew_ns: int


class ObservationAssembler:
    """Collects frames and joints; gives out observations. Safe to use from several threads.

    Args:
        sizes: Camera name -> (height, width) that its frames must have.
        limits: How old and how far apart the parts may be.
        decode: Turns a stored frame into pixels; called only for frames that are used.
    """

    def __init__(
        self,
        sizes: Mapping[str, tuple[int, int]],
        limits: AgeLimits,
        decode: Callable[[Any], Image],
    ) -> None:
        self.limits = limits
        self._sizes = dict(sizes)
        self._decode = decode
        self._lock = threading.Lock()
        self._frames: dict[str, deque[tuple[int, Any]]] = {}
        self._joints: deque[RobotState] = deque(maxlen=_JOINTS)
        self.clear()

    def clear(self) -> None:
        """Forget everything that has arrived."""
        with self._lock:
            self._clear()

    def add_frame(self, camera: str, stamp_ns: int, frame: Any) -> None:
        """Store a frame; one that is older than its predecessor is dropped."""
        with self._lock:
            if self._in_order(stamp_ns, [stamp for stamp, _ in self._frames[camera]]):
                self._frames[camera].append((stamp_ns, frame))

    def add_joints(self, state: RobotState) -> None:
        """Store a joint measurement; one that is older than its predecessor is dropped."""
        with self._lock:
            if self._in_order(state.stamp_ns, [s.stamp_ns for s in self._joints]):
                self._joints.append(state)

    def newest_stamp_ns(self) -> int | None:
        """Stamp of the newest complete set of frames that the joints have caught up with."""
        with self._lock:
            found = self._newest_set()
            if found is None or not self._joints:
                return None
            stamp_ns = max(stamp for stamp, _ in found.values())
            late_ns = stamp_ns - self._joints[-1].stamp_ns
            return stamp_ns if late_ns <= self.limits.skew_ns else None

    def last_joints(self) -> RobotState | None:
        """The newest joint measurement."""
        with self._lock:
            return self._joints[-1] if self._joints else None

    def why_stale(self, now_ns: int) -> str | None:
        """Why nothing that has arrived may be acted on at ``now_ns``, or None."""
        with self._lock:
            try:
                self._check_age(now_ns, self._complete())
            except StaleObservation as error:
                return str(error)
        return None

    def assemble(self, now_ns: int) -> Observation:
        """The newest observation.

        Raises:
            StaleObservation: A part is missing, too old or too far from the others.
            DataError: A frame cannot be decoded or has another size.
        """
        with self._lock:
            found = self._complete()
            stamp_ns = self._check_age(now_ns, found)
            joints = self._joints_at(stamp_ns)
        images = {camera: self._decode(frame) for camera, (_, frame) in found.items()}
        for camera, image in images.items():
            height, width = self._sizes[camera]
            if image.shape[:2] != (height, width):
                raise DataError(
                    f"frames of camera '{camera}' must be {width}x{height}: got "
                    f"{image.shape[1]}x{image.shape[0]}. Set the camera driver to that size, or "
                    "train an encoder for this one."
                )
        stamps = {camera: stamp for camera, (stamp, _) in found.items()}
        return Observation(stamp_ns, images, joints, stamps)

    # Below, the lock is held.

    def _clear(self) -> None:
        self._frames = {camera: deque(maxlen=_FRAMES) for camera in self._sizes}
        self._joints.clear()

    def _in_order(self, stamp_ns: int, stamps: Sequence[int]) -> bool:
        if stamps and stamp_ns <= stamps[-1]:
            if stamps[-1] - stamp_ns < SET_BACK_NS:
                return False
            self._clear()
        return True

    def _newest_set(self) -> dict[str, tuple[int, Any]] | None:
        """The complete set with the newest stamp, or None."""
        stamps = {stamp for frames in self._frames.values() for stamp, _ in frames}
        for newest in sorted(stamps, reverse=True):
            found = {}
            for camera, frames in self._frames.items():
                near = [f for f in frames if 0 <= newest - f[0] <= self.limits.skew_ns]
                if near:
                    found[camera] = near[-1]
            if len(found) == len(self._frames):
                return found
        return None

    def _complete(self) -> dict[str, tuple[int, Any]]:
        """As :meth:`_newest_set`; says what is missing."""
        silent = [camera for camera, frames in self._frames.items() if not frames]
        if silent:
            raise StaleObservation(
                f"a frame of every camera must have arrived: none of {sorted(silent)}. Check "
                "that the camera is running and its topic is the one in the robot file."
            )
        if not self._joints:
            raise StaleObservation(
                "joint states must have arrived: none has. Check that the driver publishes them."
            )
        found = self._newest_set()
        if found is None:
            newest = {camera: frames[-1][0] for camera, frames in self._frames.items()}
            skew_ms = (max(newest.values()) - min(newest.values())) / 1e6
            raise StaleObservation(
                "frames of all cameras must be taken within "
                f"{self.limits.skew_ns / 1e6:.0f} ms of one another: the newest ones of "
                f"{sorted(newest)} are {skew_ms:.0f} ms apart. Check for a camera that has "
                "stopped, or synchronise them."
            )
        return found

    def _check_age(self, now_ns: int, found: Mapping[str, tuple[int, Any]]) -> int:
        """Stamp of the set."""
        stamp_ns = max(stamp for stamp, _ in found.values())
        oldest_ns = min(stamp_ns, self._joints[-1].stamp_ns)
        what = "camera frame" if oldest_ns == stamp_ns else "joint state"
        if now_ns - oldest_ns > self.limits.age_ns:
            raise StaleObservation(
                f"the newest {what} must be at most {self.limits.age_ns / 1e6:.0f} ms old: it is "
                f"{(now_ns - oldest_ns) / 1e6:.0f} ms old. Check that it is still being "
                "published, or raise 'max_age_s'."
            )
        if stamp_ns - now_ns > FUTURE_NS:
            raise StaleObservation(
                f"a camera frame must not be stamped {(stamp_ns - now_ns) / 1e6:.0f} ms in the "
                "future. Check the camera's clock, and 'use_sim_time' of every node."
            )
        return stamp_ns

    def _joints_at(self, stamp_ns: int) -> RobotState:
        """Measurement interpolated to a stamp, or the nearest one."""
        near = [s for s in self._joints if abs(s.stamp_ns - stamp_ns) <= self.limits.skew_ns]
        if not near:
            gap_ns = min(abs(s.stamp_ns - stamp_ns) for s in self._joints)
            raise StaleObservation(
                "joint states must be measured within "
                f"{self.limits.skew_ns / 1e6:.0f} ms of the camera frames: the nearest is "
                f"{gap_ns / 1e6:.0f} ms away. Check the rate and the clock of the driver."
            )
        before = [s for s in near if s.stamp_ns <= stamp_ns]
        after = [s for s in near if s.stamp_ns > stamp_ns]
        if not before:
            return after[0]
        if before[-1].stamp_ns == stamp_ns or not after:
            return before[-1]
        return _between(before[-1], after[0], stamp_ns)


def _between(before: RobotState, after: RobotState, stamp_ns: int) -> RobotState:
    """Linear interpolation of every measured number."""
    share = (stamp_ns - before.stamp_ns) / (after.stamp_ns - before.stamp_ns)

    def mix(name: str) -> Any:
        return (1.0 - share) * getattr(before, name) + share * getattr(after, name)

    return RobotState(
        stamp_ns=stamp_ns,
        position=np.asarray(mix("position"), dtype=np.float64),
        velocity=np.asarray(mix("velocity"), dtype=np.float64),
        gripper=float(mix("gripper")),
        gripper_effort=float(mix("gripper_effort")),
    )
