"""Message definitions and deserialisation without ROS.

The definitions are those of ROS 2 Jazzy as `rosbags` ships them, so that a log can be written and
read on a machine without ROS. Messages stay raw CDR bytes until somebody asks for their fields.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from qsteer_ros.errors import ConfigError, DataError


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """The message types of ROS 2 Jazzy."""
    return get_typestore(Stores.ROS2_JAZZY)


@lru_cache(maxsize=256)
def definition(message_type: str) -> tuple[str, str]:
    """Definition text (``ros2msg``, with all nested types) and RIHS01 hash of a message type.

    Raises:
        ConfigError: The type is not one of the standard messages of ROS 2 Jazzy.
    """
    store = typestore()
    if message_type not in store.fielddefs:
        raise ConfigError(
            "a logged topic must have a standard ROS 2 message type: got "
            f"'{message_type}'. Leave the topic out of the logger's parameters."
        )
    return store.generate_msgdef(message_type, ros_version=2)[0], store.hash_rihs01(message_type)


def deserialize(data: bytes, message_type: str) -> Any:
    """Read the fields of one CDR message; arrays of numbers come as numpy arrays.

    Raises:
        DataError: The bytes do not hold a message of this type.
    """
    try:
        return typestore().deserialize_cdr(data, message_type)
    except Exception as error:
        raise DataError(
            f"a logged message must be a {message_type}: {len(data)} bytes that are not "
            f"({type(error).__name__}: {error}). Run 'qsteer verify' on the episode."
        ) from error


@lru_cache(maxsize=256)
def has_header(message_type: str) -> bool:
    """Whether the first field of the type is a ``std_msgs/Header``."""
    fields = (
        typestore().fielddefs[message_type][1] if message_type in typestore().fielddefs else []
    )
    return bool(fields) and fields[0][0] == "header"


def header_stamp_ns(data: bytes) -> int:
    """Stamp of a serialised message whose first field is a header, integer nanoseconds.

    Raises:
        DataError: The message is shorter than a header.
    """
    if len(data) < 12:
        raise DataError(f"a message with a header must have at least 12 bytes: got {len(data)}.")
    sec, nanosec = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(sec) * 1_000_000_000 + int(nanosec)
