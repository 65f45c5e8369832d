"""Lifecycle node: the policy on the arm. Cameras and joints in, a joint trajectory per chunk out.

Subscribes (from ``configure`` on) to the cameras and joint states of the robot file. Publishes the
robot file's ``<controller>/joint_trajectory`` (only while active; positions and velocities, begins
in the state commanded for its stamp, ends at rest), ``~/decision`` (one record per chunk) and
``/diagnostics`` (1 Hz). Parameters: :class:`PolicyParameters`.

========== =====================================================================================
configure  loads robot, encoder, policy and critic, holds them against each other, warms up;
           on failure the reason is logged and the node stays unconfigured
activate   answers observations stamped from now on, once the arm is measured at rest; nothing
           moves before
deactivate decelerates the arm to rest
clean up   frees the networks and leaves the topics
========== =====================================================================================

When observations stop, come late, or are not finite, the arm is decelerated to rest once and the
reason is on ``/diagnostics`` and in the log; when they come again it goes on. An arm that is not
where it is commanded is not commanded on (ERROR) until the node is activated again; one that moves
is not taken over. When the system clock is set, the arm runs to rest before it goes on.

A parameter change that does not go together with what is loaded is refused with the reason and
changes nothing; one that is accepted takes effect at the next chunk. A critic is loaded and
checked, and what a decision costs is measured, while chunks go on.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import (
    CallbackGroup,
    MutuallyExclusiveCallbackGroup,
    ReentrantCallbackGroup,
)
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from qsteer_ros.errors import ConfigError, DataError, QsteerError
from qsteer_ros.nodes import messages, policy_pace, policy_parts
from qsteer_ros.nodes.clock_steps import ClockSteps
from qsteer_ros.nodes.executors import ServiceThreadExecutor
from qsteer_ros.nodes.lifecycle import told
from qsteer_ros.nodes.observations import ObservationAssembler
from qsteer_ros.nodes.parameters import changed, declare
from qsteer_ros.nodes.policy_loop import PolicyLoop
from qsteer_ros.nodes.policy_parameters import AT_CONFIGURE, PolicyParameters
from qsteer_ros.nodes.policy_parts import Parts
from qsteer_ros.nodes.policy_report import PolicyReport
from qsteer_ros.nodes.policy_topics import PolicyTopics

WATCH_PERIOD_S = 0.05
Transition = TransitionCallbackReturn


class PolicyNode(LifecycleNode):  # type: ignore[misc]
    """See the module.

    Raises:
        ConfigError: A parameter given at start breaks its rule.
    """

    def __init__(self, **options: Any) -> None:
        self._shared_group = ReentrantCallbackGroup()
        super().__init__("policy_node", **options)
        self._settings = declare(self, PolicyParameters)
        self._report = PolicyReport()
        self._parts: Parts | None = None
        self._loop: PolicyLoop | None = None
        self._judged: tuple[PolicyParameters, Parts | None] | None = None
        self._topics: PolicyTopics | None = None
        self.add_on_set_parameters_callback(self._judge)
        self.add_post_set_parameters_callback(self._accept)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Watch and report run on the machine's clock: simulated time may stand still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        own_group = MutuallyExclusiveCallbackGroup()
        self.create_timer(WATCH_PERIOD_S, self._on_watch, callback_group=own_group, clock=steady)
        self.create_timer(1.0, self._on_report, callback_group=own_group, clock=steady)

    @property
    def default_callback_group(self) -> CallbackGroup:
        """Of /clock and the services: time must go on while one of these loads a critic."""
        return self._shared_group

    # Transitions. A refusal leaves the node in the state it came from.

    @told
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load, check, warm up, subscribe. Nothing moves."""
        torch.set_num_threads(self._settings.num_threads)
        try:
            parts = policy_parts.load(self._settings)
            warm_ms = policy_pace.warm_up(parts)
            parts = policy_pace.paced(parts, self._settings)
        except QsteerError as error:
            self.get_logger().error(str(error))
            return Transition.FAILURE
        self._parts = parts
        self._connect(parts)
        self.get_logger().info(
            f"configured for {parts.robot.name}: steering {self._settings.steering}, "
            f"a decision takes {warm_ms:.1f} ms"
        )
        return super().on_configure(state)

    @told
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to command."""
        if self._loop is None or self._loop.failure is not None:
            self.get_logger().error(
                "the inference thread has failed: clean up and configure again."
            )
            return Transition.FAILURE
        done = super().on_activate(state)
        self._loop.activate()
        return done

    @told
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Decelerate to rest."""
        if self._loop is not None:
            self._loop.deactivate()
        return super().on_deactivate(state)

    @told
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything that configure made."""
        self._disconnect()
        return super().on_cleanup(state)

    @told
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Decelerate to rest and free everything."""
        self._disconnect()
        return super().on_shutdown(state)

    @told
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an unexpected error in a transition (it is in the log): at rest, unconfigured."""
        self._disconnect()
        return Transition.SUCCESS

    def destroy_node(self) -> None:
        """Stop the inference thread before the node goes."""
        self._disconnect()
        super().destroy_node()

    def _connect(self, parts: Parts) -> None:
        settings = self._settings
        self._topics = topics = PolicyTopics(self, parts)
        assembler = ObservationAssembler(parts.sizes, settings.age_limits(), messages.to_image)
        self._loop = loop = PolicyLoop(
            parts,
            settings,
            assembler,
            self._now_ns,
            topics.outlets(self._warn),
            self._report,
            self._clock_steps(),
        )
        topics.listen(assembler, loop.notify, self._refuse_joints)

    def _disconnect(self) -> None:
        if self._loop is not None:
            self._loop.deactivate()
            self._loop.stop()
        if self._topics is not None:
            self._topics.close()
        self._loop = self._topics = self._parts = None

    def _clock_steps(self) -> Callable[[], int]:
        """What notices that the clock was set; simulated time runs, pauses and jumps at will."""
        if self.get_clock().ros_time_is_active:
            return lambda: 0
        return ClockSteps(self._now_ns).look

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _warn(self, sentence: str) -> None:
        self.get_logger().warning(sentence, throttle_duration_sec=1.0)

    # Callbacks.

    def _refuse_joints(self, error: DataError) -> None:
        self._report.refused("joint_states", str(error))
        self._warn(str(error))

    def _on_watch(self) -> None:
        loop = self._loop
        if loop is not None:
            loop.watch()

    def _on_report(self) -> None:
        loop, parts = self._loop, self._parts
        if loop is not None and loop.failure is not None:
            trace = "".join(traceback.format_exception(loop.failure))
            self.get_logger().error(f"stopped answering: {trace}", once=True)
        level, sentence, values = self._report.summary(self._state_label())
        if parts is not None:
            values["steering"] = parts.steered.settings.mode
            values["critic"] = self._settings.critic
        self._diagnostics.publish(
            messages.to_diagnostics(
                self._now_ns(),
                f"{self.get_name()}: policy",
                level,
                sentence,
                values,
                hardware_id=parts.robot.name if parts is not None else "",
            )
        )

    def _state_label(self) -> str:
        if self._loop is None:
            return "unconfigured"
        return "active" if self._loop.active else "inactive"

    # Parameters. Judged as a whole, before any of them changes; then accepted together.

    def _judge(self, changes: Sequence[Parameter]) -> SetParametersResult:
        self._judged = None
        try:
            after = changed(self._settings, changes)
            parts = self._parts
            if parts is not None:
                self._refuse_fixed(changes)
                before = (parts, self._settings)
                parts = policy_parts.revise(*before, after)
                parts = policy_pace.paced(parts, after, before=before)
        except QsteerError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._judged = (after, parts)
        return SetParametersResult(successful=True)

    def _refuse_fixed(self, changes: Sequence[Parameter]) -> None:
        fixed = sorted({c.name for c in changes} & (AT_CONFIGURE | {"use_sim_time"}))
        if fixed:
            raise ConfigError(
                f"parameters {fixed} must be set while the node is unconfigured: it is "
                f"{self._state_label()}. Clean up, set them, and configure again."
            )

    def _accept(self, changes: Sequence[Parameter]) -> None:
        if self._judged is None:
            return
        self._settings, parts = self._judged
        self._judged = None
        if self._loop is not None and parts is not None:
            self._parts = parts
            restart = any(c.name == "seed" for c in changes)
            self._loop.revise(parts, self._settings, restart=restart)


def main(args: list[str] | None = None) -> int:
    """Entry point; exit status 1 when a parameter is refused at start.

    On SIGINT and SIGTERM the arm is decelerated to rest before the node goes.
    """
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    try:
        node = PolicyNode()
    except QsteerError as error:
        print(f"policy_node: {error}", file=sys.stderr)  # noqa: T201
        rclpy.try_shutdown()
        return 1
    executor = ServiceThreadExecutor()
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
