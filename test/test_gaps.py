from __future__ import annotations

from qsteer_ros.replay.gaps import Gap, lost_messages, missing_frames

MS = 1_000_000


def test_exact_multiples_have_no_gap_and_a_missing_frame_is_one():
    stamps = [i * 50 * MS for i in range(10)]
    assert missing_frames(stamps, 50 * MS) == []
    assert missing_frames(stamps[:4] + stamps[5:], 50 * MS) == [Gap(150 * MS, 1)]


def test_jitter_below_half_a_period_is_no_gap():
    assert missing_frames([0, 74 * MS, 100 * MS, 174 * MS], 50 * MS) == []
    assert missing_frames([0, 75 * MS], 50 * MS) == [Gap(0, 1)]


def test_without_a_period_the_median_is_taken():
    assert missing_frames([0, 33, 66, 132, 165], None) == [Gap(66, 1)]
    assert missing_frames([5], None) == []


def test_order_and_repeats_do_not_matter():
    assert missing_frames([100, 0, 50, 50], 50) == []


def test_the_edges_of_an_episode_are_checked_beyond_five_periods():
    stamps = [i * 50 for i in range(10)]
    assert missing_frames(stamps, 50, start_ns=-250, end_ns=700) == []
    assert missing_frames(stamps, 50, start_ns=-300, end_ns=701) == [Gap(-300, 5), Gap(450, 5)]
    assert missing_frames([], 50, start_ns=0, end_ns=500) == [Gap(0, 10)]
    assert missing_frames([], 50) == []


def test_lost_messages_follow_the_publishers_count_and_a_restart_is_no_loss():
    assert lost_messages([3, 4, 5]) == 0
    assert lost_messages([3, 6, 7, 9]) == 3
    assert lost_messages([8, 9, 1, 2]) == 0
    assert lost_messages([]) == 0
