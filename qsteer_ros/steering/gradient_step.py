"""Gradient ascent on a finished chunk, with what has been reached kept or thrown away."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from qsteer_ros.ensemble import Aggregate, QFunction, minimum
from qsteer_ros.errors import ConfigError
from qsteer_ros.steering.gradient import NORMALISED, Bounds, norm_per_sample, slope_at
from qsteer_ros.steering.limits import shorten

DIRECTIONS = ("gradient", "unit", "sign")
KEEPS = ("last", "best", "ascending")


class Ascent(NamedTuple):
    """What an ascent came to.

    Attributes:
        chunk: The chunk that was kept, inside the bounds, (B, H, A).
        values: Aggregated values, (steps + 1, B): of every iterate, the start first; for
            ``ascending`` of the chunk held after each step, so that they never fall.
        accepted: Number of the iterate that was kept, 0 the start, (B,) int64.
    """

    chunk: Tensor
    values: Tensor
    accepted: Tensor


def gradient_step(
    chunk: Tensor,
    q: QFunction,
    *,
    step_size: float,
    steps: int,
    aggregate: Aggregate = minimum,
    direction: str = "gradient",
    keep: str = "last",
    max_norm: float = math.inf,
    held: Tensor | None = None,
    bounds: Bounds = NORMALISED,
) -> Ascent:
    r"""Climb the critic from a finished chunk.

    .. math:: a^{j+1} = \operatorname{clip}\big(a^j + \alpha \, d(g^j)\big), \qquad
              g^j = \nabla_a \bar Q(a^j), \quad a^0 = \operatorname{clip}(a)

    ========= ===================================================================================
    gradient  d is g, shortened to ``max_norm``
    unit      :math:`g / \lVert g \rVert`, norm over the whole chunk; a gradient of zero stays zero
    sign      the sign of each component
    --------- -----------------------------------------------------------------------------------
    last      the last iterate is kept
    best      the iterate with the highest value, the start included; of equals the first
    ascending a step is taken only if the value strictly rises; the first that does not ends it
    ========= ===================================================================================

    Samples do not influence each other. The critic is asked ``steps + 1`` times. A value that is
    not a number is never better; with ``last`` nothing guards against it.

    Args:
        chunk: a, normalised, (B, H, A). Not modified.
        q: Critic for the same observation, (B, H, A) -> (E, B); target networks.
        step_size: alpha >= 0: (normalised action)^2 per unit of return for ``gradient``,
            normalised action for the others.
        steps: Number of steps, >= 0.
        aggregate: How members become one value.
        direction: ``gradient``, ``unit`` or ``sign``.
        keep: ``last``, ``best`` or ``ascending``.
        max_norm: Longest gradient, > 0, per sample over the chunk; ``gradient`` only.
        held: Actions that must stay as they are, (H,) bool: they are judged and do not move, and
            lengths are over the others. None: all may move.
        bounds: Of normalised actions.

    Returns:
        The chunk kept, values, and which iterate it is; all detached.

    Raises:
        ConfigError: A value is out of range, or an option has no such value.

    Source:
        ``gradient`` and ``sign`` with ``last``: GradStep of Q-Guided Flow, arXiv:2606.11087 and
        its code. ``gradient`` with ``best``: Q-VGM, arXiv:2606.08015 v1 and v2; ``unit`` with
        ``ascending``: v5, which does not clip.
    """
    _check(step_size, steps, direction, keep, max_norm)
    iterate = chunk.detach().clamp(*bounds)
    slope = slope_at(q, iterate, aggregate=aggregate, bounds=None)
    kept, best, values = iterate, slope.value, [slope.value]
    climbing = torch.ones_like(best, dtype=torch.bool)
    accepted = torch.zeros_like(best, dtype=torch.int64)
    for step in range(1, steps + 1):
        uphill = _direction(_free(slope.gradient, held), direction, max_norm)
        iterate = (iterate + step_size * uphill).clamp(*bounds)
        if step < steps:
            slope = slope_at(q, iterate, aggregate=aggregate, bounds=None)
            value = slope.value
        else:
            with torch.no_grad():
                value = aggregate(q(iterate))
        taken = _taken(keep, value, best, climbing)
        if keep == "ascending":
            climbing = taken
        kept = torch.where(taken.view(-1, 1, 1), iterate, kept)
        best = torch.where(taken, value, best)
        accepted = torch.where(taken, step, accepted)
        values.append(best if keep == "ascending" else value)
    return Ascent(kept, torch.stack(values), accepted)


def _free(gradient: Tensor, held: Tensor | None) -> Tensor:
    if held is None:
        return gradient
    return torch.where(held.view(1, -1, 1), torch.zeros_like(gradient), gradient)


def _taken(keep: str, value: Tensor, best: Tensor, climbing: Tensor) -> Tensor:
    """Whether an iterate of this value replaces the one that is held, (B,) bool."""
    if keep == "last":
        return torch.ones_like(climbing)
    return climbing & (value > best)


def _direction(gradient: Tensor, direction: str, max_norm: float) -> Tensor:
    if direction == "sign":
        return gradient.sign()
    if direction == "unit":
        norm = norm_per_sample(gradient)
        return gradient / torch.where(norm > 0.0, norm, torch.ones_like(norm))
    if math.isinf(max_norm):
        return gradient
    return shorten(gradient, torch.full_like(norm_per_sample(gradient), max_norm))


def _check(step_size: float, steps: int, direction: str, keep: str, max_norm: float) -> None:
    if not (math.isfinite(step_size) and step_size >= 0.0):
        raise ConfigError(f"'step_size' must be finite and at least 0: got {step_size}.")
    if steps < 0:
        raise ConfigError(f"'steps' must be at least 0: got {steps}.")
    if direction not in DIRECTIONS:
        raise ConfigError(
            f"'direction' must be one of {', '.join(DIRECTIONS)}: got '{direction}'."
        )
    if keep not in KEEPS:
        raise ConfigError(f"'keep' must be one of {', '.join(KEEPS)}: got '{keep}'.")
    if not max_norm > 0.0:
        raise ConfigError(f"'max_norm' must be positive: got {max_norm}. Infinity sets no limit.")
    if math.isfinite(max_norm) and direction != "gradient":
        raise ConfigError(
            f"'max_norm' shortens gradients, but direction '{direction}' has a length of its own: "
            f"got {max_norm}. Leave it infinite, or choose direction 'gradient'."
        )
