r"""Cal-QL on chunks: push down what the data do not show, but not below what is known.

.. math::

    L_C &= \operatorname{mean}_e \Big( \log \sum_j e^{\,c_{ej} - \log p_j} - Q_e(s, a) \Big) \\
    c_{ej} &= \begin{cases} Q_e(s, a_j) & a_j \text{ uniform} \\
                            \max(Q_e(s, a_j), G) & a_j \text{ of a policy} \end{cases}

The whole loss is that of :mod:`~qsteer_ros.critics.sarsa` and :math:`\alpha L_C`. Only a policy's
candidates are lifted to the Monte-Carlo return G of the data: where one is, its gradient is 0, and
it is pushed no further. The densities :math:`p_j` correct for how candidates were drawn; over the
many dimensions of a chunk they explode, and without them the sum is a plain one.

Source: Cal-QL, arXiv:2303.05479, and its code; on chunks Q-VGM v1, arXiv:2606.08015.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def calibrated(values: Tensor, mc_return: Tensor) -> Tensor:
    """Values of a policy's candidates, none below the return of the data.

    Args:
        values: (E, B, N).
        mc_return: G, (B,); no gradient flows into it.

    Returns:
        (E, B, N); without gradient where G is larger.
    """
    return torch.maximum(values, mc_return.detach().view(1, -1, 1))


def conservative_loss(
    values: Tensor,
    *,
    uniform: Tensor,
    policy: Tensor,
    mc_return: Tensor,
    log_density: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    r"""L_C, mean over members and batch.

    Args:
        values: Q of each member at the data's chunks, (E, B).
        uniform: Q at candidates drawn from the whole action box, (E, B, N); N may be 0.
        policy: Q at candidates of a policy, (E, B, N'), before calibration; N' may be 0.
        mc_return: G, (B,).
        log_density: log p_j of all candidates, the uniform ones first, (B, N + N'); None leaves
            it out.
        valid: 0 for rows that must not count, (B,); they stay in the denominator.
    """
    candidates = torch.cat([uniform, calibrated(policy, mc_return)], dim=2)
    if log_density is not None:
        candidates = candidates - log_density
    gap = torch.logsumexp(candidates, dim=2) - values
    return gap.mean() if valid is None else (gap * valid).mean()


def uniform_log_density(chunk_dim: int) -> float:
    r"""Of chunks drawn uniformly from :math:`[-1, 1]^D`: :math:`-D \log 2`."""
    return -chunk_dim * math.log(2.0)


def local_log_density(offset: Tensor, deviation: float) -> Tensor:
    """Of candidates that are the data's chunk and normal noise.

    Args:
        offset: Candidate less the data's chunk, (B, N, H, A).
        deviation: Standard deviation of every component.

    Returns:
        (B, N).
    """
    dims = offset.shape[2] * offset.shape[3]
    scaled = (offset / deviation).square().sum(dim=(2, 3))
    return -0.5 * scaled - dims * (math.log(deviation) + 0.5 * math.log(2.0 * math.pi))
