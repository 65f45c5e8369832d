r"""Guidance by target ratio: as long as a given fraction of the velocity."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from qsteer_ros.steering.gradient import check_weight, norm_per_sample
from qsteer_ros.steering.guide import Look, Push, Rule

NORM_FLOOR = 1e-8
"""Added to the gradient's norm. Source: Meta Flow Maps code; the paper's value is not known."""


def match_drift(gradient: Tensor, velocity: Tensor, *, ratio: float) -> Tensor:
    r"""Give a gradient the length ``ratio`` times the velocity's, per sample.

    .. math:: r \, \frac{\lVert v \rVert}{\lVert g \rVert + 10^{-8}} \, g

    A gradient of zero stays zero.

    Source:
        QPILOTS, arXiv:2606.14801, eq. 17 (drift-magnitude matching).
    """
    scale = ratio * norm_per_sample(velocity) / (norm_per_sample(gradient) + NORM_FLOOR)
    return scale * gradient


def at_ratio(rule: Rule, ratio: float) -> Rule:
    r"""A rule's direction with :math:`\lVert guidance \rVert = r \lVert velocity \rVert`.

    Whatever native weight the rule has (above 0) drops out; a critic's scale does too.

    Args:
        rule: Whose direction is taken.
        ratio: r >= 0, over the rows that are not held; 0 leaves those alone.

    Raises:
        ConfigError: ``ratio`` is negative or not finite.
    """
    check_weight(ratio, name="ratio")

    def push(look: Look) -> Push:
        found = rule.push(look)
        gradient, velocity = look.free(found.guidance), look.free(look.velocity)
        return Push(match_drift(gradient, velocity, ratio=ratio), found.slope)

    nothing = ratio == 0.0 and rule.held is None
    return replace(rule, push=push, idle=rule.idle or nothing)
