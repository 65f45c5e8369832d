"""The rules of ``joint_trajectory_controller``, without ROS: trajectories in, joint commands out.

The simulated arm obeys what a real arm's controller obeys, so that a policy which moves the
simulation also moves hardware. The rules are those of ros2_controllers 4.42 (Jazzy) with its
default parameters and ``interpolate_from_desired_state: true``, which its documentation asks for
when a motion arrives in many messages:

* a new trajectory replaces the running one as a whole; a refused one changes nothing;
* stamp 0 means "starts when it arrives";
* a trajectory that ends before now is refused, points before now are skipped: the command is what
  the trajectory says for *now*, without a ramp from where the arm was;
* before the first point the command interpolates from the commanded state at arrival;
* after the last point the command stays there;
* a non-zero velocity at the last point is refused, and so are a missing joint, an unknown joint,
  times that do not strictly increase, effort entries, and a trajectory without points (to stop an
  arm, send it one point where it should stay);
* a segment is linear when one of its ends has no velocities, cubic with velocities at both ends,
  quintic with accelerations too.

Two refusals are ours, because the controller does not check and a simulated arm should not teach
a habit that breaks a real one: values that are not finite, and a joint named twice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.types import Array, JointPath

#: Largest last velocity that counts as rest. Source: the controller compares with float epsilon.
REST_RAD_PER_S = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class TrajectoryPoint:
    """One point of a trajectory, in the trajectory's own joint order.

    Attributes:
        time_from_start_ns: Due time after the trajectory's start, integer nanoseconds.
        positions: (J,), rad.
        velocities: (J,), rad/s, or None when the sender gave none.
        accelerations: (J,), rad/s^2, or None when the sender gave none.
    """

    time_from_start_ns: int
    positions: Array
    velocities: Array | None = None
    accelerations: Array | None = None


@dataclass(frozen=True)
class Trajectory:
    """What one ``JointTrajectory`` message says.

    Attributes:
        joints: Joint names, in the order of every point's arrays.
        points: The points, in the order sent.
        stamp_ns: Start, integer nanoseconds of ROS time; 0 means "when it arrives".
        has_effort: The sender filled effort entries.
    """

    joints: tuple[str, ...]
    points: tuple[TrajectoryPoint, ...]
    stamp_ns: int = 0
    has_effort: bool = False

    @staticmethod
    def from_path(path: JointPath, joints: Sequence[str], stamp_ns: int) -> Trajectory:
        """The trajectory that says the same as a joint path whose time 0 is ``stamp_ns``."""
        times_ns = np.round(path.times_s * 1e9).astype(np.int64)
        return Trajectory(
            joints=tuple(joints),
            points=tuple(
                TrajectoryPoint(int(time_ns), position, velocity)
                for time_ns, position, velocity in zip(
                    times_ns, path.positions, path.velocities, strict=True
                )
            ),
            stamp_ns=stamp_ns,
        )


@dataclass(frozen=True)
class _Knot:
    """A commanded state at a time, in the follower's joint order."""

    time_ns: int
    position: Array
    velocity: Array | None
    acceleration: Array | None


class TrajectoryFollower:
    """Commanded joint positions and velocities at any integer time.

    Not thread-safe: whoever steps the physics also owns the follower.

    Attributes:
        joints: Joint names; every array that comes out has this order.
    """

    def __init__(self, joints: Sequence[str]) -> None:
        """Hold zero until :meth:`hold` or :meth:`accept` says otherwise.

        Raises:
            ConfigError: No joint, or a joint twice.
        """
        if not joints or len(set(joints)) != len(joints):
            raise ConfigError(f"joints must be distinct and not empty: got {list(joints)}.")
        self.joints = tuple(joints)
        self._knots: list[_Knot] = []
        self._times_ns: list[int] = []
        self.hold(np.zeros(len(self.joints)), 0)

    def hold(self, position: Array, now_ns: int) -> None:
        """Forget any trajectory and command rest at ``position``, (J,) rad.

        Raises:
            DataError: The shape is wrong or a value is not finite.
        """
        held = np.array(position, dtype=np.float64)
        if held.shape != (len(self.joints),) or not np.all(np.isfinite(held)):
            raise DataError(
                f"a position to hold must be {len(self.joints)} finite numbers: got {position}."
            )
        self._set([_Knot(now_ns, held, np.zeros_like(held), np.zeros_like(held))])

    def accept(self, trajectory: Trajectory, now_ns: int) -> str | None:
        """Follow ``trajectory`` from ``now_ns`` on, in place of what was followed before.

        Args:
            trajectory: What arrived.
            now_ns: Time of arrival on the clock that stamps trajectories.

        Returns:
            None when accepted, else the reason for the refusal; what was followed before then
            goes on.
        """
        reason = self.refusal(trajectory, now_ns)
        if reason is not None:
            return reason
        order = [trajectory.joints.index(name) for name in self.joints]
        start_ns = trajectory.stamp_ns or now_ns
        knots = [
            _Knot(
                start_ns + point.time_from_start_ns,
                _ordered(point.positions, order),
                None if point.velocities is None else _ordered(point.velocities, order),
                None if point.accelerations is None else _ordered(point.accelerations, order),
            )
            for point in trajectory.points
        ]
        if now_ns < knots[0].time_ns:
            knots.insert(0, _Knot(now_ns, *self._evaluate(now_ns)))
        self._set(knots)
        return None

    def refusal(self, trajectory: Trajectory, now_ns: int) -> str | None:
        """Why :meth:`accept` would refuse ``trajectory``, or None."""
        return (
            self._joint_refusal(trajectory)
            or _point_refusal(trajectory)
            or _time_refusal(trajectory, now_ns)
        )

    def sample(self, now_ns: int) -> tuple[Array, Array]:
        """Commanded position, (J,) rad, and velocity, (J,) rad/s, at ``now_ns``."""
        position, velocity, _ = self._evaluate(now_ns)
        return position, velocity

    @property
    def end_ns(self) -> int:
        """Time from which the command rests."""
        return self._times_ns[-1]

    def _set(self, knots: list[_Knot]) -> None:
        self._knots = knots
        self._times_ns = [knot.time_ns for knot in knots]

    def _evaluate(self, now_ns: int) -> tuple[Array, Array, Array]:
        after = bisect_right(self._times_ns, now_ns)
        if 0 < after < len(self._knots):
            return _interpolate(self._knots[after - 1], self._knots[after], now_ns)
        knot = self._knots[max(after - 1, 0)]
        rest = np.zeros_like(knot.position)
        return (
            knot.position.copy(),
            rest if knot.velocity is None else knot.velocity.copy(),
            rest if knot.acceleration is None else knot.acceleration.copy(),
        )

    def _joint_refusal(self, trajectory: Trajectory) -> str | None:
        unknown = sorted(set(trajectory.joints) - set(self.joints))
        if unknown:
            return f"joints must be among {list(self.joints)}: found {unknown}."
        missing = [name for name in self.joints if name not in trajectory.joints]
        if missing:
            return f"every joint of the controller must be named: {missing} missing."
        if len(trajectory.joints) != len(self.joints):
            return f"each joint must be named once: found {list(trajectory.joints)}."
        return None


def _ordered(values: Array, order: list[int]) -> Array:
    return np.asarray(values, dtype=np.float64)[order]


def _point_refusal(trajectory: Trajectory) -> str | None:
    """Why the points cannot be followed whatever the time."""
    if not trajectory.points:
        return "a trajectory must have points: found none. To stop, send the point to stay at."
    if trajectory.has_effort:
        return "effort entries must be empty: this controller commands positions."
    joints = len(trajectory.joints)
    for index, point in enumerate(trajectory.points):
        for name in ("positions", "velocities", "accelerations"):
            values = getattr(point, name)
            if values is None:
                continue
            if np.shape(values) != (joints,):
                found = np.shape(values)
                return f"{name} of point {index} must have shape ({joints},): found {found}."
            if not np.all(np.isfinite(values)):
                joint = trajectory.joints[int(np.argmin(np.isfinite(values)))]
                return f"{name} must be finite: point {index}, joint '{joint}' is not."
    last = trajectory.points[-1].velocities
    if last is not None and np.any(np.abs(last) > REST_RAD_PER_S):
        worst = int(np.argmax(np.abs(last)))
        return (
            "a trajectory must end at rest: last velocity of joint "
            f"'{trajectory.joints[worst]}' is {last[worst]:.6g} rad/s."
        )
    return None


def _time_refusal(trajectory: Trajectory, now_ns: int) -> str | None:
    """Why the due times cannot be met."""
    times_ns = [point.time_from_start_ns for point in trajectory.points]
    for index, (before, after) in enumerate(pairwise(times_ns)):
        if after <= before:
            return (
                f"time_from_start must strictly increase: point {index} is due at "
                f"{before * 1e-9:.9f} s and point {index + 1} at {after * 1e-9:.9f} s."
            )
    end_ns = trajectory.stamp_ns + times_ns[-1]
    if trajectory.stamp_ns != 0 and end_ns < now_ns:
        late_s = (now_ns - end_ns) * 1e-9
        return f"a trajectory must not end in the past: it ended {late_s:.9f} s ago."
    return None


def _interpolate(start: _Knot, end: _Knot, now_ns: int) -> tuple[Array, Array, Array]:
    r"""Polynomial of lowest degree through what both knots say: position, velocity, acceleration.

    With :math:`T` the segment's length and :math:`u` the time since its start, the coefficients
    :math:`c_k` of :math:`\sum_k c_k u^k` are fixed by position (linear), by position and velocity
    (cubic) or by position, velocity and acceleration (quintic) at :math:`u = 0` and :math:`u = T`.
    """
    length_s = (end.time_ns - start.time_ns) * 1e-9
    elapsed_s = (now_ns - start.time_ns) * 1e-9
    step = end.position - start.position
    if start.velocity is None or end.velocity is None:
        slope = step / length_s
        return start.position + slope * elapsed_s, slope, np.zeros_like(slope)
    # What is left of each end condition after the terms fixed at the start.
    p = (step - start.velocity * length_s) / length_s**2
    v = (end.velocity - start.velocity) / length_s
    if start.acceleration is None or end.acceleration is None:
        c2, c3 = 3.0 * p - v, (v - 2.0 * p) / length_s
        c4 = c5 = np.zeros_like(p)
    else:
        c2 = 0.5 * start.acceleration
        p, v, a = p - c2, v - start.acceleration, end.acceleration - start.acceleration
        c3 = (10.0 * p - 4.0 * v + 0.5 * a) / length_s
        c4 = (-15.0 * p + 7.0 * v - a) / length_s**2
        c5 = (6.0 * p - 3.0 * v + 0.5 * a) / length_s**3
    u = elapsed_s
    position = start.position + u * (start.velocity + u * (c2 + u * (c3 + u * (c4 + u * c5))))
    velocity = start.velocity + u * (2 * c2 + u * (3 * c3 + u * (4 * c4 + u * 5 * c5)))
    acceleration = 2 * c2 + u * (6 * c3 + u * (12 * c4 + u * 20 * c5))
    return position, velocity, acceleration
