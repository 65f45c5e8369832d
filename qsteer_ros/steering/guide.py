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

from qsteer_ros.errors import ConfigError
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
        held: Actions that will come out as they are, whatever is pushed; None where there are
            none. Rules that hold nothing see the field in which these rows go straight to their
            actions: velocity, clean prediction, pull, ``field`` and ``whole``. Critics so judge
            what will be executed.
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
    held: Held | None = None

    def pulled(self, gradient: Tensor) -> Tensor:
        """A gradient at the clean prediction, taken back to the noisy chunk, (B, H, A)."""
        assert self.pull is not None, "a rule that pulls must say needs_pull"
        return self.pull(gradient)

    def free(self, tensor: Tensor) -> Tensor:
        """The part that can be steered, for norms: zero in held rows, (B, H, A)."""
        return tensor if self.held is None else _only_free(tensor, self.held)


class Push(NamedTuple):
    """What a rule adds to the velocity.

    Attributes:
        guidance: (B, H, A), normalised action units per unit of flow time.
        slope: What the critic answered; None where none was asked.
    """

    guidance: Tensor
    slope: Slope | None = None


class Held(NamedTuple):
    r"""Actions that must come out as they are, whatever policy and critic say.

    Their rows get the velocity :math:`(a - x) / (1 - \tau)`: x stays on the straight line from
    noise to action, where the policy was trained to see it. Every integrator follows a straight
    line up to rounding; `rtc.hold_rows` removes the rounding.

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
        reseed: Draws what is random in ``push`` anew for the seed of another chunk, into the
            tensors it is in, for loops that were captured. None: nothing is random.
    """

    push: Callable[[Look], Push]
    needs_pull: bool = False
    after: float = -math.inf
    idle: bool = False
    withheld: bool = False
    held: Held | None = None
    reseed: Callable[[int], None] | None = None


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
        limits: The trust region, applied to the sum, over the rows that are not held.
        trace: Collects what happened; does not change a bit of the result.

    Returns:
        A field with the same signature; ``field`` itself when every rule is idle. It is a
        `flow.TimedField`: rows of a batch share their flow time and do not influence each other.

    Raises:
        ConfigError: More than one rule holds actions; when the field is asked: they do not fit
            its chunk, or field or critic answer with another shape.
    """
    active = [rule for rule in rules if not rule.idle]
    if not active:
        return field
    held = _held_by(active)

    def at(tau: float) -> VelocityField:
        now = [rule for rule in active if tau > rule.after]
        frozen = field_at(field, tau)

        def steered(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
            if not now:
                velocity = frozen(noisy_chunk, flow_time)
                _record(trace, flow_time, velocity, None, None)
                return _straight(velocity.detach(), noisy_chunk, tau, held)
            look = _look(frozen, field, noisy_chunk, flow_time, tau, now, bounds, held)
            pushes = _pushes(look, now)
            added = [push for rule, push in zip(now, pushes, strict=True) if not rule.withheld]
            guidance = _limited(pushes, look, limits)
            slope = next((push.slope for push in pushes if push.slope is not None), None)
            _record(
                trace, flow_time, look.free(look.velocity), guidance, slope, _critics(look, pushes)
            )
            velocity = look.velocity
            if added:
                some = len(added) < len(pushes)
                velocity = velocity + (_limited(added, look, limits) if some else guidance)
            return _straight(velocity, look.noisy_chunk, tau, held)

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
    held: Held | None,
) -> Look:
    if any(rule.needs_pull for rule in rules):
        velocity, pull = differentiate(frozen, noisy_chunk, flow_time)
    else:
        velocity, pull = frozen(noisy_chunk, flow_time).detach(), None
    if velocity.shape != noisy_chunk.shape:
        raise ConfigError(
            f"a field must answer a noisy chunk of shape {tuple(noisy_chunk.shape)} with a "
            f"velocity of the same shape: got {tuple(velocity.shape)}."
        )
    clean = predict_clean(noisy_chunk, flow_time, velocity).detach()
    noisy_chunk = noisy_chunk.detach()
    return Look(frozen, whole, noisy_chunk, flow_time, tau, velocity, clean, pull, bounds, held)


def _held_by(rules: Sequence[Rule]) -> Held | None:
    holding = [rule.held for rule in rules if rule.held is not None and not rule.withheld]
    if len(holding) > 1:
        raise ConfigError(
            f"at most one rule may hold actions: got {len(holding)}. Put all held rows into one."
        )
    return holding[0] if holding else None


def _pushes(look: Look, rules: Sequence[Rule]) -> list[Push]:
    """What each rule wants; those that hold nothing see held rows go to their actions."""
    if look.held is None:
        return [rule.push(look) for rule in rules]
    check_fits(look.held.actions, look.clean)
    decided = _decided(look, look.held)
    return [rule.push(decided if rule.held is None else look) for rule in rules]


def _decided(look: Look, held: Held) -> Look:
    """The look at the field in which held rows go straight to their actions."""
    pull, whole = look.pull, _holding(look.whole, held)
    return look._replace(
        field=whole.at(look.tau),
        whole=whole,
        velocity=_straight(look.velocity, look.noisy_chunk, look.tau, held),
        clean=torch.where(held.rows.view(1, -1, 1), held.actions, look.clean),
        pull=None if pull is None else lambda gradient: pull(_only_free(gradient, held)),
    )


def check_fits(actions: Tensor, chunk: Tensor) -> None:
    """Refuse actions (H, A) or (B, H, A) that a chunk (B, H, A) cannot be made of.

    Raises:
        ConfigError: Shape, type or device differ.
    """
    if actions.shape not in (chunk.shape[1:], (1, *chunk.shape[1:]), chunk.shape):
        raise ConfigError(
            "actions to hold or to follow must have the shape of the field's chunk "
            f"{tuple(chunk.shape[1:])}, or that of its batch: got {tuple(actions.shape)}."
        )
    if actions.dtype != chunk.dtype or actions.device != chunk.device:
        raise ConfigError(
            "actions to hold or to follow must have the noise's type and device, "
            f"{chunk.dtype} on {chunk.device}: got {actions.dtype} on {actions.device}. "
            "Move them once, before the chunk is denoised."
        )


def _holding(field: VelocityField, held: Held) -> Scheduled:
    def at(tau: float) -> VelocityField:
        inner = field_at(field, tau)
        return lambda noisy_chunk, flow_time: _straight(
            inner(noisy_chunk, flow_time), noisy_chunk, tau, held
        )

    return Scheduled(at)


def _straight(velocity: Tensor, noisy_chunk: Tensor, tau: float, held: Held | None) -> Tensor:
    """Lead held rows straight to their actions: velocity (action - x) / (1 - tau)."""
    if held is None:
        return velocity
    straight = (held.actions - noisy_chunk) / (1.0 - tau)
    return torch.where(held.rows.view(1, -1, 1), straight, velocity)


def _only_free(tensor: Tensor, held: Held) -> Tensor:
    return torch.where(held.rows.view(1, -1, 1), torch.zeros_like(tensor), tensor)


def _limited(pushes: Sequence[Push], look: Look, limits: Limits) -> Tensor:
    """Guidance of some rules together, zero in held rows and inside the limits."""
    total = pushes[0].guidance
    for push in pushes[1:]:
        total = total + push.guidance
    return limits.apply(
        look.free(total), look.free(look.velocity), look.clean, look.tau, look.bounds
    )


def _record(
    trace: Trace | None,
    flow_time: Tensor,
    velocity: Tensor,
    guidance: Tensor | None,
    slope: Slope | None,
    critics: Tensor | None = None,
) -> None:
    if trace is not None:
        trace.record(flow_time, velocity, guidance, slope, critics)


def _critics(look: Look, pushes: Sequence[Push]) -> Tensor | None:
    """What critics want, before limits; None where there is nothing else."""
    if all(push.slope is not None for push in pushes):
        return None
    total = torch.zeros_like(look.velocity)
    for push in pushes:
        if push.slope is not None:
            total = total + push.guidance
    return look.free(total)
