r"""How a native weight varies along the flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from qsteer_ros.errors import ConfigError

COEFFICIENTS = ("constant", "tilt")


class Coefficient(NamedTuple):
    """What a weight is multiplied by at each flow time.

    Attributes:
        at: Flow time -> factor, dimensionless.
        after: The factor is zero at flow times up to and including this one.
    """

    at: Callable[[float], float]
    after: float


def coefficient(name: str) -> Coefficient:
    r"""The coefficient with this name.

    ======== =================================================================================
    constant 1 at every flow time, as in Q-Guided Flow
    tilt     :math:`(1 - \tau) / \tau`, and 0 at flow time 0: the factor between score and
             velocity of the straight path, so that tilting the noisy density by
             :math:`e^{w Q}` adds w times it times the critic's gradient
    ======== =================================================================================

    ``tilt`` is 9 at the second of ten steps and falls to 1/9 at the last: weights of the two are
    not comparable.

    Args:
        name: ``constant`` or ``tilt``.

    Raises:
        ConfigError: No coefficient has this name.
    """
    match name:
        case "constant":
            return Coefficient(lambda tau: 1.0, -math.inf)
        case "tilt":
            return Coefficient(lambda tau: (1.0 - tau) / tau, 0.0)
        case _:
            raise ConfigError(
                f"'coefficient' must be one of {', '.join(COEFFICIENTS)}: got '{name}'."
            )
