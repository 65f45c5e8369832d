"""Labels of steering arms: a mode, or a mode and its number, as ``qgf:0.05``."""

from __future__ import annotations

from collections.abc import Mapping

from qsteer_ros.errors import ConfigError

MODES = ("off", "zero", "random_matched", "qgf", "qpilots_u", "best_of_n")
"""Steering modes a session may use; a test keeps them equal to those of `qsteer_ros.steering`."""
COUNTED = "best_of_n"
"""The mode whose number is a number of candidates, not a weight."""


def arm_parameters(
    label: str, *, weights: Mapping[str, float], num_samples: int
) -> dict[str, str | float | int]:
    """Parameters of the policy node that an arm stands for.

    Args:
        label: ``MODE``, or ``MODE:NUMBER``: its guidance weight, or for ``best_of_n`` its number
            of candidates.
        weights: Mode -> guidance weight when the label has no number; 0 for those not named.
        num_samples: Candidates of ``best_of_n`` when the label has no number.

    Returns:
        ``steering``, ``guidance_weight`` and ``num_samples``.

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
    return {"steering": mode, "guidance_weight": weight, "num_samples": num_samples}
