r"""Ways to take a gradient at the clean prediction back to the noisy chunk.

:math:`J = I + (1 - \tau)\, \partial v / \partial x` is the Jacobian of the clean prediction
:math:`x \mapsto x + (1 - \tau) v(x, \tau)`; g is the critic's gradient at the clipped prediction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qsteer_ros.steering.gradient import Slope, differentiate
from qsteer_ros.steering.guide import Look

WayBack = Callable[[Look, Slope], Tensor]
"""One look at the field and the critic's answer -> gradient at the noisy chunk, (B, H, A)."""


def plain(look: Look, slope: Slope) -> Tensor:
    r""":math:`J_c^\top g`, with the clip inside the map: a saturated component counts nothing.

    One vector-Jacobian product; the matrix is never made.
    """
    return look.pulled(
        torch.where(slope.clipped, torch.zeros_like(slope.gradient), slope.gradient)
    )


def regularised(look: Look, slope: Slope, *, epsilon: float) -> Tensor:
    r""":math:`g + \epsilon J_c^\top g`; saturated components pass through the identity alone."""
    return slope.gradient + epsilon * plain(look, slope)


def orthogonal(look: Look, slope: Slope) -> Tensor:
    r""":math:`(U V^\top)^\top g` with :math:`J = U S V^\top`, of the unclipped prediction.

    The rotation in J without its stretching, so the length of g is kept. H A products build the
    matrix. Where J is singular the rotation within its null space is arbitrary. On a GPU the
    decomposition makes the host wait, so a loop with it cannot be captured.
    """
    left, _, right = torch.linalg.svd(matrix(look))
    turned: Tensor = (left @ right).mT @ slope.gradient.flatten(1).unsqueeze(2)
    return turned.view_as(slope.gradient)


def smoothed(look: Look, slope: Slope, perturbations: Tensor) -> Tensor:
    r""":math:`\tfrac1K \sum_k J(x + \sigma \epsilon_k)^\top g`, of the unclipped prediction.

    Args:
        look: Where the field was asked; g is taken there.
        slope: The critic's answer.
        perturbations: Added to the noisy chunk, (K, B, H, A) or (K, 1, H, A); each costs an
            evaluation of the field and one product.
    """
    total = torch.zeros_like(slope.gradient)
    for perturbation in perturbations:
        _, pull = differentiate(look.field, look.noisy_chunk + perturbation, look.flow_time)
        total = total + pull(slope.gradient)
    return total / len(perturbations)


def matrix(look: Look) -> Tensor:
    """J of each sample, (B, H A, H A): derivative of row component by column component."""
    directions = torch.eye(
        look.noisy_chunk[0].numel(), dtype=look.noisy_chunk.dtype, device=look.noisy_chunk.device
    ).view(-1, 1, *look.noisy_chunk.shape[1:])
    rows = [look.pulled(row.expand_as(look.noisy_chunk)).flatten(1) for row in directions]
    return torch.stack(rows, dim=1)
