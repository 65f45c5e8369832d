"""The scene, the expert's play and the frames: what they hold, and that the seed decides it."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

if find_spec("mujoco") is None or find_spec("ogbench") is None:
    pytest.skip("needs the simulator's packages", allow_module_level=True)

from qsteer_ros.errors import ConfigError
from qsteer_ros.learning import data, states
from qsteer_ros.learning.data import generate, load_frames
from qsteer_ros.learning.play import load_play
from qsteer_ros.learning.settings_data import DataSettings
from qsteer_ros.learning.settings_encoder import EncoderSettings
from qsteer_ros.learning.train_encoder import train_encoder
from qsteer_ros.policies.encoder import load_network
from qsteer_ros.sim.expert import play_episode
from qsteer_ros.sim.scene import CAMERAS, Scene, goal_position

SETTINGS = DataSettings(transitions=100, frames=6, test_frames=3, workers=1)


@pytest.fixture(scope="module")
def scene():
    made = Scene(mode="data_collection")
    yield made
    made.close()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A data set of two short training episodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "EPISODE_STEPS", 60)
        patch.setattr(data, "FRAMES_PER_SHARD", 3)
        patch.setattr(data, "TEST_EPISODES", 1)
        out = tmp_path_factory.mktemp("cube")
        generate(out, SETTINGS)
        return out


def test_the_same_seed_gives_the_same_episode_whatever_came_before(scene) -> None:
    one = play_episode(scene, seed=5, steps=40)
    other = play_episode(scene, seed=6, steps=40)
    again = play_episode(scene, seed=5, steps=40)
    for name in ("qpos", "qvel", "ctrl", "action", "effort", "tool_xyz", "tool_yaw"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name), err_msg=name)
    assert not np.array_equal(one.action, other.action)


def test_a_row_is_the_state_before_its_action(scene) -> None:
    episode = play_episode(scene, seed=5, steps=30)
    xyz, yaw = scene.pinch(episode.qpos[7].astype(np.float64))
    np.testing.assert_allclose(episode.tool_xyz[7], xyz, atol=1e-6)
    assert episode.tool_yaw[7] == pytest.approx(yaw, abs=1e-6)
    assert np.abs(episode.action).max() <= 1.0


def test_the_expert_moves_the_cube_where_it_wants(scene) -> None:
    episode = play_episode(scene, seed=1, steps=300)
    assert episode.subtasks >= 3
    assert episode.subtasks_done >= episode.subtasks - 2


def test_rendering_does_not_disturb_the_physics(scene) -> None:
    scene.env.reset(seed=3)
    before = scene.data.qpos.copy(), scene.data.site_xpos.copy()
    other = before[0].copy()
    other[0] += 0.3
    for camera in CAMERAS:
        scene.render(camera, other)
    np.testing.assert_array_equal(scene.data.qpos, before[0])
    np.testing.assert_array_equal(scene.data.site_xpos, before[1])


def test_pictures_have_the_size_of_their_camera_and_show_the_cube(scene) -> None:
    scene.env.reset(seed=3)
    qpos = scene.data.qpos.copy()
    gone = qpos.copy()
    gone[scene.cube_qpos] = [5.0, 5.0, 0.02, 1.0, 0.0, 0.0, 0.0]
    for name, camera in CAMERAS.items():
        assert scene.render(name, qpos).shape == (camera.height, camera.width, 3)
    assert np.any(scene.render("front", qpos) != scene.render("front", gone))


def test_a_moved_camera_sees_another_picture_and_can_be_moved_back(scene) -> None:
    nominal = scene.render("front")
    scene.move_camera("front", offset_m=np.array([0.0, 0.02, 0.0]))
    moved = scene.render("front")
    scene.move_camera("front", turn_rad=np.array([0.0, 0.02, 0.0]))
    turned = scene.render("front")
    scene.move_camera("front")
    assert np.any(moved != nominal)
    assert np.any(turned != nominal)
    np.testing.assert_array_equal(scene.render("front"), nominal)


def test_the_picture_does_not_say_where_the_goal_is() -> None:
    task = Scene(mode="task")
    task.env.reset(seed=0, options={"task_id": 2})
    qpos = task.data.qpos.copy()
    seen = task.render("front", qpos)
    task.data.mocap_pos[0] = [0.4, 0.2, 0.02]
    np.testing.assert_array_equal(task.render("front", qpos), seen)
    task.data.mocap_pos[0] = qpos[task.cube_qpos][:3]  # the cube is at its goal
    task.env.post_step()
    np.testing.assert_array_equal(task.render("front", qpos), seen)
    task.close()


def test_an_unknown_camera_is_refused(scene) -> None:
    with pytest.raises(ConfigError, match=r"no camera 'overhead': it has \['front', 'wrist'\]"):
        scene.render("overhead")


def test_goals_are_read_from_the_environment() -> None:
    np.testing.assert_allclose(goal_position(2), [0.50, 0.0, 0.02])
    np.testing.assert_allclose(goal_position(1), [0.425, -0.1, 0.02])


def test_play_and_frames_are_written_and_read(dataset: Path) -> None:
    play = load_play(dataset / "play")
    assert len(play.action) == 120
    np.testing.assert_array_equal(np.unique(play.episode), [0, 1])
    assert play.features().shape == (120, 27)
    train, test = load_frames(dataset, "train"), load_frames(dataset, "test")
    assert train.images["front"].shape == (6, 96, 144, 3)
    assert train.images["wrist"].shape == (6, 96, 96, 3)
    assert train.moved_camera.all()
    assert len(test.proprio) == 3
    kept = ~train.random_cube
    for proprio, cube in zip(train.proprio[kept], train.cube_xyz[kept], strict=True):
        row = int(np.argmin(np.abs(play.proprio - proprio).sum(axis=1)))
        np.testing.assert_allclose(play.cube_xyz[row], cube, atol=1e-6)


def test_generating_again_changes_nothing_and_fills_what_is_missing(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "EPISODE_STEPS", 60)
    monkeypatch.setattr(data, "FRAMES_PER_SHARD", 3)
    monkeypatch.setattr(data, "TEST_EPISODES", 1)
    victims = [dataset / "play" / "episode_00001.npz", dataset / "frames" / "train_0001.npz"]
    kept = dataset / "play" / "episode_00000.npz"
    before = {p: dict(np.load(p)) for p in victims}
    written = kept.stat().st_mtime_ns
    for victim in victims:
        victim.unlink()
    generate(dataset, SETTINGS)
    assert kept.stat().st_mtime_ns == written
    for victim, arrays in before.items():
        with np.load(victim) as again:
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, again[name], err_msg=f"{victim.name} {name}")


def test_two_data_sets_are_not_mixed(dataset: Path) -> None:
    with pytest.raises(ConfigError, match="'seed' was 0, now it is 1"):
        generate(dataset, replace(SETTINGS, seed=1))


def test_frames_that_are_missing_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must hold train frames"):
        load_frames(tmp_path, "train")


def test_a_resumed_encoder_has_the_same_weights_bit_for_bit(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EncoderSettings(data=str(dataset), steps=4, batch=3, checkpoint_every=2)
    metrics = train_encoder(replace(settings, out=str(tmp_path / "whole")))
    assert metrics["all/count"] == 3
    kept, part = states.save, replace(settings, out=str(tmp_path / "part"))

    def save_and_die(*arguments):
        kept(*arguments)
        raise RuntimeError("killed")

    monkeypatch.setattr(states, "save", save_and_die)
    with pytest.raises(RuntimeError, match="killed"):
        train_encoder(part)
    monkeypatch.setattr(states, "save", kept)
    train_encoder(part, resume=True)
    one, other = (load_network(tmp_path / name)[0].state_dict() for name in ("whole", "part"))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
