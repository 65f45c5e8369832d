"""The simulated arm behind the topics of a real one.

Publishes ``/clock`` and ``joint_states`` (100 Hz of simulated time; six arm joints and the
gripper's joint: rad, rad/s, N m and, for the gripper, grip force in N), ``<camera>/image_raw`` and
``<camera>/image_raw/compressed`` for each camera (stamped at exact multiples of the camera period;
only while somebody subscribes), ``reward`` and ``success`` (20 Hz), ``/diagnostics`` (1 Hz).

Subscribes to ``joint_trajectory_controller/joint_trajectory`` and obeys the rules of
:mod:`qsteer_ros.sim.follower`; a refused message is reported and changes nothing. Service
``~/reset`` starts an episode from the parameters ``seed`` and ``goal`` at the next multiple of
50 ms: the scene changes, a running or waiting trajectory is dropped, the arm holds, the clock goes
on. From then on trajectories stamped before the reset are refused.

When the machine cannot keep up, simulated time slows down; frames are never skipped. Without
messages the arm holds what was commanded last. If the simulation fails the process ends with
status 1.

Three threads: the executor (messages, services, parameters), the physics (which alone touches the
world) and the film (which alone touches the GL context).
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future

import numpy as np
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from qsteer_ros.errors import QsteerError
from qsteer_ros.nodes.messages import NS_PER_S, from_stamp
from qsteer_ros.nodes.parameters import changed, declare
from qsteer_ros.nodes.sim_parameters import TICK_NS, SimParameters, camera_period_ns
from qsteer_ros.nodes.sim_publishers import SimPublishers
from qsteer_ros.sim.filming import Film
from qsteer_ros.sim.follower import Trajectory, TrajectoryPoint
from qsteer_ros.sim.pacing import Pacer
from qsteer_ros.sim.world import CONTROL_DT_NS, World
from qsteer_ros.types import Array, Image

#: How long ``~/reset`` waits for the physics before it answers with a failure.
RESET_TIMEOUT_S = 20.0
#: Below this part of the wanted real-time factor the diagnostics warn.
KEEPS_UP = 0.9


class SimNode(Node):  # type: ignore[misc]
    """See the module; :meth:`start` begins to simulate, :meth:`stop` ends it for good.

    Attributes:
        failure: What ended the simulation, if it was not :meth:`stop`.

    Raises:
        ConfigError: A parameter is out of bounds, or the simulator's packages are missing.
    """

    def __init__(self) -> None:
        super().__init__("sim_node")
        self._settings = declare(self, SimParameters)
        self.add_post_set_parameters_callback(self._on_parameters)
        self._camera_period_ns = camera_period_ns(self._settings.camera_rate_hz)
        self._world = World(goal=self._settings.goal, seed=self._settings.seed)
        self._stopping = threading.Event()
        self._pacer = Pacer(self._settings.real_time_factor, sleep=self._stopping.wait)
        scene = self._world.scene
        self._film = Film(scene.render, self._on_frames, scene.close)
        self._physics = threading.Thread(target=self._simulate, name="physics", daemon=True)
        self._trajectories: queue.SimpleQueue[Trajectory] = queue.SimpleQueue()
        self._resets: queue.SimpleQueue[Future[str]] = queue.SimpleQueue()
        self._reset_ns = 0
        self._counts: Counter[str] = Counter(accepted=0, refused=0)
        self._last_refusal = ""
        self._reported = (time.monotonic_ns(), 0, 0)
        self.failure: BaseException | None = None
        self._publish = SimPublishers(self)
        self.create_subscription(
            JointTrajectory, "joint_trajectory_controller/joint_trajectory", self._on_trajectory, 1
        )
        self.create_service(Trigger, "~/reset", self._on_reset)
        # Not the node's own clock: that is the one this node makes.
        self.create_timer(1.0, self._on_report, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def start(self) -> None:
        """Let time run."""
        self._physics.start()

    def stop(self) -> None:
        """End the threads; on return nothing is published any more."""
        self._stopping.set()
        if self._physics.is_alive():
            self._physics.join()
        self._film.stop()

    # Executor thread.

    def _on_parameters(self, changes: list[Parameter]) -> None:
        self._settings = changed(self._settings, changes)

    def _on_trajectory(self, message: JointTrajectory) -> None:
        self._trajectories.put(read_trajectory(message))

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        asked: Future[str] = Future()
        self._resets.put(asked)
        try:
            response.message, response.success = asked.result(RESET_TIMEOUT_S), True
        except QsteerError as error:
            response.message = str(error)
        except TimeoutError:
            asked.cancel()
            response.message = (
                f"the simulation must reach a control step within {RESET_TIMEOUT_S:.0f} s: it "
                "did not. Raise real_time_factor, or see the log of this node."
            )
        return response

    def _on_report(self) -> None:
        now_ns, time_ns, refused = (
            time.monotonic_ns(),
            self._world.time_ns,
            self._counts["refused"],
        )
        before_ns, time_before_ns, refused_before = self._reported
        self._reported = (now_ns, time_ns, refused)
        wanted = self._settings.real_time_factor
        achieved = (time_ns - time_before_ns) / (now_ns - before_ns)
        warning = ""
        if refused > refused_before:
            warning = f"trajectory refused: {self._last_refusal}"
            self.get_logger().warning(warning)
        elif achieved < KEEPS_UP * wanted:
            warning = f"time runs {achieved:.2f} times as fast as real time: {wanted:.2f} wanted"
        values = {
            "real_time_factor": f"{achieved:.3f}",
            "real_time_factor_wanted": f"{wanted:.3f}",
            **{f"frames_{camera}": count for camera, count in self._publish.frames.items()},
            "trajectories_accepted": self._counts["accepted"],
            "trajectories_refused": refused,
            "last_refusal": self._last_refusal,
            "goal": self._world.goal.number,
            "seed": self._world.seed,
        }
        name, summary = f"{self.get_name()}: simulation", f"{achieved:.2f} times real time"
        self._publish.diagnose(time_ns, name, warning, summary, values)

    # Physics thread.

    def _simulate(self) -> None:
        try:
            while not self._stopping.is_set():
                self._tick()
        except BaseException as error:
            if self.context.ok():  # else a signal has ended the context, and nobody can publish
                self.failure = error
                rclpy.try_shutdown(context=self.context)

    def _tick(self) -> None:
        """Let one tick pass, then publish what is true at its end."""
        now_ns = self._world.time_ns + TICK_NS
        self._pacer.factor = self._settings.real_time_factor
        self._pacer.wait(now_ns)
        self._take_trajectories()
        self._world.advance(TICK_NS)
        step_ends = now_ns % CONTROL_DT_NS == 0
        if step_ends:
            self._serve_resets()
        self._publish.clock(now_ns)
        self._publish.joints(self._world)
        if step_ends:
            self._publish.judgement(self._world)
        if now_ns % self._camera_period_ns == 0:
            self._film.take(now_ns, self._world.qpos, self._publish.watched())

    def _take_trajectories(self) -> None:
        while not self._trajectories.empty():
            trajectory = self._trajectories.get()
            if 0 < trajectory.stamp_ns < self._reset_ns:
                late_s = (self._reset_ns - trajectory.stamp_ns) * 1e-9
                reason: str | None = (
                    "a trajectory must be stamped after the last reset: it was stamped "
                    f"{late_s:.3f} s before."
                )
            else:
                reason = self._world.accept_trajectory(trajectory)
            self._counts["refused" if reason else "accepted"] += 1
            self._last_refusal = reason or self._last_refusal

    def _serve_resets(self) -> None:
        """Reset once for all who asked, while no picture is in work."""
        asked = []
        while not self._resets.empty():
            request = self._resets.get()
            if request.set_running_or_notify_cancel():
                asked.append(request)
        if not asked:
            return
        self._film.finish()
        while not self._trajectories.empty():
            self._trajectories.get()
        try:
            self._world.reset(goal=self._settings.goal, seed=self._settings.seed)
        except QsteerError as error:
            for request in asked:
                request.set_exception(error)
            return
        self._reset_ns = self._world.time_ns
        for request in asked:
            request.set_result(self._reset_answer())

    def _reset_answer(self) -> str:
        goal = self._world.goal
        return json.dumps(
            {
                "stamp_ns": self._world.time_ns,
                "seed": self._world.seed,
                "goal": goal.number,
                "instruction": goal.instruction,
                "frames": dict(self._publish.frames),
                "trajectories_accepted": self._counts["accepted"],
                "trajectories_refused": self._counts["refused"],
            }
        )

    # Film thread.

    def _on_frames(self, stamp_ns: int, frames: dict[str, Image]) -> None:
        self._publish.pictures(stamp_ns, frames, self._settings.jpeg_quality)


def read_trajectory(message: JointTrajectory) -> Trajectory:
    """What a message says, in the follower's terms; nothing is checked here."""

    def values(sequence: object) -> Array | None:
        found = np.array(sequence, dtype=np.float64)
        return found if found.size else None

    return Trajectory(
        joints=tuple(message.joint_names),
        points=tuple(
            TrajectoryPoint(
                time_from_start_ns=p.time_from_start.sec * NS_PER_S + p.time_from_start.nanosec,
                positions=np.array(p.positions, dtype=np.float64),
                velocities=values(p.velocities),
                accelerations=values(p.accelerations),
            )
            for p in message.points
        ),
        stamp_ns=from_stamp(message.header.stamp),
        has_effort=any(len(p.effort) for p in message.points),
    )


def main(args: list[str] | None = None) -> int:
    """Entry point; exit status 1 when it cannot start or the simulation fails."""
    rclpy.init(args=args)
    try:
        node = SimNode()
    except QsteerError as error:
        get_logger("sim_node").fatal(str(error))
        rclpy.try_shutdown()
        return 1
    try:
        node.start()
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.stop()
        node.destroy_node()
        rclpy.try_shutdown()
    if node.failure is not None:
        raise node.failure
    return 0


if __name__ == "__main__":
    sys.exit(main())
