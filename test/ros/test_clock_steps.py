import pytest

pytest.importorskip("rclpy")

from qsteer_ros.nodes.clock_steps import LEAST_STEP_NS, ClockSteps

pytestmark = pytest.mark.ros
SECOND = 1_000_000_000


class Clocks:
    """Two clocks that the test turns; reading the second one may take long."""

    def __init__(self):
        self.now_ns, self.monotonic_ns, self.delay_ns = 50 * SECOND, 7 * SECOND, 0
        self.steps = ClockSteps(lambda: self.now_ns, self.monotonic)

    def monotonic(self):
        self.monotonic_ns += self.delay_ns
        self.now_ns += self.delay_ns
        return self.monotonic_ns

    def run(self, duration_ns, ahead_ns=0):
        self.monotonic_ns += duration_ns
        self.now_ns += duration_ns + ahead_ns


@pytest.mark.parametrize("by_ns", [-350_000_000, -21_000_000, 21_000_000, 3600 * SECOND])
def test_a_clock_that_was_set_is_noticed_once(by_ns):
    clocks = Clocks()
    clocks.run(SECOND, by_ns)
    assert clocks.steps.look() == by_ns
    clocks.run(SECOND)
    assert clocks.steps.look() == 0


def test_a_clock_that_is_slewed_is_no_step_however_long():
    clocks = Clocks()
    for _ in range(1000):
        clocks.run(50_000_000, 25_000)  # 500 ppm
        assert clocks.steps.look() == 0


def test_a_delay_between_the_two_readings_is_no_step():
    clocks = Clocks()
    for delay_ns in (0, 5 * LEAST_STEP_NS, 0, 10 * LEAST_STEP_NS):
        clocks.delay_ns = delay_ns
        clocks.run(SECOND)
        assert clocks.steps.look() == 0
