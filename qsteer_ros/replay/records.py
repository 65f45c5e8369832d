"""Sequential reading of an MCAP file that may be torn or damaged.

Only messages of complete chunks whose checksum matches are given out. A damaged chunk is skipped;
a torn end stops the reading. What was found is said afterwards, never raised half-way, so that a
caller can have everything that came before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from mcap.exceptions import McapError
from mcap.records import Channel, Chunk, McapRecord, Message, Schema
from mcap.stream_reader import CRCValidationError, StreamReader, breakup_chunk

from qsteer_ros.errors import DataError
from qsteer_ros.replay.topic import Qos, Topic

_DAMAGE = (McapError, CRCValidationError, struct.error, ValueError, OverflowError, MemoryError)


@dataclass(frozen=True, slots=True)
class LoggedMessage:
    """One message of a bag.

    Attributes:
        topic: Resolved topic name.
        type: Message type.
        log_time_ns: ROS time at which it was received.
        publish_time_ns: Time at which it was published.
        sequence: The publisher's count.
        data: The serialised message, CDR.
    """

    topic: str
    type: str
    log_time_ns: int
    publish_time_ns: int
    sequence: int
    data: bytes


class BagScan:
    """One pass over an MCAP file.

    Attributes:
        path: The file.
        topics: Topics announced so far, by channel id.
        complete: Whether the footer was reached and nothing was damaged; valid after the pass.
        damage: What is wrong, one line each; valid after the pass.
        good_bytes: Length of the part of the file that could be followed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.topics: dict[int, Topic] = {}
        self.complete = False
        self.damage: list[str] = []
        self.good_bytes = 0
        self._schemas: dict[int, Schema] = {}

    def messages(self) -> Iterator[LoggedMessage]:
        """Give out every message that is certainly whole, in file order.

        The reader goes on until the footer and raises when there is none, so that a pass without
        damage is a complete one.
        """
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            reader = StreamReader(
                file, emit_chunks=True, validate_crcs=True, record_size_limit=max(size, 1)
            )
            try:
                for record in reader.records:
                    yield from self._contents(record)
                    self.good_bytes = file.tell()
            except _DAMAGE as error:
                self.damage.append(
                    f"the file ends early or is damaged after byte {self.good_bytes} of {size} "
                    f"({type(error).__name__}: {error})".replace(": )", ")")
                )
        self.complete = not self.damage

    def _contents(self, record: McapRecord) -> Iterator[LoggedMessage]:
        if not isinstance(record, Chunk):
            yield from self._single(record)
            return
        try:
            inner = breakup_chunk(record, validate_crc=True)
        except _DAMAGE as error:
            self.damage.append(
                f"the chunk after byte {self.good_bytes} is damaged and was skipped ({error})"
            )
            return
        for single in inner:
            yield from self._single(single)

    def _single(self, record: McapRecord) -> Iterator[LoggedMessage]:
        if isinstance(record, Schema):
            self._schemas[record.id] = record
        elif isinstance(record, Channel):
            self._announce(record)
        elif isinstance(record, Message):
            topic = self.topics.get(record.channel_id)
            if topic is None:
                self.damage.append(f"a message of the unknown channel {record.channel_id}")
                return
            yield LoggedMessage(
                topic.name,
                topic.type,
                record.log_time,
                record.publish_time,
                record.sequence,
                record.data,
            )

    def _announce(self, channel: Channel) -> None:
        schema = self._schemas.get(channel.schema_id)
        if schema is None or channel.message_encoding != "cdr":
            self.damage.append(f"channel '{channel.topic}' is not one of ROS 2 messages")
            return
        self.topics[channel.id] = Topic(
            channel.topic,
            schema.name,
            qos=_offered(channel.metadata.get("offered_qos_profiles", "")),
            definition=schema.data.decode(errors="replace"),
            type_hash=channel.metadata.get("topic_type_hash", ""),
        )


def _offered(text: str) -> Qos:
    """The first profile that rosbag2 or this package wrote; the default when there is none."""
    try:
        profile = yaml.safe_load(text)[0]
        return Qos(str(profile["reliability"]), str(profile["durability"]), int(profile["depth"]))
    except (yaml.YAMLError, TypeError, KeyError, IndexError, ValueError):
        return Qos()


def bag_file(folder: Path) -> Path:
    """The one MCAP file of an episode's folder.

    Raises:
        DataError: There is none, or there are several.
    """
    files = sorted(folder.glob("*.mcap"))
    if len(files) != 1:
        raise DataError(
            f"episode '{folder}' must hold one MCAP file: found {len(files)}. "
            "Restore it from a copy."
        )
    return files[0]
