from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_store import (
    DT_NS,
    START_NS,
    Sent,
    action,
    colour,
    decision,
    number,
    traffic,
    write_episode,
)

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.replay.steps import EpisodeSteps, read_steps
from qsteer_ros.replay.transitions import load_transitions, logged_steps, windows_of

DISCOUNT = 0.9


def without(sent: list[Sent], *topics: str) -> list[Sent]:
    return [m for m in sent if not m.topic.startswith(topics)]


def steps_of(tmp_path, sent: list[Sent], **options) -> EpisodeSteps:
    return read_steps(write_episode(tmp_path, "e", sent, **options))


def joints(steps: EpisodeSteps) -> np.ndarray:
    return np.concatenate([steps.position, steps.gripper[:, None]], axis=1)


def test_every_row_holds_what_was_true_at_its_stamp(tmp_path):
    steps = steps_of(tmp_path, list(traffic(20)))
    assert np.array_equal(steps.stamp_ns, START_NS + np.arange(20) * DT_NS)
    assert steps.position[7] == pytest.approx([0.07, -0.07])
    assert steps.velocity[7] == pytest.approx([0.1, 0.2])
    assert steps.gripper[7] == pytest.approx(7 / 20)
    assert steps.gripper_effort[7] == pytest.approx(0.5)
    assert steps.complete.all()
    for camera in ("front", "wrist"):
        images = steps.images(camera)
        assert images.shape == (20, 8, 12, 3)
        assert np.max(np.abs(images[7].astype(int) - colour(7, camera))) <= 3
    assert np.allclose(steps.action, [action(i) for i in range(20)])
    assert steps.acting.all()
    assert np.all(steps.reward == -1.0)
    assert not steps.success.any()


def test_a_newer_chunk_takes_over_at_its_own_stamp(tmp_path):
    sent = without(list(traffic(12)), "/policy_node")
    chunks = [np.full((5, 5), value, np.float32) for value in (0.1, 0.2, 0.3)]
    for index, chunk in enumerate(chunks):
        stamp = START_NS + index * 4 * DT_NS
        blob = decision(stamp, chunk, effective_ns=stamp + 70_000_000)
        sent.append(Sent("/policy_node/decision", blob, stamp + 70_000_000))
    steps = steps_of(tmp_path, sent)
    assert steps.action[:, 0] == pytest.approx([0.1] * 4 + [0.2] * 4 + [0.3] * 4)


def test_steps_that_no_chunk_covers_are_at_rest_and_no_window_holds_them(tmp_path):
    sent = [m for m in traffic(20) if m.topic != "/policy_node/decision"]
    for first in (0, 5, 12):
        chunk = np.stack([action(first + k) for k in range(5)])
        stamp = START_NS + first * DT_NS
        sent.append(Sent("/policy_node/decision", decision(stamp, chunk), stamp))
    steps = steps_of(tmp_path, sent)
    assert np.flatnonzero(~steps.acting).tolist() == [10, 11, 17, 18, 19]
    assert np.all(steps.action[~steps.acting] == 0.0)
    windows = windows_of(steps, horizon=5, discount=DISCOUNT)
    assert windows.start.tolist() == [0, 1, 2, 3, 4, 5, 12]


def test_a_shorter_chunk_cuts_off_the_rest_of_the_one_before(tmp_path):
    sent = without(list(traffic(8)), "/policy_node")
    for first, length in ((0, 6), (2, 3)):
        stamp = START_NS + first * DT_NS
        blob = decision(stamp, np.full((length, 5), 0.1 * length, np.float32))
        sent.append(Sent("/policy_node/decision", blob, stamp))
    steps = steps_of(tmp_path, sent)
    assert steps.action[:, 0] == pytest.approx([0.6, 0.6, 0.3, 0.3, 0.3, 0.0, 0.0, 0.0])
    assert steps.acting.tolist() == [True] * 5 + [False] * 3


def test_a_step_without_a_joint_measurement_near_it_is_not_complete(tmp_path):
    sent = list(traffic(12))
    states = [m for m in sent if m.topic == "/joint_states"]
    steps = steps_of(tmp_path, [m for m in sent if m not in states[4:6]])
    assert np.flatnonzero(~steps.complete).tolist() == [4, 5]


def test_a_chunk_that_was_over_before_it_took_effect_was_not_executed(tmp_path):
    sent = list(traffic(10))
    stamp = START_NS + 3 * DT_NS
    chunk = np.ones((5, 5), np.float32)
    blob = decision(stamp, chunk, effective_ns=stamp + 5 * DT_NS)
    steps = steps_of(tmp_path, [*sent, Sent("/policy_node/decision", blob, stamp)])
    assert np.allclose(steps.action, [action(i) for i in range(10)])


def test_windows_of_a_truncated_episode_bootstrap_to_the_end(tmp_path):
    steps = steps_of(tmp_path, list(traffic(12)))
    windows = windows_of(steps, horizon=5, discount=DISCOUNT)
    assert windows.start.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.array_equal(windows.next, windows.start + 5)
    assert np.allclose(windows.chunk[3], [action(3 + k) for k in range(5)])
    assert windows.reward == pytest.approx(-sum(DISCOUNT**i for i in range(5)))
    assert windows.bootstrap == pytest.approx(DISCOUNT**5)
    assert not windows.terminated.any()


def test_only_the_last_window_before_the_clock_ran_out_is_truncated(tmp_path):
    sent = [m for m in traffic(14) if m.topic != "/policy_node/decision" or m.log_time_ns < START_NS + 10 * DT_NS]  # fmt: skip  # noqa: E501
    windows = windows_of(steps_of(tmp_path, sent), horizon=5, discount=DISCOUNT)
    assert windows.start.tolist() == [0, 1, 2, 3, 4, 5]
    assert windows.truncated.tolist() == [False] * 5 + [True]


def test_a_window_that_reaches_the_goal_ends_there_and_bootstraps_nothing(tmp_path):
    steps = steps_of(tmp_path, list(traffic(20, success_at=8)), outcome="success")
    windows = windows_of(steps, horizon=5, discount=DISCOUNT)
    assert windows.start.tolist() == list(range(9))
    assert windows.terminated.tolist() == [False] * 3 + [True] * 6
    ends_at_goal, inside = 3, 6
    assert windows.reward[ends_at_goal] == pytest.approx(-sum(DISCOUNT**i for i in range(4)))
    assert windows.reward[inside] == pytest.approx(-1.0)
    assert windows.reward[8] == 0.0
    assert np.all(windows.bootstrap == np.where(windows.terminated, 0.0, np.float32(DISCOUNT**5)))
    assert np.all(windows.chunk[inside][2:] == 0.0)
    assert np.allclose(windows.chunk[inside][:2], [action(6), action(7)])


def test_each_step_knows_its_reward_whether_it_was_the_last_and_what_is_still_to_come(tmp_path):
    steps = steps_of(tmp_path, list(traffic(20, success_at=8)), outcome="success")
    windows = windows_of(steps, horizon=5, discount=DISCOUNT)
    assert windows.rewards[3].tolist() == [-1, -1, -1, -1, 0]  # rows 4 to 8, the goal
    assert windows.ended[3].tolist() == [False] * 4 + [True]
    assert windows.rewards[6].tolist() == [-1, 0, 0, 0, 0]
    assert windows.ended[6].tolist() == [False] + [True] * 4
    assert windows.ended[8].all()
    to_go = [-sum(DISCOUNT**i for i in range(max(7 - start, 0))) for start in range(9)]
    assert windows.mc_return == pytest.approx(to_go)
    cut_off = windows_of(
        replace(steps, success=np.zeros(20, dtype=bool), reward=np.full(20, -1.0)),
        horizon=5,
        discount=DISCOUNT,
    )
    assert not cut_off.ended.any()
    assert cut_off.mc_return == pytest.approx(-10.0)  # -1 for ever: -1 / (1 - 0.9)


def test_an_episode_that_stops_at_the_goal_keeps_its_last_windows(tmp_path):
    steps = steps_of(tmp_path, list(traffic(9, success_at=8)), outcome="success")
    windows = windows_of(steps, horizon=5, discount=DISCOUNT)
    assert windows.start.tolist() == list(range(9))
    assert windows.next.max() == 8


@pytest.mark.parametrize("latency_ms", [-9, 0, 4, 20])
def test_rewards_find_their_step_by_count_whatever_the_delay(tmp_path, latency_ms):
    rng = np.random.default_rng(5)
    late = [int(rng.integers(0, 60_000_000)) * (step % 4 != 0) for step in range(20)]
    due = START_NS + np.arange(20) * DT_NS + latency_ms * 1_000_000 + late
    log_ns = np.maximum.accumulate(due)  # one publisher's messages arrive in order
    sent = [
        replace(m, log_time_ns=int(log_ns[m.sequence - 1]), sequence=m.sequence + 300)
        if m.topic in ("/reward", "/success")
        else m
        for m in traffic(20, success_at=11)
    ]
    steps = steps_of(tmp_path, sent)
    assert steps.success.tolist() == [False] * 11 + [True] * 9
    assert steps.reward.tolist() == [-1.0] * 11 + [0.0] * 9


def test_a_lost_reward_message_shifts_nothing(tmp_path):
    sent = [m for m in traffic(20, success_at=11) if m.sequence != 5 or m.topic != "/success"]
    steps = steps_of(tmp_path, sent)
    assert steps.success.tolist() == [False] * 11 + [True] * 9


def test_a_reward_at_another_rate_holds_until_the_next(tmp_path):
    sent = without(list(traffic(20)), "/reward", "/success")
    for step, value in ((0, -1.0), (9.3, -0.5), (15, 0.0)):
        sent.append(Sent("/reward", number(value), START_NS + round(step * DT_NS), 1))
    steps = steps_of(tmp_path, sent)
    assert steps.reward.tolist() == [-1.0] * 10 + [-0.5] * 5 + [0.0] * 5


def test_an_episode_without_a_reward_is_judged_by_its_outcome(tmp_path):
    sent = without(list(traffic(12)), "/reward", "/success")
    steps = steps_of(tmp_path / "1", sent, outcome="success")
    assert steps.success.tolist() == [False] * 11 + [True]
    assert steps.reward.tolist() == [-1.0] * 11 + [0.0]
    steps = steps_of(tmp_path / "2", sent, outcome="failure")
    assert not steps.success.any()
    assert np.all(steps.reward == -1.0)


def test_a_missing_frame_costs_the_windows_that_need_it(tmp_path):
    sent = list(traffic(20))
    wrist = [m for m in sent if m.topic.startswith("/wrist")]
    steps = steps_of(tmp_path, [m for m in sent if m is not wrist[9]])
    assert np.flatnonzero(~steps.complete).tolist() == [9]
    assert len(steps.frames["wrist"]) == 20
    windows = windows_of(steps, horizon=5, discount=DISCOUNT)
    assert sorted({*range(15)} - set(windows.start.tolist())) == [4, 9]


def test_the_end_event_and_the_shortest_stream_bound_the_grid(tmp_path):
    sent = list(traffic(20))
    assert len(steps_of(tmp_path / "1", sent, end_ns=START_NS + 14 * DT_NS)) == 15
    wrist = [m for m in sent if m.topic.startswith("/wrist")]
    short = steps_of(tmp_path / "2", [m for m in sent if m not in wrist[13:]])
    assert len(short) == 14  # pictures may be missing in the last row
    assert np.flatnonzero(~short.complete).tolist() == [13]


def test_a_success_whose_picture_came_too_late_still_ends_the_episode(tmp_path):
    """The state in which the goal is reached ends the recording before its frames arrive."""
    late = START_NS + 12 * DT_NS
    sent = [
        m
        for m in traffic(13, success_at=12)
        if not ("image_raw" in m.topic and m.log_time_ns >= late)
    ]
    steps = steps_of(tmp_path, sent, end_ns=late)
    assert (len(steps), np.flatnonzero(steps.success).tolist()) == (13, [12])
    windows = windows_of(steps, horizon=5, discount=DISCOUNT)
    assert windows.solved
    assert windows.start.tolist() == list(range(12))
    assert windows.terminated.tolist() == [False] * 7 + [True] * 5
    assert windows.mc_return[11] == 0.0  # one step, into the goal
    assert windows.mc_return[10] == -1.0


def test_a_success_that_no_window_reaches_is_still_one(tmp_path):
    """No action is known of the last step: the windows end before it, the outcome does not."""
    sent = [m for m in traffic(12, success_at=11) if m.topic != "/policy_node/decision"]
    sent += [m for m in traffic(6, success_at=11) if m.topic == "/policy_node/decision"]
    windows = windows_of(steps_of(tmp_path / "a", sent), horizon=5, discount=DISCOUNT)
    assert (windows.solved, windows.terminated.any()) == (True, False)
    write_episode(tmp_path / "b", "a", sent, outcome="success")
    data = load_transitions(tmp_path / "b", horizon=5, discount=DISCOUNT, features=fake_features)
    assert data.success.all()


def fake_features(steps: EpisodeSteps) -> np.ndarray:
    mean = steps.images("front").reshape(len(steps), -1, 3).mean(axis=1)
    return np.concatenate([joints(steps), mean], axis=1)


def test_a_store_becomes_transitions_with_features_of_both_ends(tmp_path):
    write_episode(tmp_path, "a", list(traffic(12)), goal=1)
    write_episode(tmp_path, "b", list(traffic(20, success_at=8)), goal=1, outcome="success")
    write_episode(tmp_path, "c", list(traffic(12)), goal=2)
    write_episode(tmp_path, "d", list(traffic(12)), close=False)
    told: list[int] = []
    data = load_transitions(
        tmp_path,
        horizon=5,
        discount=DISCOUNT,
        features=fake_features,
        goal=1,
        on_episode=told.append,
    )
    assert [e.episode_id for e in data.episodes] == ["a", "b"]
    assert told == [7, 9]
    assert data.episode.tolist() == [0] * 7 + [1] * 9
    assert [(folder.name, reason[:11]) for folder, reason in data.skipped] == [
        ("c", "its goal is"),
        ("d", "episode 'd'"),
    ]
    assert data.features.shape == data.next_features.shape == (16, 6)
    assert data.features[3, 0] == pytest.approx(0.03)
    assert data.next_features[3, 0] == pytest.approx(0.08)
    assert data.chunk.shape == (16, 5, 5)
    assert data.stamp_ns[9] == START_NS + 2 * DT_NS
    assert (data.features.dtype, data.chunk.dtype) == (np.float32, np.float32)
    assert data.next_valid[:7].tolist() == [True, True] + [False] * 5
    assert data.next_valid[7:].tolist() == [True] * 3 + [False] * 6  # nothing follows the goal
    assert np.array_equal(data.next_chunk[1], data.chunk[6])
    assert np.array_equal(data.next_chunk[9], data.chunk[14])
    assert not data.next_chunk[~data.next_valid].any()
    again = load_transitions(
        [tmp_path / "a", tmp_path / "b"], horizon=5, discount=DISCOUNT, features=fake_features
    )
    assert again.hash == data.hash
    only = load_transitions(tmp_path / "a", horizon=5, discount=DISCOUNT, features=fake_features)
    assert only.hash != data.hash


def test_episodes_that_cannot_be_used_are_named_with_the_reason(tmp_path):
    write_episode(tmp_path, "a", without(list(traffic(12)), "/policy_node"))
    write_episode(tmp_path, "b", robot={})
    write_episode(tmp_path, "c", without(list(traffic(12)), "/joint_states"))
    reasons = {f.name: r for f, r in (s for s in logged_steps(tmp_path) if isinstance(s, tuple))}
    assert "must hold decisions and camera frames: it has 0 decisions" in reasons["a"]
    assert "must know its robot: it lacks ['joints'" in reasons["b"]
    assert "joint states must have the joints" in reasons["c"]
    with pytest.raises(DataError, match=r"must hold episodes to learn from: none can be used \(a"):
        load_transitions(tmp_path, horizon=5, discount=DISCOUNT, features=fake_features)
    with pytest.raises(ConfigError, match="an episode store must be a folder"):
        list(logged_steps(tmp_path / "nowhere"))


def test_an_episode_shorter_than_a_window_is_skipped(tmp_path):
    write_episode(tmp_path, "a", list(traffic(4)))
    with pytest.raises(DataError, match="no window of 5 executed actions"):
        load_transitions(tmp_path, horizon=5, discount=DISCOUNT, features=fake_features)
