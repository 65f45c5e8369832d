"""The user's choice of a steering mode, and the one place where it becomes a field."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from qsteer_ros.ensemble import Aggregate, QFunction
from qsteer_ros.ensemble import aggregate as aggregate_named
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import VelocityField
from qsteer_ros.steering.gradient import NORMALISED, Bounds, check_weight
from qsteer_ros.steering.guide import Rule, guide
from qsteer_ros.steering.limits import Limits
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qpilots_u import qpilots_u
from qsteer_ros.steering.random_matched import random_matched
from qsteer_ros.steering.trace import Trace
from qsteer_ros.steering.zero import zero

MODES = ("off", "zero", "random_matched", "qgf", "qpilots_u", "best_of_n")


@dataclass(frozen=True)
class SteeringSettings:
    """How a critic steers a frozen policy.

    Attributes:
        mode: One of `MODES`.
        weight: ``qgf``, ``random_matched``, ``zero``: w, (normalised action)^2 per unit of return.
            ``qpilots_u``: alpha, the ratio of guidance to velocity. Ignored by the others.
        reduction: How ensemble members become one value: ``min``, ``mean`` or ``pessimistic``
            (mean less ``rho`` times the spread).
        rho: Weight of the spread; read by ``pessimistic`` only.
        max_ratio: Limit on ||guidance|| / ||velocity|| for ``qgf`` and ``random_matched``.
        keep_jacobian: ``qpilots_u``: differentiate through the velocity inside the prediction.
        num_samples: ``best_of_n``: candidates per chunk.
        twin: Also compute the unguided chunk from the same noise and compare values.

    Raises:
        ConfigError: A value is out of range.
    """

    mode: str = "off"
    weight: float = 0.0
    reduction: str = "min"
    rho: float = 0.5
    max_ratio: float = math.inf
    keep_jacobian: bool = True
    num_samples: int = 16
    twin: bool = False

    def __post_init__(self) -> None:
        """Refuse what no rule can use."""
        if self.mode not in MODES:
            raise ConfigError(f"'mode' must be one of {', '.join(MODES)}: got '{self.mode}'.")
        if self.num_samples < 1:
            raise ConfigError(
                f"'num_samples' must be at least 1: got {self.num_samples}. Candidates per chunk."
            )
        check_weight(self.weight)
        Limits(max_ratio=self.max_ratio)
        aggregate_named("pessimistic", rho=self.rho)
        aggregate_named(self.reduction, rho=self.rho)

    @property
    def needs_critic(self) -> bool:
        """Whether this mode asks a critic."""
        return self.mode != "off"

    @property
    def limits(self) -> Limits:
        """The trust region of a step."""
        return Limits(max_ratio=self.max_ratio)

    @property
    def aggregate(self) -> Aggregate:
        """How members become one value."""
        return aggregate_named(self.reduction, rho=self.rho)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a log; an infinite ``max_ratio`` becomes None."""
        plain = asdict(self)
        plain["max_ratio"] = None if math.isinf(self.max_ratio) else self.max_ratio
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> SteeringSettings:
        """Inverse of `to_json`.

        Raises:
            ConfigError: A name is unknown or a value out of range.
        """
        values = dict(plain)
        if values.get("max_ratio", 0.0) is None:
            values["max_ratio"] = math.inf
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(
                f"steering settings must have the names {', '.join(cls.__annotations__)}: {error}."
            ) from error


def steer(
    field: VelocityField,
    q: QFunction | None,
    settings: SteeringSettings,
    *,
    bounds: Bounds = NORMALISED,
    seed: int = 0,
    trace: Trace | None = None,
) -> VelocityField:
    """Bend a frozen field as the settings say.

    Args:
        field: Frozen field, (B, H, A), (B,) -> (B, H, A), normalised.
        q: Critic for the same observation; None will do for ``off`` and ``best_of_n``, which do
            not touch the field.
        settings: The user's choice.
        bounds: Of normalised actions.
        seed: Of ``random_matched``'s directions.
        trace: Collects what happened at each step.

    Returns:
        The steered field; ``field`` itself when the mode leaves it alone or the weight is 0.

    Raises:
        ConfigError: The mode needs a critic and there is none.
    """
    if settings.mode in ("off", "best_of_n"):
        return field
    if q is None:
        raise ConfigError(
            f"steering mode '{settings.mode}' needs a critic: none is loaded. "
            "Set parameter 'critic', or steering: off."
        )
    rule = critic_rule(q, settings, seed=seed)
    return guide(field, rule, bounds=bounds, limits=settings.limits, trace=trace)


def critic_rule(q: QFunction, settings: SteeringSettings, *, seed: int) -> Rule:
    """The rule that a mode names."""
    weight, combine = settings.weight, settings.aggregate
    match settings.mode:
        case "zero":
            return zero(qgf(q, weight=weight, aggregate=combine))
        case "random_matched":
            return random_matched(qgf(q, weight=weight, aggregate=combine), seed=seed)
        case "qgf":
            return qgf(q, weight=weight, aggregate=combine)
        case _:  # qpilots_u: the constructor has refused every other name
            return qpilots_u(
                q, weight=weight, aggregate=combine, keep_jacobian=settings.keep_jacobian
            )
