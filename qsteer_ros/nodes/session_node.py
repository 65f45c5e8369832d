"""Runs a session of episodes in simulation: reset, assign the steering arm, start, judge, go on.

For each planned episode, in the session's seeded order: the simulator is reset to the episode's
state, the policy node gets the arm's parameters, the start is announced with its provenance, and
once the logger records, the policy is activated. The episode ends when the simulator says success
or after ``timeout_s`` of simulated time; the policy is deactivated, the end is announced, and the
result is written to ``session.json`` before the next one begins.

Calls services of the simulator, the policy node and the logger's topic ``~/recording``; subscribes
to ``success`` and the policy's ``~/decision``; publishes ``episode/event``. Each line on standard
output that begins with ``@session`` is a JSON object for programs that watch.

On failure of any part the episode ends as ``aborted``, the policy is deactivated and the program
ends with status 1. After Ctrl-C it does the same with status 0; a session can be resumed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import Trigger

from qsteer_ros.errors import ConfigError, QsteerError
from qsteer_ros.graph.provenance import provenance
from qsteer_ros.nodes.lifecycle import RemoteNode
from qsteer_ros.nodes.parameters import declare
from qsteer_ros.nodes.session_parameters import SessionParameters
from qsteer_ros.nodes.session_topics import SessionTopics
from qsteer_ros.nodes.waiting import REPEAT_S, Foreground, NoAnswer, Stopped
from qsteer_ros.replay.sessions import SESSION, Result, Session, Trial

CONTROL_DT_NS = 50_000_000
SETTLE_NS = 3 * CONTROL_DT_NS
"""From a reset to the start: the last frame of the episode before is not the first of this one."""
PREFIX = "@session "
START_TIMEOUT_S = 180.0
"""For the other nodes to appear and the policy to load and warm up."""
SERVICE_TIMEOUT_S = 30.0
RECORDING_TIMEOUT_S = 30.0
TIDY_TIMEOUT_S = 3.0


class SessionRunner:
    """Runs the episodes one after the other, in the calling thread.

    Args:
        foreground: Spins the session's node.
        parameters: The node's parameters.
    """

    def __init__(self, foreground: Foreground, parameters: SessionParameters) -> None:
        self._parameters = parameters
        self._foreground = foreground
        self._topics = SessionTopics(
            foreground.node,
            foreground.notify,
            policy=parameters.policy_node,
            logger=parameters.logger_node,
        )
        self._policy = RemoteNode(foreground, parameters.policy_node)
        self._sim = RemoteNode(foreground, parameters.sim_node)
        self._reset = foreground.node.create_client(Trigger, f"{parameters.sim_node}/reset")
        self._critic = self._noise_policy = ""

    def run(self) -> Session:
        """Run what the session's folder does not have yet.

        Raises:
            ConfigError: A parameter is wrong, or another node refuses one.
            NoAnswer: Another node does not do its part in time.
            Stopped: The program was told to stop.
        """
        folder = Path(self._parameters.folder)
        session = self._open(folder)
        say("plan", arms=session.arms, goals=session.goals, episodes=session.episodes)
        self._policy.drive_to("inactive", timeout_s=START_TIMEOUT_S)
        for trial in session.remaining():
            say("start", trial=asdict(trial), of=len(session.schedule()))
            result = self._run_safely(trial, session, folder)
            session = session.with_result(result)
            session.save(folder)
            say("end", result=asdict(result))
        say("done", folder=str(folder))
        return session

    def _open(self, folder: Path) -> Session:
        """The session in the folder, or a new one."""
        values = self._parameters
        if not values.folder:
            raise ConfigError("parameter 'folder' must name the session's folder: it is empty.")
        made_from = self._provenance()
        plan = Session(
            tuple(values.arms),
            tuple(values.goals),
            values.episodes,
            values.seed,
            {arm: values.arm(arm) for arm in values.arms},
            made_from,
        )
        if (folder / SESSION).exists():
            begun = Session.load(folder)
            begun.check_same_plan(plan)
            return begun
        folder.mkdir(parents=True, exist_ok=True)
        plan.save(folder)
        return plan

    def _provenance(self) -> dict[str, str]:
        values = self._parameters
        names = ("robot", "encoder", "policy", "posterior_map")
        files = self._policy.get_parameters(names, timeout_s=START_TIMEOUT_S)
        critics = {f"critic_goal{goal}": values.critic(goal) for goal in values.goals}
        choosers = {f"noise_policy_goal{g}": values.noise_policy_of(g) for g in values.goals}
        return provenance({**files, **critics, **choosers})

    def _run_safely(self, trial: Trial, session: Session, folder: Path) -> Result:
        """Run an episode; when it cannot be finished, end it as aborted and pass the error on."""
        try:
            return self._episode(trial, session)
        except (QsteerError, Stopped) as error:
            reason = str(error) or "told to stop"
            self._foreground.stopped = False
            self._tidy_up(trial, reason)
            if not isinstance(error, Stopped):
                result = Result(trial, "aborted", 0, tuple(self._topics.chunk_ms), reason)
                session.with_result(result).save(folder)
                say("end", result=asdict(result))
            raise

    def _tidy_up(self, trial: Trial, reason: str) -> None:
        self._topics.publish_event(
            "end", episode_id=trial.episode_id, outcome="aborted", reason=reason
        )
        try:
            self._policy.drive_to("inactive", timeout_s=TIDY_TIMEOUT_S)
            self._wait_for_logger("", timeout_s=TIDY_TIMEOUT_S)
        except QsteerError as error:
            self._foreground.node.get_logger().warning(f"while ending: {error}")

    def _episode(self, trial: Trial, session: Session) -> Result:
        self._prepare(trial)
        self._topics.publish_event(
            "start",
            episode_id=trial.episode_id,
            arm=trial.arm,
            goal=trial.goal,
            seed=trial.seed,
            steering=dict(session.settings[trial.arm]),
            provenance={
                **session.provenance,
                **{
                    kind: session.provenance[f"{kind}_goal{trial.goal}"]
                    for kind in ("critic", "noise_policy")
                    if f"{kind}_goal{trial.goal}" in session.provenance
                },
            },
        )
        self._wait_for_logger(trial.episode_id, timeout_s=RECORDING_TIMEOUT_S)
        self._policy.drive_to("active", timeout_s=SERVICE_TIMEOUT_S)
        start_ns = self._topics.now_ns
        succeeded_ns = self._wait_for_outcome(start_ns)
        self._policy.drive_to("inactive", timeout_s=SERVICE_TIMEOUT_S)
        outcome = "failure" if succeeded_ns is None else "success"
        end_ns = succeeded_ns if succeeded_ns is not None else self._deadline_ns(start_ns)
        self._topics.publish_event(
            "end", episode_id=trial.episode_id, outcome=outcome, label_source="sim"
        )
        self._wait_for_logger("", timeout_s=RECORDING_TIMEOUT_S)
        steps = -((start_ns - end_ns) // CONTROL_DT_NS)
        return Result(trial, outcome, steps, tuple(self._topics.chunk_ms))

    def _prepare(self, trial: Trial) -> None:
        """Reset the scene and give the policy its arm; nothing moves."""
        self._sim.set_parameters(
            {"seed": trial.seed, "goal": trial.goal}, timeout_s=SERVICE_TIMEOUT_S
        )
        answer = self._foreground.call(
            self._reset, Trigger.Request(), timeout_s=SERVICE_TIMEOUT_S, repeat_s=REPEAT_S
        )
        if not answer.success:
            raise ConfigError(f"the simulator must reset: it refused. {answer.message}")
        values = {**self._parameters.arm(trial.arm), "seed": trial.seed}
        critic = self._parameters.critic(trial.goal)
        if critic != self._critic:
            values["critic"] = critic
        noise_policy = self._parameters.noise_policy_of(trial.goal)
        if noise_policy != self._noise_policy:
            values["noise_policy"] = noise_policy
        self._policy.set_parameters(values, timeout_s=SERVICE_TIMEOUT_S)
        self._critic, self._noise_policy = critic, noise_policy
        self._topics.forget()
        self._foreground.until(
            lambda: self._topics.success is False,
            timeout_s=SERVICE_TIMEOUT_S,
            what="the simulator must say that the goal is not reached after a reset",
        )
        settled_ns = self._topics.now_ns + SETTLE_NS
        self._foreground.until(
            lambda: self._topics.now_ns >= settled_ns,
            timeout_s=SERVICE_TIMEOUT_S,
            what="simulated time must go on after a reset",
        )
        self._topics.forget()

    def _deadline_ns(self, start_ns: int) -> int:
        return start_ns + round(self._parameters.timeout_s * 1e9)

    def _wait_for_outcome(self, start_ns: int) -> int | None:
        """ROS time of success, or None when the simulated time is up."""
        deadline_ns = self._deadline_ns(start_ns)

        def over() -> bool:
            return self._topics.success_ns is not None or self._topics.now_ns >= deadline_ns

        self._foreground.until(
            over,
            timeout_s=self._parameters.timeout_s * self._parameters.wall_factor,
            what=f"{self._parameters.timeout_s:g} s of simulated time must pass",
            remedy="Check that sim_node publishes /clock and keeps up.",
        )
        succeeded_ns = self._topics.success_ns
        return succeeded_ns if succeeded_ns is None or succeeded_ns <= deadline_ns else None

    def _wait_for_logger(self, episode_id: str, *, timeout_s: float) -> None:
        """Wait until the logger records this episode, or, with an empty id, none."""

        def settled() -> bool:
            heard = self._topics.recording
            if heard.get("state") == "refused" and heard.get("episode_id") == episode_id:
                raise ConfigError(f"the logger refuses '{episode_id}': {heard['reason']}")
            state = "recording" if episode_id else "idle"
            return (heard.get("episode_id"), heard.get("state")) == (episode_id, state)

        what = f"record '{episode_id}'" if episode_id else "close the episode"
        self._foreground.until(
            settled,
            timeout_s=timeout_s,
            what=f"the logger must {what}",
            remedy="Look at the log of logger_node.",
        )


def say(kind: str, **entries: Any) -> None:
    """One line for programs that watch."""
    sys.stdout.write(PREFIX + json.dumps({"kind": kind, **entries}) + "\n")
    sys.stdout.flush()


def main(args: list[str] | None = None) -> int:
    """Entry point; exit status 1 when the session could not be finished."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = Node("session_node")
    try:
        with Foreground(node) as foreground:
            foreground.stop_on_signals()
            SessionRunner(foreground, declare(node, SessionParameters)).run()
        return 0
    except (QsteerError, NoAnswer) as error:
        node.get_logger().fatal(str(error))
        return 1
    except Stopped:
        return 0
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
