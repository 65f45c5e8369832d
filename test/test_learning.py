"""Windows, returns and buffers: what training sees of the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from played import play, random_transitions, write_play

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.learning.buffer import STD_FLOOR, Buffer, statistics
from qsteer_ros.learning.play import load_play, window_starts, windows, yaw_of
from qsteer_ros.learning.servo import fit_servo_of_play, robot_file_lines
from qsteer_ros.learning.settings import RewardSource
from qsteer_ros.learning.sources import load_transitions
from qsteer_ros.learning.transitions import (
    Transitions,
    discounted,
    from_steps,
    returns_to_go,
    step_rewards,
)


def relabelled(source, *, discount: float = 0.99) -> Transitions:
    """Play rewarded with -1 until the cube is within 4 cm of x = 0.5 m."""
    solved = np.abs(source.cube_xyz[:, 0] - 0.5) <= 0.04
    return from_steps(
        features=source.features(),
        action=source.action,
        state_reward=np.where(solved, 0.0, -1.0).astype(np.float32),
        solved=solved,
        episode=source.episode,
        interface=source.interface(5),
        discount=discount,
        data_hash=source.hash,
    )


def test_windows_never_cross_the_end_of_an_episode() -> None:
    episode = np.array([0] * 8 + [1] * 3 + [2] * 7)
    starts = window_starts(episode, 5)
    np.testing.assert_array_equal(starts, [0, 1, 2, 11, 12])
    rows = windows(np.arange(18, dtype=np.float32)[:, None], starts, 5)
    assert rows.shape == (5, 5, 1)
    np.testing.assert_array_equal(rows[3, :, 0], np.arange(11, 16))


def test_an_episode_shorter_than_a_window_gives_none() -> None:
    assert len(window_starts(np.zeros(5, dtype=np.int64), 5)) == 0


def test_return_and_end_before_at_and_after_the_goal() -> None:
    success = np.array([False] * 6 + [True] + [False] * 8)
    state_reward = np.where(success, 0.0, -1.0).astype(np.float32)
    rewards, ended = step_rewards(state_reward, success, np.arange(9), 5)
    reward = discounted(rewards, 0.9)
    far = -(1 + 0.9 + 0.81 + 0.729 + 0.6561)
    assert reward[0] == pytest.approx(far)  # states 1 to 5: not there yet
    assert not ended[0].any()
    assert reward[1] == pytest.approx(-(1 + 0.9 + 0.81 + 0.729))  # reached by the fifth action
    np.testing.assert_array_equal(ended[1], [False] * 4 + [True])
    assert reward[5] == 0.0  # reached by the first action
    assert ended[5].all()
    assert reward[6] == 0.0  # already there
    assert reward[7] == pytest.approx(far)  # left again: an episode of its own
    assert not ended[7].any()


def test_returns_to_go_sum_backwards_and_an_episode_cut_off_goes_on_as_it_ended() -> None:
    solved = np.array([False, False, True, False, False])
    reward = np.where(solved, 0.0, -1.0).astype(np.float32)
    episode = np.array([0, 0, 0, 1, 1])
    found = returns_to_go(reward, solved, episode, 0.9)
    np.testing.assert_allclose(found, [-1.0, 0.0, 0.0, -10.0, -10.0], rtol=1e-6)
    undiscounted = returns_to_go(reward, solved, episode, 1.0)
    np.testing.assert_allclose(undiscounted, [-1.0, 0.0, 0.0, -1.0, 0.0])


def test_play_is_relabelled_with_the_distance_to_the_goal() -> None:
    source = play()
    found = relabelled(source)
    starts = window_starts(source.episode, 5)
    near = np.abs(source.cube_xyz[:, 0] - 0.5) <= 0.04
    reached = [bool(near[s : s + 6].any()) for s in starts]
    np.testing.assert_array_equal(found.bootstrap == 0.0, reached)
    np.testing.assert_array_equal(found.ended[:, -1], reached)
    np.testing.assert_array_equal(found.features, source.features()[starts])
    np.testing.assert_array_equal(found.next_features, source.features()[starts + 5])
    np.testing.assert_array_equal(found.chunk[4, 2], source.action[starts[4] + 2])


def test_the_next_chunk_is_the_datas_and_never_of_another_episode() -> None:
    source = play(steps=14, episodes=2)
    found = relabelled(source)
    starts = window_starts(source.episode, 5)
    whole = [s + 9 <= (13 if s < 14 else 27) for s in starts]
    np.testing.assert_array_equal(found.next_valid, whole)
    for row, start in enumerate(starts):
        expected = source.action[start + 5 : start + 10] if whole[row] else 0.0
        np.testing.assert_array_equal(found.next_chunk[row], np.broadcast_to(expected, (5, 5)))


def test_the_last_window_of_an_episode_that_is_cut_off_is_truncated_and_bootstraps() -> None:
    source = replace(play(steps=14), cube_xyz=np.zeros((28, 3), dtype=np.float32))
    found = relabelled(source)
    np.testing.assert_array_equal(np.flatnonzero(found.truncated), [8, 17])
    assert (found.bootstrap[found.truncated] > 0.0).all()
    goal = replace(source, cube_xyz=source.cube_xyz.copy())
    goal.cube_xyz[13] = 0.5
    assert np.flatnonzero(relabelled(goal).truncated).tolist() == [17]  # the other is solved there


def test_transitions_refuse_what_is_not_finite_missing_or_of_another_horizon() -> None:
    good = random_transitions(5)
    with pytest.raises(DataError, match="must be finite"):
        replace(good, reward=np.full(5, np.nan, dtype=np.float32))
    with pytest.raises(DataError, match="must have 5 rows like features: got 4"):
        replace(good, reward=good.reward[:4])
    with pytest.raises(DataError, match="there are none"):
        replace(good, **{name: array[:0] for name, array in good.arrays().items()})
    with pytest.raises(DataError, match="Do not mix data of several horizons"):
        replace(good, chunk=good.chunk[:, :4])


def test_what_a_source_does_not_know_is_refused_by_name() -> None:
    plain = replace(random_transitions(5), next_chunk=None)
    with pytest.raises(ConfigError, match="needs next_chunk of every transition"):
        Buffer(plain, ("next_chunk",))


def test_a_batch_mixes_old_and_new_rows_in_the_share_that_was_asked_for() -> None:
    buffer = Buffer(random_transitions(50), ("reward",), new_share=0.25)
    source = torch.Generator().manual_seed(0)
    assert int(buffer.rows(400, source).max()) < 50
    buffer.append(random_transitions(10))
    rows = buffer.rows(400, source)
    assert int((rows >= 50).sum()) == 100
    assert set(rows[rows >= 50].tolist()) == set(range(50, 60))
    assert len(buffer.take(rows)["reward"]) == 400


def test_a_buffer_refuses_rows_of_another_space_and_stays_as_it_was() -> None:
    buffer, other = Buffer(random_transitions(5)), random_transitions(5)
    other = replace(other, interface=replace(other.interface, control_dt_s=0.1))
    with pytest.raises(ConfigError, match="must have the same control_dt_s"):
        buffer.append(other)
    assert len(buffer) == 5


def test_yaw_of_a_quaternion_is_the_angle_about_the_vertical() -> None:
    yaw = np.array([-2.0, 0.0, 0.5, 3.0])
    quat = np.stack([np.cos(yaw / 2), 0 * yaw, 0 * yaw, np.sin(yaw / 2)], axis=1)
    np.testing.assert_allclose(yaw_of(quat), yaw, atol=1e-6)


def test_no_feature_is_divided_by_less_than_the_floor() -> None:
    features = torch.randn(100, 3) * torch.tensor([1e-4, 0.05, 3.0])
    _, std = statistics(features)
    assert std[0] == std[1] == pytest.approx(STD_FLOOR)
    assert std[2] > 2.0


def test_a_folder_without_play_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must hold episodes of play"):
        load_play(tmp_path)


def test_a_damaged_episode_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_play(tmp_path / "data") / "play"
    (folder / "episode_00001.npz").write_bytes(b"not a zip file")
    with pytest.raises(DataError, match=r"episode_00001\.npz' is damaged"):
        load_play(folder)


def test_the_servo_lag_is_fitted_from_play_and_written_as_a_robot_file_wants_it(
    tmp_path: Path,
) -> None:
    data = write_play(tmp_path / "data", steps=200)
    tau = np.array([0.1, 0.08, 0.06, 0.05, 0.04, 0.2])
    for path in (data / "play").glob("*.npz"):
        with np.load(path) as episode:
            arrays = dict(episode)
        arrays["qpos"] = arrays["qpos"].astype(np.float64)
        q = arrays["qpos"]
        for row in range(len(q) - 1):
            gap = arrays["ctrl"][row, :6] - q[row, :6]
            q[row + 1, :6] = q[row, :6] + (1 - np.exp(-0.05 / tau)) * gap + 0.001
        np.savez(path, **arrays)
    servo = fit_servo_of_play(data)
    np.testing.assert_allclose(servo.tau_s, tau, rtol=1e-4)
    np.testing.assert_allclose(servo.bias_rad, 0.001, atol=1e-6)
    section = yaml.safe_load(robot_file_lines(servo))["servo"]
    np.testing.assert_allclose(section["tau_s"], tau, atol=1e-4)


def test_a_goal_for_a_suites_task_is_refused_and_the_other_way_round(tmp_path: Path) -> None:
    play_of_arm = write_play(tmp_path / "arm")
    with pytest.raises(ConfigError, match=r"'task' must be left out .* play of the simulated arm"):
        load_transitions(RewardSource(data=str(play_of_arm), task=2))
    (tmp_path / "dataset.json").write_text('{"settings": {"suite": "scene"}}')
    with pytest.raises(ConfigError, match=r"'goal' must be left out .* play of scene"):
        load_transitions(RewardSource(data=str(tmp_path), goal=2))
