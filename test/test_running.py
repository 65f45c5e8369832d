"""What of the running chunk the next one continues, and how far it departs from it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qsteer_ros.errors import ConfigError
from qsteer_ros.policies.running import (
    LATENCIES,
    RunningChunk,
    RunningMemory,
    check_overlap,
    running_chunk,
    seam_jump,
)

MS = 1_000_000
DT = 50 * MS
CHUNK = np.arange(10, dtype=np.float32).reshape(5, 2) / 16


def after(age_ms: float, latency_ms: float):
    return running_chunk(
        CHUNK, age_ns=round(age_ms * MS), latency_ns=round(latency_ms * MS), control_dt_ns=DT
    )


@pytest.mark.parametrize(("age_ms", "elapsed"), [(25, 1), (74.9, 1), (75, 2), (100, 2), (224, 4)])
def test_the_age_counts_in_control_steps_to_the_nearest(age_ms: float, elapsed: int) -> None:
    assert after(age_ms, 0).elapsed == elapsed


@pytest.mark.parametrize("age_ms", [-100, 0, 24, 225, 1000])
def test_nothing_is_continued_of_a_chunk_that_is_over_or_answers_the_same(age_ms: float) -> None:
    assert after(age_ms, 60) is None


@pytest.mark.parametrize(
    ("latency_ms", "committed"), [(-5, 0), (0, 0), (0.001, 1), (50, 1), (50.001, 2), (100, 2)]
)
def test_the_latency_counts_in_control_steps_rounded_up(latency_ms: float, committed: int) -> None:
    assert after(100, latency_ms).committed == committed


def test_no_more_is_committed_than_the_running_chunk_still_has() -> None:
    assert after(150, 1000).committed == 2
    assert after(200, 1000).committed == 1


def test_the_seam_is_judged_where_both_chunks_have_actions_that_can_still_change() -> None:
    running = after(100, 60)
    new = np.zeros((5, 2), dtype=np.float32)
    new[:3] = CHUNK[2:]
    new[0] += 9.0  # due before the path takes effect
    new[1, 1] += 0.25
    new[2, 0] -= 0.5
    new[3:] += 7.0  # the running chunk has nothing there
    found = seam_jump(running, new, latency_ns=60 * MS, control_dt_ns=DT)
    assert found == 0.5
    assert seam_jump(running, new, latency_ns=49 * MS, control_dt_ns=DT) == 9.0
    assert seam_jump(running, new, latency_ns=150 * MS, control_dt_ns=DT) is None


def test_the_largest_of_the_last_latencies_is_expected() -> None:
    memory = RunningMemory(DT)
    assert memory.at(0) is None
    for k, latency_ms in enumerate([120, *[30] * LATENCIES]):
        stamp_ns = 100 * MS * k
        memory.published(CHUNK, stamp_ns=stamp_ns, effective_ns=stamp_ns + latency_ms * MS)
        expected = 3 if k < LATENCIES else 1
        assert memory.at(stamp_ns + 50 * MS).committed == expected
    assert memory.at(stamp_ns + 100 * MS).elapsed == 2


def test_forgetting_keeps_what_is_expected_and_clearing_does_not() -> None:
    memory = RunningMemory(DT)
    memory.published(CHUNK, stamp_ns=0, effective_ns=120 * MS)
    memory.forget()
    assert memory.at(100 * MS) is None
    memory.published(CHUNK, stamp_ns=0, effective_ns=10 * MS)
    assert memory.at(50 * MS).committed == 3
    memory.clear()
    assert memory.at(50 * MS) is None
    memory.published(CHUNK, stamp_ns=0, effective_ns=10 * MS)
    assert memory.at(50 * MS).committed == 1


def test_chunks_that_are_executed_whole_cannot_be_continued() -> None:
    check_overlap(execute_steps=4, horizon=5)
    with pytest.raises(ConfigError, match="must be below the 5 actions in a chunk, got 5"):
        check_overlap(execute_steps=5, horizon=5)


@pytest.mark.parametrize("odd", [5.0, -1.001, math.nan, math.inf])
def test_a_running_chunk_that_no_policy_decides_is_refused(odd: float) -> None:
    chunk = CHUNK.copy()
    chunk[1, 0] = odd
    RunningChunk(chunk, elapsed=2, committed=1)  # it is not read any more
    with pytest.raises(ConfigError, match=f"finite and inside the action bounds.* {odd:g}"):
        RunningChunk(chunk, elapsed=1, committed=1)


@pytest.mark.parametrize("shape", [(5,), (1, 5, 2), ()])
def test_a_running_chunk_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"must be \(H, A\), .* got shape \("):
        RunningChunk(np.zeros(shape, dtype=np.float32), elapsed=1, committed=0)


def test_actions_at_the_bounds_may_run() -> None:
    RunningChunk(np.array([[1.0, -1.0]] * 3, dtype=np.float32), elapsed=1, committed=2)
