"""Success rates with honest intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qsteer_ros.errors import DataError


def wilson_interval(
    successes: int, trials: int, *, z: float = 1.959963984540054
) -> tuple[float, float]:
    r"""Wilson's score interval of a success rate; 95 % with the default ``z``.

    .. math:: \frac{1}{1 + z^2/n} \left( \hat p + \frac{z^2}{2n}
              \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4 n^2}} \right)

    Args:
        successes: k, 0 to ``trials``.
        trials: n; with 0 nothing is known and the interval is [0, 1].
        z: Quantile of the standard normal distribution.

    Raises:
        DataError: There are more successes than trials, or a number is negative.
    """
    if not 0 <= successes <= trials:
        raise DataError(f"successes must be in [0, {trials}] (the trials): got {successes}.")
    if trials == 0:
        return 0.0, 1.0
    rate, square = successes / trials, z * z
    centre = rate + square / (2 * trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials**2))
    scale = 1 + square / trials
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == trials else (centre + half) / scale
    return low, high


def paired_sign_test(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided exact p-value that two arms on the same initial states succeed equally often.

    Only pairs in which one arm succeeds and the other fails count (McNemar's exact test).

    Args:
        first: Outcome per initial state.
        second: Outcome of the other arm on the same states, in the same order.

    Raises:
        DataError: The arms have different numbers of episodes.
    """
    if len(first) != len(second):
        raise DataError(
            f"paired arms must have as many episodes: got {len(first)} and {len(second)}."
        )
    wins = sum(a and not b for a, b in zip(first, second, strict=True))
    losses = sum(b and not a for a, b in zip(first, second, strict=True))
    count = wins + losses
    if count == 0:
        return 1.0
    tail: float = sum(math.comb(count, k) for k in range(min(wins, losses) + 1)) / 2.0**count
    return min(1.0, 2 * tail)
