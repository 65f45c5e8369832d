r"""Losses of DSRL with noise aliasing: soft actor-critic whose action is a policy's noise.

Two critics: one judges chunks, :math:`Q(s, a)`, the other noise, :math:`Q^z(s, z)`. The second is
taught by the first through the frozen policy, so the actor's gradient never passes through the
policy's steps. Pure functions of tensors.

Source: DSRL, arXiv:2506.15799 (DSRL-NA); github.com/zhouzypaul/qgf, ``agents/dsrl.py``.
"""

from __future__ import annotations

from torch import Tensor


def distillation_loss(noise_values: Tensor, chunk_values: Tensor) -> Tensor:
    r"""Teach the noise-space critic what the chunk that noise becomes is worth.

    .. math:: \operatorname{mean}_{e, b} \big( Q^z_e(s, z) -
              Q_e(s, \operatorname{clip}(\operatorname{denoise}(z))) \big)^2,
              \qquad z \sim N(0, I)

    Member e learns from member e, so that the ensemble's spread is handed on.

    Args:
        noise_values: Q^z at the noise, (E, B).
        chunk_values: Q at the chunks, (E, B); no gradient flows into it.
    """
    return (noise_values - chunk_values.detach()).square().mean()


def actor_loss(log_density: Tensor, values: Tensor, *, temperature: Tensor) -> Tensor:
    r"""Make good noise likely and keep the distribution wide.

    .. math:: \operatorname{mean}_b \big( \alpha \log \pi(y | s) -
              \operatorname{mean}_e Q^z_e(s, z) \big), \qquad z = s_z \, y

    Args:
        log_density: Of y, the noise before scaling, in [-1, 1]^D, (B,).
        values: Q^z at the actor's noise, (E, B).
        temperature: alpha, a scalar; no gradient flows into it.
    """
    return (temperature.detach() * log_density - values.mean(dim=0)).mean()


def temperature_loss(
    log_temperature: Tensor, log_density: Tensor, *, target_entropy: float
) -> Tensor:
    r"""Lower the temperature while the actor is more random than asked, else raise it.

    .. math:: \alpha \, (\hat H - H^*), \qquad \alpha = e^{\lambda},
              \quad \hat H = -\operatorname{mean}_b \log \pi(y | s)

    Its derivative with respect to :math:`\lambda` is the loss itself.

    Args:
        log_temperature: lambda, a scalar.
        log_density: As in `actor_loss`, (B,); no gradient flows into it.
        target_entropy: H*, nats.
    """
    return log_temperature.exp() * (-log_density.detach().mean() - target_entropy)
