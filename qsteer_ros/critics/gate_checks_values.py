"""Checks of the values: are they the return, in its unit, and made for these parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.critics.gate import FAIL, PASS, UNKNOWN, Check
from qsteer_ros.critics.gate_checks import RECORD_MORE, Ints, interval
from qsteer_ros.critics.gate_settings import GateSettings
from qsteer_ros.types import Array

BINS = 10
RANGE_MARGIN = 0.1
"""Part of the range of possible returns by which a value may lie outside of it."""


class Bin(NamedTuple):
    """Windows with values of one size.

    Attributes:
        value: Mean value.
        observed: Mean observed return.
        error: Standard deviation of the observed return there.
        windows: Their number.
    """

    value: float
    observed: float
    error: float
    windows: int


def calibration_bins(value: Array, observed: Array, *, bins: int = BINS) -> tuple[Bin, ...]:
    """Windows sorted by value into bins of equal count, the last ones smaller by one.

    Args:
        value: (N,).
        observed: (N,).
        bins: At most this many.
    """
    order = np.argsort(value, kind="stable")
    parts: list[NDArray[np.int64]] = np.array_split(order, min(bins, len(order)))
    return tuple(
        Bin(
            float(value[part].mean()),
            float(observed[part].mean()),
            float(observed[part].std()),
            len(part),
        )
        for part in parts
    )


def check_calibration(
    value: Array, observed: Array, tail: Array, episode: Ints, settings: GateSettings
) -> Check:
    r"""Values must follow the returns that were observed.

    With observed return G: correlation of Q and G, slope :math:`\operatorname{cov}(Q, G) /
    \operatorname{var}(Q)`, which is 1 for a critic in the right unit and 1/c for one that is c
    times too large, and bias :math:`\overline{Q - G} / \operatorname{std}(G)`.

    Args:
        value: Of the chunk in the data, Q, (M,).
        observed: Monte-Carlo return to go, G, (M,).
        tail: Share of the discounted future after the cut of its episode, which nobody saw, (M,).
        episode: (M,).
        settings: ``correlation_min``, ``slope_min``, ``slope_max``, ``bias_max``, ``tail_max``,
            ``min_episodes``.
    """
    name = "calibration"
    rule = (
        f"correlation of Q with the observed return at least {settings.correlation_min:g}, slope "
        f"{settings.slope_min:g} to {settings.slope_max:g}, |bias| at most "
        f"{settings.bias_max:g} standard deviations"
    )
    seen = (tail <= settings.tail_max) & np.isfinite(observed)
    numbers = np.unique(episode[seen])
    figures: dict[str, float | None] = {
        "episodes": len(numbers),
        "windows": int(seen.sum()),
        "left_out": int((~seen).sum()),
    }
    if len(numbers) < settings.min_episodes:
        reason = (
            f"{len(numbers)} episodes whose return was observed, needed are "
            f"{settings.min_episodes}. {RECORD_MORE}"
        )
        return Check(name, UNKNOWN, rule, reason, figures)
    rows = [np.flatnonzero(seen & (episode == number)) for number in numbers]
    q, g = value[seen], observed[seen]
    spread = float(g.std())
    if spread == 0.0 or float(q.std()) == 0.0:
        what = "observed return" if spread == 0.0 else "value"
        verdict = UNKNOWN if spread == 0.0 else FAIL
        reason = f"the {what} is the same in all windows. {RECORD_MORE}"
        return Check(name, verdict, rule, reason, figures)

    def again(source: np.random.Generator) -> float:
        picked = np.concatenate([rows[i] for i in source.integers(0, len(rows), len(rows))])
        return _correlation(value[picked], observed[picked])

    correlation, bias = _correlation(q, g), float((q - g).mean() / spread)
    slope = float(np.cov(q, g, bias=True)[0, 1] / q.var())
    low, high = interval(again, settings)
    figures |= {
        "correlation": correlation,
        "low": low if np.isfinite(low) else None,
        "high": high if np.isfinite(high) else None,
        "slope": slope,
        "bias": bias,
        "bias_return": float((q - g).mean()),
    }
    found = (
        f"correlation {correlation:.3f} ({low:.3f} to {high:.3f}), slope {slope:.3g}, bias "
        f"{bias:+.3g} ({figures['bias_return']:+.3g} return), {int(seen.sum())} windows of "
        f"{len(numbers)} episodes."
    )
    faults = []
    if correlation < settings.correlation_min:
        faults.append("The values do not follow what happens: train for longer or on more data.")
    elif not settings.slope_min <= slope <= settings.slope_max:
        faults.append("The values have another scale: check reward and discount of the training.")
    if abs(bias) > settings.bias_max:
        faults.append("The values are offset: check reward, discount and bootstrap.")
    if faults:
        return Check(name, FAIL, rule, f"{found} {' '.join(faults)}", figures)
    return Check(name, PASS, rule, found, figures)


def check_unit(
    value: Array, reward: Array, discount: float | None, settings: GateSettings
) -> Check:
    r"""No value may be far from every return that the reward and the discount allow.

    Possible are :math:`\min(r, 0) / (1 - \gamma)` to :math:`\max(r, 0) / (1 - \gamma)`; a tenth of
    that range is allowed on either side.

    Args:
        value: (M,).
        reward: Of single steps, of all windows, any shape.
        discount: gamma of the training, per control step; None where the critic does not say.
        settings: ``out_of_range_max``.
    """
    name, most = "unit", settings.out_of_range_max
    rule = f"values that no return can have: at most {most:.0%}"
    if discount is None:
        reason = "the critic does not state its discount. Train it with 'qsteer train critic'."
        return Check(name, UNKNOWN, rule, reason, {})
    low, high = min(float(reward.min()), 0.0), max(float(reward.max()), 0.0)
    if discount >= 1.0 or low == high:
        reason = (
            f"with discount {discount:g} and rewards of {low:g} to {high:g} every value is "
            "possible, or none. Examine it on episodes with a reward and a discount below 1."
        )
        return Check(name, UNKNOWN, rule, reason, {"discount": discount})
    low, high = low / (1.0 - discount), high / (1.0 - discount)
    margin = RANGE_MARGIN * (high - low)
    outside = float(((value < low - margin) | (value > high + margin)).mean())
    figures: dict[str, float | None] = {
        "outside": outside,
        "lowest_return": low,
        "highest_return": high,
        "lowest_value": float(value.min()),
        "highest_value": float(value.max()),
        "discount": discount,
    }
    found = (
        f"{outside:.1%} of values ({value.min():.4g} to {value.max():.4g}) are outside of "
        f"{low:.4g} to {high:.4g}."
    )
    if outside > most:
        remedy = "Its return has another unit than these rewards: check reward and discount."
        return Check(name, FAIL, rule, f"{found} {remedy}", figures)
    return Check(name, PASS, rule, found, figures)


def check_interface(differences: Sequence[str], stated: str) -> Check:
    """Horizon, actions, control period, features and encoder must be those of policy and robot.

    Args:
        differences: One sentence per part that differs, with its remedy.
        stated: What the critic was made for, in a few words.
    """
    rule = "horizon, actions, control period, features and encoder as policy and robot file"
    if differences:
        return Check("interface", FAIL, rule, " ".join(differences), {})
    return Check("interface", PASS, rule, f"equal: {stated}.", {})


def check_held_out(episodes: int, known: bool) -> Check:
    """The critic must not have learned from these episodes.

    Args:
        episodes: Number of them; none is among those it names.
        known: Whether it names what it learned from.
    """
    rule = "no episode is among the critic's training data"
    figures: dict[str, float | None] = {"episodes": episodes}
    if not known:
        reason = (
            "the critic does not name the episodes it learned from. Train it again with this "
            "version."
        )
        return Check("held_out", UNKNOWN, rule, reason, figures)
    return Check("held_out", PASS, rule, f"none of {episodes}.", figures)


def _correlation(first: Array, second: Array) -> float:
    if first.std() == 0.0 or second.std() == 0.0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])
