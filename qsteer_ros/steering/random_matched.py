"""The magnitude control: a random direction as long as the guidance it stands in for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qsteer_ros.steering.gradient import norm_per_sample
from qsteer_ros.steering.guide import Look, Push, Rule
from qsteer_ros.steering.step_noise import StepNoise


def random_matched(rule: Rule, *, seed: int, times: Sequence[float] = ()) -> Rule:
    r"""Replace a rule's direction by a random one of the same length.

    .. math:: \lVert g \rVert \, \frac{\epsilon}{\lVert \epsilon \rVert}, \qquad
              \epsilon \sim N(0, I)

    If this helps as much as the critic's gradient, the gradient's direction carries nothing.

    The direction is a function of seed, flow time and shape alone, so the field stays a function:
    asked twice, it answers the same.

    Args:
        rule: Whose guidance g it stands in for.
        seed: Of the directions, >= 0; use another one for every chunk.
        times: Flow times that will be asked: their directions are drawn together, at the first.
    """
    directions = StepNoise(seed, times)

    def push(look: Look) -> Push:
        found = rule.push(look)
        normal = look.free(directions(look.tau, look.velocity.shape, like=look.velocity))
        direction = normal / norm_per_sample(normal)
        return Push(norm_per_sample(look.free(found.guidance)) * direction, found.slope)

    def reseed(seed: int) -> None:
        directions.reseed(seed)
        if rule.reseed is not None:
            rule.reseed(seed)

    return replace(rule, push=push, reseed=reseed)
