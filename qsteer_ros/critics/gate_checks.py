r"""Checks that compare episodes: outcome, chunk against chunk, flatness, spread.

Windows of one episode resemble each other; episodes are what is independent. Every interval here
is therefore a bootstrap over episodes, not over windows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.critics.gate import FAIL, PASS, UNKNOWN, Check
from qsteer_ros.critics.gate_settings import GateSettings
from qsteer_ros.types import Array

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
RECORD_MORE = "Record more episodes with this policy and examine it again."


def interval(
    statistic: Callable[[np.random.Generator], float], settings: GateSettings
) -> tuple[float, float]:
    """Percentile bootstrap of a statistic that resamples by itself; resamples of nothing are left
    out.

    Args:
        statistic: One bootstrap sample, given the source of randomness; NaN where it is undefined.
        settings: ``resamples``, ``confidence`` and ``seed``.
    """  # noqa: D205
    source = np.random.default_rng(settings.seed)
    drawn = np.array([statistic(source) for _ in range(settings.resamples)])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size == 0:
        return float("nan"), float("nan")
    tail = 50.0 * (1.0 - settings.confidence)
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    return float(low), float(high)


def outcome_wins(value: Array, step: Ints, episode: Ints, success: Bools) -> tuple[Array, Array]:
    r"""Who is worth more, for every pair of a successful and a failing episode, step by step.

    .. math:: W_{sf} = \sum_t 1[Q_s(t) > Q_f(t)] + \tfrac12 1[Q_s(t) = Q_f(t)]

    over the steps t that both have.

    Args:
        value: Of each window, (M,).
        step: At which it starts, counted from the start of its episode, (M,).
        episode: (M,).
        success: Outcome of its episode, or of the rest of it, (M,).

    Returns:
        W and the number of steps compared, each (S, F).
    """
    steps = int(step.max(initial=0)) + 1

    def rows(wanted: bool) -> Array:
        names = np.unique(episode[success == wanted])
        table = np.full((len(names), steps), np.nan)
        for row, name in enumerate(names):
            mine = (episode == name) & (success == wanted)
            table[row, step[mine]] = value[mine]
        return table

    good, bad = rows(True), rows(False)
    wins, counts = np.zeros((len(good), len(bad))), np.zeros((len(good), len(bad)))
    for row, line in enumerate(good):
        both = np.isfinite(line) & np.isfinite(bad)
        wins[row] = ((line > bad) & both).sum(1) + 0.5 * ((line == bad) & both).sum(1)
        counts[row] = both.sum(1)
    return wins, counts


def check_outcome(
    value: Array, step: Ints, episode: Ints, success: Bools, settings: GateSettings
) -> Check:
    r"""States of successful episodes must be worth more than states of failing ones.

    The number is the chance that this holds for a successful episode, a failing one and a step
    drawn from those that both have (an area under the ROC curve at matched times).

    Args:
        value: Of each state, (M,).
        step: See `outcome_wins`.
        episode: (M,).
        success: (M,).
        settings: ``outcome_auc_min``, ``min_episodes``.
    """
    name, least = "outcome", settings.outcome_auc_min
    rule = f"Q(success) > Q(failure) at the same step: at least {least:g}, surely above 0.5"
    wins, counts = outcome_wins(value, step, episode, success)
    good, bad = wins.shape
    figures: dict[str, float | None] = {"successes": good, "failures": bad}
    if min(good, bad) < settings.min_episodes or counts.sum() == 0:
        reason = _too_few(good, bad, settings)
        return Check(name, UNKNOWN, rule, reason, figures)

    def again(source: np.random.Generator) -> float:
        cells = np.ix_(source.integers(0, good, good), source.integers(0, bad, bad))
        total = counts[cells].sum()
        return float(wins[cells].sum() / total) if total else float("nan")

    auc = float(wins.sum() / counts.sum())
    low, high = interval(again, settings)
    figures |= {"auc": auc, "low": low, "high": high}
    found = f"the chance is {auc:.3f} ({low:.3f} to {high:.3f}), {good} against {bad} episodes."
    if auc < least:
        remedy = "Train with more failures and successes of this policy, or for longer."
        return Check(name, FAIL, rule, f"{found} {remedy}", figures)
    if low <= 0.5:
        return Check(name, UNKNOWN, rule, f"{found} One half is in it. {RECORD_MORE}", figures)
    return Check(name, PASS, rule, found, figures)


def check_preference(
    name: str, win: Array, episode: Ints, *, least: float, against: str, settings: GateSettings
) -> Check:
    """The chunk in the data must be worth more than another one in the same state.

    Args:
        name: Of the check.
        win: Per window of an episode that this critic did not steer, the share of comparisons
            that the chunk of the data wins, ties half, (N,).
        episode: (N,).
        least: Smallest mean over episodes.
        against: What the other chunk is.
        settings: ``min_episodes``; at least one half must be outside the interval.
    """
    rule = f"Q(data chunk) > Q({against}): at least {least:g}, surely above 0.5"
    means = np.array([win[episode == number].mean() for number in np.unique(episode)])
    count = len(means)
    figures: dict[str, float | None] = {"episodes": count}
    if count < settings.min_episodes:
        reason = (
            f"{count} episodes whose chunks this critic did not choose, needed are "
            f"{settings.min_episodes}. Record more with steering off."
        )
        return Check(name, UNKNOWN, rule, reason, figures)

    def again(source: np.random.Generator) -> float:
        return float(means[source.integers(0, count, count)].mean())

    chance = float(means.mean())
    low, high = interval(again, settings)
    figures |= {"chance": chance, "low": low, "high": high}
    found = f"the chance is {chance:.3f} ({low:.3f} to {high:.3f}) over {count} episodes."
    if chance < least or high <= 0.5:
        remedy = (
            "Train on data in which one state is left by different chunks, and check that data "
            "and critic scale actions alike."
        )
        return Check(name, FAIL, rule, f"{found} {remedy}", figures)
    if low <= 0.5:
        return Check(name, UNKNOWN, rule, f"{found} One half is in it. {RECORD_MORE}", figures)
    return Check(name, PASS, rule, found, figures)


def check_flatness(norm: Array, episode: Ints, success: Bools, settings: GateSettings) -> Check:
    """Where episodes fail, the gradient must not be gone: there it is needed.

    Args:
        norm: Length of the gradient per window, return units per normalised action, (N,).
        episode: (N,).
        success: (N,).
        settings: ``flat_ratio_min``, ``min_episodes``.
    """
    name, least = "flatness", settings.flat_ratio_min
    rule = f"median gradient in failing episodes / in successful ones: at least {least:g}"

    def medians(wanted: bool) -> Array:
        numbers = np.unique(episode[success == wanted])
        mine = success == wanted
        return np.array([np.median(norm[mine & (episode == number)]) for number in numbers])

    good, bad = medians(True), medians(False)
    figures: dict[str, float | None] = {"successes": len(good), "failures": len(bad)}
    if min(len(good), len(bad)) < settings.min_episodes:
        return Check(name, UNKNOWN, rule, _too_few(len(good), len(bad), settings), figures)
    there, here = float(np.median(bad)), float(np.median(good))
    figures |= {"failing": there, "successful": here}
    if here == 0.0:
        reason = "the gradient is zero in successful episodes. See the check 'gradient'."
        return Check(name, UNKNOWN, rule, reason, figures)

    def again(source: np.random.Generator) -> float:
        below = np.median(source.choice(good, len(good)))
        return float(np.median(source.choice(bad, len(bad))) / below) if below else float("nan")

    low, high = interval(again, settings)
    ratio = there / here
    figures |= {"ratio": ratio, "low": low, "high": high}
    found = f"it is {ratio:.3g} ({low:.3g} to {high:.3g}): {there:.3g} and {here:.3g}."
    if ratio < least:
        remedy = "Add failing episodes of this policy to the training data."
        return Check(name, FAIL, rule, f"{found} {remedy}", figures)
    return Check(name, PASS, rule, found, figures)


def check_spread(inside: Array, outside: Array, members: int, settings: GateSettings) -> Check:
    """Members must agree less where there was no data.

    Args:
        inside: Standard deviation over members at chunks of the data, return units, (N,).
        outside: At random chunks of the same states, (N', ).
        members: E.
        settings: ``spread_ratio_min``.
    """
    name, least = "spread", settings.spread_ratio_min
    rule = f"mean spread of members at random chunks / in data: at least {least:g}"
    if members < 2:
        reason = "one member has no spread. Train an ensemble of at least two."
        return Check(name, UNKNOWN, rule, reason, {"members": members})
    off, on = float(outside.mean()), float(inside.mean())
    figures: dict[str, float | None] = {"members": members, "data": on, "random": off}
    if on == 0.0:
        reason = "the members are equal in the data. Train each from weights of its own."
        return Check(name, FAIL, rule, reason, figures)
    found = f"it is {off / on:.3g}: {off:.3g} and {on:.3g}, {members} members."
    figures |= {"ratio": off / on}
    if off / on < least:
        remedy = "Do not rely on min or pessimistic values; train more members, or for longer."
        return Check(name, FAIL, rule, f"{found} {remedy}", figures)
    return Check(name, PASS, rule, found, figures)


def _too_few(good: int, bad: int, settings: GateSettings) -> str:
    least = settings.min_episodes
    return (
        f"{good} successful and {bad} failing episodes that share steps, needed are {least} of "
        f"each. {RECORD_MORE}"
    )
