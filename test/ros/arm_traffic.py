"""An arm's traffic over real DDS, and a logger node in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Bool, Float64, String, UInt8MultiArray
from trajectory_msgs.msg import JointTrajectory

from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.replay.images import encode_jpeg

LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
PROVENANCE = {"package": "0.1.0", "policy": "p" * 64}
STEP_S = 0.05
STEP_NS = 50_000_000
JOINTS = [
    "shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint", "wrist_1_joint", "wrist_2_joint",
    "wrist_3_joint", "robotiq_85_left_knuckle_joint",
]  # fmt: skip


def octets(data: bytes) -> array[int]:
    made = array("B")
    made.frombytes(data)
    return made


class ArmTraffic(Node):
    """Publishes what an arm, a policy and a session publish; counts it by resolved topic."""

    def __init__(self, context, *, cameras: QoSProfile = LATCHED) -> None:
        super().__init__("arm_traffic", context=context, use_global_arguments=False)
        reliable = QoSProfile(depth=100)
        if cameras is LATCHED:
            cameras = reliable
        self.sent: Counter[str] = Counter()
        self.stamps: dict[str, list[int]] = {}
        self.heard: list[dict] = []
        self._made = {
            name: self.create_publisher(kind, name, qos)
            for name, kind, qos in (
                ("front/image_raw/compressed", CompressedImage, cameras),
                ("wrist/image_raw/compressed", CompressedImage, cameras),
                ("joint_states", JointState, reliable),
                ("joint_trajectory_controller/joint_trajectory", JointTrajectory, reliable),
                ("policy_node/decision", UInt8MultiArray, reliable),
                ("episode/event", String, LATCHED),
                ("reward", Float64, reliable),
                ("success", Bool, reliable),
                ("task", String, QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)),
            )
        }
        self._clock_publisher = self.create_publisher(Clock, "/clock", reliable)
        self.create_subscription(String, "logger_node/recording", self._on_recording, LATCHED)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self)
        rng = np.random.default_rng(0)
        self._frames = {
            name: encode_jpeg(rng.integers(0, 256, size, dtype=np.uint8))
            for name, size in (("front", (96, 144, 3)), ("wrist", (96, 96, 3)))
        }

    def _on_recording(self, message: String) -> None:
        self.heard.append(json.loads(message.data))

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> object:
        """Spin until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := condition():
                return found
            self._executor.spin_once(timeout_sec=0.02)
        raise AssertionError(f"{what} within {timeout_s} s; heard {self.heard}")

    def until_connected(self) -> None:
        self.until(
            lambda: all(p.get_subscription_count() for p in self._made.values()),
            "the logger subscribes to everything",
        )

    def until_state(self, episode_id: str, state: str) -> dict:
        def found() -> dict | None:
            matching = (
                h for h in self.heard if (h["episode_id"], h["state"]) == (episode_id, state)
            )
            return next(matching, None)

        return self.until(found, f"episode '{episode_id}' is {state}")

    def event(self, kind: str, **entries: object) -> None:
        self._publish("episode/event", String(data=json.dumps({"event": kind, **entries})))

    def start(self, episode_id: str, **entries: object) -> Path:
        self.event(
            "start",
            **{"episode_id": episode_id, "arm": "qgf", "provenance": PROVENANCE, **entries},
        )
        return Path(self.until_state(episode_id, "recording")["path"])

    def end(self, episode_id: str, outcome: str = "failure") -> None:
        self.event("end", episode_id=episode_id, outcome=outcome)
        self.until_state(episode_id, "closed")

    def task(self, text: str) -> None:
        self._publish("task", String(data=text))

    def clock(self, now_ns: int) -> None:
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(now_ns, 1_000_000_000)
        self._clock_publisher.publish(message)

    def rest(self, seconds: float) -> None:
        """Publish nothing for a while."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, "time passes")

    def step(self, index: int, now_ns: int) -> None:
        """Everything of one control step; joint states five times."""
        for camera, jpeg in self._frames.items():
            message = CompressedImage(format="jpeg", data=octets(jpeg))
            self._stamp(message, now_ns)
            self._publish(f"{camera}/image_raw/compressed", message, now_ns)
        for part in range(5):
            joints = JointState(name=JOINTS, position=[0.1 * part] * 7, velocity=[0.0] * 7)
            self._stamp(joints, now_ns + part * 10_000_000)
            self._publish("joint_states", joints, now_ns)
        self._publish("reward", Float64(data=-1.0), now_ns)
        self._publish("success", Bool(data=False), now_ns)
        if index % 5 == 0:
            self._decide(now_ns)

    def run(self, seconds: float) -> None:
        """Traffic in real time with exact stamps, spinning in between."""
        begin, begin_ns = time.monotonic(), time.time_ns()
        for index in range(round(seconds / STEP_S)):
            self.until(
                lambda due=begin + index * STEP_S: time.monotonic() >= due, "the step is due"
            )
            self.step(index, begin_ns + index * STEP_NS)

    def _decide(self, now_ns: int) -> None:
        chunk = np.zeros((5, 5), np.float32)
        record = DecisionRecord(
            {"noise": chunk, "chunk": chunk},
            {
                "stamp_ns": now_ns,
                "control_dt_ns": 50_000_000,
                "execute_steps": 5,
                "mode": "qgf",
                "hashes": {},
            },
        )
        self._publish(
            "policy_node/decision", UInt8MultiArray(data=octets(record.encode())), now_ns
        )
        trajectory = JointTrajectory(joint_names=JOINTS)
        self._stamp(trajectory, now_ns)
        self._publish("joint_trajectory_controller/joint_trajectory", trajectory, now_ns)

    @staticmethod
    def _stamp(message, stamp_ns: int) -> None:
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)

    def _publish(self, name: str, message, stamp_ns: int | None = None) -> None:
        self._made[name].publish(message)
        self.sent[f"/{name}"] += 1
        if stamp_ns is not None:
            self.stamps.setdefault(f"/{name}", []).append(stamp_ns)


class LoggerProcess:
    """``logger_node`` as a process in the domain of a context."""

    def __init__(self, context, store: Path, **parameters: object) -> None:
        settings = {"directory": store, **parameters}
        arguments = [f"-p{name}:={value}" for name, value in settings.items()]
        arguments = [part for a in arguments for part in ("-p", a.removeprefix("-p"))]
        self.log = store.with_name(store.name + ".log")
        self._output = self.log.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qsteer_ros.nodes.logger_node", "--ros-args", *arguments],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "ROS_DOMAIN_ID": str(context.get_domain_id())},
        )

    def signal(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=20)
        self._output.close()
