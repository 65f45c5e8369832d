r"""Limits of what is published: nothing beyond them ever leaves the package.

Three bands, by what a chunk asks for:

* within all limits: it passes unchanged;
* beyond a limit: :func:`shape` follows it as closely as the limits allow, and the excess is
  counted;
* beyond ``refuse_factor`` times a joint's speed limit: :func:`check_request` refuses it. Such a
  chunk is a fault (a wrong unit, a missing servo lag, a diverged guidance), not a fast motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsteer_ros.errors import DataError
from qsteer_ros.motion.path import peaks, sample
from qsteer_ros.motion.robot import JointLimits, RobotFile
from qsteer_ros.types import Array, JointPath

#: Distance kept from a position limit before :func:`shape` takes over. It needs room to stop.
POSITION_MARGIN_RAD = 0.02
#: Distance from a position limit at which a shaped path stops.
STOP_MARGIN_RAD = 1e-3
_ROUNDING = 1.0 + 1e-9


@dataclass(frozen=True, eq=False)
class LimitReport:
    """What a chunk asked for, as fractions of the limits; above 1 is an excess.

    Attributes:
        position_excess_rad: How far points lie outside the position limits, (J,), rad.
        velocity: Largest speed between points over its limit, (J,).
        acceleration: Largest acceleration between points over its limit, (J,).
    """

    position_excess_rad: Array
    velocity: Array
    acceleration: Array

    @property
    def exceeded(self) -> bool:
        """Whether any arm joint was asked for more than it may."""
        return bool(
            np.any(self.position_excess_rad > 0.0)
            or np.any(self.velocity > _ROUNDING)
            or np.any(self.acceleration > _ROUNDING)
        )


def check_request(points: Array, robot: RobotFile) -> LimitReport:
    """Compare evenly spaced points, one control period apart, with the arm's limits.

    Args:
        points: (P, J), rad: where the arm is, then the decoded points. P >= 2.
        robot: Whose limits hold.

    Raises:
        DataError: A value is not finite, or a joint is asked for more than ``refuse_factor`` times
            its speed limit.
    """
    if not np.all(np.isfinite(points)):
        raise DataError("decoded joint points must be finite; refusing the chunk.")
    limits, dt_s = robot.limits, robot.control_dt_s
    speeds = np.abs(np.diff(points, axis=0)).max(axis=0) / dt_s
    accelerations = np.abs(np.diff(points, n=2, axis=0)).max(axis=0, initial=0.0) / dt_s**2
    below, above = limits.lower - points.min(axis=0), points.max(axis=0) - limits.upper
    ratio = speeds / limits.velocity
    if np.any(ratio > limits.refuse_factor):
        joint = int(np.argmax(ratio))
        raise DataError(
            f"a chunk may ask '{robot.joints[joint]}' for at most "
            f"{limits.refuse_factor * limits.velocity[joint]:.2f} rad/s, "
            f"{limits.refuse_factor:g} x its limit: got {speeds[joint]:.2f}. Check 'servo' and "
            "'action.scale' in the robot file, or lower the guidance weight."
        )
    return LimitReport(
        position_excess_rad=np.maximum(np.maximum(below, above), 0.0),
        velocity=ratio,
        acceleration=accelerations / limits.acceleration,
    )


def check_start(position: Array, velocity: Array, robot: RobotFile) -> None:
    """Refuse to take over an arm that is outside its limits or moves.

    Args:
        position: Measured, (J,), rad.
        velocity: Measured, (J,), rad/s.
        robot: Whose limits hold.

    Raises:
        DataError: It is outside a position limit, or a joint is not at rest.
    """
    limits = robot.limits
    for joint, name in enumerate(robot.joints):
        lower, upper = limits.lower[joint], limits.upper[joint]
        if not lower <= position[joint] <= upper:
            raise DataError(
                f"'{name}' must start within [{lower:.3f}, {upper:.3f}] rad: it is at "
                f"{position[joint]:.3f}. Move the arm back by hand, or fix 'limits'."
            )
        if abs(velocity[joint]) > limits.rest_rad_per_s:
            raise DataError(
                f"'{name}' must start at rest, below {limits.rest_rad_per_s:g} rad/s: it moves "
                f"at {velocity[joint]:.2f}. Wait until the arm is at rest."
            )


def check_path(path: JointPath, robot: RobotFile) -> None:
    """Refuse a path of the arm's joints, (P, J), of which any moment is beyond a limit.

    Raises:
        DataError: Position, speed or acceleration of a joint leaves its limits.
    """
    found, limits = peaks(path), robot.limits
    excess = {
        "position": np.maximum(limits.lower - found.lower, found.upper - limits.upper),
        "speed": found.velocity - limits.velocity * _ROUNDING,
        "acceleration": found.acceleration - limits.acceleration * (1.0 + 1e-6),
    }
    for what, beyond in excess.items():
        if np.any(beyond > 1e-9):
            joint = int(np.argmax(beyond))
            raise DataError(
                f"a path must keep the {what} limit of '{robot.joints[joint]}': it would be "
                f"{beyond[joint]:.3g} beyond it. Move the arm away from its limits, or fix "
                "'limits'."
            )


def within(path: JointPath, limits: JointLimits) -> bool:
    """Whether every moment of a path of arm joints keeps the limits, with a margin in position."""
    found = peaks(path)
    return bool(
        np.all(found.lower >= limits.lower + POSITION_MARGIN_RAD)
        and np.all(found.upper <= limits.upper - POSITION_MARGIN_RAD)
        and np.all(found.velocity <= limits.velocity * _ROUNDING)
        and np.all(found.acceleration <= limits.acceleration * _ROUNDING)
    )


def shape(
    reference: JointPath,
    offset_ns: int,
    position: Array,
    velocity: Array,
    limits: JointLimits,
    *,
    grid_ns: int = 10_000_000,
) -> JointPath:
    r"""The path nearest to a reference that starts at a given state and keeps every limit.

    On a grid of period :math:`g`, each joint chooses its next speed: the reference's plus what
    closes the remaining error :math:`e`, :math:`\sqrt{A|e|}` at most, bounded by the speed limit,
    by what still lets it stop a millirad before its position limit, and by :math:`\pm A g` from
    its present speed. Acceleration is constant between grid points, so the cubic through them is
    exact and the limits hold between them too.

    Args:
        reference: What is wanted of the arm joints, ending at rest; (P, J).
        offset_ns: Time on the reference at which the new path starts.
        position: Commanded state there, (J,), rad, inside the limits.
        velocity: (J,), rad/s, inside the limits.
        limits: The limits.
        grid_ns: Grid period, integer nanoseconds.

    Returns:
        A path that starts at ``position`` and ``velocity``, follows the reference to its end and
        then brakes.
    """
    g = grid_ns * 1e-9
    end_ns = round(float(reference.times_s[-1]) * 1e9)
    positions, velocities, elapsed_ns = [position], [velocity], 0
    while offset_ns + elapsed_ns < end_ns or np.any(velocities[-1] != 0.0):
        elapsed_ns += grid_ns
        if offset_ns + elapsed_ns > end_ns:
            target = np.zeros_like(velocity)
        else:
            wanted, speed = sample(reference, offset_ns + elapsed_ns)
            error = wanted - positions[-1] - 0.5 * g * (velocities[-1] + speed)
            closing = np.minimum(np.sqrt(limits.acceleration * np.abs(error)), np.abs(error) / g)
            target = speed + np.sign(error) * closing
        next_velocity = _reachable(target, positions[-1], velocities[-1], limits, g)
        positions.append(positions[-1] + 0.5 * g * (velocities[-1] + next_velocity))
        velocities.append(next_velocity)
    times_s = np.asarray(np.arange(len(positions)) * g, dtype=np.float64)
    return JointPath(times_s, np.array(positions), np.array(velocities))


def brake(position: Array, velocity: Array, limits: JointLimits) -> JointPath:
    """The quickest stop from a state inside the limits that keeps them, (P, J)."""
    rest = JointPath(np.zeros(1), position[None], np.zeros_like(position)[None])
    path = shape(rest, 0, position, velocity, limits)
    return rest if len(path.times_s) == 1 else path


def _reachable(target: Array, p: Array, v: Array, limits: JointLimits, g: float) -> Array:
    r"""The speed nearest to ``target`` after one period ``g`` that keeps all limits, (J,).

    Room to stop: :math:`p + g (v + v') / 2 + v'^2 / 2A + g v' / 2` stays inside. The last term
    covers that stopping happens in whole periods. Once true it can be kept by braking with A.
    """
    a = limits.acceleration
    room_up = np.maximum(limits.upper - STOP_MARGIN_RAD - p - 0.5 * g * v, 0.0)
    room_down = np.maximum(p + 0.5 * g * v - limits.lower - STOP_MARGIN_RAD, 0.0)
    fastest = np.minimum(np.sqrt((a * g) ** 2 + 2.0 * a * room_up) - a * g, limits.velocity)
    slowest = np.maximum(a * g - np.sqrt((a * g) ** 2 + 2.0 * a * room_down), -limits.velocity)
    return np.asarray(np.clip(np.clip(target, slowest, fastest), v - a * g, v + a * g))
