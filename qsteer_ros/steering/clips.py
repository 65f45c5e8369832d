"""Whose clips they are: components that steering put out of bounds, or the policy itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qsteer_ros.steering.gradient import NORMALISED, Bounds


class Clips(NamedTuple):
    """Components of a chunk that the action bounds cut off, each (B, H, A) bool.

    Attributes:
        steering: Out of bounds now; the twin is not, or is on the other side. The executed action
            differs because of steering, and is not what steering asked for.
        policy: Out of bounds now, and so is the twin on the same side. The executed action is the
            bound with and without steering.
        further: The part of ``policy`` that lies further out than the twin.
        relieved: The twin is out of bounds, and the chunk is not on that side.
    """

    steering: Tensor
    policy: Tensor
    further: Tensor
    relieved: Tensor


def clips(unclipped: Tensor, twin_unclipped: Tensor, bounds: Bounds = NORMALISED) -> Clips:
    """Tell clips that steering caused from the policy's own.

    ``steering`` and ``policy`` exclude each other and together are all that is clipped now. A
    component exactly on a bound is not clipped.

    Args:
        unclipped: The steered chunk as integrated, (B, H, A).
        twin_unclipped: The frozen policy's from the same noise, (B, H, A).
        bounds: Of normalised actions.
    """
    low, high = bounds
    below, above = unclipped < low, unclipped > high
    twin_below, twin_above = twin_unclipped < low, twin_unclipped > high
    policy = (below & twin_below) | (above & twin_above)
    further = (below & twin_below & (unclipped < twin_unclipped)) | (
        above & twin_above & (unclipped > twin_unclipped)
    )
    relieved = (twin_below & ~below) | (twin_above & ~above)
    return Clips((below | above) & ~policy, policy, further, relieved)


def share(mask: Tensor) -> Tensor:
    """Share of a chunk's components in a mask, (B, H, A) -> (B,) float32."""
    return mask.to(torch.float32).mean(dim=(1, 2))
