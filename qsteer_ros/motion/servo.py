r"""How an arm answers a joint position command: a first-order lag per joint, and its fit.

A joint commanded to :math:`u` covers the fraction :math:`1 - e^{-\Delta t/\tau}` of the way there
in one control period:

.. math:: q_{k+1} = q_k + (1 - e^{-\Delta t/\tau})\,(u_k - q_k) + b

:math:`b` is what gravity and friction add in one period. A policy trained on commands to such an
arm means these lagging motions, not the commands; :mod:`qsteer_ros.motion.decoder` predicts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qsteer_ros.errors import DataError
from qsteer_ros.types import Array


@dataclass(frozen=True, eq=False)
class ServoModel:
    """First-order lag of every joint.

    Attributes:
        tau_s: Time constants, (J,), s, positive. 0 would mean that a command is reached at once.
        bias_rad: Displacement added per control period, (J,), rad.

    Raises:
        DataError: Shapes differ, a value is not finite or a time constant is negative.
    """

    tau_s: Array
    bias_rad: Array

    def __post_init__(self) -> None:
        """Refuse a model that cannot be evaluated."""
        if self.tau_s.ndim != 1 or self.tau_s.shape != self.bias_rad.shape:
            raise DataError(
                "ServoModel.tau_s and .bias_rad must both have shape (joints,): got "
                f"{self.tau_s.shape} and {self.bias_rad.shape}."
            )
        if not (np.all(np.isfinite(self.tau_s)) and np.all(np.isfinite(self.bias_rad))):
            raise DataError("ServoModel.tau_s and .bias_rad must be finite. Fit them again.")
        if np.any(self.tau_s < 0.0):
            raise DataError(f"ServoModel.tau_s must not be negative: got {self.tau_s.tolist()}.")

    def predict(self, position: Array, command: Array, dt_s: float) -> Array:
        """Position one period after ``command`` was given at ``position``, (..., J), rad."""
        return position + covered(self.tau_s, dt_s) * (command - position) + self.bias_rad


def covered(tau_s: Array | float, dt_s: float) -> Array:
    r"""Fraction of the way to its command a lag covers in a period: :math:`1 - e^{-dt/\tau}`."""
    tau = np.asarray(tau_s, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(-dt_s / tau), dtype=np.float64)


def fit_servo(
    position: ArrayLike,
    command: ArrayLike,
    next_position: ArrayLike,
    dt_s: float,
    *,
    max_standard_error: float = 0.05,
) -> ServoModel:
    r"""Fit the lag of each joint by least squares, one straight line per joint.

    .. math:: q_{k+1} - q_k = \alpha\,(u_k - q_k) + b, \qquad \tau = -\Delta t / \ln(1-\alpha)

    Args:
        position: Joint positions, (N, J), rad.
        command: Commands given at those positions and held for one period, (N, J), rad.
        next_position: Positions one period later, (N, J), rad.
        dt_s: The period, s.
        max_standard_error: Largest accepted standard error of alpha; a joint that was hardly
            moved cannot be fitted.

    Raises:
        DataError: Shapes differ, values are not finite, or a joint's data do not determine a lag:
            it was not moved, or it does not go towards its command.
    """
    q, u, q_next = (np.asarray(a, dtype=np.float64) for a in (position, command, next_position))
    if q.ndim != 2 or q.shape != u.shape or q.shape != q_next.shape or q.shape[0] < 10:
        raise DataError(
            "fit_servo needs position, command and next_position of one shape (samples, joints) "
            f"with at least 10 samples: got {q.shape}, {u.shape} and {q_next.shape}."
        )
    if not all(np.all(np.isfinite(a)) for a in (q, u, q_next)):
        raise DataError("fit_servo needs finite data. Drop the samples that are not.")
    tau, bias = np.empty(q.shape[1]), np.empty(q.shape[1])
    for joint in range(q.shape[1]):
        error, moved = (u - q)[:, joint], (q_next - q)[:, joint]
        alpha, bias[joint], standard_error = _robust_line(error, moved)
        if not (standard_error <= max_standard_error and 0.0 < alpha < 1.0):
            raise DataError(
                f"joint {joint} must show a first-order lag, 0 < alpha < 1: got alpha "
                f"{alpha:.3g} with standard error {standard_error:.2g} from {len(q)} samples. "
                "Record motions that move this joint, with command and position in step."
            )
        tau[joint] = -dt_s / np.log1p(-alpha)
    return ServoModel(tau, bias)


def _robust_line(x: Array, y: Array, *, rounds: int = 5) -> tuple[float, float, float]:
    """Slope, offset and standard error of the slope; not finite when x does not vary.

    Repeated without samples whose residual is beyond 6 times the size that half of them keep
    within: joints that were blocked, by a contact or by their range.
    """
    kept = np.ones(len(x), dtype=bool)
    slope = offset = error = float("nan")
    for _ in range(rounds):
        centred = x[kept] - x[kept].mean()
        spread = float(centred @ centred)
        if spread <= 0.0 or kept.sum() < 3:
            return slope, offset, float("inf")
        slope = float(centred @ y[kept]) / spread
        offset = float(y[kept].mean() - slope * x[kept].mean())
        residual = np.abs(y - slope * x - offset)
        error = float(np.sqrt(np.square(residual[kept]).sum() / (kept.sum() - 2) / spread))
        keep = residual <= 6.0 * np.median(residual) + 1e-12
        if np.array_equal(keep, kept):
            break
        kept = keep
    return slope, offset, error


def fit_servo_from_log(log: Mapping[str, Any], dt_s: float) -> ServoModel:
    """Fit the lag from arrays recorded step by step, such as OGBench's data sets.

    Args:
        log: ``qpos`` (N, >= J) whose first J columns are the arm's joints, rad; ``control``
            (N, >= J), the joint commands given *at* each row and held until the next;
            ``terminals`` (N,) true on the last row of each episode. Of more than 6 columns the
            first 6 are used.
        dt_s: Period between rows, s.

    Raises:
        DataError: An array is missing, or the data do not determine a lag.
    """
    missing = sorted({"qpos", "control", "terminals"} - set(log))
    if missing:
        raise DataError(f"the log must hold qpos, control and terminals: {missing} missing.")
    joints = min(6, np.asarray(log["qpos"]).shape[1])
    position = np.asarray(log["qpos"], dtype=np.float64)[:, :joints]
    command = np.asarray(log["control"], dtype=np.float64)[:, :joints]
    inside = ~np.asarray(log["terminals"], dtype=bool)[:-1]
    return fit_servo(position[:-1][inside], command[:-1][inside], position[1:][inside], dt_s)
