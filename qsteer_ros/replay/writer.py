"""One episode on disk: a rosbag2 bag and ``episode.json`` in a folder of their own.

Nothing is ever deleted or overwritten: a folder that exists is refused, and an episode that ended
in a stop, an abort or a crash stays where it is, labelled. Messages reach the operating system at
every `EpisodeWriter.flush` and the disk at least once per ``fsync_interval_s``, so that killing
the process loses what was not flushed and pulling the plug loses at most the interval.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from qsteer_ros import __version__
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.replay.bag import BagWriter
from qsteer_ros.replay.definitions import has_header, header_stamp_ns
from qsteer_ros.replay.durable import sync_folder
from qsteer_ros.replay.episode import CLOSED, OUTCOMES, RECORDING, Episode, TopicCount
from qsteer_ros.replay.gaps import lost_messages, missing_frames
from qsteer_ros.replay.topic import Topic


class EpisodeWriter:
    """Writes one episode.

    Attributes:
        folder: The episode's folder, ``<store>/<episode_id>``.
        episode: What ``episode.json`` says now.
    """

    def __init__(
        self,
        store: str | Path,
        episode: Episode,
        topics: Sequence[Topic],
        *,
        fsync_interval_s: float = 1.0,
        folder: Path | None = None,
        name: str | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Create the folder, the bag and the first ``episode.json``, and wait for the disk.

        Args:
            store: Folder of the episode store; made when missing.
            episode: The episode, with provenance.
            topics: Everything that may be written.
            fsync_interval_s: Longest time that flushed messages stay off the disk, s.
            folder: Folder to make; default: ``store / episode_id``.
            name: Name of the bag; default: that of the folder.
            clock_ns: Monotonic clock of the interval, for tests.

        Raises:
            ConfigError: The episode has no provenance, or its folder exists already. Nothing has
                been written.
        """
        if not episode.provenance:
            raise ConfigError(
                f"episode '{episode.episode_id}' needs provenance before it may be recorded: it "
                "has none. Send the hashes of package, policy and critic with the start event."
            )
        for topic in topics:
            topic.text_and_hash()
        self.folder = folder or Path(store) / episode.episode_id
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError:
            raise ConfigError(
                f"an episode must be recorded into a new folder: '{self.folder}' exists. "
                "Episodes are never overwritten; choose another episode id or store."
            ) from None
        counts = tuple(TopicCount(t.name, t.type, t.role, t.period_ns) for t in topics)
        self.episode = replace(
            episode, state=RECORDING, topics=counts, package_version=__version__
        )
        self.episode.save(self.folder)
        self._bag = BagWriter(self.folder, topics, {"qsteer_episode": episode.episode_id}, name)
        fcntl.flock(self._bag.lock(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        sync_folder(self.folder.parent)
        self._clock_ns = clock_ns
        self._interval_ns = round(fsync_interval_s * 1e9)
        self._synced_ns = clock_ns()
        self._stamped = {t.name for t in topics if t.period_ns and has_header(t.type)}
        self._stamps: dict[str, list[int]] = {name: [] for name in self._stamped}
        self._sequences: dict[str, list[int]] = {}
        self._dropped: dict[str, int] = {}

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self.episode.state == CLOSED

    def write(
        self,
        topic: str,
        data: bytes,
        *,
        log_time_ns: int,
        publish_time_ns: int | None = None,
        sequence: int | None = None,
    ) -> None:
        """Append one serialised message.

        Args:
            topic: Resolved name of an announced topic.
            data: The message, CDR with its four bytes of encapsulation header.
            log_time_ns: ROS time at which it was received.
            publish_time_ns: Time at which it was published; default: ``log_time_ns``.
            sequence: The publisher's own count; default: a count per topic from 1.

        Raises:
            DataError: The topic was not announced, the message is too short for its header, or
                the episode is closed. Nothing has been written.
        """
        if self.closed:
            raise DataError(f"episode '{self.episode.episode_id}' is closed: it takes no message.")
        stamp_ns = header_stamp_ns(data) if topic in self._stamped else None
        self._bag.write(
            topic,
            data,
            log_time_ns=log_time_ns,
            publish_time_ns=log_time_ns if publish_time_ns is None else publish_time_ns,
            sequence=self._bag.counts.get(topic, 0) + 1 if sequence is None else sequence,
        )
        if stamp_ns is not None:
            self._stamps[topic].append(stamp_ns)
        if sequence is not None:
            self._sequences.setdefault(topic, []).append(sequence)

    def flush(self) -> None:
        """Hand what was written to the operating system; wait for the disk when it is time."""
        self._bag.flush()
        now = self._clock_ns()
        if now - self._synced_ns >= self._interval_ns:
            self._bag.sync()
            self._synced_ns = now

    def note_dropped(self, topic: str, messages: int = 1) -> None:
        """Count messages that arrived and could not be written."""
        self._dropped[topic] = self._dropped.get(topic, 0) + messages

    def close(
        self,
        outcome: str,
        *,
        label_source: str,
        end_ns: int | None = None,
        reason: str = "",
        task: str | None = None,
        recovery: Mapping[str, Any] | None = None,
    ) -> Path:
        """Finish the bag and ``episode.json``, and wait for the disk.

        Args:
            outcome: One of `OUTCOMES`.
            label_source: Who decided it.
            end_ns: ROS time of the end; default: the last message's log time.
            reason: Why, when the task itself did not decide.
            task: Language instruction, when it became known while recording.
            recovery: Where a recovered copy comes from.

        Returns:
            The episode's folder.

        Raises:
            DataError: The outcome is not one of `OUTCOMES`, or the episode is closed already.
        """
        if outcome not in OUTCOMES:
            raise DataError(f"an outcome must be one of {list(OUTCOMES)}: got '{outcome}'.")
        if self.closed:
            raise DataError(f"episode '{self.episode.episode_id}' is closed already.")
        if end_ns is None:
            end_ns = max(self.episode.start_ns, (self._bag.span_ns or (0, 0))[1])
        digest = self._bag.finish()
        self.episode = replace(
            self.episode,
            state=CLOSED,
            outcome=outcome,
            label_source=label_source,
            reason=reason,
            end_ns=end_ns,
            task=self.episode.task if task is None else task,
            topics=self._counts(end_ns),
            bag={
                "file": self._bag.path.name,
                "bytes": os.path.getsize(self._bag.path),
                "sha256": digest,
            },
            recovery=dict(recovery or {}),
        )
        self.episode.save(self.folder)
        return self.folder

    def _counts(self, end_ns: int) -> tuple[TopicCount, ...]:
        start_ns = self.episode.start_ns
        return tuple(
            replace(
                count,
                messages=self._bag.counts[count.name],
                bytes=self._bag.sizes[count.name],
                dropped=self._dropped.get(count.name, 0),
                lost=lost_messages(self._sequences.get(count.name, [])),
                missing=sum(
                    gap.frames
                    for gap in missing_frames(
                        self._stamps[count.name], count.period_ns, start_ns, end_ns
                    )
                )
                if count.name in self._stamped
                else None,
            )
            for count in self.episode.topics
        )

    def __enter__(self) -> EpisodeWriter:
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close an episode that was left open as aborted."""
        if not self.closed:
            reason = "the writer was left" if error is None else f"{type(error).__name__}: {error}"
            self.close("aborted", label_source="logger", reason=reason)
