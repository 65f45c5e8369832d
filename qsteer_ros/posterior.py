r"""Samples of the clean chunk behind a noisy chunk, and a training-free way to draw them.

Given :math:`x = t\,a + (1-t)\,\epsilon`, the clean chunk *a* is uncertain: it has the posterior
:math:`p_{1|t}(a \mid x)`, whose mean is the clean prediction. A **posterior map** turns noise into
samples of it. Two times occur here: the *flow time* t of the noisy chunk, and the *inner time* r
of a second flow, from noise (r = 0) to the posterior (r = 1).

The frozen field itself knows that second flow: two noisy views of one clean chunk are as good as
one view at a later time (GLASS). A trained meta flow map makes the same journey in one evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.flow import Sampler, Scheduled, VelocityField, field_at

PosteriorMap = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noise (B, N, H, A), noisy_chunk (B, H, A), flow_time (B,)) -> samples (B, N, H, A).

Samples are of the clean chunk, normalised and not clipped; differentiable in ``noisy_chunk``.
"""


@runtime_checkable
class TimedPosterior(Protocol):
    """A posterior map whose form depends on flow time as a plain number; see `flow.TimedField`."""

    def __call__(self, noise: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        """As any posterior map; every row must have the same flow time."""
        ...

    def at(self, flow_time: float) -> PosteriorMap:
        """The map at this flow time."""
        ...


def posterior_at(posterior: PosteriorMap, flow_time: float) -> PosteriorMap:
    """What to call at this flow time: ``posterior.at(flow_time)``, or the map itself."""
    if isinstance(posterior, TimedPosterior):
        return posterior.at(flow_time)
    return posterior


def glass_velocity(
    field: VelocityField,
    inner: Tensor,
    inner_time: float,
    noisy_chunk: Tensor,
    flow_time: float,
) -> Tensor:
    r"""Velocity of the posterior flow, from one evaluation of the unchanged frozen field.

    The two views x (at t) and y (at r) merge into one at the later time :math:`t^*`, where the
    frozen field says what clean chunk to expect. With

    .. math:: s = \sqrt{t^2 (1-r)^2 + (1-t)^2 r^2}, \quad p = \frac{t(1-r)}{s}, \quad
              q = \frac{(1-t)r}{s}, \quad k = \frac{1}{s + (1-t)(1-r)},

    .. math:: t^* = k s, \qquad x^* = k \big[ p (1-r)\, x + q (1-t)\, y \big],

    .. math:: w = \frac{x^* + (1-t^*)\, v(x^*, t^*) - y}{1 - r}
                = k \Big[ p \Big( x - \Big(t + \frac{(1-t)\, p}{1+q}\Big) y \Big)
                  + (1-t)\, v(x^*, t^*) \Big].

    The last form has no difference that cancels and no pole: it holds up to r = 1 and for small
    t and r (where both are 0: p = 0, q = 1). At t = 0 the posterior is the policy itself and
    w = v(y, r); at r = 0 nothing is known but x and w = clean prediction - y, for which the field
    is asked once per row, not once per sample.

    Args:
        field: Frozen field, (B, H, A), (B,) -> (B, H, A). It is asked with B N rows, all at t*,
            and must take any number of rows (one observation).
        inner: y, (B, N, H, A), or (B, H, A) for one sample per row.
        inner_time: r in [0, 1].
        noisy_chunk: x, (B, H, A).
        flow_time: t in [0, 1).

    Returns:
        w, with the shape of ``inner``; differentiable in ``inner`` and ``noisy_chunk`` where the
        field is.

    Raises:
        ConfigError: A time is out of range.
        DataError: Shapes do not belong together.

    Source:
        Meta Flow Maps, arXiv:2601.14430 (GLASS reparameterisation), as QPILOTS, arXiv:2606.14801,
        uses it. Differs: rearranged so that no denominator needs a floor.
    """
    _check_times(flow_time, inner_time)
    if inner.ndim == 3:
        alone = inner.unsqueeze(1)
        return glass_velocity(field, alone, inner_time, noisy_chunk, flow_time).squeeze(1)
    _check_shapes(inner, noisy_chunk)
    unknown, left = 1.0 - flow_time, 1.0 - inner_time
    length = math.hypot(flow_time * left, unknown * inner_time)
    outer_share = flow_time * left / length if length > 0.0 else 0.0
    inner_share = unknown * inner_time / length if length > 0.0 else 1.0
    gain = 1.0 / (length + unknown * left)
    view = noisy_chunk.unsqueeze(1)  # (B, 1, H, A)
    merged = view
    if inner_share > 0.0:
        merged = gain * (outer_share * left * view + inner_share * unknown * inner)
    rows = merged.flatten(0, 1)  # (B N, H, A), or (B, H, A) at inner time 0
    merged_time = gain * length
    velocity = field_at(field, merged_time)(rows, rows.new_full((rows.shape[0],), merged_time))
    pulled = flow_time + unknown * outer_share / (1.0 + inner_share)
    drift = unknown * velocity.view_as(merged)
    return gain * (outer_share * (view - pulled * inner) + drift)


def glass_velocity_per_row(
    field: VelocityField,
    inner: Tensor,
    inner_time: Tensor,
    noisy_chunk: Tensor,
    flow_time: Tensor,
) -> Tensor:
    r"""`glass_velocity` where every row has its own pair of times, as training needs it.

    The same formula in tensors. Values of the times are not examined (that would wait for a GPU):
    flow times must be in [0, 1) and inner times in [0, 1].

    Args:
        field: Frozen field, (B, H, A), (B,) -> (B, H, A); it is asked once, with B rows whose
            flow times differ.
        inner: y, (B, H, A), one sample per row.
        inner_time: r, (B,).
        noisy_chunk: x, (B, H, A).
        flow_time: t, (B,).

    Returns:
        w, (B, H, A).

    Raises:
        DataError: Shapes do not belong together.
    """
    _check_shapes(inner.unsqueeze(1), noisy_chunk)
    t, r = flow_time.view(-1, 1, 1), inner_time.view(-1, 1, 1)
    unknown, left = 1.0 - t, 1.0 - r
    length = torch.hypot(t * left, unknown * r)
    known = length.clamp_min(torch.finfo(length.dtype).tiny)
    outer_share = t * left / known
    inner_share = torch.where(length > 0.0, unknown * r / known, torch.ones_like(length))
    gain = 1.0 / (length + unknown * left)
    merged = gain * (outer_share * left * noisy_chunk + inner_share * unknown * inner)
    velocity = field(merged, (gain * length).flatten())
    pulled = t + unknown * outer_share / (1.0 + inner_share)
    return gain * (outer_share * (noisy_chunk - pulled * inner) + unknown * velocity)


def glass_posterior(
    field: VelocityField, *, steps: int, integrator: str = "midpoint"
) -> TimedPosterior:
    r"""A posterior map without training: integrate the posterior flow of the frozen field.

    From the noise at inner time 0 to inner time 1 in ``steps`` steps of `glass_velocity`. The map
    tends to an exact one with the number of steps (with the integrator's order) as far as the
    frozen field is exact. Few steps give too little spread: every Euler step ends at a
    conditional mean, and **one Euler step collapses to the clean prediction**, whatever the noise.
    Share of the exact posterior's variance on a mixture of two Gaussians, at flow time 0.4:

    ========== ==== ==== ==== ==== ====
    steps      1    2    3    4    8
    ========== ==== ==== ==== ==== ====
    euler      0    0.14 0.32 0.43 0.67
    midpoint   0.56 0.94 0.97 0.98 1.00
    ========== ==== ==== ==== ==== ====

    For N samples ``euler`` takes ``steps`` evaluations of the field, 1 + N (steps - 1) rows (the
    first is one row for all samples); ``midpoint`` twice as many, 1 + N (2 steps - 1) rows; and
    as much again backwards. At equal cost ``midpoint`` is far closer. A trained meta flow map
    replaces all of it by N rows in one evaluation.

    Args:
        field: Frozen field, (B, H, A), (B,) -> (B, H, A), differentiable in its first argument; it
            must take any number of rows (one observation).
        steps: Steps of the posterior flow, >= 1.
        integrator: ``euler``, ``midpoint`` or ``heun``, as in `flow.Sampler`.

    Returns:
        A posterior map that is asked with flow times below 1, equal in all rows.

    Raises:
        ConfigError: ``steps`` is below 1 or the integrator unknown.
    """
    if steps < 1:
        raise ConfigError(
            f"'steps' must be at least 1: got {steps}. Steps of the posterior flow per sample."
        )
    return _Glass(field, Sampler(steps, integrator))


@dataclass(frozen=True)
class _Glass:
    field: VelocityField
    sampler: Sampler

    def __call__(self, noise: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        """Samples (B, N, H, A); reads the flow time from the tensor."""
        steered = Scheduled(lambda number: lambda x, time: self.at(number)(noise, x, time))
        return steered(noisy_chunk, flow_time)

    def at(self, flow_time: float) -> PosteriorMap:
        """The map at this flow time."""

        def samples(noise: Tensor, noisy_chunk: Tensor, _: Tensor) -> Tensor:
            def velocity(inner_time: float) -> VelocityField:
                return lambda inner, _: glass_velocity(
                    self.field, inner, inner_time, noisy_chunk, flow_time
                )

            return self.sampler.denoise(Scheduled(velocity), noise)

        return samples


def _check_times(flow_time: float, inner_time: float) -> None:
    if not 0.0 <= flow_time < 1.0:
        raise ConfigError(
            f"'flow_time' must be in [0, 1): got {flow_time}. At 1 the chunk is clean and there "
            "is nothing left to sample."
        )
    if not 0.0 <= inner_time <= 1.0:
        raise ConfigError(f"'inner_time' must be in [0, 1]: got {inner_time}.")


def _check_shapes(inner: Tensor, noisy_chunk: Tensor) -> None:
    fits = inner.ndim == 4 and noisy_chunk.ndim == 3
    if not (fits and inner.shape[::2] + inner.shape[3:] == noisy_chunk.shape):
        raise DataError(
            "posterior samples must have shape (B, N, H, A) for noisy chunks (B, H, A): got "
            f"{tuple(inner.shape)} and {tuple(noisy_chunk.shape)}."
        )
