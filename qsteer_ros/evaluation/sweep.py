"""What a guidance weight does to many chunks at once, and which weight gives a wanted ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qsteer_ros.critics.calibration import Point
from qsteer_ros.ensemble import QFunction
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.flow import Sampler, VelocityField
from qsteer_ros.posterior import PosteriorMap
from qsteer_ros.steering.clips import clips
from qsteer_ros.steering.gradient import NORMALISED, Bounds, norm_per_sample, slope_at
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.settings import SteeringSettings
from qsteer_ros.steering.trace import Trace

FACTORS = tuple(2.0**power for power in range(-4, 5))
"""Weights of a curve, relative to the one that was found."""

STARTS = (1e-3, 1e-6, 1e-9, 1e-12)
"""Weights at which the ratio is first measured, until it is small enough to be linear."""

DOUBLINGS = 12
"""How far beyond the linear estimate a ratio is looked for."""

CLOSE = 2e-3
"""Relative error of a ratio at which the search ends."""

DIGITS = 4
"""Significant digits of a weight that is found."""


class Bench:
    """Chunks of many observations, steered from the same noise with any weight.

    All observations are one batch, each row with its own features; rows do not influence one
    another.

    Args:
        field: Frozen field, one observation per row: (B, H, A), (B,) -> (B, H, A).
        q: Critic for the same observations, (B, H, A) -> (E, B). With both, k B rows mean k
            consecutive chunks per observation; see `each_row`.
        noise: Where every path begins, (B, H, A).
        settings: How to steer; ``weight`` and ``ratio`` are set by `at`. Where mode ``qpilots_m``
            is not told how values are spread, it gets mean and deviation over the twins.
        sampler: How the field is integrated.
        bounds: Of normalised actions.
        seed: Of everything random in a mode.
        posterior: ``qpilots_m``: a trained map for the same observations.

    Raises:
        ConfigError: The critic is flat at half of the twins or more: no weight can steer with it.
    """

    def __init__(
        self,
        field: VelocityField,
        q: QFunction,
        noise: Tensor,
        *,
        settings: SteeringSettings,
        sampler: Sampler,
        bounds: Bounds = NORMALISED,
        seed: int = 0,
        posterior: PosteriorMap | None = None,
    ) -> None:
        """Compute the unguided twins."""
        self._posterior = posterior
        self._field, self._q, self._noise = field, q, noise
        self._settings, self._sampler, self._bounds, self._seed = settings, sampler, bounds, seed
        with torch.no_grad():
            self._twin_unclipped = sampler.denoise(field, noise)
            self._twin = self._twin_unclipped.clamp(*bounds)
            slope = slope_at(q, self._twin, aggregate=settings.aggregate, bounds=None)
        self._twin_values = slope.value
        flat = norm_per_sample(slope.gradient).flatten() == 0.0
        if float(flat.double().mean()) >= 0.5:
            raise ConfigError(
                "the critic must have a slope at the policy's chunks: its gradient is 0 at "
                f"{int(flat.sum())} of {len(flat)} observations. No weight can steer with it; "
                "train it again."
            )
        if settings.mode == "qpilots_m" and None in (settings.tilt_mean, settings.tilt_std):
            mean = float(slope.value.double().mean())
            spread = float(slope.value.double().std(unbiased=False))
            self._settings = replace(settings, tilt_mean=mean, tilt_std=spread)

    @property
    def settings(self) -> SteeringSettings:
        """How chunks are steered, all that was not told filled in."""
        return self._settings

    @property
    def twin(self) -> Tensor:
        """The frozen policy's chunks, clipped, (B, H, A)."""
        return self._twin

    @torch.no_grad()
    def at(self, weight: float) -> Point:
        """Steer every chunk with one weight.

        Raises:
            ConfigError: The mode never asks the critic with this sampler.
            DataError: A chunk, a ratio or a value is not finite.
        """
        trace = Trace()
        field = steer(
            self._field,
            self._q,
            replace(self._settings, weight=weight, ratio=0.0),
            sampler=self._sampler,
            bounds=self._bounds,
            seed=self._seed,
            trace=trace,
            posterior=self._posterior,
        )
        unclipped = self._sampler.denoise(field, self._noise)
        chunk = unclipped.clamp(*self._bounds)
        gain = (self._settings.aggregate(self._q(chunk)) - self._twin_values).double()
        caused = clips(unclipped, self._twin_unclipped, self._bounds).steering
        point = Point(
            weight=weight,
            ratio=self._ratio(trace),
            delta_q=float(gain.mean()),
            delta_q_error=float(gain.std() / math.sqrt(len(gain))),
            improved=float((gain > 0.0).double().mean()),
            clipped=float(caused.double().mean()),
            displacement=float((chunk - self._twin).double().square().mean().sqrt()),
        )
        broken = [name for name, value in vars(point).items() if not math.isfinite(value)]
        if broken or not bool(torch.isfinite(unclipped).all()):
            raise DataError(
                f"chunks steered with weight {weight:g} must be finite: "
                f"{', '.join(broken) or 'the denoised chunk'} is not. Use a smaller weight."
            )
        return point

    def _ratio(self, trace: Trace) -> float:
        """Mean over the steps at which the critic was asked, median over observations."""
        arrays = trace.arrays()
        asked = np.isfinite(arrays["q"]).any(axis=1) if arrays else np.zeros(0, dtype=np.bool_)
        if not asked.any():
            raise ConfigError(
                f"steering mode '{self._settings.mode}' must ask the critic at one step at least: "
                f"it never does with {self._sampler.denoising_steps} denoising steps. Use more."
            )
        return float(np.median(arrays["ratio"][asked].astype(np.float64).mean(axis=0)))


def each_row(
    condition: Callable[[Tensor], Callable[..., Tensor]], features: Tensor
) -> Callable[..., Tensor]:
    """A field or critic for many observations, one per row.

    Asked with B rows, row b is of observation b. Modes that judge k chunks per row ask with k B
    rows, those of one observation next to each other.

    Args:
        condition: Of a policy or of a critic.
        features: (B, F).

    Returns:
        What ``condition`` returns, for as many rows as are asked.
    """
    known: dict[int, Callable[..., Tensor]] = {}

    def asked(chunk: Tensor, *flow_time: Tensor) -> Tensor:
        each, rest = divmod(chunk.shape[0], features.shape[0])
        if rest:
            raise DataError(
                f"{features.shape[0]} observations must share the rows evenly: got "
                f"{chunk.shape[0]} rows."
            )
        if each not in known:
            known[each] = condition(features.repeat_interleave(each, dim=0))
        return known[each](chunk, *flow_time)

    return asked


def find_weight(ratio_at: Callable[[float], float], target: float) -> float:
    """Weight whose ratio is the target, within `CLOSE`; the smallest where there are several.

    The ratio is proportional to the weight where the weight is small. From there on the weight is
    doubled until the ratio is too large, then the interval is halved in the logarithm.

    Args:
        ratio_at: Weight -> ratio; infinite where chunks are not finite any more.
        target: Above 0.

    Returns:
        The weight, rounded to `DIGITS`. Where the ratio jumps over the target, the end of the
        jump whose ratio is nearer to it.

    Raises:
        ConfigError: There is no guidance at all, or no weight gives this ratio.
    """
    low, reached = _linear(ratio_at, target), 0.0
    while ratio_at(low) > target:
        low /= 2.0
    high = low
    for _ in range(DOUBLINGS):
        ratio = ratio_at(high)
        if ratio >= target * (1.0 - CLOSE):
            return _rounded(_halved(ratio_at, low, high, target))
        reached = max(reached, ratio)
        low, high = high, 2.0 * high
    raise ConfigError(
        f"the ratio of guidance to velocity must be one that can be reached: {target:g} cannot, "
        f"the largest found is {reached:.3g} (weight {low:.3g}). Ask for a smaller --ratio, or "
        "lift the limits on guidance."
    )


def _linear(ratio_at: Callable[[float], float], target: float) -> float:
    """The weight at which the ratio would be the target if it went on as it begins."""
    for weight in STARTS:
        ratio = ratio_at(weight)
        if ratio == 0.0:
            raise ConfigError(
                "guidance must have a length: it is 0 at half of the observations or more, "
                f"with weight {weight:g}. Check the settings of the mode and the critic's scale."
            )
        if ratio <= target:
            return weight * target / ratio
    raise ConfigError(
        f"guidance must become small with the weight: at weight {STARTS[-1]:g} it is still "
        f"{ratio:.3g} times the velocity. Check the critic."
    )


def _halved(ratio_at: Callable[[float], float], low: float, high: float, target: float) -> float:
    while high / low > 1.0 + 1e-6:
        middle = math.sqrt(low * high)
        ratio = ratio_at(middle)
        if abs(ratio - target) <= CLOSE * target:
            return middle
        low, high = (middle, high) if ratio < target else (low, middle)
    return low if abs(ratio_at(low) - target) <= abs(ratio_at(high) - target) else high


def _rounded(weight: float) -> float:
    return float(f"{weight:.{DIGITS}g}")


def curve(bench: Bench, weight: float, factors: Sequence[float] = FACTORS) -> tuple[Point, ...]:
    """Points at multiples of a weight, increasing; those at which chunks are not finite are out.

    Raises:
        DataError: Chunks are not finite at the weight itself.
    """
    points = []
    for factor in factors:
        try:
            points.append(bench.at(weight if factor == 1.0 else _rounded(factor * weight)))
        except DataError:
            if factor <= 1.0:
                raise
    return tuple(points)
