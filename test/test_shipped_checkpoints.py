"""The checkpoints in the repository: they load, fit the robot and each other, and stay small."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qsteer_ros import resources
from qsteer_ros.critics.calibration import Calibration
from qsteer_ros.critics.critic import Critic
from qsteer_ros.motion.kinematics import TOOL_DOWN, Kinematics
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.policies.encoder import Encoder
from qsteer_ros.policies.features import proprioception, teacher_features
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.steering.settings import FIELD_MODES, SteeringSettings
from qsteer_ros.types import Observation, RobotState

FOLDER = resources.share_directory() / "config" / "checkpoints"
NAMES = ("encoder", "policy", "critic_goal1", "critic_goal2", "critic_goal3")
LIMIT_BYTES = 12 * 1024 * 1024


@pytest.fixture(scope="module")
def robot() -> RobotFile:
    return RobotFile.load("robot_ur5e_sim.yaml")


def observation(robot: RobotFile) -> Observation:
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(0, 80, (camera.height, camera.width, 3), dtype=np.uint8)
        for name, camera in robot.cameras.items()
    }
    home = np.array([-np.pi / 2, -np.pi / 2, np.pi / 2, -np.pi / 2, -np.pi / 2, 0.0])
    return Observation(0, images, RobotState(0, home, np.zeros(6), 0.0))


def test_all_together_they_are_smaller_than_twelve_megabytes() -> None:
    assert {p.name for p in FOLDER.iterdir()} == set(NAMES)
    size = sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file())
    assert size < LIMIT_BYTES


@pytest.mark.parametrize("goal", [1, 2, 3])
@pytest.mark.parametrize("mode", ["off", "zero", "qgf", "qpilots_u", "best_of_n"])
def test_every_goal_is_steered_by_every_mode(robot: RobotFile, goal: int, mode: str) -> None:
    encoder = Encoder.load(FOLDER / "encoder", robot)
    policy = FlowPolicy.load(FOLDER / "policy")
    critic = Critic.load(FOLDER / f"critic_goal{goal}")
    policy.interface.check_robot(robot, mine="the policy")
    critic.interface.check_robot(robot, mine="the critic")
    settings = SteeringSettings(mode=mode, weight=0.05, num_samples=4)
    steered = SteeredPolicy(encoder, policy, critic, settings)
    chunk = steered.decide(observation(robot), seed=0).chunk
    assert chunk.shape == (5, 5)
    assert np.all(np.abs(chunk) <= 1.0)


@pytest.mark.parametrize("goal", [1, 2, 3])
def test_a_critic_says_which_goal_it_was_trained_for(goal: int) -> None:
    training = Critic.load(FOLDER / f"critic_goal{goal}").training
    assert training["goal"] == goal


@pytest.mark.parametrize("goal", [1, 2, 3])
def test_a_critic_is_calibrated_for_the_policy_in_every_mode(goal: int) -> None:
    folder = FOLDER / f"critic_goal{goal}"
    hashes = (Critic.load(folder).hash, FlowPolicy.load(FOLDER / "policy").hash)
    found = Calibration.load(folder, critic=hashes[0], policy=hashes[1])
    assert set(found.modes) == set(FIELD_MODES)
    for mode, entry in found.modes.items():
        assert entry.found.ratio == pytest.approx(entry.target_ratio, rel=0.01)
        assert entry.observations.count == 256
        assert (entry.found.improved > 0.75) == (mode not in ("zero", "random_matched"))
        SteeringSettings.from_json({**entry.settings, "mode": mode, "weight": entry.weight})
    for reduction, rho in (("min", 0.0), ("mean", 0.0), ("pessimistic", 0.5)):
        values = found.statistics(reduction, rho=rho)
        assert -100.0 < values.q_mean < 0.0  # no reward is above 0
        assert values.q_std > 1.0


@pytest.mark.parametrize("name", NAMES)
def test_each_names_the_command_that_made_it(name: str) -> None:
    from qsteer_ros import checkpoints

    kind = name.split("_")[0]
    command = checkpoints.load(FOLDER / name, kind=kind).config["training"]["command"]
    program = {"encoder": "encoder", "policy": "bc", "critic": "critic"}[kind]
    assert command.startswith(f"qsteer train {program} ")
    assert f"--out config/checkpoints/{name}" in command


def holding_the_cube(robot: RobotFile) -> torch.Tensor:
    """Features with the cube in the closed gripper, 10 cm above the middle of the table."""
    kinematics = Kinematics(robot)
    xyz = np.array([0.425, 0.0, 0.10])
    q = kinematics.inverse(xyz, TOOL_DOWN, observation(robot).robot.position)
    proprio = proprioception(RobotState(0, q, np.zeros(6), 0.56, 0.5), kinematics)
    return torch.from_numpy(teacher_features(proprio[None], xyz[None], np.zeros(1)))


def test_the_critics_prefer_their_own_goal(robot: RobotFile) -> None:
    """With the cube in hand, moving towards a goal is worth more than moving away from it."""
    features = holding_the_cube(robot)
    right, left = torch.zeros(1, 5, 5), torch.zeros(1, 5, 5)
    right[..., 1], left[..., 1] = -1.0, 1.0
    to_the_right = Critic.load(FOLDER / "critic_goal2").condition(features)
    assert to_the_right(right).min() > to_the_right(left).min()
    to_the_left = Critic.load(FOLDER / "critic_goal3").condition(features)
    assert to_the_left(left).min() > to_the_left(right).min()
