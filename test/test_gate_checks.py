"""The checks of the gate on numbers whose answer is known by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from qsteer_ros.critics.gate import FAIL, PASS, UNKNOWN
from qsteer_ros.critics.gate_checks import (
    check_flatness,
    check_outcome,
    check_preference,
    check_spread,
    interval,
    outcome_wins,
)
from qsteer_ros.critics.gate_checks_gradient import (
    check_direction,
    check_gradient,
    dimension_energy,
    direction_share,
    mean_share,
)
from qsteer_ros.critics.gate_checks_inputs import Effect, Effects, check_inputs, groups_of
from qsteer_ros.critics.gate_checks_values import (
    calibration_bins,
    check_calibration,
    check_unit,
)
from qsteer_ros.critics.gate_settings import GateSettings, from_assignments
from qsteer_ros.errors import ConfigError

SETTINGS = GateSettings(resamples=200, min_episodes=2)


@pytest.fixture(name="rng")
def _rng() -> np.random.Generator:
    return np.random.default_rng(3)


def episodes(*lines: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, steps and numbers of episodes given as one list of values each."""
    value = np.concatenate([np.array(line, float) for line in lines])
    step = np.concatenate([np.arange(len(line)) for line in lines])
    return value, step, np.repeat(np.arange(len(lines)), [len(line) for line in lines])


def test_wins_are_counted_at_equal_steps_only_and_ties_are_half() -> None:
    value, step, episode = episodes([1, 5], [2, 2, 9], [1, 3, 4])
    wins, counts = outcome_wins(value, step, episode, np.isin(episode, [0, 1]))
    # episode 0 against 2: a tie and a win; episode 1 against 2: a win, a loss, a win
    assert wins.tolist() == [[1.5], [2.0]]
    assert counts.tolist() == [[2.0], [3.0]]


def test_the_chance_of_the_outcome_is_wins_over_comparisons() -> None:
    value, step, episode = episodes([1, 5], [2, 2, 9], [1, 3, 4], [0, 0, 0])
    check = check_outcome(value, step, episode, np.isin(episode, [0, 1]), SETTINGS)
    assert check.figures["auc"] == pytest.approx((1.5 + 2 + 2 + 3) / (2 + 3 + 2 + 3))


def test_an_episode_may_be_successful_first_and_failing_afterwards() -> None:
    """As in play: after the goal was reached for the last time, what follows is a failure."""
    value, step, episode = episodes([4, 4, 1, 1], [4, 4, 1, 1])
    success = np.tile([True, True, False, False], 2)
    wins, counts = outcome_wins(value, step, episode, success)
    assert wins.shape == counts.shape == (2, 2)
    assert counts.sum() == 0  # they share no step
    assert check_outcome(value, step, episode, success, SETTINGS).verdict == UNKNOWN


def test_an_outcome_that_chance_explains_is_no_pass_and_an_inverted_one_fails(
    rng: np.random.Generator,
) -> None:
    noise = [rng.normal(size=40).tolist() for _ in range(4)]
    noise[0] = (np.array(noise[0]) + 1.2).tolist()  # one of two successes is worth more
    value, step, episode = episodes(*noise)
    check = check_outcome(value, step, episode, episode < 2, SETTINGS)
    assert (check.verdict, "One half is in it" in check.reason) == (UNKNOWN, True)
    sure, step, episode = episodes([2, 2], [3, 3], [1, 1], [0, 0])
    assert check_outcome(sure, step, episode, episode < 2, SETTINGS).verdict == PASS
    found = check_outcome(-sure, step, episode, episode < 2, SETTINGS)
    assert (found.verdict, found.figures["auc"]) == (FAIL, 0.0)


def test_intervals_are_over_episodes_and_not_over_windows() -> None:
    """A thousand windows of three episodes tell no more than three numbers do."""
    win, episode = np.repeat([0.9, 0.2, 0.8], 1000), np.repeat(np.arange(3), 1000)
    check = check_preference("random", win, episode, least=0.5, against="x", settings=SETTINGS)
    assert check.figures["chance"] == pytest.approx(1.9 / 3)
    assert check.figures["low"] < 0.45
    assert check.verdict == UNKNOWN


def test_every_episode_counts_the_same_whatever_its_length() -> None:
    win, episode = np.array([1.0] * 90 + [0.4] * 10), np.array([0] * 90 + [1] * 10)
    check = check_preference("random", win, episode, least=0.5, against="x", settings=SETTINGS)
    assert check.figures["chance"] == pytest.approx(0.7)


@pytest.mark.parametrize(("chance", "verdict"), [(0.7, PASS), (0.55, FAIL), (0.3, FAIL)])
def test_a_preference_must_reach_its_threshold(chance: float, verdict: str) -> None:
    win, episode = np.full(40, chance), np.repeat(np.arange(4), 10)
    check = check_preference("random", win, episode, least=0.6, against="x", settings=SETTINGS)
    assert check.verdict == verdict


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = interval(
        lambda source: float(source.choice(values, 400).mean()), replace(SETTINGS, resamples=4000)
    )
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    nothing = interval(lambda source: math.nan, SETTINGS)
    assert all(map(math.isnan, nothing))


def test_the_share_of_one_direction_is_that_of_a_known_covariance() -> None:
    draw = np.random.default_rng(1)
    turn = np.linalg.qr(draw.normal(size=(4, 4)))[0]
    spread = np.array([6.0, 2.0, 1.0, 1.0])
    gradient = (draw.normal(size=(200_000, 4)) * np.sqrt(spread)) @ turn.T
    share, line = direction_share(gradient)
    assert share == pytest.approx(0.6, abs=0.005)
    assert abs(float(line @ turn[:, 0])) == pytest.approx(1.0, abs=1e-3)
    assert mean_share(gradient) < 1e-4


def test_the_share_is_not_centred_and_its_line_points_along_the_mean() -> None:
    """A constant push has share 1 although it has no variance."""
    constant = np.tile([0.0, -2.0, 0.0], (5, 1))
    share, line = direction_share(constant)
    assert share == pytest.approx(1.0)
    assert line == pytest.approx([0.0, -1.0, 0.0])
    assert mean_share(constant) == pytest.approx(1.0)
    both_ways = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert (direction_share(both_ways)[0], mean_share(both_ways)) == pytest.approx((1.0, 0.0))


def test_energy_is_per_action_dimension_over_all_positions() -> None:
    gradient = np.array([[1.0, 2.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]])  # H 2, A 2
    assert dimension_energy(gradient, 2) == pytest.approx([0.5, 0.5])
    assert dimension_energy(gradient, 1) == pytest.approx([0.25, 0.5, 0.25, 0.0])


def test_the_larger_share_of_gradients_and_of_directions_is_judged() -> None:
    """Long gradients along one line among many short ones, and many short ones among few long."""
    everywhere = np.eye(4)[np.arange(400) % 4]
    long = np.concatenate([everywhere, np.tile([50.0, 0.0, 0.0, 0.0], (40, 1))])
    names = ("a", "b")
    check = check_direction(long, 2, names, SETTINGS)
    assert check.verdict == FAIL
    assert check.figures["share"] == check.figures["share_of_gradients"] > 0.99
    assert check.figures["share_of_directions"] < 0.4
    short = np.concatenate([20.0 * everywhere[:40], np.tile([0.1, 0.0, 0.0, 0.0], (800, 1))])
    check = check_direction(short, 2, names, SETTINGS)
    assert check.verdict == FAIL
    assert check.figures["share"] == check.figures["share_of_directions"] > 0.9
    assert check.figures["share_of_gradients"] < 0.3


@pytest.mark.parametrize(("share", "verdict"), [(0.79, PASS), (0.8, FAIL)])
def test_a_share_of_eight_tenths_is_refused(share: float, verdict: str) -> None:
    many = round(share * 100)
    gradient = np.array([[1.0, 0.0]] * many + [[0.0, 1.0]] * (100 - many))
    check = check_direction(gradient, 1, ("a", "b"), SETTINGS)
    assert (check.figures["share"], check.verdict) == (pytest.approx(share), verdict)


def test_gradients_are_held_against_differences_row_by_row(rng: np.random.Generator) -> None:
    exact = rng.normal(size=(40, 6))
    assert check_gradient(exact, exact, exact * (1 + 5e-4), SETTINGS).verdict == PASS
    one = exact.copy()
    one[0, 2] += 1.0  # a kink in one window of forty
    assert check_gradient(exact, exact, one, SETTINGS).verdict == PASS
    three = exact.copy()
    three[:3, 2] += 1.0
    check = check_gradient(exact, exact, three, SETTINGS)
    assert check.verdict == FAIL
    assert "not the derivative" in check.reason
    opposite = check_gradient(exact, exact, -exact, SETTINGS)
    assert opposite.figures["error"] == pytest.approx(2.0)


def test_gradients_that_are_zero_or_not_finite_fail(rng: np.random.Generator) -> None:
    exact = rng.normal(size=(40, 6))
    zero, odd = np.vstack([exact, np.zeros((2, 6))]), exact.copy()
    odd[7, 1] = np.nan
    check = check_gradient(zero, exact, exact, SETTINGS)
    assert (check.verdict, check.figures["zero"]) == (FAIL, pytest.approx(2 / 42))
    check = check_gradient(odd, exact, exact, SETTINGS)
    assert (check.verdict, check.figures["not_finite"]) == (FAIL, 1)
    check = check_gradient(exact, exact * np.nan, exact, SETTINGS)
    assert (check.verdict, check.figures["error"]) == (FAIL, None)


def test_a_curve_has_bins_of_equal_count_by_value() -> None:
    value = np.array([3.0, 1.0, 2.0, 4.0])
    bins = calibration_bins(value, 10 * value, bins=2)
    assert [(b.value, b.observed, b.error, b.windows) for b in bins] == [
        (1.5, 15.0, 5.0, 2),
        (3.5, 35.0, 5.0, 2),
    ]


def calibration(value: np.ndarray, observed: np.ndarray, **entries: object):
    tail = entries.pop("tail", np.zeros(len(value)))
    settings = replace(SETTINGS, **entries)
    return check_calibration(value, observed, tail, np.arange(len(value)) // 50, settings)


def test_slope_and_bias_are_those_of_a_value_in_another_unit(rng: np.random.Generator) -> None:
    observed = rng.normal(size=200) * 10.0 - 40.0
    right = calibration(observed, observed)
    assert (right.verdict, right.figures["slope"]) == (PASS, pytest.approx(1.0))
    assert right.figures["bias"] == pytest.approx(0.0)
    scaled = calibration(5.0 * observed + 160.0, observed)
    assert scaled.figures["slope"] == pytest.approx(0.2)
    assert scaled.verdict == FAIL
    assert "another scale" in scaled.reason
    offset = calibration(observed - 1.5 * observed.std(), observed)
    assert offset.figures["bias"] == pytest.approx(-1.5)
    assert (offset.verdict, "are offset" in offset.reason) == (FAIL, True)
    unrelated = calibration(rng.permutation(observed), observed)
    assert (unrelated.verdict, "do not follow" in unrelated.reason) == (FAIL, True)


def test_windows_whose_future_nobody_saw_are_left_out(rng: np.random.Generator) -> None:
    observed = rng.normal(size=200) * 10.0 - 40.0
    value, tail = observed.copy(), np.zeros(200)
    value[:90], tail[:90] = 500.0, 0.31
    check = calibration(value, observed, tail=tail)
    assert (check.verdict, check.figures["left_out"]) == (PASS, 90)
    assert calibration(value, observed, tail=tail, tail_max=0.4).verdict == FAIL
    assert calibration(value, observed, tail=np.ones(200)).verdict == UNKNOWN


def test_returns_that_are_all_equal_cannot_be_judged_and_equal_values_fail(
    rng: np.random.Generator,
) -> None:
    some, same = rng.normal(size=200), np.full(200, -100.0)
    assert calibration(some, same).verdict == UNKNOWN
    assert calibration(same, some).verdict == FAIL


@pytest.mark.parametrize(
    ("value", "discount", "verdict"),
    [
        (-95.0, 0.99, PASS),
        (-109.0, 0.99, PASS),  # within the margin of a tenth
        (-111.0, 0.99, FAIL),
        (11.0, 0.99, FAIL),
        (-95.0, 0.9, FAIL),
        (-95.0, 1.0, UNKNOWN),
        (-95.0, None, UNKNOWN),
    ],
)
def test_values_must_be_possible_returns(
    value: float, discount: float | None, verdict: str
) -> None:
    reward = np.array([-1.0, 0.0])
    assert check_unit(np.full(20, value), reward, discount, SETTINGS).verdict == verdict


def test_some_values_may_be_out_of_range() -> None:
    value = np.full(100, -50.0)
    value[:5] = -500.0
    assert check_unit(value, np.array([-1.0]), 0.99, SETTINGS).verdict == PASS
    value[:6] = -500.0
    assert check_unit(value, np.array([-1.0]), 0.99, SETTINGS).verdict == FAIL


def test_flatness_is_a_ratio_of_medians_over_episodes() -> None:
    norm = np.array([4.0, 4.0, 2.0, 2.0, 0.1, 0.1, 0.3, 9.0, 0.3])
    episode = np.array([0, 0, 1, 1, 2, 2, 3, 3, 3])
    check = check_flatness(norm, episode, episode < 2, SETTINGS)
    assert check.figures["ratio"] == pytest.approx(0.2 / 3.0)
    assert check.verdict == FAIL
    more = np.concatenate([norm, [90.0]]), np.concatenate([episode, [4]])
    check = check_flatness(*more, np.isin(more[1], [0, 1, 4]), SETTINGS)
    assert check.figures["ratio"] == pytest.approx(0.2 / 4.0)  # not of means
    assert check_flatness(norm * 0.0, episode, episode < 2, SETTINGS).verdict == UNKNOWN


def test_spread_must_not_be_smaller_where_there_was_no_data() -> None:
    inside, outside = np.array([1.0, 3.0]), np.array([2.0, 2.0, 5.0])
    check = check_spread(inside, outside, 2, SETTINGS)
    assert (check.verdict, check.figures["ratio"]) == (PASS, pytest.approx(1.5))
    assert check_spread(outside, inside, 2, SETTINGS).verdict == FAIL
    assert check_spread(inside * 0.0, outside, 2, SETTINGS).verdict == FAIL
    assert check_spread(inside, outside, 1, SETTINGS).verdict == UNKNOWN


def test_names_that_differ_in_index_axis_or_angle_are_one_group() -> None:
    from qsteer_ros.policies.features import FEATURE_NAMES

    groups = groups_of(FEATURE_NAMES)
    assert list(groups) == [
        "joint_position", "joint_velocity", "tool", "tool_yaw", "gripper", "effort", "cube",
        "cube_from_tool", "cube_4yaw",
    ]  # fmt: skip
    assert groups["tool"] == (12, 13, 14)
    assert groups["cube_4yaw"] == (25, 26)
    assert sorted(i for group in groups.values() for i in group) == list(range(27))
    assert groups_of(("obs_0", "obs_1", "x")) == {"obs": (0, 1), "x": (2,)}


def effects(*parts: Effect, chunk: float = 2.0) -> Effects:
    return Effects(together=10.0, features=8.0, chunk=chunk, parts=parts)


def test_an_effect_is_a_share_of_its_kind_and_the_chunk_of_everything() -> None:
    found = effects(Effect("a", "feature", True, True, 4.0), Effect("b", "chunk", True, True, 0.5))
    assert [found.relative(part) for part in found.parts] == [0.5, 0.25]
    assert found.of_chunk == 0.2
    assert check_inputs(found, SETTINGS).verdict == PASS


@pytest.mark.parametrize(
    ("part", "verdict"),
    [
        (Effect("a", "feature", True, True, 0.079), FAIL),  # a group: below 0.01 of 8
        (Effect("a", "feature", True, True, 0.081), PASS),
        (Effect("a", "feature", False, True, 0.0079), FAIL),  # one number: below 0.001
        (Effect("a", "feature", False, True, 0.0081), PASS),
        (Effect("a", "feature", False, False, 0.0), PASS),  # its group is judged
        (Effect("a", "feature", True, False, 0.0), UNKNOWN),
    ],
)
def test_dead_groups_and_dead_numbers_have_thresholds_of_their_own(
    part: Effect, verdict: str
) -> None:
    check = check_inputs(effects(part), SETTINGS)
    assert check.verdict == verdict
    if verdict == FAIL:
        assert check.reason.startswith("dead: a.")
    assert check_inputs(effects(part), replace(SETTINGS, exempt="a")).verdict == PASS


def test_a_chunk_that_hardly_matters_fails() -> None:
    check = check_inputs(effects(chunk=0.09), SETTINGS)
    assert (check.verdict, "it hardly matters" in check.reason) == (FAIL, True)


def test_thresholds_are_given_by_name_and_checked() -> None:
    found = from_assignments(["direction_share_max=0.7", "rows=64", "exempt=spread, gripper"])
    assert (found.direction_share_max, found.rows) == (0.7, 64)
    assert found.exempted == {"spread", "gripper"}
    with pytest.raises(ConfigError, match=r"NAME one of reduction, rho, .* got 'share=0.7'"):
        from_assignments(["share=0.7"])
    with pytest.raises(ConfigError, match=r"'rows' must be of type int: got '6\.5'"):
        from_assignments(["rows=6.5"])
    with pytest.raises(ConfigError, match=r"'direction_share_max' must be finite and in \[0, 1\]"):
        from_assignments(["direction_share_max=1.2"])
    with pytest.raises(ConfigError, match="'slope_max' must be finite"):
        from_assignments(["slope_max=inf"])
