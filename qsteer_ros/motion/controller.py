"""From chunks to the paths an arm executes: when to plan, how to splice, how to stop.

The same object plans in the policy node and in the in-process evaluation. It knows no ROS and no
torch; it keeps its own record of what has been commanded, because a new path must begin where the
old one *will be* when it takes effect, not where the joints were when a camera looked at them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import ConfigError, DataError, StaleObservation
from qsteer_ros.motion.decoder import ActionDecoder
from qsteer_ros.motion.limits import (
    LimitReport,
    brake,
    check_path,
    check_request,
    check_start,
    shape,
    within,
)
from qsteer_ros.motion.path import TimedPath, point_velocities, with_gripper, with_tail
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.types import Array, JointPath, RobotState

#: From the last point of a chunk to rest. A lagging arm that nears a target at distance d moves at
#: d / tau; stopping in T covers d T / (2 tau), less than d for T below twice its lag of 0.087 s.
TAIL_S = 0.16
#: Points due sooner than this after the path takes effect are skipped.
MIN_GAP_NS = 10_000_000

_State = tuple[Array, Array]


class NotFollowing(DataError):
    """The arm is not where it is commanded: only a person may decide to go on."""


@dataclass(frozen=True, eq=False)
class PlanReport:
    """How the last path came about.

    Attributes:
        stamp_ns: Stamp of the observation it answers.
        effective_ns: When it takes effect.
        points: Decoded joint points, (H, J + 1), rad; point k (from 0) was due k + 1 control
            periods after the stamp.
        skipped: Points left out, because they were due too soon or because the arm could not reach
            the first ones within its limits.
        shaped: The path had to leave the decoded points to keep the limits.
        limits: What the chunk asked for, over the limits.
        tracking_error_rad: Measured minus commanded position at the stamp, (J,); zeros when
            nothing was being commanded.
    """

    stamp_ns: int
    effective_ns: int
    points: Array
    skipped: int
    shaped: bool
    limits: LimitReport
    tracking_error_rad: Array


class ChunkController:
    """Turns chunks into joint paths that continue one another (C1) and end at rest.

    Not thread-safe.

    Attributes:
        execute_steps: Actions of a chunk that are executed before the next observation is wanted.
        report: How the last path came about, or None.
    """

    def __init__(self, robot: RobotFile, decoder: ActionDecoder, execute_steps: int) -> None:
        """Command nothing yet.

        Raises:
            ConfigError: ``execute_steps`` is below 1.
        """
        if execute_steps < 1:
            raise ConfigError(f"'execute_steps' must be at least 1: got {execute_steps}.")
        self.execute_steps = execute_steps
        self.report: PlanReport | None = None
        self._robot = robot
        self._decoder = decoder
        self._commanded: TimedPath | None = None
        self._before: TimedPath | None = None  # commanded until that one takes effect
        self._planned_stamp_ns: int | None = None

    def reset(self) -> None:
        """Forget what was commanded: the next path starts where the arm is measured at rest."""
        self.report = None
        self._commanded = self._before = None
        self._planned_stamp_ns = None

    @property
    def commanding(self) -> bool:
        """Whether a path has been given out since the last reset."""
        return self._commanded is not None

    @property
    def commanded(self) -> TimedPath | None:
        """The path given out last."""
        return self._commanded

    def wants(self, stamp_ns: int) -> bool:
        """Whether an observation with this stamp should be answered with a chunk."""
        if self._planned_stamp_ns is None:
            return True
        steps_ns = self.execute_steps * self._robot.control_dt_ns
        return stamp_ns >= self._planned_stamp_ns + steps_ns

    def plan(
        self,
        chunk: NDArray[np.floating],
        robot: RobotState,
        stamp_ns: int,
        effective_ns: int,
    ) -> JointPath:
        """Answer an observation: decode, check, splice.

        The path starts at ``effective_ns`` in the state commanded for that moment, passes through
        the decoded points that are still ahead and decelerates to rest. When nothing is being
        commanded, or what is has come to its end, it starts where the arm is measured at rest.
        It is remembered as commanded: publish it.

        Args:
            chunk: Normalised actions, (H, A).
            robot: Joint measurement of the observation.
            stamp_ns: Stamp of the observation; point k (from 1) is due k control periods later.
            effective_ns: When the path will be executed, not before the stamp.

        Returns:
            The path; its time 0 is ``effective_ns``. Positions (P, J + 1).

        Raises:
            DataError: The chunk may not be executed, or the arm may not be taken over where it is;
                nothing has changed.
            NotFollowing: The arm is further than ``limits.tracking_rad`` from where it is
                commanded; nothing has changed, and only :meth:`reset` leads out of it.
            StaleObservation: The chunk is over before it can take effect; nothing has changed.
        """
        points = self._decoder.decode(chunk, robot)
        knots = np.vstack([robot.position, points[:, :-1]])
        request = check_request(knots, self._robot)
        first = self._first_point(stamp_ns, effective_ns, len(points))
        start, tracking_error = self._start(robot, stamp_ns, effective_ns)
        offset_ns = effective_ns - stamp_ns
        arm, skipped, shaped = self._splice(knots, first, start, offset_ns)
        check_path(arm, self._robot)
        # Command of the point that is due next, at every point of the arm's path.
        due = np.ceil((arm.times_s + offset_ns * 1e-9) / self._robot.control_dt_s - 1e-6) - 1.0
        commands = points[np.clip(due, 0, len(points) - 1).astype(int), -1]
        path = self._with_gripper(arm, commands, start)
        self._before, self._commanded = self._commanded, TimedPath(path, effective_ns)
        self._planned_stamp_ns = stamp_ns
        self.report = PlanReport(
            stamp_ns, effective_ns, points, skipped, shaped, request, tracking_error
        )
        return path

    def hold(self, effective_ns: int, last: RobotState | None = None) -> JointPath | None:
        """Decelerate to rest from what is commanded; remembered as commanded.

        The next observation, whatever its stamp, is wanted again.

        Args:
            effective_ns: When the deceleration will begin.
            last: The newest joint measurement, if there is one.

        Returns:
            The path, or None when nothing is to be sent: no commanded path is running then, or
            the arm does not follow it. What was sent before comes to rest by itself.

        Raises:
            DataError: The deceleration would leave the limits; it is not commanded.
        """
        self._planned_stamp_ns = None
        commanded = self._commanded
        if commanded is None or not commanded.start_ns <= effective_ns < commanded.end_ns:
            return None
        if last is not None and self._strayed(last.position - self._at(last.stamp_ns)):
            return None
        start = commanded.sample(effective_ns)
        position, velocity = start[0][:-1], start[1][:-1]
        arm = with_tail(np.zeros(1), position[None], velocity[None], TAIL_S)
        if not within(arm, self._robot.limits):
            arm = brake(position, velocity, self._robot.limits)
            check_path(arm, self._robot)
        path = self._with_gripper(arm, np.full(len(arm.times_s), start[0][-1]), start)
        self._before, self._commanded = commanded, TimedPath(path, effective_ns)
        return path

    def _with_gripper(self, arm: JointPath, commands: Array, start: _State) -> JointPath:
        return with_gripper(
            arm,
            commands,
            float(start[0][-1]),
            float(start[1][-1]),
            closed_rad=self._robot.gripper_closed_rad,
            rate=self._robot.gripper_rate_rad_per_s,
        )

    def _start(self, robot: RobotState, stamp_ns: int, effective_ns: int) -> tuple[_State, Array]:
        """State in which the path starts, each (J + 1,), and the tracking error at the stamp."""
        commanded, error = self._commanded, np.zeros(len(robot.position))
        if commanded is None:
            self._decoder.check_start(robot.position)
            gripper = min(max(robot.gripper, 0.0), 1.0) * self._robot.gripper_closed_rad
        else:
            error = robot.position - self._at(stamp_ns)
            if self._strayed(error):
                raise self._not_following(error)
            if effective_ns < commanded.start_ns:
                raise StaleObservation(
                    "a path must take effect after the one before: it would "
                    f"{(commanded.start_ns - effective_ns) / 1e6:.0f} ms earlier. This passes; "
                    "if it does not, the clock was set back: deactivate and activate."
                )
            if stamp_ns < commanded.end_ns:
                return commanded.sample(effective_ns), error
            gripper = float(commanded.path.positions[-1, -1])  # it may be squeezing
        check_start(robot.position, robot.velocity, self._robot)
        start = np.append(robot.position, gripper)
        return (start, np.zeros_like(start)), error

    def _at(self, stamp_ns: int) -> Array:
        """Commanded position of the arm at a stamp, (J,); a path must have been given out."""
        followed = self._commanded
        if followed is None:
            raise AssertionError
        if stamp_ns < followed.start_ns and self._before is not None:
            followed = self._before
        return followed.sample(stamp_ns)[0][:-1]

    def _strayed(self, error: Array) -> bool:
        return bool(np.any(np.abs(error) > self._robot.limits.tracking_rad))

    def _not_following(self, error: Array) -> NotFollowing:
        joint = int(np.argmax(np.abs(error)))
        return NotFollowing(
            f"'{self._robot.joints[joint]}' must be within {self._robot.limits.tracking_rad:g} "
            f"rad of where it is commanded: it is {abs(error[joint]):.3f} away. The arm does not "
            "follow (is its controller active, or is it in a protective stop?) or was moved. "
            "Deactivate and activate to go on from where it is."
        )

    def _first_point(self, stamp_ns: int, effective_ns: int, horizon: int) -> int:
        """Index (from 1) of the first decoded point that is still ahead."""
        if effective_ns < stamp_ns:
            raise DataError(
                f"a path cannot take effect {(stamp_ns - effective_ns) / 1e6:.1f} ms before its "
                "observation. Check that all clocks agree (use_sim_time)."
            )
        first = (effective_ns + MIN_GAP_NS - stamp_ns) // self._robot.control_dt_ns + 1
        if first > horizon:
            raise StaleObservation(
                f"a chunk of {horizon} points must take effect before it is over: it would "
                f"{(effective_ns - stamp_ns) / 1e6:.0f} ms after its observation. Lower "
                "'denoising_steps' or 'num_samples', or use a faster machine."
            )
        return first

    def _splice(
        self, knots: Array, first: int, start: _State, offset_ns: int
    ) -> tuple[JointPath, int, bool]:
        """Arm path from the start state through ``knots`` (here, then the points).

        The first cubic leads from the start state to a point; the earliest point that it reaches
        within the limits is taken.

        Returns:
            The path (P, J), how many points it leaves out, and whether it had to be shaped.
        """
        dt_s, limits = self._robot.control_dt_s, self._robot.limits
        velocities = point_velocities(knots, dt_s)
        times_s: Array = np.arange(len(knots), dtype=np.float64) * dt_s
        position, velocity = start[0][:-1], start[1][:-1]
        for kept in range(first, len(knots)):
            path = with_tail(
                np.concatenate([[0.0], times_s[kept:] - offset_ns * 1e-9]),
                np.vstack([position, knots[kept:]]),
                np.vstack([velocity, velocities[kept:]]),
                TAIL_S,
            )
            if within(path, limits):
                return path, kept - 1, False
        reference = with_tail(times_s, knots, velocities, TAIL_S)
        return shape(reference, offset_ns, position, velocity, limits), first - 1, True
