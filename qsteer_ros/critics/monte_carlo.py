r"""Monte-Carlo regression: the return that the data went on to have, without a bootstrap.

.. math:: L_Q = \operatorname{mean}_e (Q_e(s, a) - G)^2, \qquad G = \sum_{i \ge 0} \gamma^i r_{t+i}

As an objective it gives the value of the behaviour with all of the return's variance; as a warm
start it puts the other objectives near their solution before they bootstrap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qsteer_ros.critics.losses import critic_loss


def monte_carlo_loss(values: Tensor, mc_return: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """L_Q.

    Args:
        values: Q of each member at the data's chunks, (E, B).
        mc_return: G, (B,).
        valid: 0 for rows that must not count, (B,); they stay in the denominator.
    """
    return critic_loss(values, mc_return, valid=valid)


def returns_by_position(
    mc_return: Tensor, rewards: Tensor, ended: Tensor, *, discount: float
) -> Tensor:
    r"""Return from every position of a chunk on, (B, H).

    .. math:: G^{(0)} = G, \qquad G^{(i+1)} = (G^{(i)} - r_i) / \gamma

    Positions that come after the end of the task have 0.

    Args:
        mc_return: G of the chunk's first step, (B,).
        rewards: Of each step, 0 after the end, (B, H).
        ended: Whether the task was over at the end of each step, (B, H) bool.
        discount: gamma, above 0.
    """
    found = [mc_return]
    for position in range(rewards.shape[1] - 1):
        rest = (found[-1] - rewards[:, position]) / discount
        found.append(torch.where(ended[:, position], torch.zeros_like(rest), rest))
    return torch.stack(found, dim=1)
