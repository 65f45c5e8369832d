"""The trust region of a chunk: how far steering may carry it from the frozen policy's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError


def displacement(chunk: Tensor, twin: Tensor) -> Tensor:
    r"""Distance of two chunks per sample, normalised action units, (B,).

    .. math:: D = \sqrt{\tfrac{1}{H A} \textstyle\sum_{h, a} (a_{ha} - \tilde a_{ha})^2}

    The root mean square over action components does not depend on horizon and action dimension.
    """
    difference = (chunk - twin).flatten(1)
    norm: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return norm / math.sqrt(difference.shape[1])


def keep_near(chunk: Tensor, twin: Tensor, *, max_displacement: float) -> tuple[Tensor, Tensor]:
    r"""Bound the distance of a steered chunk from its twin, by going back towards the twin.

    .. math:: a' = \tilde a + s \, (a - \tilde a), \qquad s = \min(1, D_{\max} / D)

    Per sample. Steps that are each within `limits.Limits` may add up; this bounds their sum, and
    what gradient steps on the finished chunk add. The result lies between chunk and twin component
    by component: if both are inside the action bounds, so is it.

    Args:
        chunk: a, steered, (B, H, A).
        twin: What the frozen policy makes of the same noise, (B, H, A). With real-time chunking:
            what `rtc` alone makes of it, so that going back towards it leaves the seam.
        max_displacement: Largest D, positive, normalised action units; infinity sets no limit.

    Returns:
        a' (B, H, A), bit for bit ``chunk`` in the samples that are inside, and the share s of the
        displacement that was kept, (B,).

    Raises:
        ConfigError: ``max_displacement`` is not positive, or shapes differ.
    """
    if not max_displacement > 0.0:
        raise ConfigError(
            f"'max_displacement' must be positive: got {max_displacement}. Infinity sets no limit."
        )
    if chunk.shape != twin.shape:
        raise ConfigError(
            f"chunk and twin must have the same shape: got {tuple(chunk.shape)} and "
            f"{tuple(twin.shape)}."
        )
    distance = displacement(chunk, twin)
    inside = distance <= max_displacement
    share = torch.where(inside, torch.ones_like(distance), max_displacement / distance)
    nearer = twin + share.view(-1, 1, 1) * (chunk - twin)
    return torch.where(inside.view(-1, 1, 1), chunk, nearer), share
