r"""What a meta flow map learns: velocities of the posterior flow, and that its steps compose.

Two conditions make u the average velocity of the posterior flow from inner time r to q:

.. math::

    u(r, r, y) &= w(r, y) \\
    (q - r)\, u(r, q, y) &= (m - r)\, u(r, m, y) + (q - m)\, u(m, q, y_m), \qquad
    y_m = y + (m - r)\, u(r, m, y)

w is the velocity that the frozen field knows (`posterior.glass_velocity`); the second condition
carries it from short steps to the one long step that draws a sample; for that one step the
frozen field can also be integrated. Each is a regression on a target without gradient.

Source: Meta Flow Maps, arXiv:2601.14430 (its ``psd`` loss with a teacher on the diagonal); weights
1 and 0.5 as QPILOTS, arXiv:2606.14801, has them. Which consistency loss QPILOTS uses is not known.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qsteer_ros.flow import Sampler, VelocityField
from qsteer_ros.posterior import glass_velocity_per_row

TIME_POWER = 2.0
"""Of the schedule in which `integrated_target` goes through inner time."""

Average = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u for given observation, x and t: (inner (B, D), start (B,), end (B,)) -> (B, D)."""


def between(noise: Tensor, chunk: Tensor, time: Tensor) -> Tensor:
    """(1 - time) noise + time chunk, (B, D); time (B,)."""
    share = time.unsqueeze(1)
    return (1.0 - share) * noise + share * chunk


@torch.no_grad()
def semigroup_target(
    average: Average, inner: Tensor, start: Tensor, end: Tensor, share: Tensor
) -> Tensor:
    r"""The average velocity from r to q, put together from two shorter steps.

    .. math:: \gamma\, u(r, m, y) + (1 - \gamma)\, u(m, q, y_m), \qquad m = r + \gamma (q - r)

    Args:
        average: u, two evaluations of B rows.
        inner: y, (B, D).
        start: r, (B,).
        end: q >= r, (B,).
        share: gamma in [0, 1], (B,).

    Returns:
        (B, D), without gradient.
    """
    middle = start + share * (end - start)
    first = average(inner, start, middle)
    halfway = inner + (middle - start).unsqueeze(1) * first
    second = average(halfway, middle, end)
    part = share.unsqueeze(1)
    return part * first + (1.0 - part) * second


@torch.no_grad()
def integrated_target(
    field: VelocityField, noise: Tensor, noisy_chunk: Tensor, flow_time: Tensor, *, steps: int
) -> Tensor:
    """The average velocity of the whole way, found by integrating the frozen field's own flow.

    It is what composing shorter steps tends to, without waiting for them, at 2 ``steps``
    evaluations of the field. Steps are shorter towards inner time 1, where the posterior is
    narrow: on the shipped policy four of them miss by 4 % of the posterior's spread, four equal
    ones by 12 to 32 %. (Ours.)

    Args:
        field: Frozen field, (B, H, A), (B,) -> (B, H, A).
        noise: State at inner time 0, (B, H, A).
        noisy_chunk: x, (B, H, A).
        flow_time: t, (B,); rows may differ.
        steps: Midpoint steps.

    Returns:
        (B, D), without gradient.
    """

    def velocity(inner: Tensor, inner_time: Tensor) -> Tensor:
        return glass_velocity_per_row(field, inner, inner_time, noisy_chunk, flow_time)

    return (Sampler(steps, "midpoint", TIME_POWER).denoise(velocity, noise) - noise).flatten(1)


def scaled_error(found: Tensor, target: Tensor, unit: Tensor) -> Tensor:
    r"""Mean squared error in a unit of every row's own.

    .. math:: \operatorname{mean} \big( (u - \text{target}) / \text{unit} \big)^2

    With the unit of `AverageVelocity`, late flow times, where the posterior is narrow, count as
    much as early ones.

    Args:
        found: (B, D).
        target: (B, D).
        unit: Above 0, (B, D).

    Returns:
        Mean over rows and components, a scalar.
    """
    return ((found - target) / unit).square().mean()


def conditioning_time(
    uniform: Tensor, other: Tensor, *, highest: float, zero_share: float
) -> Tensor:
    r"""Flow times of the noisy chunk: :math:`t = U^2 t_\text{max}`, or 0 in a share of the rows.

    At t = 0 the posterior is the policy itself, where every sample begins.

    Args:
        uniform: U in [0, 1), (B,).
        other: Uniform in [0, 1), (B,); decides which rows are 0.
        highest: t_max < 1.
        zero_share: Share of rows at 0.

    Source: Meta Flow Maps' training code.
    """
    return uniform.square() * highest * (other >= zero_share)


def step_times(
    one: Tensor, two: Tensor, other: Tensor, *, whole_share: float
) -> tuple[Tensor, Tensor]:
    """Inner times r <= q of the consistency rows: two sorted uniforms, or 0 and 1.

    Args:
        one: Uniform in [0, 1), (B,).
        two: Uniform in [0, 1), (B,).
        other: Uniform in [0, 1), (B,); decides which rows go the whole way.
        whole_share: Share of rows from 0 to 1, the step that draws a sample. (Ours.)

    Returns:
        r and q, (B,) each.
    """
    whole = other < whole_share
    start = torch.where(whole, torch.zeros_like(one), torch.minimum(one, two))
    return start, torch.where(whole, torch.ones_like(one), torch.maximum(one, two))
