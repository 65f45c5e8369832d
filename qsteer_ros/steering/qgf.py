"""Q-guided flow: add the critic's gradient at the clean prediction to the velocity."""

from __future__ import annotations

from qsteer_ros.ensemble import Aggregate, QFunction, minimum
from qsteer_ros.flow import Sampler
from qsteer_ros.steering.clean import estimate as clean_estimate
from qsteer_ros.steering.coefficient import coefficient as along_flow
from qsteer_ros.steering.gradient import check_weight, slope_at
from qsteer_ros.steering.guide import Look, Push, Rule


def qgf(
    q: QFunction,
    *,
    weight: float,
    aggregate: Aggregate = minimum,
    clip: bool = True,
    estimate: str = "euler",
    coefficient: str = "constant",
    sampler: Sampler | None = None,
) -> Rule:
    r"""Add the critic's gradient to a frozen velocity field.

    .. math:: v_w(x, \tau) = v(x, \tau) + w \, c(\tau) \, \nabla_{\hat a} \bar Q(\hat a), \qquad
              \hat a = \operatorname{clip}\big(x + (1 - \tau) \, v(x, \tau)\big), \quad c = 1

    The gradient stops at :math:`\hat a`: the policy is not differentiated. It is not normalised,
    so that it is strong where the critic is steep. A clipped component is guided all the same.

    Args:
        q: Critic for the same observation as the field, (B, H, A) -> (E, B); target networks.
        weight: w >= 0, in (normalised action)^2 per unit of return, so that w times the gradient
            is a velocity. 0 leaves the field alone and never asks the critic.
        aggregate: How members become one value.
        clip: Whether the prediction is clipped to the action bounds before it is judged, as in
            the official code. The paper's equations do not clip.
        estimate: What stands for :math:`\hat a`: ``euler`` as above, ``noisy`` the noisy chunk
            itself, not clipped (QFQL), ``chain`` the end of the frozen path; see `clean`.
        coefficient: c: ``constant``, or ``tilt``, :math:`(1 - \tau) / \tau` and 0 at flow time 0;
            see `coefficient`. The factor of a tilted density is exact only together with the
            Jacobian that this rule drops (`qgf_jacobian`).
        sampler: Integrates the frozen field for ``chain``: the one that denoises.

    Returns:
        A rule for `guide`.

    Raises:
        ConfigError: ``weight`` is negative or not finite, an option has no such value, or
            ``chain`` has no sampler.

    Source:
        Q-Guided Flow, arXiv:2606.11087, eq. 9 and its code; ``tilt`` from a public fork of it.
    """
    check_weight(weight)
    find = clean_estimate(estimate, sampler=sampler, clip=clip)
    factor = along_flow(coefficient)

    def push(look: Look) -> Push:
        point, bounds = find(look)
        slope = slope_at(q, point, aggregate=aggregate, bounds=bounds)
        return Push(weight * factor.at(look.tau) * slope.gradient, slope)

    return Rule(push, after=factor.after, idle=weight == 0.0)
