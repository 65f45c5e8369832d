"""What the logger does with each message: when an episode begins, what is in it, when it is over.

Messages come from ROS, time is passed in, and nothing here waits, so that the rules can be tested
without either. An episode starts with a ``start`` event that carries provenance and ends with the
``end`` event of the same episode. Everything published before the end belongs to it: the intake
goes on recording until every live stream has delivered something published later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.replay.definitions import deserialize
from qsteer_ros.replay.episode import OUTCOMES, Episode
from qsteer_ros.replay.reader import read_event
from qsteer_ros.replay.recorder import Recorder
from qsteer_ros.replay.records import LoggedMessage
from qsteer_ros.replay.topic import Topic

MS = 1_000_000
LEAST_DRAIN_NS = 100 * MS
PREROLL_NS = 100 * MS
HISTORY_NS = 500 * MS
STREAMS = ("joint_states", "reward", "success")


@dataclass(frozen=True)
class Announcement:
    """What the rest of the system is told about an episode.

    Attributes:
        episode_id: Which one.
        state: ``recording``, ``closed`` or ``refused``.
        path: Its folder; empty when refused.
        reason: Why it was refused, or what went wrong while recording; empty otherwise.
    """

    episode_id: str
    state: str
    path: str = ""
    reason: str = ""


@dataclass
class _Drain:
    """An episode whose end event has come, while earlier messages are still on their way."""

    outcome: str
    label_source: str
    reason: str
    end_ns: int
    published_ns: int
    awaited: set[str]
    least_ns: int
    deadline_ns: int


@dataclass(frozen=True)
class _Pending:
    """A start event that cannot be obeyed yet."""

    event: Mapping[str, Any]
    message: LoggedMessage
    not_before_ns: int
    late: bool


class Intake:
    """Turns a stream of messages into episodes.

    Attributes:
        current: Id of the episode being recorded, or None.
    """

    def __init__(
        self,
        recorder: Recorder,
        topics: Callable[[], Sequence[Topic]],
        robot: Mapping[str, Any],
        *,
        born_ns: int,
        drain_timeout_s: float = 1.0,
    ) -> None:
        """Wait for the first start event.

        Args:
            recorder: Writes the episodes.
            topics: Gives the topics with the QoS that is offered now; asked at each start.
            robot: Layout of the robot, kept in every episode.
            born_ns: System time from which on events are news; what was published before is
                history that is delivered late, and is obeyed only when nothing follows it.
            drain_timeout_s: Longest time to wait for messages published before the end, s.
        """
        self.current: str | None = None
        self._recorder = recorder
        self._topics = topics
        self._robot = dict(robot)
        self._born_ns = born_ns
        self._drain_timeout_ns = round(drain_timeout_s * 1e9)
        self._roles = {topic.name: topic.role for topic in topics()}
        self._latest: dict[str, LoggedMessage] = {}
        self._live: set[str] = set()
        self._drain: _Drain | None = None
        self._pending: _Pending | None = None
        self._announcements: deque[Announcement] = deque()

    def take(self, message: LoggedMessage, *, published_ns: int, elapsed_ns: int) -> None:
        """Record one message, and obey it when it is an event.

        Args:
            message: The message; its log time is the ROS time now.
            published_ns: System time at which its publisher sent it.
            elapsed_ns: Monotonic time now.
        """
        role = self._roles[message.topic]
        if role == "task" or role == "joint_states" or role.startswith("camera/"):
            self._latest[message.topic] = message
        if self.current is not None:
            self._recorder.put(message)
            if role in STREAMS or role.startswith("camera/"):
                self._live.add(message.topic)
            if self._drain is not None and published_ns > self._drain.published_ns:
                self._drain.awaited.discard(message.topic)
        if role == "event":
            self._obey(message, published_ns, elapsed_ns)

    def tick(self, *, now_ns: int, elapsed_ns: int) -> list[Announcement]:
        """Do what is due; call it often.

        Args:
            now_ns: ROS time now; 0 while there is no clock yet.
            elapsed_ns: Monotonic time now.

        Returns:
            What happened since the last call, in order.
        """
        self._finish_drain(elapsed_ns)
        for done in self._recorder.finished():
            if done.episode_id == self.current:
                self.current = None
            self._announce(done.episode_id, "closed", str(done.folder), done.error)
        pending = self._pending
        if (
            pending is not None
            and not self._recorder.recording
            and elapsed_ns >= pending.not_before_ns
            and now_ns > 0
        ):
            self._pending = None
            self._start(pending.event, replace(pending.message, log_time_ns=now_ns), pending.late)
        told = list(self._announcements)
        self._announcements.clear()
        return told

    def _obey(self, message: LoggedMessage, published_ns: int, elapsed_ns: int) -> None:
        try:
            event = read_event(message)
        except DataError as error:
            self._announce("", "refused", reason=str(error))
            return
        kind = event.get("event")
        if kind == "start":
            history = published_ns < self._born_ns
            due_ns = elapsed_ns + (HISTORY_NS if history else 0)
            self._pending = _Pending(event, message, due_ns, history)
            if self.current == event.get("episode_id"):
                self._pending = None
            elif self.current is not None:
                self._make_room()
            self._start_at_once(message, elapsed_ns)
        elif kind == "end":
            self._end(event, message, published_ns, elapsed_ns)

    def _start_at_once(self, message: LoggedMessage, elapsed_ns: int) -> None:
        pending = self._pending
        ready = message.log_time_ns > 0 and not self._recorder.recording
        if pending is not None and ready and elapsed_ns >= pending.not_before_ns:
            self._pending = None
            self._start(pending.event, message, pending.late)

    def _start(self, event: Mapping[str, Any], message: LoggedMessage, late: bool) -> None:
        start_ns = message.log_time_ns
        try:
            episode = Episode.from_event(event, start_ns=start_ns)
            episode = replace(
                episode,
                robot=self._robot,
                task=episode.task or self._task(),
                session={**episode.session, **({"late_start": True} if late else {})},
            )
            folder = self._recorder.start(episode, self._topics())
        except ConfigError as error:
            self._announce(str(event.get("episode_id", "")), "refused", reason=str(error))
            return
        self.current = episode.episode_id
        self._live.clear()
        for earlier in self._latest.values():
            if self._roles[earlier.topic] == "task":
                self._recorder.put(replace(earlier, log_time_ns=start_ns))
            elif start_ns - earlier.log_time_ns <= PREROLL_NS:
                self._recorder.put(earlier)
        self._recorder.put(message)
        self._announce(episode.episode_id, "recording", str(folder))

    def _end(
        self, event: Mapping[str, Any], message: LoggedMessage, published_ns: int, elapsed_ns: int
    ) -> None:
        episode_id = event.get("episode_id")
        if self._pending is not None and self._pending.event.get("episode_id") == episode_id:
            self._pending = None
        if self.current is None or episode_id != self.current or self._drain is not None:
            return
        outcome = str(event.get("outcome"))
        known = outcome in OUTCOMES
        self._drain = _Drain(
            outcome=outcome if known else "unlabelled",
            label_source=str(event.get("label_source", "session")),
            reason=str(event.get("reason", "")) if known else f"the end event said '{outcome}'",
            end_ns=message.log_time_ns,
            published_ns=published_ns,
            awaited=set(self._live),
            least_ns=elapsed_ns + LEAST_DRAIN_NS,
            deadline_ns=elapsed_ns + self._drain_timeout_ns,
        )

    def _make_room(self) -> None:
        """Close the running episode because another one begins."""
        if self._drain is not None:
            self._close(self._drain)
        else:
            self._recorder.close(
                "aborted", label_source="logger", reason="another episode was started"
            )

    def _finish_drain(self, elapsed_ns: int) -> None:
        drain = self._drain
        if drain is None or elapsed_ns < drain.least_ns:
            return
        if not drain.awaited or elapsed_ns >= drain.deadline_ns:
            self._close(drain)

    def _close(self, drain: _Drain) -> None:
        self._drain = None
        self._recorder.close(
            drain.outcome,
            label_source=drain.label_source,
            end_ns=drain.end_ns,
            reason=drain.reason,
            task=self._task() or None,
        )

    def _task(self) -> str:
        """The language instruction heard last, or nothing."""
        for message in self._latest.values():
            if self._roles[message.topic] == "task":
                return str(deserialize(message.data, message.type).data)
        return ""

    def _announce(self, episode_id: str, state: str, path: str = "", reason: str = "") -> None:
        self._announcements.append(Announcement(episode_id, state, path, reason))
