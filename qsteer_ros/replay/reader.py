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
from qsteer_ros.replay.images import decode_jpeg
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

        Args:
            names: Joints wanted, in the order wanted; the order of the messages does not matter.

        Raises:
            DataError: A message lacks a joint.
        """
        rows: dict[int, tuple[Array, Array, Array]] = {}
        for message in self.of_role("joint_states"):
            state = deserialize(message.data, message.type)
            given = {name: i for i, name in enumerate(state.name)}
            absent = [name for name in names if name not in given]
            if absent:
                raise DataError(
                    f"joint states must have the joints {absent}: a message of episode "
                    f"'{self.info.episode_id}' has {sorted(given)}. Check the robot file."
                )
            index = [given[name] for name in names]
            rows[header_stamp_ns(message.data)] = (
                _picked(state.position, index),
                _picked(state.velocity, index),
                _picked(state.effort, index),
            )
        stamps = sorted(rows)
        empty = np.zeros((0, len(names)))
        parts = [np.array([rows[s][i] for s in stamps]) if stamps else empty for i in range(3)]
        return JointTrack(np.array(stamps, dtype=np.int64), *parts)

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
    """Pixels of a ``CompressedImage`` (JPEG) or ``Image`` (rgb8, bgr8) message.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        DataError: Another type or encoding, or the image is damaged.
    """
    fields = deserialize(message.data, message.type)
    if message.type == "sensor_msgs/msg/CompressedImage":
        if "jpeg" not in fields.format and "jpg" not in fields.format:
            raise DataError(
                f"a compressed frame on '{message.topic}' must be a JPEG: its format is "
                f"'{fields.format}'. Set the camera driver's transport to jpeg."
            )
        return decode_jpeg(fields.data.tobytes())
    if message.type != "sensor_msgs/msg/Image" or fields.encoding not in ("rgb8", "bgr8"):
        raise DataError(
            f"a frame on '{message.topic}' must be rgb8, bgr8 or JPEG: it is a {message.type} "
            f"'{getattr(fields, 'encoding', '')}'. Set the camera driver's encoding."
        )
    if fields.step < 3 * fields.width or fields.data.size < fields.step * fields.height:
        raise DataError(f"a frame on '{message.topic}' is shorter than its size says.")
    rows = fields.data[: fields.step * fields.height].reshape(fields.height, fields.step)
    pixels = rows[:, : 3 * fields.width].reshape(fields.height, fields.width, 3)
    image: Image = np.ascontiguousarray(pixels[..., ::-1] if fields.encoding == "bgr8" else pixels)
    return image


def _picked(values: Any, index: list[int]) -> Array:
    """Entries of a JointState array in the order asked for; zeros when the array is empty."""
    array = np.asarray(values, dtype=np.float64)
    return array[index] if array.size else np.zeros(len(index))
