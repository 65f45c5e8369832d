"""Recording in a thread of its own: callbacks never wait for the disk, and losses are counted.

`Recorder.put` only appends to a queue whose size in bytes is bounded. What does not fit is
dropped, counted per topic and written into the episode; nothing is dropped silently. One thread
empties the queue, flushes after every batch and waits for the disk once per interval.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qsteer_ros.errors import ConfigError, DataError, QsteerError
from qsteer_ros.replay.episode import Episode
from qsteer_ros.replay.records import LoggedMessage
from qsteer_ros.replay.topic import Topic
from qsteer_ros.replay.writer import EpisodeWriter


@dataclass(frozen=True)
class _Close:
    """Request to finish the episode; it waits its turn behind the messages before it."""

    outcome: str
    label_source: str
    end_ns: int | None
    reason: str
    task: str | None


@dataclass(frozen=True)
class Finished:
    """An episode that is no longer being recorded.

    Attributes:
        episode_id: Which one.
        folder: Its folder.
        error: Why it could not be closed properly, or empty.
    """

    episode_id: str
    folder: Path
    error: str = ""


class Recorder:
    """Records one episode at a time.

    Attributes:
        dropped: Messages dropped since the recorder was made, by topic.
    """

    def __init__(
        self,
        store: str | Path,
        *,
        queue_bytes: int = 64 * 1024 * 1024,
        flush_interval_s: float = 0.05,
        fsync_interval_s: float = 1.0,
    ) -> None:
        """Start the thread.

        Args:
            store: Folder of the episode store; made when missing.
            queue_bytes: Most bytes of messages that may wait for the disk.
            flush_interval_s: Longest time a message waits before it is handed to the operating
                system, s.
            fsync_interval_s: Longest time it waits for the disk after that, s.
        """
        self.store = Path(store)
        self.dropped: Counter[str] = Counter()
        self._queue_bytes = queue_bytes
        self._flush_interval_s = flush_interval_s
        self._fsync_interval_s = fsync_interval_s
        self._changed = threading.Condition()
        self._queue: deque[LoggedMessage | _Close] = deque()
        self._waiting_bytes = 0
        self._episode_drops: Counter[str] = Counter()
        self._writer: EpisodeWriter | None = None
        self._closing = False
        self._stopping = False
        self._error = ""
        self._finished: list[Finished] = []
        self._thread = threading.Thread(target=self._work, name="episode-writer")
        self._thread.start()

    @property
    def recording(self) -> bool:
        """Whether an episode is open, or still being closed."""
        with self._changed:
            return self._writer is not None

    @property
    def error(self) -> str:
        """Why the open episode can no longer be written, or empty."""
        return self._error

    @property
    def waiting(self) -> tuple[int, int]:
        """Messages and bytes that wait for the disk."""
        with self._changed:
            return len(self._queue), self._waiting_bytes

    def start(self, episode: Episode, topics: Sequence[Topic]) -> Path:
        """Open an episode; when this returns, its folder is on the disk.

        Raises:
            ConfigError: An episode is open, the new one has no provenance, or its folder exists
                or cannot be made.
        """
        with self._changed:
            if self._writer is not None or self._stopping:
                raise ConfigError(
                    f"episode '{episode.episode_id}' must wait until the one before it is closed. "
                    "Send its end event first."
                )
        try:
            writer = EpisodeWriter(
                self.store, episode, topics, fsync_interval_s=self._fsync_interval_s
            )
        except OSError as error:
            raise ConfigError(
                f"the episode store must be writable: '{self.store}': {error}. "
                "Set parameter 'directory' to a folder with space."
            ) from error
        with self._changed:
            self._episode_drops.clear()
            self._error = ""
            self._closing = False
            self._writer = writer
        return writer.folder

    def put(self, message: LoggedMessage) -> bool:
        """Hand over one message; never waits.

        Returns:
            False when it was dropped (and counted): the queue is full or the disk has failed. Also
            false, and not a drop, when no episode is open.
        """
        with self._changed:
            if self._writer is None or self._closing:
                return False
            if self._error or self._waiting_bytes + len(message.data) > self._queue_bytes:
                self.dropped[message.topic] += 1
                self._episode_drops[message.topic] += 1
                return False
            self._queue.append(message)
            self._waiting_bytes += len(message.data)
            return True

    def close(
        self,
        outcome: str,
        *,
        label_source: str,
        end_ns: int | None = None,
        reason: str = "",
        task: str | None = None,
    ) -> None:
        """Ask for the episode to be closed after everything handed over so far; never waits.

        The arguments are those of `EpisodeWriter.close`. Nothing happens when no episode is open;
        `finished` tells when it is done.
        """
        with self._changed:
            if self._writer is None or self._closing:
                return
            self._closing = True
            self._queue.append(_Close(outcome, label_source, end_ns, reason, task))
            self._changed.notify_all()

    def finished(self) -> list[Finished]:
        """Episodes closed since the last call."""
        with self._changed:
            done, self._finished = self._finished, []
            return done

    def shutdown(self) -> None:
        """Write what waits and end the thread. An episode still open is closed as aborted."""
        with self._changed:
            if self._writer is not None and not self._closing:
                self._closing = True
                self._queue.append(_Close("aborted", "logger", None, "the logger stopped", None))
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or self._stopping, self._flush_interval_s
                )
                batch = list(self._queue)
                self._queue.clear()
                self._waiting_bytes = 0
                writer = self._writer
                if self._stopping and not batch:
                    return
            if writer is not None:
                self._write(writer, batch)

    def _write(self, writer: EpisodeWriter, batch: list[LoggedMessage | _Close]) -> None:
        for item in batch:
            if isinstance(item, _Close):
                self._finish(writer, item)
                return
            if self._error or not self._written(writer, item):
                with self._changed:
                    self.dropped[item.topic] += 1
                    self._episode_drops[item.topic] += 1
        if batch and not self._error:
            try:
                writer.flush()
            except OSError as error:
                self._error = str(error)

    def _written(self, writer: EpisodeWriter, message: LoggedMessage) -> bool:
        """Write one message; a broken one is a drop, a disk that fails ends the recording."""
        try:
            writer.write(
                message.topic,
                message.data,
                log_time_ns=message.log_time_ns,
                publish_time_ns=message.publish_time_ns,
                sequence=message.sequence,
            )
        except DataError:
            return False
        except OSError as error:
            self._error = str(error)
            return False
        return True

    def _finish(self, writer: EpisodeWriter, request: _Close) -> None:
        with self._changed:
            drops = dict(self._episode_drops)
        for topic, count in drops.items():
            writer.note_dropped(topic, count)
        if self._error:
            reason = f"writing failed: {self._error}"
            request = replace(request, outcome="aborted", label_source="logger", reason=reason)
        try:
            writer.close(
                request.outcome,
                label_source=request.label_source,
                end_ns=request.end_ns,
                reason=request.reason,
                task=request.task,
            )
        except (OSError, QsteerError) as error:
            self._error = self._error or str(error)
        with self._changed:
            self._finished.append(Finished(writer.episode.episode_id, writer.folder, self._error))
            self._writer = None
            self._closing = False
