"""Q-guided flow: add the critic's gradient at the clean prediction to the velocity."""

from __future__ import annotations

from qsteer_ros.ensemble import Aggregate, QFunction, minimum
from qsteer_ros.steering.gradient import check_weight, slope_at
from qsteer_ros.steering.guide import Look, Push, Rule


def qgf(q: QFunction, *, weight: float, aggregate: Aggregate = minimum, clip: bool = True) -> Rule:
    r"""Add the critic's gradient to a frozen velocity field.

    .. math:: v_w(x, \tau) = v(x, \tau) + w \, \nabla_{\hat a} \bar Q(\hat a), \qquad
              \hat a = \operatorname{clip}\big(x + (1 - \tau) \, v(x, \tau)\big)

    The gradient stops at :math:`\hat a`: the policy is not differentiated. It is not normalised,
    so that it is strong where the critic is steep.

    Args:
        q: Critic for the same observation as the field, (B, H, A) -> (E, B); target networks.
        weight: w >= 0, in (normalised action)^2 per unit of return, so that w times the gradient
            is a velocity. 0 leaves the field alone and never asks the critic.
        aggregate: How members become one value.
        clip: Whether the prediction is clipped to the action bounds before it is judged, as in
            the official code. The paper's equations do not clip.

    Returns:
        A rule for `guide`.

    Raises:
        ConfigError: ``weight`` is negative or not finite.

    Source:
        Q-Guided Flow, arXiv:2606.11087, eq. 9 and its code.
    """
    check_weight(weight)

    def push(look: Look) -> Push:
        bounds = look.bounds if clip else None
        slope = slope_at(q, look.clean, aggregate=aggregate, bounds=bounds)
        return Push(weight * slope.gradient, slope)

    return Rule(push, idle=weight == 0.0)
