"""From the settings of ``qsteer train critic`` to an objective and a network's architecture."""

from __future__ import annotations

from typing import Any

from qsteer_ros import resources
from qsteer_ros.critics.kinds import KINDS
from qsteer_ros.ensemble import REDUCTIONS, Aggregate, aggregate
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler
from qsteer_ros.interface import Interface
from qsteer_ros.learning.critic_objectives import Iql, MonteCarlo, Objective, Sarsa, StepwiseIql
from qsteer_ros.learning.policy_objectives import CalQl, Td
from qsteer_ros.learning.settings import widths
from qsteer_ros.learning.settings_critic import CANDIDATES, OBJECTIVES, CriticSettings
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.steering.settings import SteeringSettings

REDUCTION = {"iql": "min", "stepwise_iql": "min", "calql": "mean"}
"""Of the objectives whose ``reduction=auto`` is not pessimistic."""

STEERED = ("off", "qgf", "qgf_jacobian", "qpilots_u")
"""Ways in which TD's bootstrap chunk may be steered."""

READ_BY: dict[str, tuple[str, ...]] = {
    "expectile": ("iql", "stepwise_iql"),
    "policy": ("td", "calql"),
    "steering": ("td",),
    "steering_weight": ("td",),
    "alpha": ("calql",),
    "candidates": ("calql",),
    "num_candidates": ("calql",),
    "local_std": ("calql",),
    "densities": ("calql",),
}
"""Settings that only some objectives read."""

_SWITCH = {"yes": True, "no": False}


def architecture_of(settings: CriticSettings, horizon: int) -> dict[str, Any]:
    """What `critics.kinds.make_network` is given.

    Args:
        settings: How.
        horizon: H, the number of outputs of an objective that judges positions.

    Raises:
        ConfigError: A word is none of those it may be.
    """
    _one_of("network", settings.network, KINDS)
    _one_of("layer_norm", settings.layer_norm, ("auto", *_SWITCH))
    injected = settings.network == "injected"
    activation = settings.activation
    if activation == "auto":
        activation = "silu" if injected else "gelu"
    found: dict[str, Any] = {
        "kind": settings.network,
        "members": settings.ensemble,
        "hidden": widths(settings.hidden),
        "outputs": horizon if settings.objective == "stepwise_iql" else 1,
        "activation": activation,
        "layer_norm": _SWITCH.get(settings.layer_norm, not injected),
    }
    extra = {
        "inject_head": settings.inject_head,
        "proprio": settings.proprio,
        "proprio_dim": settings.proprio_dim,
    }
    if injected:
        return found | extra
    if settings.inject_head or settings.proprio:
        raise ConfigError(
            "'inject_head' and 'proprio' must be left out with network=flat: got "
            f"{settings.inject_head} and {settings.proprio}. Set network=injected."
        )
    return found


def objective_of(settings: CriticSettings, interface: Interface) -> Objective:
    """The objective that the settings name.

    Args:
        settings: How.
        interface: Of the data; a policy must live in the same space.

    Raises:
        ConfigError: A word is none of those it may be, a policy is missing or does not fit, or
            settings contradict each other.
    """
    _one_of("objective", settings.objective, OBJECTIVES)
    _check_read(settings)
    combine = _aggregate(settings)
    match settings.objective:
        case "iql":
            return Iql(settings.expectile, combine)
        case "stepwise_iql":
            if settings.warm_start and settings.discount == 0.0:
                raise ConfigError(
                    "'discount' must be above 0 for a warm start of stepwise_iql: got 0. Set "
                    "warm_start=0."
                )
            return StepwiseIql(settings.expectile, settings.discount)
        case "sarsa":
            return Sarsa(combine)
        case "monte_carlo":
            return MonteCarlo()
        case "td":
            return _td(settings, interface)
        case _:
            return _calql(settings, interface, combine)


def _check_read(settings: CriticSettings) -> None:
    """Refuse settings that would do nothing; a simulator reads those of the policy too."""
    if getattr(settings, "simulate", False):
        return
    defaults = type(settings)()
    for name, objectives in READ_BY.items():
        value = getattr(settings, name)
        if settings.objective not in objectives and value != getattr(defaults, name):
            raise ConfigError(
                f"'{name}' must be left out with objective={settings.objective}, which does not "
                f"read it: got {value}. Remove it, or set objective={objectives[0]}."
            )


def _td(settings: CriticSettings, interface: Interface) -> Td:
    _one_of("steering", settings.steering, STEERED)
    steering = SteeringSettings(
        settings.steering,
        weight=settings.steering_weight,
        reduction=_reduction(settings),
        rho=settings.rho,
    )
    sampler = Sampler(settings.denoising_steps)
    return Td(_policy(settings, interface, "objective=td"), steering, sampler)


def _calql(settings: CriticSettings, interface: Interface, combine: Aggregate) -> CalQl:
    _one_of("candidates", settings.candidates, CANDIDATES)
    asks = settings.candidates == "policy"
    if asks and settings.densities:
        raise ConfigError(
            "'densities' must be false with candidates=policy: the density of a flow policy's "
            "chunks is not known. Set candidates=local, or densities=false."
        )
    return CalQl(
        regression=Sarsa(combine),
        alpha=settings.alpha,
        number=settings.num_candidates,
        local_std=settings.local_std,
        densities=settings.densities,
        policy=_policy(settings, interface, "candidates=policy") if asks else None,
        sampler=Sampler(settings.denoising_steps),
    )


def _policy(settings: CriticSettings, interface: Interface, wanted_by: str) -> FlowPolicy:
    if not settings.policy:
        raise ConfigError(
            f"'policy' must name a flow policy's checkpoint for {wanted_by}: got none. "
            "Add policy=checkpoints/policy."
        )
    policy = FlowPolicy.load(resources.find(settings.policy), device=settings.device)
    policy.interface.check_same(
        interface,
        mine=f"policy '{settings.policy}'",
        theirs="the data",
        remedy="Train the policy on these data, or set horizon.",
    )
    return policy


def _reduction(settings: CriticSettings) -> str:
    if settings.reduction == "auto":
        return REDUCTION.get(settings.objective, "pessimistic")
    _one_of("reduction", settings.reduction, ("auto", *REDUCTIONS))
    if settings.objective == "stepwise_iql" and settings.reduction != "min":
        raise ConfigError(
            "'reduction' must be min or auto for stepwise_iql, which takes the least member at "
            f"every position: got '{settings.reduction}'."
        )
    return settings.reduction


def _aggregate(settings: CriticSettings) -> Aggregate:
    return aggregate(_reduction(settings), rho=settings.rho)


def _one_of(name: str, value: str, words: tuple[str, ...]) -> None:
    if value not in words:
        raise ConfigError(f"'{name}' must be one of {', '.join(words)}: got '{value}'.")
