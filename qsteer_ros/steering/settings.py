"""The user's choice of a steering mode, and the one place where it becomes a field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qsteer_ros.ensemble import Aggregate, QFunction
from qsteer_ros.ensemble import aggregate as aggregate_named
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, VelocityField
from qsteer_ros.steering.gradient import NORMALISED, Bounds, check_weight
from qsteer_ros.steering.guide import Rule, guide
from qsteer_ros.steering.limits import Limits
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qpilots_u import qpilots_u
from qsteer_ros.steering.random_matched import random_matched
from qsteer_ros.steering.ratio import at_ratio
from qsteer_ros.steering.trace import Trace
from qsteer_ros.steering.zero import zero

MODES = ("off", "zero", "random_matched", "qgf", "qpilots_u", "best_of_n")
"""Every way to steer; `FIELD_MODES` bend the field, the others judge or move finished chunks."""

FIELD_MODES = ("zero", "random_matched", "qgf", "qpilots_u")


@dataclass(frozen=True)
class SteeringSettings:
    """How a critic steers a frozen policy.

    Attributes:
        mode: One of `MODES`.
        weight: In the mode's own units, see docs/method.md. Ignored by ``off`` and ``best_of_n``.
        ratio: Above 0: guidance of `FIELD_MODES` gets this length relative to the velocity at
            every step instead of following ``weight``.
        reduction: How ensemble members become one value: ``min``, ``mean`` or ``pessimistic``
            (mean less ``rho`` times the spread).
        rho: Weight of the spread; read by ``pessimistic`` only.
        max_ratio: Limit on ||guidance|| / ||velocity|| per step, for everything that guides.
        project: Cut guidance that would push the clean prediction out of the action bounds.
        max_displacement: Limit on the distance of a chunk from the frozen policy's chunk from the
            same noise, root mean square per action component; finite values compute that chunk.
        keep_jacobian: ``qpilots_u``: differentiate through the velocity inside the prediction.
        num_samples: ``best_of_n``: candidates per chunk.
        twin_rate: Share of chunks for which the unguided chunk from the same noise is computed
            too, to report the gain in value; drawn from the chunk's seed.

    Raises:
        ConfigError: A value is out of range.
    """

    mode: str = "off"
    weight: float = 0.0
    ratio: float = 0.0
    reduction: str = "min"
    rho: float = 0.5
    max_ratio: float = math.inf
    project: bool = False
    max_displacement: float = math.inf
    keep_jacobian: bool = True
    num_samples: int = 16
    twin_rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no rule can use."""
        if self.mode not in MODES:
            raise ConfigError(f"'mode' must be one of {', '.join(MODES)}: got '{self.mode}'.")
        if self.num_samples < 1:
            raise ConfigError(
                f"'num_samples' must be at least 1: got {self.num_samples}. Candidates per chunk."
            )
        if not 0.0 <= self.twin_rate <= 1.0:
            raise ConfigError(
                f"'twin_rate' must be between 0 and 1: got {self.twin_rate}. Share of chunks that "
                "are compared with the unguided one."
            )
        if not self.max_displacement > 0.0:
            raise ConfigError(
                f"'max_displacement' must be positive: got {self.max_displacement}. Infinity sets "
                "no limit; steering: off leaves the chunk alone."
            )
        check_weight(self.weight)
        check_weight(self.ratio, name="ratio")
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
        return Limits(max_ratio=self.max_ratio, project=self.project)

    @property
    def aggregate(self) -> Aggregate:
        """How members become one value."""
        return aggregate_named(self.reduction, rho=self.rho)

    def wants_twin(self, seed: int) -> bool:
        """Whether the chunk with this seed is compared with its unguided twin."""
        if self.mode == "off":
            return False
        if self.twin_rate >= 1.0 or not math.isinf(self.max_displacement):
            return True
        draw = np.random.SeedSequence([seed, 2]).generate_state(1)[0] / 2**32
        return bool(draw < self.twin_rate)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a log; infinite limits become None."""
        plain = asdict(self)
        for name in _UNLIMITED:
            plain[name] = None if math.isinf(plain[name]) else plain[name]
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> SteeringSettings:
        """Inverse of `to_json`; reads the logs of version 0.1 too.

        Raises:
            ConfigError: A name is unknown or a value out of range.
        """
        values = dict(plain)
        for name in _UNLIMITED:
            if values.get(name, 0.0) is None:
                values[name] = math.inf
        if "twin" in values:
            values["twin_rate"] = float(values.pop("twin"))
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(
                f"steering settings must have the names {', '.join(cls.__annotations__)}: {error}."
            ) from error


_UNLIMITED = ("max_ratio", "max_displacement")


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

    Returns:
        The steered field; ``field`` itself when nothing bends it or the weight is 0.

    Raises:
        ConfigError: The mode needs a critic and there is none.
    """
    rules = list(others)
    if settings.mode in FIELD_MODES:
        if q is None:
            raise ConfigError(
                f"steering mode '{settings.mode}' needs a critic: none is loaded. "
                "Set parameter 'critic', or steering: off."
            )
        rules.append(critic_rule(q, settings, sampler=sampler or Sampler(), seed=seed))
    return guide(field, *rules, bounds=bounds, limits=settings.limits, trace=trace)


def critic_rule(q: QFunction, settings: SteeringSettings, *, sampler: Sampler, seed: int) -> Rule:
    """The rule of one of the `FIELD_MODES`."""
    weight = 1.0 if settings.ratio > 0.0 else settings.weight
    combine = settings.aggregate
    match settings.mode:
        case "qpilots_u":
            rule = qpilots_u(
                q, weight=weight, aggregate=combine, keep_jacobian=settings.keep_jacobian
            )
        case _:  # qgf and its two controls; the constructor has refused every unknown name
            rule = qgf(q, weight=weight, aggregate=combine)
    if settings.ratio > 0.0:
        rule = at_ratio(rule, settings.ratio)
    match settings.mode:
        case "zero":
            return zero(rule)
        case "random_matched":
            return random_matched(rule, seed=seed)
        case _:
            return rule
