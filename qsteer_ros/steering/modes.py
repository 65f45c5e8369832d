"""The one place where the user's choice of a mode becomes a field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qsteer_ros.ensemble import QFunction
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, VelocityField
from qsteer_ros.posterior import PosteriorMap, glass_posterior
from qsteer_ros.steering.bptt import bptt
from qsteer_ros.steering.gradient import NORMALISED, Bounds
from qsteer_ros.steering.guide import Rule, guide
from qsteer_ros.steering.noisy_gradient import noisy_gradient
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qgf_jacobian import qgf_jacobian
from qsteer_ros.steering.qpilots_m import qpilots_m
from qsteer_ros.steering.qpilots_u import qpilots_u
from qsteer_ros.steering.random_matched import random_matched
from qsteer_ros.steering.ratio import at_ratio
from qsteer_ros.steering.settings import FIELD_MODES, SteeringSettings
from qsteer_ros.steering.trace import Trace
from qsteer_ros.steering.zero import zero


def steer(
    field: VelocityField,
    q: QFunction | None,
    settings: SteeringSettings,
    *,
    others: Sequence[Rule] = (),
    sampler: Sampler | None = None,
    bounds: Bounds = NORMALISED,
    seed: int = 0,
    trace: Trace | None = None,
    posterior: PosteriorMap | None = None,
) -> VelocityField:
    """Bend a frozen field as the settings say.

    Args:
        field: Frozen field, (B, H, A), (B,) -> (B, H, A), normalised.
        q: Critic for the same observation; None will do for modes that do not touch the field.
        settings: The user's choice.
        others: Rules beside the critic's, such as real-time chunking.
        sampler: How the field will be integrated; modes that look ahead need to know.
        bounds: Of normalised actions.
        seed: Of everything random in a rule.
        trace: Collects what happened at each step.
        posterior: Where ``qpilots_m`` gets its samples from: a trained map for the same
            observation. None: the frozen field draws them itself.

    Returns:
        The steered field; ``field`` itself when nothing bends it or the weight is 0.

    Raises:
        ConfigError: The mode needs a critic and there is none, or it needs statistics of the
            critic's values and they are not known.
    """
    rules = list(others)
    if settings.mode in FIELD_MODES:
        if q is None:
            raise ConfigError(
                f"steering mode '{settings.mode}' needs a critic: none is loaded. "
                "Set parameter 'critic', or steering: off."
            )
        rules.append(
            critic_rule(
                field, q, settings, sampler=sampler or Sampler(), seed=seed, posterior=posterior
            )
        )
    return guide(field, *rules, bounds=bounds, limits=settings.limits, trace=trace)


def critic_rule(
    field: VelocityField,
    q: QFunction,
    settings: SteeringSettings,
    *,
    sampler: Sampler,
    seed: int,
    posterior: PosteriorMap | None = None,
) -> Rule:
    """The rule of one of the `FIELD_MODES`; arguments as in `steer`."""
    weight = 1.0 if settings.ratio > 0.0 else settings.weight
    combine = settings.aggregate
    match settings.mode:
        case "qgf_jacobian":
            rule = qgf_jacobian(q, weight=weight, aggregate=combine)
        case "qpilots_u":
            rule = qpilots_u(
                q, weight=weight, aggregate=combine, keep_jacobian=settings.keep_jacobian
            )
        case "qpilots_m":
            drawn = glass_posterior(field, steps=settings.posterior_steps)
            rule = qpilots_m(
                q,
                drawn if posterior is None else posterior,
                weight=weight,
                aggregate=combine,
                num_samples=settings.posterior_samples,
                seed=seed,
                tilt=settings.tilt,
                times=sampler.flow_times,
            )
        case "noisy_gradient":
            rule = noisy_gradient(
                q,
                weight=weight,
                aggregate=combine,
                inverse_temperature=settings.inverse_temperature,
            )
        case "bptt":
            rule = bptt(q, weight=weight, sampler=sampler, aggregate=combine)
        case _:  # qgf and its two controls; the settings have refused every unknown name
            rule = qgf(
                q, weight=weight, aggregate=combine, estimate=settings.estimate, sampler=sampler
            )
    if rule.after == 0.0:  # the first step is skipped, wherever a schedule begins
        rule = replace(rule, after=sampler.flow_times[0])
    if settings.ratio > 0.0:
        rule = at_ratio(rule, settings.ratio)
    match settings.mode:
        case "zero":
            return zero(rule)
        case "random_matched":
            return random_matched(rule, seed=seed, times=sampler.flow_times)
        case _:
            return rule
