"""Joint paths: cubic pieces through points, sampled at integer nanoseconds, ending at rest.

A path is what a trajectory controller executes: between two points with positions and velocities
it interpolates with the cubic that matches both (Hermite), so position and velocity are continuous
(C1) and the extremes of every piece have closed forms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.types import Array, JointPath


@dataclass(frozen=True)
class TimedPath:
    """A path and the ROS time at which its time 0 is due."""

    path: JointPath
    start_ns: int

    @property
    def end_ns(self) -> int:
        """When the path comes to rest."""
        return self.start_ns + int(_knots_ns(self.path)[-1])

    def sample(self, at_ns: int) -> tuple[Array, Array]:
        """Position (J,), rad, and velocity (J,), rad/s; at rest on the ends outside the path."""
        return sample(self.path, at_ns - self.start_ns)


@dataclass(frozen=True, eq=False)
class Peaks:
    """Exact extremes of a path over continuous time, one entry per joint.

    Attributes:
        lower: Smallest position, rad.
        upper: Largest position, rad.
        velocity: Largest speed, rad/s.
        acceleration: Largest acceleration, rad/s^2.
    """

    lower: Array
    upper: Array
    velocity: Array
    acceleration: Array


def sample(path: JointPath, elapsed_ns: int) -> tuple[Array, Array]:
    """Position and velocity of a path ``elapsed_ns`` after its time 0, each (J,)."""
    knots = _knots_ns(path)
    if elapsed_ns < knots[0]:
        return path.positions[0].copy(), np.zeros_like(path.positions[0])
    if elapsed_ns >= knots[-1]:
        return path.positions[-1].copy(), np.zeros_like(path.positions[-1])
    piece = int(np.searchsorted(knots, elapsed_ns, side="right")) - 1
    c1, c2, c3 = (c[piece] for c in _coefficients(path))
    u = (elapsed_ns - int(knots[piece])) * 1e-9
    position = path.positions[piece] + u * (c1 + u * (c2 + u * c3))
    return position, c1 + u * (2.0 * c2 + u * 3.0 * c3)


def peaks(path: JointPath) -> Peaks:
    """Extremes of positions, speeds and accelerations between and at the points."""
    if len(path.times_s) == 1:
        zero = np.zeros_like(path.positions[0])
        return Peaks(path.positions[0], path.positions[0], zero, zero)
    c1, c2, c3 = _coefficients(path)
    length = np.diff(path.times_s)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        turn = -c2 / (3.0 * c3)  # where the acceleration is zero
        root = np.sqrt(c2 * c2 - 3.0 * c1 * c3)  # where the velocity is zero
        stops = [(-c2 + root) / (3.0 * c3), (-c2 - root) / (3.0 * c3), -c1 / (2.0 * c2)]
    turn = np.where((turn > 0.0) & (turn < length), turn, 0.0)
    speeds = [np.abs(path.velocities), np.abs(c1 + turn * (2.0 * c2 + turn * 3.0 * c3))]
    positions = [path.positions]
    for stop in stops:
        u = np.where((stop > 0.0) & (stop < length), stop, 0.0)
        positions.append(path.positions[:-1] + u * (c1 + u * (c2 + u * c3)))
    return Peaks(
        lower=np.concatenate(positions).min(axis=0),
        upper=np.concatenate(positions).max(axis=0),
        velocity=np.concatenate(speeds).max(axis=0),
        acceleration=np.maximum(np.abs(2.0 * c2), np.abs(2.0 * c2 + 6.0 * c3 * length)).max(
            axis=0
        ),
    )


def point_velocities(points: Array, dt_s: float) -> Array:
    """Velocities at evenly spaced points from their differences, (P, J), rad/s.

    Central differences inside, one-sided at the ends.

    Args:
        points: (P, J), rad, P >= 2.
        dt_s: Time between them, s.
    """
    return np.asarray(np.gradient(points, dt_s, axis=0), dtype=np.float64)


def with_tail(times_s: Array, positions: Array, velocities: Array, tail_s: float) -> JointPath:
    """Append a constant deceleration to rest, ``tail_s`` long, to points that end at speed."""
    rest = positions[-1] + 0.5 * tail_s * velocities[-1]
    return JointPath(
        times_s=np.append(times_s, times_s[-1] + tail_s),
        positions=np.vstack([positions, rest]),
        velocities=np.vstack([velocities, np.zeros_like(rest)]),
    )


def with_gripper(
    path: JointPath,
    commands: Array,
    start: float,
    start_rate: float,
    *,
    closed_rad: float,
    rate: float,
) -> JointPath:
    r"""Append the gripper's command as the last column of a path of arm joints.

    The command rests at every point but the first, so its cubics never overshoot; the first one
    continues from ``start_rate``. A cubic between rests peaks at 1.5 times its mean rate; one that
    starts at rate :math:`r_0` stays within :math:`\pm r` for a mean within
    :math:`(r_0 \pm r) / 3`, and within the stroke for a third of a piece at :math:`r_0` within it
    (both by the convex hull of its Bezier points).

    Args:
        path: The arm's path, (P, J).
        commands: Wanted command at each point, (P,), rad; the first is not used.
        start: Command at time 0, rad.
        start_rate: Its rate there, rad/s; reduced where it would leave the stroke.
        closed_rad: The stroke is 0 to this.
        rate: Largest rate of the command, rad/s.

    Returns:
        The path with (P, J + 1) positions and velocities.
    """
    column = np.empty(len(path.times_s))
    rates = np.zeros_like(column)
    column[0] = min(max(start, 0.0), closed_rad)
    for k, length in enumerate(np.diff(path.times_s)):
        least, most = -rate / 1.5, rate / 1.5
        if k == 0:
            room = 3.0 / length * np.array([-column[0], closed_rad - column[0]])
            rates[0] = np.clip(start_rate, *np.clip(room, -rate, rate))
            if rates[0] != 0.0:
                least, most = (rates[0] - rate) / 3.0, (rates[0] + rate) / 3.0
        mean = np.clip((commands[k + 1] - column[k]) / length, least, most)
        column[k + 1] = min(max(column[k] + mean * length, 0.0), closed_rad)
    return JointPath(
        times_s=path.times_s,
        positions=np.column_stack([path.positions, column]),
        velocities=np.column_stack([path.velocities, rates]),
    )


def _knots_ns(path: JointPath) -> NDArray[np.int64]:
    return np.round(path.times_s * 1e9).astype(np.int64)


def _coefficients(path: JointPath) -> tuple[Array, Array, Array]:
    """Coefficients c1, c2, c3 of each cubic in the time since its start, each (P - 1, J)."""
    length = np.diff(path.times_s)[:, None]
    start, end = path.velocities[:-1], path.velocities[1:]
    slope = np.diff(path.positions, axis=0) / length
    return (
        start,
        (3.0 * slope - 2.0 * start - end) / length,
        (start + end - 2.0 * slope) / length**2,
    )
