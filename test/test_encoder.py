"""The camera encoder: soft-argmax, shapes, frames and refusals. Its accuracy is in the figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.policies.encoder import Encoder, encoder_config, load_network
from qsteer_ros.policies.encoder_network import CubeNetwork, soft_argmax
from qsteer_ros.policies.features import FEATURE_NAMES
from qsteer_ros.types import Observation, RobotState

SHAPES = {"front": (96, 144), "wrist": (96, 96)}


@dataclass
class StraightArm:
    """An arm whose tool does not depend on its joints."""

    xyz: np.ndarray = field(default_factory=lambda: np.array([0.5, 0.1, 0.2]))

    def forward(self, position):
        return self.xyz, np.eye(3)

    def yaw(self, position):
        return 0.3


def encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(CubeNetwork(sorted(SHAPES)), SHAPES, StraightArm(), checkpoint_hash="")


def observation(seed: int = 0, shapes=SHAPES) -> Observation:
    rng = np.random.default_rng(seed)
    images = {n: rng.integers(0, 256, (*s, 3), dtype=np.uint8) for n, s in shapes.items()}
    robot = RobotState(0, np.zeros(6), np.zeros(6), 0.0)
    return Observation(0, images, robot)


def saved(folder: Path, **changes) -> Path:
    torch.manual_seed(0)
    network = CubeNetwork(sorted(SHAPES))
    tensors = {name: value.numpy() for name, value in network.state_dict().items()}
    return checkpoints.save(folder, tensors, encoder_config(SHAPES, {}) | changes)


def test_a_sharp_map_points_at_its_pixel() -> None:
    maps = torch.full((1, 2, 5, 9), -100.0)
    maps[0, 0, 0, 0] = 100.0
    maps[0, 1, 4, 6] = 100.0
    points, weight = soft_argmax(maps)
    torch.testing.assert_close(points[0, 0], torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(points[0, 1], torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(weight.sum(-1), torch.ones(1, 2))


def test_a_flat_map_points_at_the_centre() -> None:
    points, _ = soft_argmax(torch.zeros(3, 4, 7, 5))
    torch.testing.assert_close(points, torch.zeros(3, 4, 2), atol=1e-6, rtol=0)


def test_two_equal_peaks_point_half_way_between_them() -> None:
    maps = torch.full((1, 1, 3, 3), -100.0)
    maps[0, 0, 0, 0] = maps[0, 0, 0, 2] = 50.0
    points, _ = soft_argmax(maps)
    torch.testing.assert_close(points[0, 0], torch.tensor([0.0, -1.0]))


def test_features_have_the_documented_shape_and_are_finite() -> None:
    features = encoder().features(observation())
    assert features.shape == (1, len(FEATURE_NAMES))
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    torch.testing.assert_close(features[:, 25:].norm(dim=1), torch.ones(1))


def test_the_same_observation_gives_the_same_features_bit_for_bit() -> None:
    one, other = encoder(), encoder()
    assert torch.equal(one.features(observation(3)), other.features(observation(3)))
    assert not torch.equal(one.features(observation(3)), one.features(observation(4)))


def test_relative_position_is_position_minus_tool() -> None:
    features = encoder().features(observation())[0]
    torch.testing.assert_close(features[22:25], features[19:22] - features[12:15])


def test_the_gripper_frame_turns_and_moves_with_the_tool() -> None:
    network = CubeNetwork(["front"])
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.bias[3] = 1.0  # one unit ahead of the gripper
        network.head.bias[8] = 1.0  # yaw 0 with respect to it
        network.head.bias[10:] = -100.0  # the gate believes the gripper frame
    yaw = 0.4
    proprio = torch.zeros(1, 19)
    proprio[0, 12:17] = torch.tensor([2.0, -1.0, 0.5, np.cos(yaw), np.sin(yaw)])
    position, four_yaw = network({"front": torch.zeros(1, 96, 144, 3, dtype=torch.uint8)}, proprio)
    expected = [[2.0 + np.cos(yaw), -1.0 + np.sin(yaw), 0.5]]
    torch.testing.assert_close(position, torch.tensor(expected, dtype=torch.float32))
    expected = [[np.cos(4 * yaw), np.sin(4 * yaw)]]
    torch.testing.assert_close(four_yaw, torch.tensor(expected, dtype=torch.float32))


def test_joint_velocities_are_not_seen() -> None:
    network = CubeNetwork(["front"])
    picture = {"front": torch.zeros(1, 96, 144, 3, dtype=torch.uint8)}
    still, moving = torch.zeros(1, 19), torch.zeros(1, 19)
    moving[0, 6:12] = 5.0
    assert torch.equal(network(picture, still)[0], network(picture, moving)[0])


def test_a_saved_network_comes_back_bit_for_bit(tmp_path: Path) -> None:
    folder = saved(tmp_path / "encoder")
    torch.manual_seed(0)
    original = CubeNetwork(sorted(SHAPES))
    loaded, shapes, digest = load_network(folder)
    assert shapes == SHAPES
    assert len(digest) == 64
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_missing_camera_is_refused() -> None:
    with pytest.raises(DataError, match="needs a 96x96 picture of camera 'wrist': got none"):
        encoder().features(observation(shapes={"front": (96, 144)}))


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match="needs a 144x96 picture of camera 'front': got 64x48"):
        encoder().features(observation(shapes={**SHAPES, "front": (48, 64)}))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "encoder", architecture="something else")
    with pytest.raises(ConfigError, match="must have architecture"):
        load_network(folder)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "encoder", cameras={"front": [96, 144]})
    with pytest.raises(DataError, match="does not fit its architecture"):
        load_network(folder)


def test_a_robot_without_the_camera_is_refused(tmp_path: Path) -> None:
    robot = SimpleNamespace(name="bare", cameras={"overhead": None})
    with pytest.raises(
        ConfigError, match=r"needs camera 'front': robot 'bare' has \['overhead'\]"
    ):
        Encoder.load(saved(tmp_path / "encoder"), robot)


def test_a_robot_with_another_picture_size_is_refused(tmp_path: Path) -> None:
    camera = SimpleNamespace(width=640, height=480)
    robot = SimpleNamespace(name="big", cameras={"front": camera, "wrist": camera})
    with pytest.raises(ConfigError, match="trained with 144x96 pictures of camera 'front'"):
        Encoder.load(saved(tmp_path / "encoder"), robot)
