"""Success rates and their intervals."""

from __future__ import annotations

import pytest

from qsteer_ros.errors import DataError
from qsteer_ros.evaluation.statistics import paired_sign_test, wilson_interval


def test_wilson_matches_published_numbers() -> None:
    # Newcombe 1998, table I: 81/263 and 15/148, method 3 (score without correction).
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)


def test_wilson_stays_inside_zero_and_one() -> None:
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)


def test_nothing_is_known_without_trials() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_more_successes_than_trials_are_refused() -> None:
    with pytest.raises(DataError, match=r"must be in \[0, 5\]"):
        wilson_interval(6, 5)


def test_the_sign_test_counts_only_pairs_that_differ() -> None:
    first = [True] * 5 + [True, False] * 10
    second = [False] * 5 + [True, False] * 10
    assert paired_sign_test(first, second) == pytest.approx(2 / 32)
    assert paired_sign_test(second, first) == pytest.approx(2 / 32)
    assert paired_sign_test(first, first) == 1.0


def test_unequal_arms_are_refused() -> None:
    with pytest.raises(DataError, match="as many episodes: got 2 and 1"):
        paired_sign_test([True, False], [True])
