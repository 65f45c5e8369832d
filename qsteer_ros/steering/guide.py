r"""Where steering happens: one evaluation of the frozen field, any number of rules, one limit.

A **rule** says what to add to the velocity, given one look at the frozen field. `guide` turns a
frozen field and rules into a steered field, which integrators cannot tell from a frozen one:

.. math:: v'(x, \tau) = v(x, \tau) + \operatorname{limit}\Big[\sum_r g_r(x, \tau, v)\Big]

so that a critic and real-time chunking share one evaluation and one trust region.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qsteer_ros.flow import Scheduled, VelocityField, field_at, predict_clean
from qsteer_ros.steering.gradient import NORMALISED, Bounds, Slope, differentiate
from qsteer_ros.steering.limits import FREE, Limits
from qsteer_ros.steering.trace import Trace


class Look(NamedTuple):
    r"""One evaluation of the frozen field; all tensors detached.

    Attributes:
        field: The frozen field at this flow time.
        whole: The frozen field at every flow time, for rules that integrate further.
        noisy_chunk: x, (B, H, A).
        flow_time: tau of every row, (B,).
        tau: The same as a plain number.
        velocity: v, (B, H, A).
        clean: Unclipped clean prediction x + (1 - tau) v, (B, H, A).
        pull: Takes a gradient at the clean prediction back to the noisy chunk,
            :math:`u \mapsto (I + (1-\tau)\, \partial v / \partial x)^\top u`. None unless a rule
            said ``needs_pull``.
        bounds: Of normalised actions.
    """

    field: VelocityField
    whole: VelocityField
    noisy_chunk: Tensor
    flow_time: Tensor
    tau: float
    velocity: Tensor
    clean: Tensor
    pull: Callable[[Tensor], Tensor] | None
    bounds: Bounds

    def pulled(self, gradient: Tensor) -> Tensor:
        """A gradient at the clean prediction, taken back to the noisy chunk, (B, H, A)."""
        assert self.pull is not None, "a rule that pulls must say needs_pull"
        return self.pull(gradient)


class Push(NamedTuple):
    """What a rule adds to the velocity.

    Attributes:
        guidance: (B, H, A), normalised action units per unit of flow time.
        slope: What the critic answered; None where none was asked.
    """

    guidance: Tensor
    slope: Slope | None = None


class Held(NamedTuple):
    """Actions that must come out as they are, whatever policy and critic say.

    Attributes:
        actions: (H, A) or (B, H, A), normalised; read where ``rows`` is True.
        rows: Which actions of the chunk are held, (H,) bool.
    """

    actions: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Rule:
    """One way of bending a velocity field.

    Attributes:
        push: Look -> what to add.
        needs_pull: Whether ``push`` uses `Look.pull`.
        after: Silent at flow times up to and including this one.
        idle: True when nothing can ever be added (weight 0): the rule is left out.
        withheld: Compute and report, but do not add.
        held: Actions that are held; the guidance of all other rules is zero in these rows.
    """

    push: Callable[[Look], Push]
    needs_pull: bool = False
    after: float = -math.inf
    idle: bool = False
    withheld: bool = False
    held: Held | None = None


def guide(
    field: VelocityField,
    *rules: Rule,
    bounds: Bounds = NORMALISED,
    limits: Limits = FREE,
    trace: Trace | None = None,
) -> VelocityField:
    """Bend a frozen field by rules.

    Args:
        field: Frozen field, (B, H, A), (B,) -> (B, H, A), normalised, flow time 0 = noise.
        rules: What to add. Guidance adds up; rules see the frozen field, not one another.
        bounds: Of normalised actions.
        limits: The trust region, applied to the sum.
        trace: Collects what happened; does not change a bit of the result.

    Returns:
        A field with the same signature; ``field`` itself when every rule is idle. It is a
        `flow.TimedField`: rows of a batch share their flow time and do not influence each other.
    """
    active = [rule for rule in rules if not rule.idle]
    if not active:
        return field

    def at(tau: float) -> VelocityField:
        now = [rule for rule in active if tau > rule.after]
        frozen = field_at(field, tau)
        if not now and trace is None:
            return frozen

        def steered(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
            if not now:
                velocity = frozen(noisy_chunk, flow_time)
                _record(trace, flow_time, velocity, None, None)
                return velocity
            look = _look(frozen, field, noisy_chunk, flow_time, tau, now, bounds)
            guidance, slope = _sum(look, now)
            guidance = limits.apply(guidance, look.velocity, look.clean, tau, bounds)
            _record(trace, flow_time, look.velocity, guidance, slope)
            added = [rule for rule in now if not rule.withheld]
            velocity = look.velocity + guidance if added else look.velocity
            return _hold(velocity, look, now)

        return steered

    return Scheduled(at)


def _look(
    frozen: VelocityField,
    whole: VelocityField,
    noisy_chunk: Tensor,
    flow_time: Tensor,
    tau: float,
    rules: Sequence[Rule],
    bounds: Bounds,
) -> Look:
    if any(rule.needs_pull for rule in rules):
        velocity, pull = differentiate(frozen, noisy_chunk, flow_time)
    else:
        velocity, pull = frozen(noisy_chunk, flow_time).detach(), None
    clean = predict_clean(noisy_chunk, flow_time, velocity).detach()
    noisy_chunk = noisy_chunk.detach()
    return Look(frozen, whole, noisy_chunk, flow_time, tau, velocity, clean, pull, bounds)


def _sum(look: Look, rules: Sequence[Rule]) -> tuple[Tensor, Slope | None]:
    """Guidance of all rules together, without what falls on held rows, and the critic's answer."""
    pushes = [(rule, rule.push(look)) for rule in rules]
    slope = next((push.slope for _, push in pushes if push.slope is not None), None)
    total = pushes[0][1].guidance
    for _, push in pushes[1:]:
        total = total + push.guidance
    for rule in rules:
        if rule.held is not None:
            total = torch.where(rule.held.rows.view(1, -1, 1), torch.zeros_like(total), total)
    return total, slope


def _hold(velocity: Tensor, look: Look, rules: Sequence[Rule]) -> Tensor:
    """Lead held rows straight to their actions: velocity (action - x) / (1 - tau)."""
    for rule in rules:
        if rule.held is not None:
            straight = (rule.held.actions - look.noisy_chunk) / (1.0 - look.tau)
            velocity = torch.where(rule.held.rows.view(1, -1, 1), straight, velocity)
    return velocity


def _record(
    trace: Trace | None,
    flow_time: Tensor,
    velocity: Tensor,
    guidance: Tensor | None,
    slope: Slope | None,
) -> None:
    if trace is not None:
        trace.record(flow_time, velocity, guidance, slope)
