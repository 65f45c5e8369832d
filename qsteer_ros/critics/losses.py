r"""Losses of implicit Q-learning on action chunks. Pure functions of tensors.

The bootstrap factor says in one number how much of the next value counts: :math:`\gamma^K` when
the episode goes on after the K executed actions or was merely cut off there (*truncated*), 0 only
when it truly ended (*terminated*).

Source: QGF, arXiv:2606.11087; IQL, arXiv:2110.06169.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError


def chunk_return(rewards: Tensor, *, discount: float) -> Tensor:
    r"""Discounted reward inside a chunk: :math:`R = \sum_{i<K} \gamma^i r_i`, (B, K) -> (B,).

    Rewards after the end of an episode must be zero.
    """
    powers = discount ** torch.arange(rewards.shape[1], dtype=rewards.dtype, device=rewards.device)
    return (rewards * powers).sum(dim=1)


def bootstrap_factor(terminated: Tensor, *, discount: float, steps: int | Tensor) -> Tensor:
    r"""How much of the next value counts: :math:`\gamma^K`, or 0 where the episode terminated.

    Args:
        terminated: True where the task really ended inside the chunk, (B,) bool. An episode that
            ran out of time is not terminated.
        discount: gamma, in (0, 1].
        steps: K, number of executed actions, an int or (B,).

    Returns:
        (B,), the default float type.
    """
    count = torch.as_tensor(steps, dtype=torch.get_default_dtype(), device=terminated.device)
    factor = torch.as_tensor(discount, dtype=count.dtype, device=count.device) ** count
    return torch.where(terminated, torch.zeros_like(factor), factor)


def chunk_target(chunk_reward: Tensor, bootstrap: Tensor, next_value: Tensor) -> Tensor:
    r"""Regression target of the critic, without gradient.

    .. math:: y = R + b \, V(s_{t+K}), \qquad b = \gamma^K \text{ or } 0

    Args:
        chunk_reward: R, discounted reward inside the chunk, (B,).
        bootstrap: b, see :func:`bootstrap_factor`, (B,).
        next_value: V of the online value network after the chunk, (B,).

    Returns:
        y, (B,), detached.
    """
    return (chunk_reward + bootstrap * next_value).detach()


def critic_loss(values: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
    r"""Mean over members and batch of :math:`m (Q_e - y)^2`.

    Args:
        values: Q of each member at the data's chunks, (E, B).
        target: y, (B,); no gradient flows into it.
        valid: m, 0 for windows that cross the end of an episode, (B,); None counts all. Invalid
            rows stay in the denominator.
    """
    return _masked_mean((values - target.detach()).square(), valid)


def expectile_loss(
    q: Tensor, value: Tensor, *, expectile: float, valid: Tensor | None = None
) -> Tensor:
    r"""Asymmetric squared error that pulls V toward an upper expectile of Q.

    .. math:: \operatorname{mean} \; m \, |\tau - 1[u \le 0]| \, u^2, \qquad u = Q - V

    Args:
        q: Aggregated target critic at the data's chunks, (B,); no gradient flows into it.
        value: V at the same states, (B,).
        expectile: tau in (0, 1); 0.5 is the mean, towards 1 the best action in the data.
        valid: m, as in :func:`critic_loss`.

    Raises:
        ConfigError: ``expectile`` is not inside (0, 1).
    """
    if not 0.0 < expectile < 1.0:
        raise ConfigError(f"'expectile' must be inside (0, 1): got {expectile}. 0.9 is usual.")
    gap = q.detach() - value
    weight = torch.where(gap > 0, expectile, 1.0 - expectile)
    return _masked_mean(weight * gap.square(), valid)


def _masked_mean(errors: Tensor, valid: Tensor | None) -> Tensor:
    return errors.mean() if valid is None else (errors * valid).mean()
