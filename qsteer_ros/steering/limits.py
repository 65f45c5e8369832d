r"""The trust region of a step: how far all guidance together may bend the velocity.

One region for whatever pushes, so that two rules which are each within bounds cannot leave them
together. The region of a whole chunk is `trust_region.keep_near`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.steering.gradient import Bounds, norm_per_sample


@dataclass(frozen=True)
class Limits:
    r"""Limits on the sum of all guidance at one flow time.

    Attributes:
        max_ratio: Largest :math:`\lVert g \rVert / \lVert v \rVert`, per sample; longer guidance
            is shortened, its direction kept. Infinite: no limit.
        project: Whether guidance is projected so that it pushes no component of the clean
            prediction out of the action bounds (or further out); see `project`.

    Raises:
        ConfigError: ``max_ratio`` is not positive.
    """

    max_ratio: float = math.inf
    project: bool = False

    def __post_init__(self) -> None:
        """Refuse a limit that would switch guidance off or mean nothing."""
        if not self.max_ratio > 0.0:
            raise ConfigError(
                f"'max_ratio' must be positive: got {self.max_ratio}. Largest guidance relative "
                "to the velocity; infinity sets no limit, weight 0 switches guidance off."
            )

    def apply(
        self, guidance: Tensor, velocity: Tensor, clean: Tensor, tau: float, bounds: Bounds
    ) -> Tensor:
        """Guidance inside the limits, (B, H, A); the same tensor when there are none.

        Projected first, shortened then: what was projected stays in the box when it is shortened.

        Args:
            guidance: The sum of all rules' guidance, (B, H, A).
            velocity: The frozen field's, (B, H, A); zero in rows that are held, whose length is
                no allowance for the others.
            clean: Unclipped clean prediction, (B, H, A).
            tau: Flow time, below 1.
            bounds: Of normalised actions.
        """
        if self.project:
            guidance = project(guidance, clean, tau, bounds)
        if math.isinf(self.max_ratio):
            return guidance
        return shorten(guidance, self.max_ratio * norm_per_sample(velocity))


FREE = Limits()
"""No limits: the published methods."""


def shorten(guidance: Tensor, limit: Tensor) -> Tensor:
    """Scale each sample down to a norm of at most ``limit`` (B, 1, 1); direction kept."""
    norm = norm_per_sample(guidance)
    return guidance * torch.where(norm > limit, limit / norm, torch.ones_like(norm))


def project(guidance: Tensor, clean: Tensor, tau: float, bounds: Bounds) -> Tensor:
    r"""Cut guidance that would push the clean prediction out of the box.

    Guidance held from now on moves the end by :math:`(1 - \tau) g`. Componentwise, with
    :math:`l = \min(\mathrm{low}, \hat a)` and :math:`u = \max(\mathrm{high}, \hat a)`,

    .. math:: g' = \operatorname{clip}\Big(g,\; \frac{l - \hat a}{1 - \tau},\;
                   \frac{u - \hat a}{1 - \tau}\Big)

    A component that the policy itself has put outside is not pulled back, and is pushed no
    further; one inside stops at the bound. Never longer than ``guidance`` and never of the other
    sign, component by component and to the bit: the limits are :math:`\le 0 \le`.

    Args:
        guidance: g, (B, H, A).
        clean: Unclipped clean prediction, (B, H, A).
        tau: Flow time, below 1.
        bounds: Of normalised actions.

    Returns:
        g', (B, H, A).
    """
    remaining = 1.0 - tau
    down = (clean.clamp(max=bounds[0]) - clean) / remaining
    up = (clean.clamp(min=bounds[1]) - clean) / remaining
    return torch.minimum(torch.maximum(guidance, down), up)
