"""What the simulated arm tells: the topics of a real arm, and the judge's reward and success.

Every topic of the simulator is made here. Where the cube is or should go is on none of them.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64

from qsteer_ros.nodes.messages import OK, WARN, to_diagnostics, to_stamp
from qsteer_ros.replay.images import encode_jpeg
from qsteer_ros.sim.scene import CAMERAS
from qsteer_ros.sim.world import JOINTS, World
from qsteer_ros.types import Image as Picture

#: Reliable, so that a logger which asks for it misses nothing; best-effort readers may listen too.
QUEUE_DEPTH = 10


class SimPublishers:
    """The simulator's publishers; each method may be called from any one thread.

    Attributes:
        frames: Camera -> frames published so far.
    """

    def __init__(self, node: Node) -> None:
        self._clock = node.create_publisher(Clock, "/clock", QUEUE_DEPTH)
        self._joints = node.create_publisher(JointState, "joint_states", QUEUE_DEPTH)
        self._reward = node.create_publisher(Float64, "reward", QUEUE_DEPTH)
        self._success = node.create_publisher(Bool, "success", QUEUE_DEPTH)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", QUEUE_DEPTH)
        self._raw = {
            camera: node.create_publisher(Image, f"{camera}/image_raw", QUEUE_DEPTH)
            for camera in CAMERAS
        }
        self._jpeg = {
            camera: node.create_publisher(
                CompressedImage, f"{camera}/image_raw/compressed", QUEUE_DEPTH
            )
            for camera in CAMERAS
        }
        self.frames = Counter(dict.fromkeys(CAMERAS, 0))

    def clock(self, time_ns: int) -> None:
        """Tell the time."""
        self._clock.publish(Clock(clock=to_stamp(time_ns)))

    def joints(self, world: World) -> None:
        """Tell what the joints' sensors say now."""
        message = JointState(name=list(JOINTS))
        message.header.stamp = to_stamp(world.time_ns)
        message.position = world.joint_positions.tolist()
        message.velocity = world.joint_velocities.tolist()
        message.effort = world.joint_efforts().tolist()
        self._joints.publish(message)

    def judgement(self, world: World) -> None:
        """Tell reward and success of the control step that ends now."""
        success = world.success
        self._reward.publish(Float64(data=world.reward))
        self._success.publish(Bool(data=success))

    def watched(self) -> list[str]:
        """Cameras whose frames somebody wants, raw or compressed."""
        return [
            camera
            for camera in CAMERAS
            if self._raw[camera].get_subscription_count() > 0
            or self._jpeg[camera].get_subscription_count() > 0
        ]

    def pictures(self, stamp_ns: int, frames: Mapping[str, Picture], jpeg_quality: int) -> None:
        """Publish one frame per camera, in the transports that somebody wants."""
        for camera, picture in frames.items():
            if self._raw[camera].get_subscription_count() > 0:
                self._raw[camera].publish(_raw(camera, picture, stamp_ns))
            if self._jpeg[camera].get_subscription_count() > 0:
                jpeg = encode_jpeg(picture, jpeg_quality)
                self._jpeg[camera].publish(_compressed(camera, jpeg, stamp_ns))
            self.frames[camera] += 1

    def diagnose(
        self, time_ns: int, name: str, warning: str, summary: str, values: Mapping[str, object]
    ) -> None:
        """Tell how the simulation is doing; with a warning, that is its message."""
        level, text = (WARN, warning) if warning else (OK, summary)
        self._diagnostics.publish(
            to_diagnostics(time_ns, name, level, text, values, hardware_id="ur5e_sim")
        )


def _raw(camera: str, picture: Picture, stamp_ns: int) -> Image:
    height, width, _ = picture.shape
    message = Image(
        height=height,
        width=width,
        encoding="rgb8",
        step=3 * width,
        data=_octets(picture.tobytes()),
    )
    message.header.stamp = to_stamp(stamp_ns)
    message.header.frame_id = f"{camera}_camera"
    return message


def _compressed(camera: str, jpeg: bytes, stamp_ns: int) -> CompressedImage:
    message = CompressedImage(format="jpeg", data=_octets(jpeg))
    message.header.stamp = to_stamp(stamp_ns)
    message.header.frame_id = f"{camera}_camera"
    return message


def _octets(data: bytes) -> array[int]:
    """Bytes as the one type that a message field takes without converting each element."""
    octets = array("B")
    octets.frombytes(data)
    return octets
