"""From ``calibration.json`` beside a critic to settings that can steer."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qsteer_ros import resources
from qsteer_ros.critics.calibration import Calibration, ModeCalibration
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.steering.settings import FIELD_MODES, SteeringSettings

DECISIVE = {
    "zero": ("estimate",),
    "random_matched": ("estimate",),
    "qgf": ("estimate",),
    "qpilots_u": ("keep_jacobian",),
    "qpilots_m": ("posterior_samples", "posterior_steps", "tilt_clip"),
    "noisy_gradient": ("inverse_temperature",),
}
"""Settings that change what a mode's weight means: they must be those of the calibration. For
every mode also how the critic's members become one value. Limits may differ: they only take
away."""

LOOKS_AHEAD = ("bptt", "noisy_gradient")
"""Modes whose guidance depends on the sampler by itself; see `needs_same_sampler`."""


def needs_same_sampler(settings: SteeringSettings) -> bool:
    r"""Whether a weight of this mode holds only for the sampler that it was found with.

    It does where the length of the guidance depends on the steps: ``bptt`` and estimate ``chain``
    (of ``qgf`` and its controls ``zero`` and ``random_matched``) differentiate through, or judge
    the end of, the sampler's own remaining steps; ``noisy_gradient`` divides by :math:`\tau`, so
    that its ratio is decided by the earliest steps. The others ask at a clean action that does
    not depend on the sampler: their weight holds for any.
    """
    chained = "estimate" in DECISIVE.get(settings.mode, ()) and settings.estimate == "chain"
    return chained or settings.mode in LOOKS_AHEAD


def calibrated(
    settings: SteeringSettings,
    folder: str | Path,
    critic: Critic | None,
    policy: FlowPolicy,
    *,
    sampler: Sampler,
    weight: bool = False,
) -> SteeringSettings:
    """Fill in what only a calibration knows.

    Mode ``qpilots_m`` gets the mean and spread of the critic's values, unless they are set.

    A weight is refused where what it means has changed since it was found: other settings of
    `DECISIVE`, or another sampler (steps, integrator or schedule) where `needs_same_sampler`.

    Args:
        settings: The user's choice.
        folder: The critic's checkpoint; looked at only where something is needed from it.
        critic: Loaded from it; None leaves the settings alone.
        policy: What is steered.
        sampler: How its field will be integrated.
        weight: Take the mode's weight from the calibration too, instead of weight or ratio; modes
            that do not bend the field have none.

    Raises:
        ConfigError: What is needed was not calibrated, for this critic and policy, with these
            settings and this sampler.
        DataError: The file is damaged.
    """
    tilted = settings.mode == "qpilots_m" and None in (settings.tilt_mean, settings.tilt_std)
    weight = weight and settings.mode in FIELD_MODES
    if critic is None or not (tilted or weight):
        return settings
    found = Calibration.load(resources.find(folder), critic=critic.hash, policy=policy.hash)
    if tilted:
        values = found.statistics(settings.reduction, rho=settings.rho)
        settings = replace(settings, tilt_mean=values.q_mean, tilt_std=values.q_std)
    if weight:
        entry = found.mode(settings.mode)
        _check_same(settings, entry)
        if needs_same_sampler(settings):
            _check_same_sampler(settings.mode, sampler, entry)
        settings = replace(settings, weight=entry.weight, ratio=0.0)
    return settings


def _check_same(settings: SteeringSettings, entry: ModeCalibration) -> None:
    names = ("reduction", *DECISIVE.get(settings.mode, ()))
    if settings.reduction == "pessimistic":
        names = ("rho", *names)
    mine = settings.to_json()
    for name in names:
        if name in entry.settings and entry.settings[name] != mine[name]:
            raise ConfigError(
                f"a calibrated weight must be used with the settings it was found with: '{name}' "
                f"was {entry.settings[name]}, now it is {mine[name]}. Set it back, or run qsteer "
                "calibrate again with these."
            )


def _check_same_sampler(mode: str, sampler: Sampler, entry: ModeCalibration) -> None:
    mine: dict[str, Any] = json.loads(json.dumps(asdict(sampler)))  # as it is in the file
    if sampler.times is not None:
        del mine["time_power"]  # explicit flow times override it
    for name, value in mine.items():
        found = entry.sampler.get(name)
        if found != value:
            raise ConfigError(
                f"a calibrated weight of mode '{mode}' must be used with the sampler it was found "
                f"with: '{name}' was {found}, now it is {value}. Set it back, or run qsteer "
                "calibrate again with this sampler."
            )
