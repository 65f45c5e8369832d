r"""Implicit Q-learning with one value per position of the chunk.

.. math::

    y_i &= r_i + \gamma (1 - d_i) \, V^{(i+1)}(s), \qquad i < H - 1 \\
    y_{H-1} &= r_{H-1} + \gamma (1 - d_{H-1}) \, V^{(0)}(s') \\
    L_Q &= \operatorname{mean}_{e,i} (Q_e^{(i)}(s, a) - y_i)^2 \\
    L_V &= \operatorname{mean}_i |\kappa - 1[u_i \le 0]| \, u_i^2, \qquad
    u_i = \min_e \bar Q_e^{(i)}(s, a) - V^{(i)}(s)

After the end of the task there is no reward and nothing follows, so those positions are regressed
to 0. Left out of the loss they would be free to say anything, and steering adds positions up. A
chunk that was cut off (*truncated*) after n steps bootstraps there, at position n - 1; what would
have come after was never seen, and has no weight.

Source: Q-VGM v2, arXiv:2606.08015v2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qsteer_ros.critics.losses import expectile_loss


def stepwise_targets(
    rewards: Tensor,
    ended: Tensor,
    *,
    value: Tensor,
    next_value: Tensor,
    discount: float,
    steps: Tensor | None = None,
) -> Tensor:
    r"""Target y of every position, without gradient, (B, H).

    Args:
        rewards: Of each step, 0 after the end, (B, H).
        ended: d, whether the task was over at the end of each step, (B, H) bool.
        value: V of every position at the chunk's state, (B, H).
        next_value: :math:`V^{(0)}` after the chunk, (B,).
        discount: gamma.
        steps: n, how many steps of the chunk were taken before it was cut off, (B,); None: all H.
    """
    follows = torch.cat([value[:, 1:], next_value.unsqueeze(1)], dim=1)
    if steps is not None:
        position = torch.arange(rewards.shape[1], device=rewards.device)
        last = position == steps.unsqueeze(1) - 1
        follows = torch.where(last, next_value.unsqueeze(1), follows)
    return torch.where(ended, rewards, rewards + discount * follows).detach()


def position_weights(
    ended: Tensor, *, steps: Tensor | None, valid: Tensor | None
) -> Tensor | None:
    """Which positions count, (B, H) of 0 and 1; None: all.

    Args:
        ended: (B, H) bool; a position at or after the end counts.
        steps: As in `stepwise_targets`.
        valid: 0 for rows that must not count, (B,).
    """
    if steps is None and valid is None:
        return None
    counts = torch.ones(ended.shape, device=ended.device)
    if steps is not None:
        position = torch.arange(ended.shape[1], device=ended.device)
        counts = ((position < steps.unsqueeze(1)) | ended).to(counts.dtype)
    return counts if valid is None else counts * valid.unsqueeze(1)


def stepwise_iql_losses(
    values: Tensor,
    value: Tensor,
    *,
    slow: Tensor,
    targets: Tensor,
    expectile: float,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Losses of Q and of V; each moves its own network only.

    Args:
        values: Q of each member and position at the data's chunks, (E, B, H).
        value: V of each position at the same states, (B, H).
        slow: :math:`\bar Q` of each target network and position, (E, B, H).
        targets: y, see `stepwise_targets`, (B, H).
        expectile: kappa in (0, 1).
        weights: See `position_weights`, (B, H); what does not count stays in the denominator.

    Returns:
        L_Q and L_V.

    Raises:
        ConfigError: ``expectile`` is not inside (0, 1).
    """
    errors = (values - targets.detach()).square()
    q_loss = errors.mean() if weights is None else (errors * weights).mean()
    return q_loss, expectile_loss(slow.amin(dim=0), value, expectile=expectile, valid=weights)
