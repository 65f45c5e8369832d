"""A critic from logged episodes alone: it sees what the policy saw, and fits the encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_store import START_NS, Sent, header, message, traffic, write_episode

from qsteer_ros import resources
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.learning.logged import episode_features
from qsteer_ros.learning.settings_critic import CriticSettings
from qsteer_ros.learning.sources import load_transitions
from qsteer_ros.learning.train_critic import train_critic
from qsteer_ros.motion.kinematics import Kinematics
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.policies.encoder import Encoder
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.replay.images import decode_jpeg, encode_jpeg
from qsteer_ros.replay.steps import read_steps
from qsteer_ros.steering.settings import SteeringSettings
from qsteer_ros.types import Observation, RobotState

ROBOT_FILE = "robot_ur5e_sim.yaml"
ENCODER = "checkpoints/encoder"
ROBOT = RobotFile.load(ROBOT_FILE)
HOME = np.array([-1.5, -1.5, 1.6, -1.6, -1.57, 0.1])
LAYOUT = {
    "name": ROBOT.name,
    "joints": list(ROBOT.joints),
    "gripper_joint": ROBOT.gripper_joint,
    "gripper_closed_rad": ROBOT.gripper_closed_rad,
    "effort_full_scale_n": ROBOT.effort_full_scale_n,
    "control_dt_s": ROBOT.control_dt_s,
}


def picture(camera: str, stamp_ns: int) -> np.ndarray:
    shape = ROBOT.cameras[camera]
    rng = np.random.default_rng((stamp_ns // 1_000_000, camera == "front"))
    return rng.integers(0, 60, (shape.height, shape.width, 3), dtype=np.uint8)


def stamp_of(sent: Sent) -> int:
    return sent.log_time_ns - 4_000_000


def position_at(stamp_ns: int) -> np.ndarray:
    return HOME + 0.02 * (stamp_ns - START_NS) / 1e9


def of_the_arm(sent: Sent) -> Sent:
    """The same message as this robot would have sent it."""
    if sent.topic == "/joint_states":
        stamp_ns = stamp_of(sent)
        data = message(
            "sensor_msgs/msg/JointState",
            header=header(stamp_ns),
            name=[*ROBOT.joints, ROBOT.gripper_joint],
            position=np.append(position_at(stamp_ns), 0.4),
            velocity=np.append(np.full(6, 0.02), 0.0),
            effort=np.append(np.zeros(6), 10.0),
        )
        return replace(sent, data=data)
    if sent.topic.endswith("compressed"):
        stamp_ns = stamp_of(sent)
        camera = sent.topic.split("/")[1]
        data = message(
            "sensor_msgs/msg/CompressedImage",
            header=header(stamp_ns),
            format="jpeg",
            data=np.frombuffer(encode_jpeg(picture(camera, stamp_ns)), np.uint8),
        )
        return replace(sent, data=data)
    return sent


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Two episodes of goal 1, one of them a success."""
    folder = tmp_path_factory.mktemp("store")
    for name, success_at in (("e0", None), ("e1", 13)):
        messages = [of_the_arm(sent) for sent in traffic(success_at=success_at)]
        write_episode(folder, name, messages, robot=LAYOUT)
    return folder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(resources.find(ENCODER), ROBOT)


def test_training_sees_what_the_policy_saw(store: Path, encoder: Encoder) -> None:
    steps = read_steps(next(p for p in store.iterdir() if (p / "episode.json").exists()))
    found = episode_features(steps, encoder, Kinematics(ROBOT))
    row = 6
    stamp_ns = int(steps.stamp_ns[row])
    images = {c: decode_jpeg(encode_jpeg(picture(c, stamp_ns))) for c in ROBOT.cameras}
    state = RobotState(stamp_ns, position_at(stamp_ns), np.full(6, 0.02), 0.5, 0.2)
    seen = encoder.features(Observation(stamp_ns, images, state))[0]
    np.testing.assert_allclose(found[row], seen.numpy(), atol=2e-5)


def from_log(episodes: Path, **others) -> CriticSettings:
    return CriticSettings(episodes=str(episodes), encoder=ENCODER, robot=ROBOT_FILE, **others)


def test_windows_of_all_episodes_of_the_goal_are_used(store: Path, encoder: Encoder) -> None:
    data = load_transitions(from_log(store))
    assert data.interface.encoder_hash == encoder.hash
    assert data.features.shape == (len(data.reward), 27)
    assert data.chunk.shape == (len(data.reward), 5, 5)
    np.testing.assert_allclose(np.unique(data.bootstrap), [0.0, 0.99**5], rtol=1e-6)


def test_a_critic_from_the_log_steers_the_policy_it_was_logged_with(
    store: Path, encoder: Encoder, tmp_path: Path
) -> None:
    train_critic(from_log(store, out=str(tmp_path / "critic"), steps=4, hidden="16", batch=8))
    critic = Critic.load(tmp_path / "critic")
    policy = FlowPolicy.load(resources.find("checkpoints/policy"))
    steered = SteeredPolicy(encoder, policy, critic, SteeringSettings(mode="qgf", weight=0.05))
    assert steered.act(torch.zeros(1, 27), seed=0).chunk.shape == (5, 5)


def test_a_critic_from_the_log_is_refused_with_another_encoder(
    store: Path, tmp_path: Path
) -> None:
    settings = from_log(store, out=str(tmp_path / "critic"), steps=2, hidden="16", batch=8)
    data = load_transitions(settings)
    other = replace(data, interface=replace(data.interface, encoder_hash="0" * 64))
    train_critic(settings, transitions=other)
    policy = FlowPolicy.load(resources.find("checkpoints/policy"))
    encoder = Encoder.load(resources.find(ENCODER), ROBOT)
    with pytest.raises(ConfigError, match="encoder it was trained for"):
        SteeredPolicy(
            encoder, policy, Critic.load(tmp_path / "critic"), SteeringSettings(mode="off")
        )


def test_episodes_of_another_goal_are_not_used(store: Path) -> None:
    with pytest.raises(DataError, match="none can be used"):
        load_transitions(from_log(store, goal=3))


def test_episodes_of_another_arm_are_refused(tmp_path: Path) -> None:
    messages = [of_the_arm(sent) for sent in traffic()]
    swapped = list(ROBOT.joints[::-1])
    write_episode(tmp_path, "e0", messages, robot={**LAYOUT, "joints": swapped})
    with pytest.raises(ConfigError, match="must have the joints of the episodes"):
        load_transitions(from_log(tmp_path))
