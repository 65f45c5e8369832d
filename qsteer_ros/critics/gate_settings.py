"""Thresholds of the gate: what a critic must show before it may steer.

Every number is written into ``gate.json`` with the verdict it led to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from qsteer_ros.errors import ConfigError

UNBOUNDED = (-math.inf, math.inf)  # but finite, like every number of a file
SHARE = (0.0, 1.0)
BOUNDS: Mapping[str, tuple[float, float]] = {
    "rho": (0.0, 10.0),
    "seed": (0, 2**31 - 1),
    "windows": (100, 1e9),
    "rows": (16, 1e6),
    "random_chunks": (1, 1024),
    "resamples": (100, 1e6),
    "confidence": (0.5, 0.9999),
    "min_episodes": (2, 1e6),
    "gradient_error_max": (0.0, 1.0),
    "zero_gradient_max": SHARE,
    "outcome_auc_min": SHARE,
    "random_win_min": SHARE,
    "shuffled_win_min": SHARE,
    "group_effect_min": SHARE,
    "channel_effect_min": SHARE,
    "action_effect_min": SHARE,
    "direction_share_max": SHARE,
    "correlation_min": (-1.0, 1.0),
    "slope_min": UNBOUNDED,
    "slope_max": UNBOUNDED,
    "bias_max": (0.0, math.inf),
    "tail_max": SHARE,
    "out_of_range_max": SHARE,
    "flat_ratio_min": (0.0, math.inf),
    "spread_ratio_min": (0.0, math.inf),
}


@dataclass(frozen=True)
class GateSettings:
    """How a critic is examined, and what it must reach.

    Attributes:
        reduction: How members become the value that is examined: ``min``, ``mean`` or
            ``pessimistic``.
        rho: Weight of the spread, for ``pessimistic``.
        seed: Of every draw: rows, random chunks, permutations, resampled episodes, noise.
        windows: Most windows whose values are examined; of more, every second, third, ... step of
            each episode is taken.
        rows: Most windows at which gradients, random chunks and permutations are computed,
            equally many from each episode.
        random_chunks: Chunks drawn per window, uniform in the bounds.
        resamples: Bootstrap samples of the episodes.
        confidence: Of the intervals.
        min_episodes: Fewest successful and fewest failing episodes; below it what compares them
            cannot be judged.
        gradient_error_max: Largest relative distance of autograd from finite differences, for 95 %
            of the windows.
        zero_gradient_max: Largest share of windows whose gradient is exactly zero.
        outcome_auc_min: Smallest chance that a state of a successful episode is worth more than
            one of a failing episode at the same step.
        random_win_min: Smallest chance that the chunk in the data is worth more than a random one.
        shuffled_win_min: The same against chunks from another episode; a critic that does not
            look at the state has one half.
        group_effect_min: Smallest effect of one input group, relative to all inputs of its kind.
        channel_effect_min: The same for a single number.
        action_effect_min: Smallest effect of the whole chunk, relative to all inputs together.
        direction_share_max: The share of the gradients' energy in one direction, the same for all
            states, must be below this.
        correlation_min: Smallest correlation of values with observed returns.
        slope_min: Smallest slope of observed returns against values.
        slope_max: Largest one.
        bias_max: Largest |mean value - mean observed return|, in standard deviations of the
            observed return.
        tail_max: Windows after whose episode's cut more than this share of the discounted future
            was never seen are left out of the calibration curve.
        out_of_range_max: Largest share of values that no return can have.
        flat_ratio_min: Smallest median length of the gradient in failing episodes, relative to
            successful ones.
        spread_ratio_min: Smallest mean spread of the members at random chunks, relative to that
            at chunks of the data.
        exempt: Names of checks and input groups, separated by commas, that are examined but need
            not pass: what the user answers for by name.

    Raises:
        ConfigError: A value is out of range.
    """

    reduction: str = "min"
    rho: float = 0.5
    seed: int = 0
    windows: int = 20_000
    rows: int = 2048
    random_chunks: int = 8
    resamples: int = 2000
    confidence: float = 0.95
    min_episodes: int = 4
    gradient_error_max: float = 1e-3
    zero_gradient_max: float = 0.01
    outcome_auc_min: float = 0.6
    random_win_min: float = 0.6
    shuffled_win_min: float = 0.5
    group_effect_min: float = 0.01
    channel_effect_min: float = 0.001
    action_effect_min: float = 0.01
    direction_share_max: float = 0.8
    correlation_min: float = 0.3
    slope_min: float = 0.25
    slope_max: float = 4.0
    bias_max: float = 1.0
    tail_max: float = 0.3
    out_of_range_max: float = 0.05
    flat_ratio_min: float = 0.1
    spread_ratio_min: float = 1.0
    exempt: str = ""

    def __post_init__(self) -> None:
        """Refuse what no examination can use."""
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                raise ConfigError(
                    f"gate setting '{name}' must be finite and in [{low:g}, {high:g}]: got "
                    f"{value}."
                )

    @property
    def exempted(self) -> frozenset[str]:
        """Names in ``exempt``."""
        return frozenset(name.strip() for name in self.exempt.split(",") if name.strip())


def from_assignments(assignments: tuple[str, ...] | list[str]) -> GateSettings:
    """Settings from ``NAME=VALUE`` texts; what is not named keeps its default.

    Raises:
        ConfigError: A text is no assignment, or its name is unknown or its value of another type.
    """
    types = get_type_hints(GateSettings)
    known = [entry.name for entry in fields(GateSettings)]
    values: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or name not in known:
            raise ConfigError(
                f"'--set' must be NAME=VALUE with NAME one of {', '.join(known)}: got '{text}'."
            )
        try:
            values[name] = types[name](value)
        except ValueError as error:
            raise ConfigError(
                f"gate setting '{name}' must be of type {types[name].__name__}: got '{value}'."
            ) from error
    return GateSettings(**values)
