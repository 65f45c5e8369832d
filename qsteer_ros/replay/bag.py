"""A rosbag2 bag: one MCAP file and ``metadata.yaml``; a killed process loses little of it.

Chunks are small and uncompressed, each flush ends a chunk and hands it to the operating system,
and ``metadata.yaml`` exists from the start. Format version 9 is that of ROS 2 Jazzy: ``ros2 bag``,
`rosbags` and Foxglove read it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from mcap.writer import CompressionType, Writer

from qsteer_ros.errors import DataError
from qsteer_ros.replay.durable import write_atomically
from qsteer_ros.replay.topic import Qos, Topic

METADATA = "metadata.yaml"
BAG_VERSION = 9
CHUNK_BYTES = 64 * 1024
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _NoAliases(_Dumper):  # type: ignore[misc,valid-type]
    """Dumper that repeats equal parts, as rosbag2 does, rather than referring to them."""

    def ignore_aliases(self, data: object) -> bool:
        return True


@lru_cache(maxsize=64)
def _profile_text(qos: Qos) -> str:
    """The profile as a channel of the MCAP file carries it."""
    return str(yaml.dump([qos.profile()], Dumper=_NoAliases, sort_keys=False)).strip()


class _HashedFile:
    """The part of a binary file that the MCAP writer uses, and a SHA-256 of what went through."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        self.file.flush()


class BagWriter:
    """Writes raw messages into a new bag folder.

    Attributes:
        folder: The bag.
        path: Its MCAP file, ``<name>_0.mcap``.
        topics: Name -> topic, in the order given.
        counts: Topic name -> messages written.
        sizes: Topic name -> bytes of message data written.
        span_ns: First and last log time, or None before the first message.
    """

    def __init__(
        self,
        folder: Path,
        topics: Sequence[Topic],
        custom_data: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        """Create the folder's files.

        Args:
            folder: An existing folder without a bag.
            topics: Everything that may be written.
            custom_data: Strings that go into ``metadata.yaml``.
            name: Name of the bag; default: that of the folder.

        Raises:
            ConfigError: A topic has a type without a known definition. Nothing has been written.
        """
        texts = {topic.name: topic.text_and_hash() for topic in topics}
        self.folder = folder
        self.path = folder / f"{name or folder.name}_0.mcap"
        self.topics = {topic.name: topic for topic in topics}
        self.counts = dict.fromkeys(self.topics, 0)
        self.sizes = dict.fromkeys(self.topics, 0)
        self.span_ns: tuple[int, int] | None = None
        self._custom_data = dict(custom_data or {})
        # Buffered on purpose: mcap wraps an unbuffered file and never flushes its wrapper.
        self._file = self.path.open("xb", buffering=1024 * 1024)
        self._stream = _HashedFile(self._file)
        self._mcap = Writer(
            self._stream,  # type: ignore[arg-type]
            chunk_size=CHUNK_BYTES,
            compression=CompressionType.NONE,
            enable_data_crcs=True,
        )
        self._mcap.start(profile="ros2", library="qsteer_ros")
        self._channels = self._register(texts)
        self.flush()
        self._write_metadata()

    def _register(self, texts: Mapping[str, tuple[str, str]]) -> dict[str, int]:
        schemas: dict[str, int] = {}
        channels: dict[str, int] = {}
        for topic in self.topics.values():
            text, type_hash = texts[topic.name]
            if topic.type not in schemas:
                schemas[topic.type] = self._mcap.register_schema(
                    topic.type, "ros2msg", text.encode()
                )
            qos = _profile_text(topic.qos)
            channels[topic.name] = self._mcap.register_channel(
                topic.name,
                "cdr",
                schemas[topic.type],
                {"offered_qos_profiles": qos, "topic_type_hash": type_hash},
            )
        return channels

    def write(
        self, topic: str, data: bytes, *, log_time_ns: int, publish_time_ns: int, sequence: int
    ) -> None:
        """Append one serialised message; it reaches the disk's cache at the next `flush`.

        Raises:
            DataError: The topic was not announced, or a time is negative.
        """
        if topic not in self._channels:
            raise DataError(
                f"a message must belong to an announced topic: got '{topic}', have "
                f"{sorted(self._channels)}."
            )
        if log_time_ns < 0 or publish_time_ns < 0:
            raise DataError(
                f"log and publish time must not be negative: got {log_time_ns} and "
                f"{publish_time_ns} ns on '{topic}'. Check the clock of the publisher."
            )
        self._mcap.add_message(
            self._channels[topic],
            log_time=log_time_ns,
            data=data,
            publish_time=publish_time_ns,
            sequence=sequence & 0xFFFFFFFF,
        )
        self.counts[topic] += 1
        self.sizes[topic] += len(data)
        first, last = self.span_ns or (log_time_ns, log_time_ns)
        self.span_ns = (min(first, log_time_ns), max(last, log_time_ns))

    def flush(self) -> None:
        """End the chunk in progress and hand everything to the operating system."""
        self._mcap.flush()  # type: ignore[no-untyped-call]

    def sync(self) -> None:
        """Wait until the disk has what was flushed."""
        os.fsync(self._file.fileno())

    def lock(self) -> int:
        """File descriptor of the MCAP file, for an advisory lock while it is being written."""
        return self._file.fileno()

    def finish(self) -> str:
        """Write index, footer and final ``metadata.yaml``, and wait for the disk.

        Returns:
            SHA-256 of the MCAP file, hexadecimal.
        """
        information = self._information()
        self._mcap.add_metadata(
            "rosbag2",
            {"serialized_metadata": yaml.dump(information, Dumper=_NoAliases, sort_keys=False)},
        )
        self._mcap.finish()  # type: ignore[no-untyped-call]
        self._stream.flush()
        self.sync()
        self._file.close()
        self._write_metadata()
        return self._stream.sha256.hexdigest()

    def _information(self) -> dict[str, Any]:
        start, end = self.span_ns or (0, 0)
        total = sum(self.counts.values())
        times = {
            "duration": {"nanoseconds": end - start},
            "starting_time": {"nanoseconds_since_epoch": start},
            "message_count": total,
        }
        return {
            "version": BAG_VERSION,
            "storage_identifier": "mcap",
            **times,
            "topics_with_message_count": [
                {
                    "topic_metadata": {
                        "name": topic.name,
                        "type": topic.type,
                        "serialization_format": "cdr",
                        "offered_qos_profiles": [topic.qos.profile()],
                        "type_description_hash": topic.text_and_hash()[1],
                    },
                    "message_count": self.counts[topic.name],
                }
                for topic in self.topics.values()
            ],
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [self.path.name],
            "files": [{"path": self.path.name, **times}],
            "custom_data": self._custom_data,
            "ros_distro": "jazzy",
        }

    def _write_metadata(self) -> None:
        text = yaml.dump(
            {"rosbag2_bagfile_information": self._information()},
            Dumper=_NoAliases,
            sort_keys=False,
        )
        write_atomically(self.folder / METADATA, text)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Contents of ``metadata.yaml``.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        information = yaml.safe_load((folder / METADATA).read_text())[
            "rosbag2_bagfile_information"
        ]
        if not isinstance(information, dict):
            raise TypeError("rosbag2_bagfile_information is not a mapping")
    except Exception as error:
        raise DataError(
            f"'{folder / METADATA}' must describe a rosbag2 bag: {type(error).__name__}: {error}. "
            "Run 'qsteer verify --recover'."
        ) from error
    return information
