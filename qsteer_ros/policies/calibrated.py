"""From ``calibration.json`` beside a critic to settings that can steer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qsteer_ros import resources
from qsteer_ros.critics.calibration import Calibration, ModeCalibration
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
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


def calibrated(
    settings: SteeringSettings,
    folder: str | Path,
    critic: Critic | None,
    policy: FlowPolicy,
    *,
    weight: bool = False,
) -> SteeringSettings:
    """Fill in what only a calibration knows.

    Mode ``qpilots_m`` gets the mean and spread of the critic's values, unless they are set.

    Args:
        settings: The user's choice.
        folder: The critic's checkpoint; looked at only where something is needed from it.
        critic: Loaded from it; None leaves the settings alone.
        policy: What is steered.
        weight: Take the mode's weight from the calibration too, instead of weight or ratio; modes
            that do not bend the field have none.

    Raises:
        ConfigError: What is needed was not calibrated, for this critic and policy, with these
            settings.
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
