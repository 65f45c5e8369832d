"""Simulated time against a clock that the test moves."""

import pytest

from qsteer_ros.sim.pacing import SLACK_NS, Pacer

MS = 1_000_000


class Clock:
    """A clock that only moves when told to, or when somebody sleeps."""

    def __init__(self):
        self.now_ns = 123_456_789

    def __call__(self):
        return self.now_ns

    def sleep(self, seconds):
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def clock():
    return Clock()


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_time_advances_at_the_factor(clock, factor):
    pacer = Pacer(factor, clock=clock, sleep=clock.sleep)
    start_ns = clock.now_ns
    for tick in range(101):
        clock.now_ns += MS  # work
        pacer.wait(tick * 10 * MS)
    assert clock.now_ns - start_ns - MS == pytest.approx(1000 * MS / factor, abs=100)


def test_a_small_delay_is_made_up_for(clock):
    pacer = Pacer(1.0, clock=clock, sleep=clock.sleep)
    pacer.wait(0)
    start_ns = clock.now_ns
    clock.now_ns += 10 * MS + SLACK_NS  # exactly the slack late
    pacer.wait(10 * MS)
    pacer.wait(30 * MS)
    assert clock.now_ns == start_ns + 30 * MS


def test_after_a_long_delay_time_stays_behind_and_does_not_hurry(clock):
    pacer = Pacer(1.0, clock=clock, sleep=clock.sleep)
    pacer.wait(0)
    clock.now_ns += 5000 * MS
    pacer.wait(10 * MS)
    resumed_ns = clock.now_ns
    pacer.wait(20 * MS)
    assert clock.now_ns == resumed_ns + 10 * MS


def test_a_new_factor_holds_from_now_on(clock):
    pacer = Pacer(1.0, clock=clock, sleep=clock.sleep)
    pacer.wait(0)
    pacer.factor = 2.0
    pacer.wait(10 * MS)
    start_ns = clock.now_ns
    pacer.wait(30 * MS)
    assert clock.now_ns == start_ns + 10 * MS
