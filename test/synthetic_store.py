"""Synthetic episodes with known contents, written through the real writer: no ROS, no simulator.

The arm has two joints and a gripper; every number can be told from the step it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qsteer_ros.replay.bag import Qos, Topic
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.replay.definitions import typestore
from qsteer_ros.replay.episode import Episode
from qsteer_ros.replay.images import encode_jpeg
from qsteer_ros.replay.writer import EpisodeWriter

DT_NS = 50_000_000
START_NS = 10_000_000_000
JOINTS = ("shoulder", "elbow")
GRIPPER = "gripper"
PROVENANCE = {"package": "0.1.0", "policy": "p" * 64, "critic": "c" * 64, "robot": "r" * 64}
ROBOT = {
    "name": "two_joint_arm",
    "joints": list(JOINTS),
    "gripper_joint": GRIPPER,
    "gripper_closed_rad": 0.8,
    "effort_full_scale_n": 50.0,
    "control_dt_s": 0.05,
}
SENSOR = Qos("best_effort", "volatile", 5)
LATCHED = Qos("reliable", "transient_local", 10)
JPEG = "sensor_msgs/msg/CompressedImage"
TOPICS = (
    Topic("/front/image_raw/compressed", JPEG, "camera/front", SENSOR, DT_NS),
    Topic("/wrist/image_raw/compressed", JPEG, "camera/wrist", SENSOR, DT_NS),
    Topic("/joint_states", "sensor_msgs/msg/JointState", "joint_states", Qos(depth=10)),
    Topic(
        "/joint_trajectory_controller/joint_trajectory",
        "trajectory_msgs/msg/JointTrajectory",
        "trajectory",
        Qos(depth=1),
    ),
    Topic("/policy_node/decision", "std_msgs/msg/UInt8MultiArray", "decision"),
    Topic("/episode/event", "std_msgs/msg/String", "event", LATCHED),
    Topic("/reward", "std_msgs/msg/Float64", "reward"),
    Topic("/success", "std_msgs/msg/Bool", "success"),
    Topic("/task", "std_msgs/msg/String", "task", Qos("reliable", "transient_local", 1)),
    Topic("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", "diagnostics"),
)  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """One message as a logger would receive it."""

    topic: str
    data: bytes
    log_time_ns: int
    sequence: int | None = None


def message(kind: str, **entries: object) -> bytes:
    """Serialise one message of a standard type."""
    store = typestore()
    return bytes(store.serialize_cdr(store.types[kind](**entries), kind))


def header(stamp_ns: int) -> object:
    types = typestore().types
    time = types["builtin_interfaces/msg/Time"](
        sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000
    )
    return types["std_msgs/msg/Header"](stamp=time, frame_id="")


def frame(stamp_ns: int, colour: tuple[int, int, int], height: int = 8, width: int = 12) -> bytes:
    image = np.full((height, width, 3), colour, np.uint8)
    return message(
        "sensor_msgs/msg/CompressedImage",
        header=header(stamp_ns),
        format="jpeg",
        data=np.frombuffer(encode_jpeg(image), np.uint8),
    )


def joint_state(stamp_ns: int, position: list[float], effort: float = 0.0) -> bytes:
    names = [GRIPPER, JOINTS[1], JOINTS[0]]  # not the robot's order, on purpose
    return message(
        "sensor_msgs/msg/JointState",
        header=header(stamp_ns),
        name=names,
        position=np.array([position[2], position[1], position[0]]),
        velocity=np.array([0.0, 0.2, 0.1]),
        effort=np.array([effort, 0.0, 0.0]),
    )


def text(value: str) -> bytes:
    return message("std_msgs/msg/String", data=value)


def event(kind: str, **entries: object) -> bytes:
    return text(json.dumps({"event": kind, **entries}))


def number(value: float) -> bytes:
    return message("std_msgs/msg/Float64", data=value)


def boolean(value: bool) -> bytes:
    return message("std_msgs/msg/Bool", data=value)


def decision(stamp_ns: int, chunk: np.ndarray, **meta: object) -> bytes:
    record = DecisionRecord(
        {"noise": np.zeros_like(chunk), "chunk": chunk},
        {
            "stamp_ns": stamp_ns,
            "control_dt_ns": DT_NS,
            "execute_steps": len(chunk),
            "mode": "qgf",
            "hashes": {"policy": "p", "critic": "c"},
            "delta_q": 0.5,
            "latency_ms": 60.0,
            **meta,
        },
    )
    layout = typestore().types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
    return message(
        "std_msgs/msg/UInt8MultiArray",
        layout=layout,
        data=np.frombuffer(record.encode(), np.uint8),
    )


def action(step: int) -> np.ndarray:
    """The action of a control step: recognisable, within [-1, 1]."""
    return np.array([step, -step, step / 2, 0.0, 1.0], np.float32) / 100.0


def colour(step: int, camera: str) -> tuple[int, int, int]:
    return (step, 100 if camera == "front" else 200, 50)


def traffic(
    steps: int = 20,
    *,
    horizon: int = 5,
    success_at: int | None = None,
    latency_ns: int = 4_000_000,
) -> Iterator[Sent]:
    """All messages of one episode, in the order of arrival; step 0 is the first decision."""
    yield Sent("/task", text("put the cube on the mark"), START_NS)
    yield Sent("/episode/event", event("start", episode_id="e", provenance=PROVENANCE), START_NS)
    for step in range(steps):
        stamp = START_NS + step * DT_NS
        log = stamp + latency_ns
        for camera in ("front", "wrist"):
            yield Sent(
                f"/{camera}/image_raw/compressed",
                frame(stamp, colour(step, camera)),
                log,
                step + 7,
            )
        position = [0.01 * step, -0.01 * step, 0.8 * step / steps]
        yield Sent("/joint_states", joint_state(stamp, position, effort=25.0), log, step + 1)
        done = success_at is not None and step >= success_at
        yield Sent("/reward", number(0.0 if done else -1.0), log, step + 1)
        yield Sent("/success", boolean(done), log, step + 1)
        if step % horizon == 0:
            chunk = np.stack([action(step + k) for k in range(horizon)])
            blob = decision(stamp, chunk, effective_ns=stamp + 60_000_000)
            yield Sent("/policy_node/decision", blob, log + 60_000_000)
    end = START_NS + steps * DT_NS
    outcome = "failure" if success_at is None else "success"
    yield Sent("/episode/event", event("end", episode_id="e", outcome=outcome), end)


def episode(episode_id: str, **entries: object) -> Episode:
    first = Episode(
        episode_id=episode_id,
        provenance=PROVENANCE,
        arm="qgf",
        goal=1,
        robot=ROBOT,
        start_ns=START_NS,
    )
    return replace(first, **entries)


def write_episode(
    store: Path,
    episode_id: str = "e0",
    messages: list[Sent] | None = None,
    *,
    outcome: str = "failure",
    end_ns: int | None = None,
    close: bool = True,
    batch: int = 8,
    **entries: object,
) -> Path:
    """Write one episode, flushing every `batch` messages; returns its folder."""
    sent = list(traffic()) if messages is None else messages
    writer = EpisodeWriter(store, episode(episode_id, **entries), TOPICS)
    for count, one in enumerate(sent, 1):
        writer.write(one.topic, one.data, log_time_ns=one.log_time_ns, sequence=one.sequence)
        if count % batch == 0:
            writer.flush()
    writer.flush()
    if close:
        last = max((m.log_time_ns for m in sent), default=START_NS)
        writer.close(outcome, label_source="sim", end_ns=end_ns or last)
    else:
        writer._bag._file.close()  # what a killed process leaves behind
    return writer.folder
