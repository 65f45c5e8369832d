"""The user's choice of a steering mode: plain values, checked."""

from __future__ import annotations

import functools
import math
import typing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qsteer_ros.ensemble import Aggregate
from qsteer_ros.ensemble import aggregate as aggregate_named
from qsteer_ros.errors import ConfigError
from qsteer_ros.steering.clean import ESTIMATES
from qsteer_ros.steering.gradient import check_weight
from qsteer_ros.steering.limits import Limits
from qsteer_ros.steering.qpilots_m import Tilt

FIELD_MODES = (
    "zero",
    "random_matched",
    "qgf",
    "qgf_jacobian",
    "qpilots_u",
    "qpilots_m",
    "noisy_gradient",
    "bptt",
)
"""Modes that bend the field."""

CHUNK_MODES = ("best_of_n", "gradient_step")
"""Modes that choose among, or move, finished chunks."""

NOISE_MODES = ("dsrl",)
"""Modes that choose the noise; the frozen field makes a chunk of it."""

MODES = ("off", *FIELD_MODES, *CHUNK_MODES, *NOISE_MODES)
"""Every way to steer."""

NOISE_DRAWS = ("sampled", "median")


@dataclass(frozen=True)
class SteeringSettings:
    """How a critic steers a frozen policy.

    Attributes:
        mode: One of `MODES`.
        weight: In the mode's own units, see docs/method.md. Ignored by ``off``, ``best_of_n``
            and ``dsrl``.
        ratio: Above 0: guidance of `FIELD_MODES` gets this length relative to the velocity at
            every step instead of following ``weight``.
        reduction: How ensemble members become one value: ``min``, ``mean`` or ``pessimistic``
            (mean less ``rho`` times the spread).
        rho: Weight of the spread; read by ``pessimistic`` only.
        max_ratio: Limit on ||guidance|| / ||velocity|| per step, for everything that guides.
        project: Cut guidance that would push the clean prediction out of the action bounds.
        max_displacement: Limit on the distance of a chunk from the frozen policy's chunk from the
            same noise, root mean square per action component; finite values compute that chunk.
        estimate: ``qgf``: the clean action the critic is asked at: ``euler``, ``noisy`` or
            ``chain``.
        keep_jacobian: ``qpilots_u``: differentiate through the velocity inside the prediction.
        posterior_samples: ``qpilots_m``: samples of the clean chunk per step, N.
        posterior_steps: ``qpilots_m``: midpoint steps in which the frozen field draws them.
        tilt_mean: ``qpilots_m``: mean of the aggregated value, return units. None: not known;
            ``qsteer calibrate`` measures it.
        tilt_std: ``qpilots_m``: its standard deviation; None as for the mean.
        tilt_clip: ``qpilots_m``: standard deviations beyond which a value has no gradient.
        inverse_temperature: ``noisy_gradient``: strength of Q against the prior.
        num_samples: ``best_of_n``: candidates per chunk.
        ascent_steps: ``gradient_step``: steps of length ``weight`` on the finished chunk.
        noise_draw: ``dsrl``: ``sampled`` turns the noise that the policy alone would start from,
            ``median`` always starts at the middle of the noise policy's distribution.
        twin_rate: Share of chunks for which the unguided chunk from the same noise is computed
            too, to report the gain in value; drawn from the chunk's seed.

    Raises:
        ConfigError: A value is of another type or out of range.
    """

    mode: str = "off"
    weight: float = 0.0
    ratio: float = 0.0
    reduction: str = "min"
    rho: float = 0.5
    max_ratio: float = math.inf
    project: bool = False
    max_displacement: float = math.inf
    estimate: str = "euler"
    keep_jacobian: bool = True
    posterior_samples: int = 4
    posterior_steps: int = 2
    tilt_mean: float | None = None
    tilt_std: float | None = None
    tilt_clip: float = 3.0
    inverse_temperature: float = 10.0
    num_samples: int = 16
    ascent_steps: int = 3
    noise_draw: str = "sampled"
    twin_rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no rule can use."""
        for name, kinds in _kinds().items():
            _check_kind(name, getattr(self, name), kinds)
        if self.mode not in MODES:
            raise ConfigError(f"'mode' must be one of {', '.join(MODES)}: got '{self.mode}'.")
        for name, meaning in _COUNTS.items():
            count = getattr(self, name)
            if count < 1:
                raise ConfigError(f"'{name}' must be at least 1: got {count}. {meaning}")
        if self.estimate not in ESTIMATES:
            raise ConfigError(
                f"'estimate' must be one of {', '.join(ESTIMATES)}: got '{self.estimate}'."
            )
        if self.noise_draw not in NOISE_DRAWS:
            raise ConfigError(
                f"'noise_draw' must be one of {', '.join(NOISE_DRAWS)}: got '{self.noise_draw}'."
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
        check_weight(self.inverse_temperature, name="inverse_temperature")
        Limits(max_ratio=self.max_ratio)
        Tilt(
            mean=0.0 if self.tilt_mean is None else self.tilt_mean,
            std=1.0 if self.tilt_std is None else self.tilt_std,
            clip=self.tilt_clip,
        )
        aggregate_named("pessimistic", rho=self.rho)
        aggregate_named(self.reduction, rho=self.rho)

    @property
    def needs_critic(self) -> bool:
        """Whether this mode asks a critic."""
        return self.mode != "off" and self.mode not in NOISE_MODES

    @property
    def needs_noise_policy(self) -> bool:
        """Whether this mode starts from chosen noise."""
        return self.mode in NOISE_MODES

    @property
    def bends(self) -> bool:
        """Whether this mode asks the critic while the field is integrated."""
        asked = self.weight > 0.0 or self.ratio > 0.0 or self.mode == "zero"
        return self.mode in FIELD_MODES and asked

    @property
    def limits(self) -> Limits:
        """The trust region of a step."""
        return Limits(max_ratio=self.max_ratio, project=self.project)

    @property
    def aggregate(self) -> Aggregate:
        """How members become one value."""
        return aggregate_named(self.reduction, rho=self.rho)

    @property
    def tilt(self) -> Tilt:
        """How ``qpilots_m`` turns values into weights.

        Raises:
            ConfigError: The statistics of the critic's values are not known.
        """
        if self.tilt_mean is None or self.tilt_std is None:
            raise ConfigError(
                "steering mode 'qpilots_m' must know the mean and spread of the critic's values: "
                "'tilt_mean' and 'tilt_std' are not set. Run qsteer calibrate, or set them."
            )
        return Tilt(mean=self.tilt_mean, std=self.tilt_std, clip=self.tilt_clip)

    def wants_twin(self, seed: int) -> bool:
        """Whether the chunk with this seed is compared with its unguided twin."""
        if self.mode == "off":
            return False
        if self.twin_rate >= 1.0 or not math.isinf(self.max_displacement):
            return True
        draw = np.random.SeedSequence([seed, 2]).generate_state(1)[0] / 2**32
        return bool(draw < self.twin_rate)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a log; infinite limits become ``"inf"``."""
        plain = asdict(self)
        return {name: _plain(value) for name, value in plain.items()}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> SteeringSettings:
        """Inverse of `to_json`; reads the logs of version 0.1 too.

        Raises:
            ConfigError: A name is unknown, or a value of another type or out of range.
        """
        values: dict[str, Any] = {
            name: math.inf if value == "inf" else value for name, value in plain.items()
        }
        if "twin" in values:
            twin = values.pop("twin")
            _check_kind("twin", twin, (bool,))
            values["twin_rate"] = float(twin)
        if values.get("max_ratio", 0.0) is None:
            values["max_ratio"] = math.inf
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(
                f"steering settings must have the names {', '.join(cls.__annotations__)}: {error}."
            ) from error


_COUNTS = {
    "posterior_samples": "Samples per step.",
    "posterior_steps": "Steps per sample.",
    "num_samples": "Candidates per chunk.",
    "ascent_steps": "Steps on the finished chunk.",
}


_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    type(None): "null",
}


@functools.cache
def _kinds() -> dict[str, tuple[type, ...]]:
    """Field of `SteeringSettings` -> the types that its value may have."""
    hints = typing.get_type_hints(SteeringSettings)
    return {name: typing.get_args(hint) or (hint,) for name, hint in hints.items()}


def _check_kind(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    """Refuse a value of another type; an integer is a number, true and false are not."""
    accepted = (*kinds, int) if float in kinds else kinds
    fits = bool in kinds if isinstance(value, bool) else isinstance(value, accepted)
    if not fits:
        wanted = " or ".join(_WORDS[kind] for kind in kinds)
        raise ConfigError(f"'{name}' must be {wanted}: got {value!r}.")


def _plain(value: Any) -> Any:
    return "inf" if isinstance(value, float) and math.isinf(value) else value
