"""QPILOTS-U: the gradient through the clean prediction, as long as a fraction of the drift."""

from __future__ import annotations

from qsteer_ros.ensemble import Aggregate, QFunction, pessimistic
from qsteer_ros.steering.gradient import check_weight, slope_at
from qsteer_ros.steering.guide import Look, Push, Rule
from qsteer_ros.steering.ratio import match_drift


def qpilots_u(
    q: QFunction,
    *,
    weight: float,
    aggregate: Aggregate | None = None,
    keep_jacobian: bool = True,
) -> Rule:
    r"""Push the field by a fixed fraction of its own length along the critic's gradient.

    .. math:: v_\alpha = v + \alpha \, \frac{\lVert v \rVert}{\lVert g \rVert + 10^{-8}} \, g,
              \qquad g = \nabla_x \bar Q\big(\operatorname{clip}[x + (1 - \tau) v(x, \tau)]\big)

    Norms are per sample over the whole chunk. The clip is straight-through: it moves the point
    that is judged and lets the gradient pass. At flow time 0 nothing is added and the critic is
    not asked. The scale of Q drops out: with ``pessimistic`` as long as the members' spread is
    large against its floor of 1e-4 return units.

    Args:
        q: Critic for the same observation, (B, H, A) -> (E, B); target networks.
        weight: alpha >= 0, the ratio of guidance to velocity. 0 leaves the field alone.
        aggregate: How members become one value; None is mean less half the spread.
        keep_jacobian: Whether g goes back through the velocity inside the prediction, as in the
            paper. False stops at the prediction, which leaves QGF's direction.

    Returns:
        A rule for `guide`.

    Raises:
        ConfigError: ``weight`` is negative or not finite.

    Source:
        QPILOTS, arXiv:2606.14801, eqs. 12, 14, 15 and 17.
    """
    check_weight(weight)
    reduce = pessimistic(0.5) if aggregate is None else aggregate

    def push(look: Look) -> Push:
        slope = slope_at(q, look.clean, aggregate=reduce, bounds=look.bounds)
        gradient = slope.gradient
        if keep_jacobian:
            gradient = look.pulled(gradient)
        gradient, velocity = look.free(gradient), look.free(look.velocity)
        return Push(match_drift(gradient, velocity, ratio=weight), slope)

    return Rule(push, needs_pull=keep_jacobian, after=0.0, idle=weight == 0.0)
