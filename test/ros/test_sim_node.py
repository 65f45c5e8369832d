"""The simulator in a process of its own, heard and driven over DDS by this one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from importlib.util import find_spec

import numpy as np
import pytest

pytest.importorskip("rclpy")
if find_spec("ogbench") is None:
    pytest.skip("ogbench is not installed", allow_module_level=True)

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qsteer_ros.graph.environment import additions, free_domain
from qsteer_ros.replay.images import decode_jpeg
from qsteer_ros.sim.world import JOINTS

pytestmark = pytest.mark.ros
WAIT_S = 30.0
SHAPES = {"front": (96, 144, 3), "wrist": (96, 96, 3)}
COMMAND = [sys.executable, "-m", "qsteer_ros.nodes.sim_node", "--ros-args"]


def nanoseconds(stamp):
    return stamp.sec * 10**9 + stamp.nanosec


class Listener:
    """A node of this process, and what it heard per topic."""

    def __init__(self, domain):
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = Node("listener", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.heard = defaultdict(list)
        self.commands = self.node.create_publisher(
            JointTrajectory, "joint_trajectory_controller/joint_trajectory", 1
        )
        self.resetting = self.node.create_client(Trigger, "sim_node/reset")
        self.setting = self.node.create_client(SetParameters, "sim_node/set_parameters")
        self.subscriptions = []
        for kind, topic in (
            (Clock, "/clock"),
            (JointState, "joint_states"),
            (DiagnosticArray, "/diagnostics"),
            (Float64, "reward"),
            (Bool, "success"),
        ):
            self.listen(kind, topic)

    def listen(self, kind, topic):
        subscription = self.node.create_subscription(kind, topic, self.heard[topic].append, 50)
        self.subscriptions.append(subscription)
        return subscription

    def until(self, condition, what):
        deadline = time.monotonic() + WAIT_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
            self.executor.spin_once(timeout_sec=0.05)
        return found

    def call(self, client, request):
        self.until(client.service_is_ready, client.srv_name)
        future = client.call_async(request)
        self.until(future.done, f"the answer of {client.srv_name}")
        return future.result()

    def reset(self, **parameters):
        for name, value in parameters.items():
            assert self.set(name, value).successful
        answer = self.call(self.resetting, Trigger.Request())
        assert answer.success, answer.message
        return json.loads(answer.message)

    def set(self, name, value):
        typed = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value)
        request = SetParameters.Request(parameters=[Parameter(name=name, value=typed)])
        return self.call(self.setting, request).results[0]

    def send(self, stamp_ns, points, joints=JOINTS):
        message = JointTrajectory(joint_names=list(joints))
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        for time_ns, positions in points:
            point = JointTrajectoryPoint(positions=[float(p) for p in positions])
            point.velocities = [0.0] * len(positions)
            point.time_from_start.sec, point.time_from_start.nanosec = divmod(time_ns, 10**9)
            message.points.append(point)
        self.until(lambda: self.commands.get_subscription_count() > 0, "the simulator's ear")
        self.commands.publish(message)

    def now_ns(self):
        return nanoseconds(self.heard["/clock"][-1].clock) if self.heard["/clock"] else 0

    def joints_at(self, stamp_ns):
        def find():
            return [
                m for m in self.heard["joint_states"] if nanoseconds(m.header.stamp) == stamp_ns
            ]

        return self.until(find, f"joint states of {stamp_ns}")[0]

    def diagnosed(self, key):
        messages = [m.status[0] for m in self.heard["/diagnostics"] if "sim" in m.status[0].name]
        return {v.key: v.value for v in messages[-1].values}[key] if messages else None

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture(scope="module")
def environment():
    added = {**additions(os.environ), "ROS_DOMAIN_ID": str(free_domain())}
    kept = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    yield dict(os.environ)
    for name, value in kept.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def sim(environment, tmp_path_factory):
    log = tmp_path_factory.mktemp("sim") / "output.txt"
    with log.open("w") as output:
        process = subprocess.Popen(COMMAND, env=environment, stdout=output, stderr=output)
    listener = Listener(int(environment["ROS_DOMAIN_ID"]))
    try:
        listener.until(lambda: listener.now_ns() > 0, f"the clock; see {log}")
        yield listener
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=WAIT_S) == 0, log.read_text()
    finally:
        process.kill()
        listener.close()


@pytest.fixture
def pictures(sim):
    """Subscribe to a transport of both cameras; unsubscribe in the end."""
    made = []

    def listen(kind, suffix):
        topics = {camera: f"{camera}/image_raw{suffix}" for camera in SHAPES}
        for topic in topics.values():
            sim.heard[topic].clear()
            made.append(sim.listen(kind, topic))
        for topic in topics.values():
            sim.until(lambda topic=topic: sim.heard[topic], topic)
        return {camera: sim.heard[topic] for camera, topic in topics.items()}

    yield listen
    for subscription in made:
        sim.node.destroy_subscription(subscription)


def test_every_frame_arrives_once_and_is_stamped_at_an_exact_multiple_of_50_ms(sim, pictures):
    frames = pictures(CompressedImage, "/compressed")
    first = sim.reset()
    sim.until(lambda: sim.now_ns() > first["stamp_ns"] + 3_000_000_000, "three seconds")
    last = sim.reset()
    between = range(first["stamp_ns"], last["stamp_ns"], 50_000_000)
    for camera, messages in frames.items():
        published = last["frames"][camera] - first["frames"][camera]
        stamps = [
            nanoseconds(m.header.stamp)
            for m in messages
            if between.start <= nanoseconds(m.header.stamp) < between.stop
        ]
        assert stamps == list(between)
        assert len(stamps) == published >= 60
        assert decode_jpeg(bytes(messages[-1].data)).shape == SHAPES[camera]
        assert messages[-1].format == "jpeg"


def test_a_raw_frame_shows_what_the_compressed_frame_of_the_same_stamp_shows(sim, pictures):
    raw, compressed = pictures(Image, ""), pictures(CompressedImage, "/compressed")
    for camera, shape in SHAPES.items():

        def same_stamp(camera=camera):
            stamps = {nanoseconds(m.header.stamp): m for m in raw[camera]}
            pairs = ((stamps.get(nanoseconds(m.header.stamp)), m) for m in compressed[camera])
            return [pair for pair in pairs if pair[0] is not None]

        plain, jpeg = sim.until(same_stamp, f"two frames of {camera} with one stamp")[0]
        assert (plain.height, plain.width, plain.encoding) == (*shape[:2], "rgb8")
        pixels = np.frombuffer(plain.data, dtype=np.uint8).reshape(shape)
        difference = np.abs(decode_jpeg(bytes(jpeg.data)).astype(int) - pixels)
        assert difference.mean() < 3.0
        assert np.ptp(pixels) > 100


def test_nothing_is_rendered_while_nobody_watches(sim):
    def unwatched():
        before, after = sim.reset(), sim.reset()
        return before["frames"] == after["frames"] and after["stamp_ns"] > before["stamp_ns"]

    sim.until(unwatched, "two resets without a frame between them")


def test_the_clock_and_the_joints_tick_every_10_ms_of_simulated_time(sim):
    start = sim.now_ns()
    sim.until(lambda: sim.now_ns() > start + 1_000_000_000, "a second")
    clock = [nanoseconds(m.clock) for m in sim.heard["/clock"]]
    assert set(np.diff(clock)) == {10_000_000}
    assert set(np.diff([nanoseconds(m.header.stamp) for m in sim.heard["joint_states"]])) == {
        10_000_000
    }
    message = sim.heard["joint_states"][-1]
    assert tuple(message.name) == JOINTS
    assert len(message.position) == len(message.velocity) == len(message.effort) == len(JOINTS)


def test_a_trajectory_is_followed_to_its_last_point(sim):
    state = sim.joints_at(sim.reset()["stamp_ns"])
    target = np.array(state.position) + 0.1
    start_ns = sim.now_ns() + 100_000_000
    sim.send(start_ns, [(1_000_000_000, target)])
    reached = sim.joints_at(start_ns + 1_200_000_000)
    np.testing.assert_allclose(reached.position[:6], target[:6], atol=6e-3)


def test_a_refused_trajectory_is_reported_with_its_reason_and_changes_nothing(sim):
    stamp_ns = sim.reset()["stamp_ns"]
    state = sim.joints_at(stamp_ns)
    sim.until(lambda: sim.now_ns() > stamp_ns + 300_000_000, "some time to be late by")
    refused = int(sim.until(lambda: sim.diagnosed("trajectories_refused"), "diagnostics"))
    sim.send(stamp_ns + 50_000_000, [(50_000_000, np.zeros(7))])
    sim.until(lambda: sim.diagnosed("trajectories_refused") == str(refused + 1), "the refusal")
    assert "must not end in the past: it ended 0." in sim.diagnosed("last_refusal")
    sim.send(stamp_ns - 10_000_000, [(10**10, np.zeros(7))])
    sim.until(lambda: sim.diagnosed("trajectories_refused") == str(refused + 2), "the refusal")
    assert "stamped after the last reset" in sim.diagnosed("last_refusal")
    after = sim.heard["joint_states"][-1]
    np.testing.assert_allclose(after.position[:6], state.position[:6], atol=2e-3)


def test_a_seed_decides_what_the_sensors_say_at_the_start(sim, pictures):
    frames = pictures(CompressedImage, "/compressed")

    def start(seed):
        stamp_ns = sim.reset(seed=seed)["stamp_ns"]

        def arrived():
            found = {
                camera: bytes(m.data)
                for camera, messages in frames.items()
                for m in messages
                if nanoseconds(m.header.stamp) == stamp_ns
            }
            return found if len(found) == len(SHAPES) else None

        return list(sim.joints_at(stamp_ns).position), sim.until(arrived, "both cameras")

    first = start(11)
    assert start(12) != first
    assert start(11) == first


def test_reward_and_success_judge_each_control_step(sim):
    sim.reset(goal=2, seed=1)
    sim.heard["reward"].clear()
    sim.heard["success"].clear()
    sim.until(lambda: len(sim.heard["reward"]) > 5 and len(sim.heard["success"]) > 5, "judgement")
    assert {m.data for m in sim.heard["reward"]} == {-1.0}
    assert {m.data for m in sim.heard["success"]} == {False}
    sim.reset(goal=1, seed=0)


def test_where_things_are_is_on_no_topic(sim):
    def topics():
        found = sim.node.get_publisher_names_and_types_by_node("sim_node", "/")
        return {name: types[0] for name, types in found if not name.startswith("/rosout")}

    assert sim.until(topics, "the graph") == {
        "/clock": "rosgraph_msgs/msg/Clock",
        "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
        "/front/image_raw": "sensor_msgs/msg/Image",
        "/front/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
        "/joint_states": "sensor_msgs/msg/JointState",
        "/parameter_events": "rcl_interfaces/msg/ParameterEvent",
        "/reward": "std_msgs/msg/Float64",
        "/success": "std_msgs/msg/Bool",
        "/wrist/image_raw": "sensor_msgs/msg/Image",
        "/wrist/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
    }


def test_a_goal_that_does_not_exist_is_refused_while_running(sim):
    assert not sim.set("goal", 4).successful
    assert not sim.set("camera_rate_hz", 10).successful


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("goal:=7", "parameter 'goal' must be in [1, 3]: got 7."),
        ("seed:=first", "parameter 'seed' must be a whole number: got 'first'."),
        ("camera_rate_hz:=30.0", "must be a multiple of 10 ms: got 30 Hz."),
    ],
)
def test_a_wrong_setting_ends_the_process_with_one_sentence(environment, setting, sentence):
    ended = subprocess.run(
        [*COMMAND, "-p", setting], env=environment, capture_output=True, text=True, timeout=WAIT_S
    )
    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
