"""Real-time chunking and deadlines in the loop: what is continued, when, and what is told."""

import dataclasses
import itertools
import time

import numpy as np
import pytest

pytest.importorskip("rclpy")

from policy_bench import MS

from qsteer_ros import resources
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import DataError
from qsteer_ros.nodes.messages import OK, WARN
from qsteer_ros.nodes.policy_pace import Reserve
from qsteer_ros.nodes.policy_parameters import PolicyParameters
from qsteer_ros.nodes.policy_parts import Pace
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.step_costs import StepCosts

pytestmark = pytest.mark.ros
RTC = {"real_time_chunking": True, "execute_steps": 2}


def continued(one):
    """Elapsed and committed of everything that was asked, None where it began afresh."""
    return [None if r is None else (r.elapsed, r.committed) for r in one.steered.continued]


def test_the_running_chunk_is_continued_with_the_latency_of_the_last_ones(bench):
    one = bench(**RTC, lead_s=0.01)
    one.loop.activate()
    one.answer_after(1000, 55)
    one.answer_after(1100, 20)
    one.answer_after(1200, 100)
    one.answer_after(1350, 0)
    # 65 ms are two steps; 110 ms would be three, of which the running chunk has but two.
    assert continued(one) == [None, (2, 2), (2, 2), (3, 2)]
    for running in one.steered.continued[1:]:
        np.testing.assert_array_equal(running.chunk, one.steered.chunk)


def test_a_slow_chunk_is_expected_again_for_ten_chunks(bench):
    one = bench(**RTC, lead_s=0.01)
    one.loop.activate()
    one.answer_after(1000, 55)
    for k in range(11):
        one.answer_after(1100 + 100 * k, 5)
    assert [c for _, c in continued(one)[1:]] == [2] * 10 + [1]


def test_latencies_of_another_activation_are_not_expected(bench):
    one = bench(**RTC)
    one.loop.activate()
    one.answer_after(1000, 55)
    activate(one)
    one.answer_after(1100, 0)
    one.answer_after(1200, 0)
    assert continued(one)[-1] == (2, 1)


def test_nothing_is_continued_unless_it_is_wanted(bench):
    one = bench(execute_steps=2)
    one.loop.activate()
    for k in range(3):
        one.answer_after(1000 + 100 * k, 0)
    assert continued(one) == [None] * 3
    one.loop.revise(one.parts, PolicyParameters(seed=7, **RTC))
    one.answer_after(1300, 0)
    assert continued(one)[-1] == (2, 1)


def test_a_chunk_that_is_over_is_not_continued(bench):
    one = bench(**RTC)
    one.loop.activate()
    one.answer_after(1000, 0)
    one.answer_after(1250, 0)
    assert continued(one) == [None, None]


def refuse(one):
    one.steered.error = DataError("features must be finite.")
    one.observe(1100)
    one.until(lambda: "features must be finite." in one.warnings, "the refusal")
    one.steered.error = None


def hold(one):
    one.now_ns = 1020 * MS + round(one.parameters.max_age_s * 1e9)
    one.loop.watch()
    assert len(one.paths) == 2


def set_clock(one):
    path = one.paths[0][0]
    one.set_clock(-350)
    one.loop.watch()
    assert any("the clock must not be set" in warning for warning in one.warnings)
    one.position, one.paths[:] = path.positions[-1, :6], []  # it has come to rest


def activate(one):
    one.loop.deactivate()
    one.loop.activate()


def set_seed(one):
    one.loop.revise(one.parts, one.parameters, restart=True)


@pytest.mark.parametrize("event", [refuse, hold, set_clock, activate, set_seed])
def test_nothing_is_continued_after(event, bench):
    one = bench(**RTC, max_age_s=0.08)
    one.loop.activate()
    one.answer_after(1000, 0)
    event(one)
    one.answer_after(max(one.now_ns / MS, 1100) + 50, 0)
    assert continued(one)[-1] is None
    one.answer_after(one.now_ns / MS + 100, 0)
    assert continued(one)[-1] == (2, 1)


def test_a_chunk_of_the_old_seed_is_not_continued_by_the_new_one(bench):
    one = bench(**RTC)
    one.loop.activate()
    one.steered.gate.clear()
    one.observe(1000)
    one.until(lambda: one.steered.asked, "the first question")
    set_seed(one)
    one.steered.gate.set()
    one.answered(1)
    one.answer_after(1100, 0)
    assert continued(one) == [None, None]


class Features:
    """An encoder of one scene, for the shipped policy."""

    def __init__(self, policy):
        self.hash = policy.interface.encoder_hash or "e"
        self.feature_names = policy.interface.feature_names
        self._mean = policy.feature_mean

    def features(self, observation):
        return self._mean[None] + 1e-10 * (observation.stamp_ns % 1000)


@pytest.fixture(scope="module")
def shipped():
    policy = FlowPolicy.load(resources.find("checkpoints/policy"))
    return policy, Critic.load(resources.find("checkpoints/critic_goal1"))


@pytest.mark.parametrize("mode", ["off", "qgf", "best_of_n"])
def test_committed_actions_are_those_of_the_record_before_bit_for_bit(mode, shipped, bench):
    policy, critic = shipped
    parameters = {**RTC, "steering": mode, "max_age_s": 5.0}
    settings = PolicyParameters(**parameters).steering_settings()
    steered = SteeredPolicy(Features(policy), policy, critic, settings)
    one = bench(steered=steered, **parameters)
    one.loop.activate()
    for k in range(6):
        one.observe(1000 + 100 * k)
        one.answered(k + 1)
    records = [DecisionRecord.decode(record.encode()) for record in one.records]
    assert "running" not in records[0].meta
    for before, after in itertools.pairwise(records):
        elapsed, committed = after.meta["running"]["elapsed"], after.meta["running"]["committed"]
        assert (elapsed, committed) == (2, 1)
        np.testing.assert_array_equal(
            after.chunk[:committed], before.chunk[elapsed : elapsed + committed]
        )
        np.testing.assert_array_equal(after.tensors["running_chunk"], before.chunk)
        assert not np.array_equal(after.chunk[committed:], before.chunk[committed:])
    values = one.report.summary("active")[2]
    assert values["continued"] == 5
    assert values["committed_mean"] == 1.0


def test_without_a_deadline_none_is_given(bench):
    one = bench()
    one.loop.activate()
    one.answer_after(1000, 0)
    assert one.steered.deadlines == [None]


def test_the_deadline_leaves_time_for_what_comes_after_denoising(bench):
    pace = Pace(StepCosts([5], [1]), after_ns=30 * MS)
    one = bench(pace=pace, deadline_s=0.5, execute_steps=1)
    one.loop.activate()
    before_ns = time.monotonic_ns()
    one.answer_after(1000, 0)
    first = one.steered.deadlines[0]
    assert first.costs is pace.costs
    assert before_ns + 470 * MS <= first.at_ns <= time.monotonic_ns() + 470 * MS


STAGES = {"total": MS, "select": 20 * MS, "judge": 60 * MS, "denoise": 900 * MS, "plan": 5 * MS}


@pytest.mark.parametrize(("slow", "reserve_ms"), [(0, 30), (4, 30), (5, 85), (16, 85)])
def test_a_hiccup_does_not_count_for_the_next_deadlines_but_slowness_does(slow, reserve_ms):
    reserve, pace = Reserve(), Pace(StepCosts([5], [1]), after_ns=30 * MS)
    for k in range(30):
        reserve.saw(STAGES if k >= 30 - slow else {"total": MS, "judge": 2 * MS})
    found = reserve.deadline(pace, start_ns=7, longest_s=0.5)
    assert found.at_ns == 7 + (500 - reserve_ms) * MS


def test_the_time_of_planning_is_taken_from_the_next_deadlines(bench, monkeypatch):
    one = bench(deadline_s=0.5)
    seen = []
    monkeypatch.setattr(Reserve, "saw", lambda self, timings: seen.append(timings))
    one.loop.activate()
    one.answer_after(1000, 0)
    assert seen == [one.records[0].meta["timings_ns"]]
    assert seen[0]["plan"] > 0


def told(one, count, **deadline):
    """The report after chunks whose deadlines went like this."""
    plan = one.loop._controller.report
    kept = {"guidance": "kept", "path": [0, 0.5, 1], "planned_steps": 2, "met": True, "left_ns": 0}
    meta = {**one.records[0].meta, "deadline": {**kept, **deadline}}
    for _ in range(count):
        one.report.chunk(meta, plan)
    return one.report.summary("active")


@pytest.mark.parametrize(
    ("deadline", "counted"),
    [
        ({"guidance": "dropped"}, "guidance_dropped"),
        ({"guidance": "none", "path": [0, 1]}, "steps_dropped"),
    ],
)
def test_chunks_that_often_lose_guidance_or_steps_are_a_warning(deadline, counted, bench):
    one = bench()
    one.loop.activate()
    one.answer_after(1000, 0)
    assert told(one, 45)[0] == OK
    level, sentence, values = told(one, 5, **deadline)
    assert (level, values[counted]) == (OK, 5)
    level, sentence, values = told(one, 1, **deadline)
    assert (level, values[counted]) == (WARN, 6)
    assert "6 of the last 51 chunks lost guidance or steps to the deadline. Raise" in sentence


def test_missed_deadlines_are_counted(bench):
    one = bench()
    one.loop.activate()
    one.answer_after(1000, 0)
    assert told(one, 3, met=False, left_ns=-2 * MS)[2]["deadlines_missed"] == 3
    assert told(one, 0)[2]["left_ms_mean"] == -2.0


def judged(one, **more):
    """Level and sentence after a chunk with this record."""
    one.report.activated()
    meta = {**one.records[0].meta, **more}
    one.report.chunk(meta, one.loop._controller.report)
    level, sentence, values = one.report.summary("active")
    return level, sentence, values


@pytest.mark.parametrize(
    "mode", ["random_matched", "qgf", "qgf_jacobian", "qpilots_u", "qpilots_m", "bptt"]
)
def test_every_mode_that_bends_the_field_is_judged_by_its_ratio(mode, bench):
    one = bench()
    one.loop.activate()
    one.answer_after(1000, 0)
    assert "has no effect" in judged(one, mode=mode, critic_ratio=1e-4)[1]
    assert "replaces the policy" in judged(one, mode=mode, critic_ratio=1.5)[1]
    assert judged(one, mode=mode, critic_ratio=0.3)[0] == OK
    running = {"elapsed": 2, "committed": 1}  # its guidance is in the ratio, not in the critic's
    beside = {"ratio": 1.5, "running": running}
    assert judged(one, mode=mode, critic_ratio=0.3, **beside)[0] == OK
    assert "has no effect" in judged(one, mode=mode, critic_ratio=1e-4, **beside)[1]


def test_the_noisy_gradient_is_judged_by_its_share_unless_it_follows_a_ratio(bench):
    one = bench()
    one.loop.activate()
    one.answer_after(1000, 0)
    mode = {"mode": "noisy_gradient"}
    assert judged(one, **mode, critic_ratio=3.0, steering={"weight": 0.3, "ratio": 0.0})[0] == OK
    found = judged(one, **mode, critic_ratio=3.0, steering={"weight": 1.2, "ratio": 0.0})[1]
    assert "guidance is 1.2 of the velocity" in found
    found = judged(one, **mode, critic_ratio=3.0, steering={"weight": 0.3, "ratio": 3.0})[1]
    assert "guidance is 3 of the velocity" in found


@pytest.mark.parametrize("mode", ["zero", "off", "best_of_n", "gradient_step"])
def test_modes_that_bend_nothing_are_not_judged_by_a_ratio(mode, bench):
    one = bench()
    one.loop.activate()
    one.answer_after(1000, 0)
    for ratio in (1e-5, 5.0, None):
        assert judged(one, mode=mode, ratio=ratio, critic_ratio=ratio)[0] == OK


def test_a_change_of_mode_starts_the_means_again(bench):
    one = bench()
    one.loop.activate()
    one.answer_after(1000, 0)
    plan, meta = one.loop._controller.report, one.records[0].meta
    for mode, ratio in (("qgf", 0.1), ("bptt", 0.3)):
        one.report.chunk({**meta, "mode": mode, "ratio": ratio}, plan)
    assert one.report.summary("active")[2]["ratio_mean"] == 0.3


def test_displacement_and_whose_clips_are_averaged(bench):
    one = bench()
    one.loop.activate()
    one.answer_after(1000, 0)
    found = {"clipped_by_steering": 0.2, "clipped_by_policy": 0.1, "displacement": 0.05}
    values = judged(one, **found)[2]
    assert {name: values[f"{name}_mean"] for name in found} == found


def test_a_pace_is_measured_again_only_when_something_costs_differently(shipped, monkeypatch):
    from qsteer_ros.nodes import policy_pace
    from qsteer_ros.nodes.policy_parts import Parts

    policy, critic = shipped
    parameters = PolicyParameters(steering="qgf", deadline_s=0.1, execute_steps=2)
    robot = dataclasses.make_dataclass("Robot", ["joints"])(tuple("abcdef"))

    def parts(new, **changes):
        steered = SteeredPolicy(
            Features(policy), policy, critic, new.steering_settings(), sampler=new.sampler()
        )
        return Parts(robot, None, {"front": (4, 6)}, steered, **changes)

    first = policy_pace.paced(parts(parameters), parameters)
    assert first.pace.after_ns > 0
    assert len(first.pace.costs.guided) == 10
    for change, again in (
        ({"seed": 3}, False),
        ({"deadline_s": 0.2}, False),
        ({"steering": "off"}, True),
        ({"denoising_steps": 4}, True),
        ({"integrator": "heun"}, True),
        ({"compare_rate": 0.0}, True),
        ({"real_time_chunking": True}, True),
    ):
        new = dataclasses.replace(parameters, **change)
        found = policy_pace.paced(parts(new), new, before=(first, parameters))
        assert (found.pace is not first.pace) == again, change
        assert len(found.pace.costs.guided) == new.denoising_steps
    none = dataclasses.replace(parameters, deadline_s=0.0)
    assert policy_pace.paced(parts(none), none, before=(first, parameters)).pace is None
