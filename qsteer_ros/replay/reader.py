"""Reading an episode without ROS: messages, frames, joints, decisions, events.

The bag is read once, front to back, and every byte is checked on the way; an episode that is torn
or damaged is refused with the remedy. Arrays come sorted by their stamp.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import DataError
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.replay.definitions import deserialize, header_stamp_ns
from qsteer_ros.replay.episode import Episode
from qsteer_ros.replay.images import decode_jpeg, decode_raw
from qsteer_ros.replay.records import BagScan, LoggedMessage, bag_file
from qsteer_ros.types import Array, Image

Stamps = NDArray[np.int64]


@dataclass(frozen=True)
class JointTrack:
    """Joint states of an episode, in the order asked for.

    Attributes:
        stamp_ns: (N,) header stamps, increasing.
        position: (N, J), rad.
        velocity: (N, J), rad/s; zero where the message gave none.
        effort: (N, J); zero where the message gave none.
    """

    stamp_ns: Stamps
    position: Array
    velocity: Array
    effort: Array


@dataclass(frozen=True)
class Decision:
    """A decision record and when it was logged.

    Attributes:
        log_time_ns: ROS time at which the logger received it.
        record: The record.
    """

    log_time_ns: int
    record: DecisionRecord


class EpisodeReader:
    """One closed episode.

    Attributes:
        folder: Its folder.
        info: Contents of ``episode.json``.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open an episode.

        Raises:
            DataError: ``episode.json`` or the MCAP file is missing or damaged.
        """
        self.folder = Path(folder)
        self.info = Episode.load(self.folder)
        self.path = bag_file(self.folder)

    def messages(self) -> Iterator[LoggedMessage]:
        """Every message in the order of arrival.

        Raises:
            DataError: After the last whole message, when the file is torn or damaged.
        """
        scan = BagScan(self.path)
        yield from scan.messages()
        if not scan.complete:
            raise DataError(
                f"'{self.path}' must be a whole bag: {'; '.join(scan.damage)}. "
                "Run 'qsteer verify --recover' and read the recovered copy."
            )

    @cached_property
    def _by_topic(self) -> Mapping[str, list[LoggedMessage]]:
        grouped: dict[str, list[LoggedMessage]] = {}
        for message in self.messages():
            grouped.setdefault(message.topic, []).append(message)
        return grouped

    def of_role(self, role: str) -> list[LoggedMessage]:
        """Messages of the topic with this role, in the order of arrival; empty when not logged."""
        topic = self.info.topic(role)
        return [] if topic is None else self._by_topic.get(topic.name, [])

    def frame_messages(self, camera: str) -> dict[int, LoggedMessage]:
        """Header stamp -> message of one camera, by increasing stamp.

        Raises:
            DataError: The camera was not recorded.
        """
        if camera not in self.info.cameras:
            raise DataError(
                f"episode '{self.info.episode_id}' must have camera '{camera}': it has "
                f"{list(self.info.cameras)}. Check the robot file it was recorded with."
            )
        messages = {header_stamp_ns(m.data): m for m in self.of_role(f"camera/{camera}")}
        return dict(sorted(messages.items()))

    def frames(self, camera: str) -> Iterator[tuple[int, Image]]:
        """Stamp and decoded frame, (height, width, 3) uint8 RGB, one after the other."""
        for stamp_ns, message in self.frame_messages(camera).items():
            yield stamp_ns, decode_frame(message)

    def joints(self, names: tuple[str, ...]) -> JointTrack:
        """Joint states by name.

        Messages may name the joints in any order and may be split among several publishers: a
        joint that a message does not name keeps its last value. Rows begin when all are known.

        Args:
            names: Joints wanted, in the order wanted.

        Raises:
            DataError: A joint is in no message.
        """
        values = {name: (np.nan, 0.0, 0.0) for name in names}
        rows: dict[int, list[tuple[float, float, float]]] = {}
        for message in self.of_role("joint_states"):
            values |= _joint_values(message, names)
            row = [values[name] for name in names]
            if not any(np.isnan(position) for position, _, _ in row):
                rows[header_stamp_ns(message.data)] = row
        absent = sorted(name for name in names if np.isnan(values[name][0]))
        if absent:
            raise DataError(
                f"joint states must have the joints {absent}: episode '{self.info.episode_id}' "
                "has no message that names them. Check the robot file it was recorded with."
            )
        stamps = sorted(rows)
        table = np.array([rows[s] for s in stamps], dtype=np.float64).reshape(-1, len(names), 3)
        return JointTrack(
            np.array(stamps, dtype=np.int64), table[..., 0], table[..., 1], table[..., 2]
        )

    def decisions(self) -> list[Decision]:
        """Decision records in the order of their observations.

        Raises:
            DataError: A record is damaged.
        """
        found = [
            Decision(
                message.log_time_ns,
                DecisionRecord.decode(
                    np.asarray(deserialize(message.data, message.type).data, np.uint8).tobytes()
                ),
            )
            for message in self.of_role("decision")
        ]
        return sorted(found, key=lambda decision: decision.record.stamp_ns)

    def events(self) -> list[tuple[int, Mapping[str, Any]]]:
        """Log time and contents of every message on ``episode/event``.

        Raises:
            DataError: An event is not a JSON object.
        """
        return [(m.log_time_ns, read_event(m)) for m in self.of_role("event")]

    def numbers(self, role: str) -> tuple[Stamps, Array, Stamps]:
        """Log time, value and publisher's count of a Float64 or Bool topic, by log time."""
        rows = sorted(
            (m.log_time_ns, m.sequence, float(deserialize(m.data, m.type).data))
            for m in self.of_role(role)
        )
        return (
            np.array([r[0] for r in rows], dtype=np.int64),
            np.array([r[2] for r in rows], dtype=np.float64),
            np.array([r[1] for r in rows], dtype=np.int64),
        )


def read_event(message: LoggedMessage) -> Mapping[str, Any]:
    """The JSON object of one ``episode/event`` message.

    Raises:
        DataError: It is not a JSON object.
    """
    text = deserialize(message.data, message.type).data
    try:
        event = json.loads(text)
        if not isinstance(event, dict):
            raise TypeError(f"a {type(event).__name__}")
    except (ValueError, TypeError) as error:
        raise DataError(f"an episode event must be a JSON object: {error}.") from error
    return event


def decode_frame(message: LoggedMessage) -> Image:
    """Pixels of a ``CompressedImage`` (JPEG) or ``Image`` message.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        DataError: Another type or encoding, or the image is damaged.
    """
    if message.type not in ("sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image"):
        raise DataError(f"a frame on '{message.topic}' must be an image: it is a {message.type}.")
    fields = deserialize(message.data, message.type)
    if message.type == "sensor_msgs/msg/CompressedImage":
        if "jp" not in fields.format.lower():
            raise DataError(
                f"a compressed frame on '{message.topic}' must be a JPEG: its format is "
                f"'{fields.format}'. Set the camera driver's transport to jpeg."
            )
        return decode_jpeg(fields.data.tobytes())
    return decode_raw(
        fields.data,
        height=fields.height,
        width=fields.width,
        step=fields.step,
        encoding=fields.encoding,
    )


def _joint_values(
    message: LoggedMessage, names: tuple[str, ...]
) -> dict[str, tuple[float, float, float]]:
    """Position, velocity and effort of the wanted joints that one message names."""
    state = deserialize(message.data, message.type)
    return {
        name: (float(state.position[i]), _entry(state.velocity, i), _entry(state.effort, i))
        for i, name in enumerate(state.name)
        if name in names and i < len(state.position)
    }


def _entry(values: Any, index: int) -> float:
    """Entry of a JointState array; 0 when the array is left empty."""
    return float(values[index]) if len(values) > index else 0.0
