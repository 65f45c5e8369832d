"""The policy node over DDS with the shipped checkpoints: lifecycle, commands, parameters."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from array import array
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import UInt8MultiArray
from trajectory_msgs.msg import JointTrajectory

from qsteer_ros import resources
from qsteer_ros.critics.calibration import FILE
from qsteer_ros.errors import ConfigError
from qsteer_ros.graph.environment import free_domain
from qsteer_ros.motion.kinematics import Kinematics, tool_down
from qsteer_ros.motion.path import sample
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.nodes.executors import ServiceThreadExecutor
from qsteer_ros.nodes.lifecycle import RemoteNode
from qsteer_ros.nodes.messages import from_bytes, from_stamp, from_trajectory, to_stamp
from qsteer_ros.nodes.policy_node import PolicyNode
from qsteer_ros.nodes.waiting import Foreground
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.replay.images import encode_jpeg

pytestmark = pytest.mark.ros
WAIT_S = 60.0
ROBOT = RobotFile.load("robot_ur5e_sim.yaml")
HOME = np.array([-np.pi / 2, -np.pi / 2, np.pi / 2, -np.pi / 2, -np.pi / 2, 0.0])
START = Kinematics(ROBOT).inverse(np.array([0.4, 0.0, 0.2]), tool_down(0.0), HOME)
PATIENT = {"max_age_s": 5.0}  # the machine may be busy; what is stale is tested without a machine


class Arm:
    """An arm that follows what it is told, with two cameras."""

    def __init__(self, context, node=None):
        self.node = node
        self.own = Node("arm", context=context, use_global_arguments=False)
        self.trajectories, self.records, self.diagnostics = [], [], []
        self.joints = self.own.create_publisher(JointState, "joint_states", 10)
        self.cameras = {
            name: self.own.create_publisher(CompressedImage, camera.subscribed_topic, 10)
            for name, camera in ROBOT.cameras.items()
        }
        self.frames = {
            name: encode_jpeg(np.full((c.height, c.width, 3), 90, dtype=np.uint8))
            for name, c in ROBOT.cameras.items()
        }
        for kind, topic, heard in (
            (JointTrajectory, ROBOT.command_topic, self.trajectories),
            (UInt8MultiArray, "policy_node/decision", self.records),
            (DiagnosticArray, "/diagnostics", self.diagnostics),
        ):
            self.own.create_subscription(kind, topic, self._hear(heard), 50)
        self.foreground = Foreground(self.own)
        self.policy = RemoteNode(self.foreground, "policy_node")

    def _hear(self, heard):
        def hear(message):
            heard.append(message)
            self.foreground.notify()

        return hear

    def drive_to(self, state):
        self.policy.drive_to(state, timeout_s=WAIT_S)

    def set(self, **values):
        self.policy.set_parameters(values, timeout_s=WAIT_S)

    def state(self, at_ns):
        """Where the trajectory that was taking effect leads, and how fast."""
        state = np.append(START, 0.0), np.zeros(7)
        for path, _, start_ns in map(from_trajectory, list(self.trajectories)):
            if at_ns >= start_ns:
                state = sample(path, at_ns - start_ns)
        return state

    def observe(self, cameras=("front", "wrist"), velocity=None):
        """Publish one observation of now."""
        now_ns = self.own.get_clock().now().nanoseconds
        stamp = to_stamp(now_ns)
        found = self.state(now_ns)
        message = JointState(name=list(ROBOT.path_joints), position=found[0].tolist())
        message.velocity = found[1].tolist() if velocity is None else [velocity] * 7
        message.effort = [0.0] * 7
        message.header.stamp = stamp
        self.joints.publish(message)
        for name in cameras:
            frame = CompressedImage(format="jpeg", data=array("B", self.frames[name]))
            frame.header.stamp = stamp
            self.cameras[name].publish(frame)

    def until(self, condition, what):
        return self.foreground.until(lambda: condition() or None, timeout_s=WAIT_S, what=what)

    def observe_until(self, condition, what, **observation):
        """Observe at 20 Hz until a condition holds."""

        def observed():
            self.observe(**observation)
            return condition()

        return self.until(observed, what)

    def status(self, level, part):
        """A diagnostic status of this level that says ``part``."""
        for message in self.diagnostics:
            for status in message.status:
                if status.level == level and part in status.message:
                    return {v.key: v.value for v in status.values}
        return None


def ended(trajectory, before_ns):
    """Whether a trajectory is a deceleration, or was at its end before a time (with its lead)."""
    path, _, start_ns = from_trajectory(trajectory)
    return len(path.times_s) == 2 or start_ns + path.times_s[-1] * 1e9 < before_ns + 50_000_000


@contextmanager
def running(context, **parameters):
    """A policy node in an executor of its own, and an arm that talks to it."""
    overrides = [Parameter(k, value=v) for k, v in {**PATIENT, **parameters}.items()]
    node = PolicyNode(context=context, use_global_arguments=False, parameter_overrides=overrides)
    executor = ServiceThreadExecutor(context=context)
    executor.add_node(node)

    def spin():
        with suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    arm = Arm(context, node)
    try:
        with arm.foreground:
            yield arm
    finally:
        executor.shutdown()
        thread.join(WAIT_S)
        node.destroy_node()
        arm.own.destroy_node()


def test_nothing_moves_before_activation_and_the_arm_rests_after_deactivation(context):
    with running(context, steering="qgf") as arm:
        arm.drive_to("inactive")
        for _ in range(20):
            arm.observe()
        arm.until(lambda: arm.status(DiagnosticStatus.OK, "inactive"), "a report")
        assert arm.trajectories == []
        assert arm.records == []

        arm.drive_to("active")
        arm.observe_until(lambda: len(arm.records) >= 2, "two decisions")
        paths = [from_trajectory(m) for m in arm.trajectories]
        for path, joints, _ in paths:
            assert joints == ROBOT.path_joints
            np.testing.assert_allclose(path.positions[0, :6], START, atol=0.3)

        arm.drive_to("inactive")
        count = len(arm.trajectories)
        for _ in range(20):
            arm.observe()
        last = from_trajectory(arm.trajectories[-1])[0]
        assert np.all(last.velocities[-1] == 0.0)
        arm.drive_to("unconfigured")
        assert len(arm.trajectories) - count <= 1


def test_a_record_tells_the_whole_decision(context):
    with running(context, steering="qgf", seed=3) as arm:
        arm.drive_to("active")
        arm.observe_until(lambda: arm.records, "a decision")
        record = DecisionRecord.decode(from_bytes(arm.records[0]))
        path, _, stamp_ns = from_trajectory(arm.trajectories[0])
        assert record.meta["mode"] == "qgf"
        assert record.meta["effective_ns"] == stamp_ns
        assert record.meta["stamp_ns"] <= record.meta["published_ns"] <= stamp_ns
        assert record.meta["latency_ms"] >= 0.0
        assert record.meta["delta_q"] is not None
        assert set(record.meta["image_stamps_ns"]) == {"front", "wrist"}
        assert record.meta["hashes"]["robot"] == ROBOT.hash
        np.testing.assert_allclose(record.tensors["path_positions"], path.positions)
        arm.until(lambda: arm.status(DiagnosticStatus.OK, "active, "), "a report of chunks")
        found = arm.status(DiagnosticStatus.OK, "active, ")
        assert {"ratio_mean", "cosine_mean", "delta_q_mean", "latency_ms_p50"} <= set(found)


def test_the_same_seed_makes_the_same_noise_in_every_activation(context):
    with running(context, seed=5) as arm:
        noises = []
        for _ in range(2):
            arm.records.clear()
            arm.drive_to("active")
            arm.observe_until(lambda: arm.records, "a decision")
            record = DecisionRecord.decode(from_bytes(arm.records[0]))
            assert record.meta["chunk_index"] == 0
            noises.append(record.tensors["noise"])
            arm.drive_to("inactive")
        np.testing.assert_array_equal(*noises)


def test_when_a_camera_stops_the_arm_is_held_and_the_reason_is_told(context):
    with running(context, max_age_s=1.0) as arm:
        arm.drive_to("active")
        arm.observe_until(lambda: arm.trajectories, "a trajectory")
        told = arm.observe_until(
            lambda: (
                arm.status(DiagnosticStatus.STALE, "of all cameras must be taken within")
                or arm.status(DiagnosticStatus.STALE, "camera frame must be at most")
            ),
            "the reason",
            cameras=("front",),
        )
        assert int(told["holds"]) == 1
        last, _, start_ns = from_trajectory(arm.trajectories[-1])
        assert start_ns + last.times_s[-1] * 1e9 < time.time_ns()  # it has come to rest
        arm.records.clear()
        arm.observe_until(lambda: arm.records, "a decision after the camera is back")


def test_joint_states_that_are_not_finite_are_refused_with_the_reason(context):
    with running(context, max_age_s=1.0) as arm:
        arm.drive_to("active")
        told = arm.observe_until(
            lambda: arm.status(DiagnosticStatus.STALE, "joint states must have arrived"),
            "the reason",
            velocity=float("nan"),
        )
        assert "RobotState.velocity must be finite" in told["last_refusal"]
        assert arm.trajectories == []


def test_a_critic_is_swapped_live_and_a_bad_one_changes_nothing(context):
    with running(context, steering="qgf", critic="checkpoints/critic_goal1") as arm:
        arm.drive_to("active")
        arm.observe_until(lambda: arm.records, "a decision")
        first = DecisionRecord.decode(from_bytes(arm.records[-1])).meta["hashes"]["critic"]
        with pytest.raises(ConfigError, match="'nowhere' must exist"):
            arm.set(critic="nowhere")
        with pytest.raises(ConfigError, match="must be a critic checkpoint"):
            arm.set(critic="checkpoints/policy")
        assert arm.node.get_parameter("critic").value == "checkpoints/critic_goal1"
        arm.records.clear()
        arm.observe_until(lambda: arm.records, "a decision after the refusals")
        kept = DecisionRecord.decode(from_bytes(arm.records[-1])).meta["hashes"]["critic"]
        assert kept == first
        arm.set(critic="checkpoints/critic_goal2", guidance_weight=0.02)
        arm.observe_until(
            lambda: (
                DecisionRecord.decode(from_bytes(arm.records[-1])).meta["hashes"]["critic"]
                != first
            ),
            "a decision by the new critic",
        )
        assert (
            DecisionRecord.decode(from_bytes(arm.records[-1])).meta["steering"]["weight"] == 0.02
        )


def test_the_command_line_sets_parameters_of_a_running_node(context):
    environment = {**os.environ, "ROS_DOMAIN_ID": str(context.get_domain_id())}

    def qsteer_set(*assignments):
        command = [sys.executable, "-m", "qsteer_ros.cli", "set", *assignments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
        )

    with running(context, steering="qgf", critic="checkpoints/critic_goal1") as arm:
        arm.drive_to("inactive")
        done = qsteer_set("policy_node.critic=checkpoints/critic_goal2")
        assert done.returncode == 0, done.stderr
        assert arm.node.get_parameter("critic").value == "checkpoints/critic_goal2"
        refused = qsteer_set("policy_node.critic=nowhere")
        assert refused.returncode == 1
        assert "policy_node refuses {'critic': 'nowhere'}: 'nowhere' must exist" in refused.stderr


def test_parameters_that_do_not_go_together_are_refused(context):
    with running(context, critic="") as arm:
        arm.drive_to("inactive")
        with pytest.raises(ConfigError, match="steering mode 'qgf' needs a critic"):
            arm.set(steering="qgf")
        with pytest.raises(ConfigError, match=r"'guidance_weight' must be in \[0, 1000\]: got"):
            arm.set(guidance_weight=-1.0)
        with pytest.raises(ConfigError, match="'execute_steps' must be at most 5"):
            arm.set(execute_steps=6)
        with pytest.raises(ConfigError, match=r"parameters \['policy'\] must be set while the"):
            arm.set(policy="checkpoints/policy")
        arm.set(steering="qgf", critic="checkpoints/critic_goal1")
        arm.drive_to("unconfigured")
        arm.set(policy="checkpoints/policy")


def test_a_file_that_is_missing_leaves_the_node_unconfigured_until_it_is_there(context):
    with running(context, encoder="nowhere") as arm:
        with pytest.raises(ConfigError, match="must configure: it failed"):
            arm.drive_to("inactive")
        arm.set(encoder="checkpoints/encoder")
        arm.drive_to("inactive")


def test_a_robot_with_other_cameras_is_refused(context, tmp_path):
    content = yaml.safe_load(resources.find("robot_ur5e_sim.yaml").read_text())
    content["cameras"]["front"]["width"] = 100
    path = tmp_path / "robot.yaml"
    path.write_text(yaml.safe_dump(content))
    with running(context, robot=str(path)) as arm, pytest.raises(ConfigError, match="failed"):
        arm.drive_to("inactive")


def test_a_value_out_of_bounds_at_start_is_refused(context):
    with pytest.raises(ConfigError, match="'denoising_steps' must be in"):
        PolicyNode(
            context=context,
            use_global_arguments=False,
            parameter_overrides=[Parameter("denoising_steps", value=0)],
        )


def test_chunks_go_on_while_a_critic_is_loaded(context, monkeypatch):
    from qsteer_ros.nodes import policy_parts

    load = policy_parts.Critic.load
    with running(context, steering="off", execute_steps=1) as arm:
        arm.drive_to("active")
        arm.observe_until(lambda: arm.records, "a decision")
        loading, go_on = threading.Event(), threading.Event()

        def slowly(*args, **kwargs):
            loading.set()
            assert go_on.wait(WAIT_S)
            return load(*args, **kwargs)

        monkeypatch.setattr(policy_parts.Critic, "load", slowly)
        setting = threading.Thread(target=arm.set, kwargs={"critic": "checkpoints/critic_goal3"})
        setting.start()
        assert loading.wait(WAIT_S)
        arm.records.clear()
        arm.observe_until(lambda: arm.records, "a decision while the critic is loaded")
        go_on.set()
        setting.join(WAIT_S)
        assert arm.node.get_parameter("critic").value == "checkpoints/critic_goal3"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_told_to_end_brings_the_arm_to_rest(context, number):
    arm = Arm(context)
    command = [sys.executable, "-m", "qsteer_ros.nodes.policy_node", "--ros-args"]
    environment = {**os.environ, "ROS_DOMAIN_ID": str(context.get_domain_id())}
    process = subprocess.Popen([*command, "-p", "max_age_s:=5.0"], env=environment)
    try:
        with arm.foreground:
            arm.drive_to("active")
            arm.observe_until(lambda: arm.trajectories, "a trajectory")
            told_ns = time.time_ns()
            process.send_signal(number)
            assert process.wait(WAIT_S) == 0
            arm.until(lambda: ended(arm.trajectories[-1], before_ns=told_ns), "a hold or a rest")
    finally:
        process.kill()
        process.wait()
        arm.own.destroy_node()


def test_an_unexpected_error_while_configuring_is_told_and_frees_everything(context, monkeypatch):
    from qsteer_ros.nodes import policy_topics

    def broken(self, *args):
        raise ZeroDivisionError("a defect")

    with running(context) as arm:
        told = []
        monkeypatch.setattr(arm.node, "get_logger", lambda: SimpleNamespace(error=told.append))
        listen = policy_topics.PolicyTopics.listen
        monkeypatch.setattr(policy_topics.PolicyTopics, "listen", broken)
        threads = threading.active_count()
        publishers = len(list(arm.node.publishers))
        with pytest.raises(ConfigError, match="must configure: it failed"):
            arm.drive_to("inactive")
        assert any("ZeroDivisionError: a defect" in sentence for sentence in told)
        assert len(list(arm.node.publishers)) == publishers
        assert threading.active_count() <= threads + 1  # the one of the services
        monkeypatch.undo()
        assert policy_topics.PolicyTopics.listen is listen
        arm.drive_to("inactive")


def test_the_clock_is_not_changed_while_the_node_is_configured(context):
    with running(context) as arm:
        arm.drive_to("inactive")
        with pytest.raises(ConfigError, match=r"parameters \['use_sim_time'\] must be set while"):
            arm.set(use_sim_time=True)
        assert not arm.node.get_clock().ros_time_is_active
        arm.drive_to("unconfigured")
        arm.set(use_sim_time=True)
        assert arm.node.get_clock().ros_time_is_active


def test_simulated_time_goes_on_while_a_critic_is_loaded(context, monkeypatch):
    from qsteer_ros.nodes import policy_parts

    loading, go_on = threading.Event(), threading.Event()
    load = policy_parts.Critic.load

    def slowly(*args, **kwargs):
        loading.set()
        assert go_on.wait(WAIT_S)
        return load(*args, **kwargs)

    with running(context, use_sim_time=True) as arm:
        clock = arm.own.create_publisher(Clock, "/clock", 10)
        arm.drive_to("inactive")
        monkeypatch.setattr(policy_parts.Critic, "load", slowly)
        setting = threading.Thread(target=arm.set, kwargs={"critic": "checkpoints/critic_goal3"})
        setting.start()
        try:
            assert loading.wait(WAIT_S)

            def ticked():
                clock.publish(Clock(clock=to_stamp(7_000_000_000)))
                return arm.node.get_clock().now().nanoseconds == 7_000_000_000

            arm.until(ticked, "the node's clock")
        finally:
            go_on.set()
            setting.join(WAIT_S)


def test_stamps_count_on_the_nodes_clock(context):
    with running(context) as arm:
        arm.drive_to("active")
        before_ns = time.time_ns()
        arm.observe_until(lambda: arm.trajectories, "a trajectory")
        assert abs(from_stamp(arm.trajectories[0].header.stamp) - before_ns) < WAIT_S * 1e9


def decided(message):
    return DecisionRecord.decode(from_bytes(message))


def newest_with(arm, condition):
    """The newest decision once one fulfils a condition."""
    arm.observe_until(lambda: arm.records and condition(decided(arm.records[-1]).meta), "it")
    return decided(arm.records[-1])


def test_every_choice_of_steering_changes_between_chunks_and_is_in_the_record(context):
    with running(context, steering="qgf", compare_rate=0.0) as arm:
        arm.drive_to("active")
        for changes in (
            {"guidance": "ratio", "guidance_ratio": 0.2, "max_ratio": 0.5},
            {"guidance": "weight", "guidance_weight": 0.01, "estimate": "chain"},
            {"steering": "qgf_jacobian", "project_guidance": True},
            {"steering": "bptt", "max_displacement": 0.05},
            {"steering": "qpilots_u", "keep_jacobian": False, "max_displacement": float("inf")},
            {"steering": "qpilots_m", "posterior_samples": 2, "tilt_clip": 2.0},
            {"steering": "noisy_gradient", "inverse_temperature": 2.0},
            {"steering": "gradient_step", "ascent_steps": 2, "compare_rate": 1.0},
            {"steering": "best_of_n", "num_samples": 4, "reduction": "pessimistic"},
            {"steering": "random_matched", "pessimism": 1.0, "posterior_steps": 3},
            {"integrator": "heun", "denoising_steps": 4, "time_power": 0.5},
        ):
            arm.set(**changes)
            steered = arm.node._parts.steered
            wanted = (steered.settings.to_json(), steered.sampler.denoising_steps)
            record = newest_with(
                arm,
                lambda meta, wanted=wanted: (
                    (meta["steering"], meta["sampler"]["denoising_steps"]) == wanted
                ),
            )
            assert record.meta["mode"] == arm.node.get_parameter("steering").value
        assert record.meta["sampler"] == {
            "denoising_steps": 4, "integrator": "heun", "time_power": 0.5, "times": None
        }  # fmt: skip
        steering = record.meta["steering"]
        wanted = {
            "weight": 0.01, "ratio": 0.0, "reduction": "pessimistic", "rho": 1.0, "max_ratio": 0.5,
            "project": True, "max_displacement": "inf", "estimate": "chain", "num_samples": 4,
            "keep_jacobian": False, "posterior_samples": 2, "posterior_steps": 3, "tilt_clip": 2.0,
            "inverse_temperature": 2.0, "ascent_steps": 2, "twin_rate": 1.0,
        }  # fmt: skip
        assert {name: steering[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steering": "gradient_step", "guidance": "ratio"}, "must go by 'guidance_weight'"),
        ({"guidance": "strong"}, "'guidance' must be one of weight, ratio, calibrated"),
        ({"guidance_ratio": 0.0}, r"'guidance_ratio' must be in \[0.0001, 10\]"),
        ({"max_displacement": 0.0}, r"'max_displacement' must be in \[0.001, inf\]"),
        ({"estimate": "clean"}, "'estimate' must be one of euler, noisy, chain"),
        ({"integrator": "rk4"}, "'integrator' must be one of euler, midpoint, heun"),
        ({"backend": "fast"}, "'backend' must be one of auto, eager, compiled, cuda_graph"),
        ({"backend": "cuda_graph"}, "backend 'cuda_graph'"),
        ({"compare_rate": 1.1}, r"'compare_rate' must be in \[0, 1\]"),
        ({"deadline_s": -0.1}, r"'deadline_s' must be in \[0, 10\]"),
        ({"posterior_samples": 0}, "'posterior_samples' must be in"),
        ({"ascent_steps": 2.5}, "'ascent_steps' must be a whole number"),
        ({"time_power": 10.0, "denoising_steps": 100}, "steps of at least .* of flow time"),
        ({"real_time_chunking": True}, "must be below the 5 actions in a chunk, got 5"),
        ({"execute_steps": 6}, "'execute_steps' must be at most 5"),
    ],
)
def test_a_change_that_contradicts_the_rest_is_refused_and_changes_nothing(
    changes, reason, inactive
):
    before = inactive.node._settings, inactive.node._parts
    with pytest.raises(ConfigError, match=reason):
        inactive.set(**changes)
    assert (inactive.node._settings, inactive.node._parts) == before


@pytest.fixture(scope="module")
def inactive():
    """A configured node for refusals."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=free_domain())
    with running(context, steering="qgf") as arm:
        arm.drive_to("inactive")
        yield arm
    context.try_shutdown()


@pytest.fixture
def critics(tmp_path):
    """Copies of a critic: calibrated, without a calibration, and with that of another."""
    folders = {}
    for name, of in (("calibrated", 1), ("bare", None), ("foreign", 2)):
        folder = tmp_path / name
        shutil.copytree(resources.find("checkpoints/critic_goal1"), folder)
        (folder / FILE).unlink(missing_ok=True)
        if of is not None:
            shutil.copy(resources.find(f"checkpoints/critic_goal{of}") / FILE, folder / FILE)
        folders[name] = str(folder)
    return folders


def test_a_calibrated_weight_is_taken_from_beside_the_critic(context, critics):
    entry = json.loads((Path(critics["calibrated"]) / FILE).read_text())
    with running(context, steering="qgf", critic=critics["calibrated"]) as arm:
        arm.drive_to("active")
        arm.set(guidance="calibrated")
        weight = entry["modes"]["qgf"]["weight"]
        assert newest_with(arm, lambda m: m["steering"]["weight"] == weight).meta["mode"] == "qgf"
        arm.set(steering="qpilots_m")
        steering = newest_with(arm, lambda m: m["mode"] == "qpilots_m").meta["steering"]
        values = next(v for v in entry["values"] if v["reduction"] == "min")
        assert steering["weight"] == entry["modes"]["qpilots_m"]["weight"]
        assert (steering["tilt_mean"], steering["tilt_std"]) == (values["q_mean"], values["q_std"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [("bare", "Run: qsteer calibrate"), ("foreign", "must be made with the critic it is used")],
)
def test_a_critic_without_its_calibration_is_refused_live_and_the_old_one_goes_on(
    context, critics, name, reason
):
    with running(
        context, steering="qgf", guidance="calibrated", critic=critics["calibrated"]
    ) as arm:
        arm.drive_to("active")
        before = newest_with(arm, lambda m: True).meta["steering"]
        with pytest.raises(ConfigError, match=reason):
            arm.set(critic=critics[name])
        arm.set(guidance="weight", critic=critics[name])
        with pytest.raises(ConfigError, match=reason):
            arm.set(guidance="calibrated")
        with pytest.raises(ConfigError, match=reason):
            arm.set(steering="qpilots_m")
        arm.set(guidance="weight", guidance_weight=before["weight"])
        arm.records.clear()
        assert newest_with(arm, lambda m: True).meta["steering"] == before


def test_a_calibrated_weight_is_refused_live_with_other_steps_and_the_node_goes_on(context):
    with running(context, steering="bptt", guidance="calibrated") as arm:
        arm.drive_to("active")
        newest_with(arm, lambda m: m["mode"] == "bptt")
        with pytest.raises(ConfigError, match="'denoising_steps' was 10, now it is 5"):
            arm.set(denoising_steps=5)
        newest_with(arm, lambda m: m["sampler"]["denoising_steps"] == 10)
        arm.set(steering="qgf", denoising_steps=5)
        newest_with(arm, lambda m: m["sampler"]["denoising_steps"] == 5)


@pytest.mark.parametrize("name", ["bare", "foreign"])
def test_a_critic_without_its_calibration_leaves_the_node_unconfigured(context, critics, name):
    with running(context, steering="qgf", guidance="calibrated", critic=critics[name]) as arm:
        with pytest.raises(ConfigError, match="must configure: it failed"):
            arm.drive_to("inactive")
        arm.set(critic=critics["calibrated"])
        arm.drive_to("inactive")


def test_the_backend_changes_between_chunks(context):
    with running(context, steering="bptt", backend="auto", denoising_steps=2) as arm:
        arm.drive_to("active")
        assert newest_with(arm, lambda m: True).meta["backend"] in ("eager", "compiled")
        arm.set(steering="off", backend="eager")
        newest_with(arm, lambda m: (m["mode"], m["backend"]) == ("off", "eager"))


def test_real_time_chunking_of_whole_chunks_leaves_the_node_unconfigured(context):
    with running(context, real_time_chunking=True) as arm:
        with pytest.raises(ConfigError, match="must configure: it failed"):
            arm.drive_to("inactive")
        arm.set(execute_steps=3)
        arm.drive_to("inactive")


def test_a_deadline_that_nothing_fits_drops_guidance_and_is_told(context):
    with running(context, steering="qgf", deadline_s=1e-6, execute_steps=1) as arm:
        arm.drive_to("active")
        record = newest_with(arm, lambda m: True)
        told = record.meta["deadline"]
        assert (told["guidance"], told["met"], len(told["path"])) == ("dropped", False, 2)
        assert record.meta["ratio"] is None
        arm.observe_until(
            lambda: arm.status(DiagnosticStatus.WARN, "lost guidance or steps to the deadline"),
            "the warning",
        )
        arm.set(deadline_s=5.0)
        kept = newest_with(arm, lambda m: m["deadline"]["guidance"] == "kept")
        assert kept.meta["ratio"] > 0.0
        arm.set(deadline_s=0.0)
        newest_with(arm, lambda m: "deadline" not in m)


def test_running_chunks_are_continued_over_dds(context):
    with running(context, steering="qgf", real_time_chunking=True, execute_steps=2) as arm:
        arm.drive_to("active")
        newest_with(arm, lambda m: "running" in m)
        records = [decided(message) for message in arm.records]
        after = next(i for i, record in enumerate(records) if "running" in record.meta)
        told = records[after].meta["running"]
        elapsed, committed = told["elapsed"], told["committed"]
        np.testing.assert_array_equal(
            records[after].chunk[:committed],
            records[after - 1].chunk[elapsed : elapsed + committed],
        )
        assert committed >= 1
