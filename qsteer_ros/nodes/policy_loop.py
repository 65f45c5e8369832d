"""The thread that answers observations with paths, and the watch that stops the arm without it.

One answer is in work at a time, and it is always to the newest observation. What it computes
counts only if the node is still active, and the observation still young, when it is done. The
watch runs in another thread: a slow or hung answer never delays the stop. Every path ends at rest,
so an arm whose policy node dies stops by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from qsteer_ros.errors import DataError, QsteerError, StaleObservation
from qsteer_ros.motion.controller import ChunkController, NotFollowing
from qsteer_ros.nodes.observations import SET_BACK_NS, ObservationAssembler
from qsteer_ros.nodes.policy_memory import ChunkMemory
from qsteer_ros.nodes.policy_outlets import Outlets
from qsteer_ros.nodes.policy_parameters import PolicyParameters
from qsteer_ros.nodes.policy_parts import Parts
from qsteer_ros.nodes.policy_records import with_path
from qsteer_ros.nodes.policy_report import PolicyReport
from qsteer_ros.policies.bookkeeping import chunk_seed
from qsteer_ros.policies.recording import Decision
from qsteer_ros.types import JointPath, Observation

_NEVER_NS = -(2**62)


class PolicyLoop:
    """Answers observations while active. All methods are safe to call from any thread.

    Args:
        parts: What decides and decodes.
        parameters: How.
        assembler: Where observations come from.
        now_ns: ROS time.
        outlets: Where paths and records go.
        report: Collects what happened.
        clock_step_ns: How far the clock was set since it was asked last, ns; 0 for a clock that
            may run as it likes, as simulated time does.

    Attributes:
        failure: The unexpected error that ended answering, or None. The arm has been stopped.
    """

    def __init__(
        self,
        parts: Parts,
        parameters: PolicyParameters,
        assembler: ObservationAssembler,
        now_ns: Callable[[], int],
        outlets: Outlets,
        report: PolicyReport,
        clock_step_ns: Callable[[], int] = lambda: 0,
    ) -> None:
        self.failure: BaseException | None = None
        self._parts = parts
        self._parameters = parameters
        self._assembler = assembler
        self._now_ns = now_ns
        self._outlets = outlets
        self._report = report
        self._clock_step_ns = clock_step_ns
        self._controller = ChunkController(parts.robot, parts.decoder, parameters.execute_steps)
        self._memory = ChunkMemory(parts.robot.control_dt_ns)
        self._changed = threading.Condition(threading.RLock())
        self._stopping = False
        self._active = False
        self._activation = 0  # counts activations: an answer begun in another one is dropped
        self._since_ns = _NEVER_NS
        self._tried_ns = _NEVER_NS
        self._held = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def active(self) -> bool:
        """Whether observations are being answered."""
        return self._active

    def activate(self) -> None:
        """Answer observations that are made from now on; the first where the arm is at rest.

        An arm that still moves is not taken over: its observations are refused until it rests.
        """
        with self._changed:
            self._controller.reset()
            self._memory.clear_running()
            self._clock_step_ns()  # what happened before is of no interest
            self._report.activated()
            self._activation += 1
            self._active = True
            self._since_ns = self._now_ns()
            self._tried_ns = _NEVER_NS
            self._memory.restart()
            self._held = False

    def deactivate(self) -> None:
        """Answer no more, and decelerate to rest what is moving."""
        with self._changed:
            if self._active:
                self._active = False
                self._hold()

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End the thread; :meth:`deactivate` first. An answer in work is dropped."""
        with self._changed:
            self._active = False
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def revise(self, parts: Parts, parameters: PolicyParameters, *, restart: bool = False) -> None:
        """Use other parts from the next chunk on; ``restart`` counts chunks from 0 again."""
        with self._changed:
            self._parts, self._parameters = parts, parameters
            self._controller.execute_steps = parameters.execute_steps
            self._assembler.limits = parameters.age_limits()
            if restart:
                self._memory.restart()

    def notify(self) -> None:
        """Something has arrived."""
        with self._changed:
            self._changed.notify_all()

    def watch(self) -> None:
        """Bring the arm to rest, once, when nothing that has arrived may be acted on any more."""
        with self._changed:
            if not self._active:
                return
            self._check_clock()
            reason = self._assembler.why_stale(self._now_ns())
            self._report.stale(reason)
            if reason is None:
                self._held = False
                return
            self._outlets.warn(reason)
            if not self._held and self._controller.commanding:
                self._held = True
                self._hold()
                self._report.held(reason)

    # Inference thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._ready())
                if self._stopping:
                    return
                activation = self._activation
            try:
                self._answer(activation)
            except QsteerError as error:
                self._forget_running()
                serious = isinstance(error, NotFollowing)
                self._report.refused(type(error).__name__, str(error), serious=serious)
                self._outlets.warn(str(error))
            except BaseException as error:
                self._fail(error)
                return

    def _ready(self) -> bool:
        """Whether there is a new observation that wants an answer; called with the lock held."""
        if not self._active:
            return False
        stamp_ns = self._assembler.newest_stamp_ns()
        if stamp_ns is None:
            return False
        if stamp_ns < self._tried_ns - SET_BACK_NS:  # the clock was set back
            self._controller.reset()
            self._memory.forget_running()
            self._tried_ns = self._since_ns = _NEVER_NS
        new = stamp_ns > self._tried_ns and stamp_ns >= self._since_ns
        return new and self._controller.wants(stamp_ns)

    def _answer(self, activation: int) -> None:
        start_ns = time.perf_counter_ns()
        began_ns = time.monotonic_ns()
        with self._changed:
            parts, parameters, number = self._parts, self._parameters, self._memory.number
            self._tried_ns = self._assembler.newest_stamp_ns() or self._tried_ns
        observation = self._assembler.assemble(self._now_ns())
        assembled_ns = time.perf_counter_ns()
        with self._changed:
            running = self._memory.continued(observation.stamp_ns, parameters)
        decision = parts.steered.decide(
            observation,
            seed=chunk_seed(parameters.seed, number[1]),
            running=running,
            deadline=self._memory.deadline(parts, parameters, began_ns),
        )
        with self._changed:
            if activation != self._activation or not self._active or self._check_clock():
                return
            self._tried_ns = max(self._tried_ns, observation.stamp_ns)
            decided_ns = time.perf_counter_ns()
            path, published_ns, effective_ns = self._publish(decision, observation, parameters)
            self._memory.published(
                number, decision, stamp_ns=observation.stamp_ns, effective_ns=effective_ns
            )
            plan = self._controller.report
        if plan is None:  # plan() has just set it, under the lock
            raise AssertionError
        stages = {
            "assemble": assembled_ns - start_ns,
            "plan": time.perf_counter_ns() - decided_ns,
        }
        record = with_path(decision, observation, path, plan, parts, parameters)
        record = record.extended(
            meta={
                "chunk_index": number[1],
                "published_ns": published_ns,
                "effective_ns": effective_ns,
                "latency_ms": (published_ns - observation.stamp_ns) / 1e6,
                "timings_ns": {**record.meta["timings_ns"], **stages},
            }
        )
        self._memory.saw(record.meta["timings_ns"])
        self._report.chunk(record.meta, plan)
        self._outlets.record(record)

    def _publish(
        self, decision: Decision, observation: Observation, parameters: PolicyParameters
    ) -> tuple[JointPath, int, int]:
        """Plan and send; the path, when it was sent and when it takes effect."""
        now_ns = self._now_ns()
        age_ns = now_ns - observation.stamp_ns
        if age_ns > parameters.max_age_s * 1e9:
            raise StaleObservation(
                f"a decision must be made within {parameters.max_age_s * 1e3:.0f} ms of its "
                f"observation: it took {age_ns / 1e6:.0f} ms. Lower 'denoising_steps' or "
                "'num_samples', or use a faster machine."
            )
        effective_ns = now_ns + round(parameters.lead_s * 1e9)
        path = self._controller.plan(
            decision.chunk, observation.robot, observation.stamp_ns, effective_ns
        )
        self._outlets.path(path, effective_ns)
        return path, now_ns, effective_ns

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.failure = error
            self._report.failed(f"{type(error).__name__}: {error}")
            self.deactivate()

    def _hold(self) -> None:
        """Send a running path to rest; called with the lock held."""
        self._memory.forget_running()
        if self._check_clock():
            return
        effective_ns = self._now_ns() + round(self._parameters.lead_s * 1e9)
        try:
            path = self._controller.hold(effective_ns, self._assembler.last_joints())
        except DataError as error:  # the path that runs comes to rest by itself
            self._report.refused(type(error).__name__, str(error))
            self._outlets.warn(str(error))
            return
        if path is not None:
            self._outlets.path(path, effective_ns)

    def _check_clock(self) -> bool:
        """Whether the clock was set: then what was commanded is unknown, and ends by itself.

        What has arrived is stamped by the old clock. Answers begin again with an observation that
        is made after the path would have come to rest. Called with the lock held.
        """
        step_ns = self._clock_step_ns()
        if step_ns == 0:
            return False
        self._since_ns, commanded = self._now_ns(), self._controller.commanded
        if commanded is not None:
            self._since_ns = max(self._since_ns, commanded.end_ns + step_ns)
        self._tried_ns = _NEVER_NS
        self._controller.reset()
        self._memory.forget_running()
        self._assembler.clear()
        reason = (
            f"the clock must not be set while the arm moves: it was, by {step_ns * 1e-9:.3f} s. "
            "The arm comes to rest, then goes on. Let the clock be slewed (chrony, ptp4l)."
        )
        self._report.refused("clock_step", reason)
        self._outlets.warn(reason)
        return True

    def _forget_running(self) -> None:
        with self._changed:
            self._memory.forget_running()
