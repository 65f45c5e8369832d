"""Labels of steering arms: a mode, or a mode and its number, as ``qgf:0.05``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qsteer_ros.errors import ConfigError

MODES = (
    "off",
    "zero",
    "random_matched",
    "qgf",
    "qgf_jacobian",
    "qpilots_u",
    "qpilots_m",
    "noisy_gradient",
    "bptt",
    "best_of_n",
    "gradient_step",
    "dsrl",
)
"""Steering modes a session may use; a test keeps them equal to those of `qsteer_ros.steering`."""

WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "zero": 0.04,
        "random_matched": 0.04,
        "qgf": 0.04,
        "qgf_jacobian": 0.1,
        "qpilots_u": 0.15,
        "qpilots_m": 0.15,
        "noisy_gradient": 0.01,
        "bptt": 0.1,
        "gradient_step": 0.05,
    }
)
"""Number of each mode for the shipped checkpoints: where arms of sessions and of evaluations get
theirs when their labels name none. Length of a step for ``gradient_step``, else a weight."""

COUNTED = "best_of_n"
"""The mode whose number is a number of candidates, not a weight."""


def arm_parameters(
    label: str, *, weights: Mapping[str, float] = WEIGHTS, num_samples: int = 16
) -> dict[str, str | float | int]:
    """Parameters of the policy node that an arm stands for.

    Args:
        label: ``MODE``, or ``MODE:NUMBER``: its guidance weight; the length of a step for
            ``gradient_step``; the number of candidates for ``best_of_n``.
        weights: Mode -> number when the label has none; 0 for those not named.
        num_samples: Candidates of ``best_of_n`` when the label has no number.

    Returns:
        ``steering``, ``guidance`` (always ``weight``: what a label says holds),
        ``guidance_weight`` and ``num_samples``.

    Raises:
        ConfigError: The mode is unknown or the number is none.
    """
    mode, colon, number = label.partition(":")
    if mode not in MODES:
        raise ConfigError(
            f"an arm must be one of {', '.join(MODES)}, or one of them with its number as in "
            f"qgf:0.05: got '{label}'."
        )
    weight = weights.get(mode, 0.0)
    try:
        if colon and mode == COUNTED:
            num_samples = int(number)
        elif colon:
            weight = float(number)
    except ValueError:
        raise ConfigError(
            f"the number of an arm must follow its mode, as in qgf:0.05 or best_of_n:16: got "
            f"'{label}'."
        ) from None
    return {
        "steering": mode,
        "guidance": "weight",
        "guidance_weight": weight,
        "num_samples": num_samples,
    }
