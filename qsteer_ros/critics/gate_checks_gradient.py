"""Checks of the gradient itself: is it a derivative, and does it depend on the state."""

from __future__ import annotations

import numpy as np

from qsteer_ros.critics.gate import FAIL, PASS, UNKNOWN, Check
from qsteer_ros.critics.gate_settings import GateSettings
from qsteer_ros.types import Array

QUANTILE = 0.95
"""Share of windows that must agree with finite differences; min over members has kinks."""


def check_gradient(
    gradient: Array, exact: Array, differences: Array, settings: GateSettings
) -> Check:
    r"""Autograd must be finite, not zero, and the derivative of the values.

    .. math:: e_i = \frac{\lVert g_i - d_i \rVert}{\max(\lVert g_i \rVert, \lVert d_i \rVert)}

    Args:
        gradient: As steering asks for it, (N, D).
        exact: By autograd in float64, g, (n, D).
        differences: By central differences in float64, d, (n, D).
        settings: ``gradient_error_max``, ``zero_gradient_max``.
    """
    name, most = "gradient", settings.gradient_error_max
    rule = (
        f"autograd = finite differences to {most:g} for {QUANTILE:.0%} of windows, finite, zero "
        f"in at most {settings.zero_gradient_max:.1%}"
    )
    broken = int((~np.isfinite(gradient).all(axis=1)).sum())
    zero = float((gradient == 0.0).all(axis=1).mean())
    figures: dict[str, float | None] = {"not_finite": broken, "zero": zero}
    if broken:
        reason = f"{broken} of {len(gradient)} gradients are not finite. Train the critic again."
        return Check(name, FAIL, rule, reason, figures)
    if zero > settings.zero_gradient_max:
        reason = (
            f"the gradient is zero in {zero:.1%} of {len(gradient)} windows. The critic does not "
            "look at the chunk, or its graph is cut: check its network."
        )
        return Check(name, FAIL, rule, reason, figures)
    length = np.maximum(np.linalg.norm(exact, axis=1), np.linalg.norm(differences, axis=1))
    gap = np.linalg.norm(exact - differences, axis=1)
    error = np.where(length == 0.0, 0.0, gap / np.where(length == 0.0, 1.0, length))
    error = np.where(np.isfinite(error), error, np.inf)
    worst = float(np.quantile(error, QUANTILE, method="higher"))
    known = float(np.median(error))
    figures |= {
        "median_error": known if np.isfinite(known) else None,
        "error": worst if np.isfinite(worst) else None,
        "windows": len(error),
    }
    found = f"{QUANTILE:.0%} of {len(error)} windows agree to {worst:.2g} (median {known:.2g})."
    if worst > most:
        remedy = "The network's backward pass is not the derivative of its forward pass: mend it."
        return Check(name, FAIL, rule, f"{found} {remedy}", figures)
    return Check(name, PASS, rule, found, figures)


def direction_share(gradient: Array) -> tuple[float, Array]:
    r"""How much of the gradients lies along one line through the origin, and that line.

    With :math:`C = \tfrac1N \sum_i g_i g_i^\top`, not centred, the share is
    :math:`\lambda_{\max}(C) / \operatorname{tr} C`: 1 when all gradients are multiples of one
    direction, 1/D when none is preferred.

    Args:
        gradient: (N, D).

    Returns:
        The share and the direction (D,), of length 1 and pointing to the mean gradient's side.
    """
    moment = gradient.T @ gradient / len(gradient)
    values, vectors = np.linalg.eigh(moment)
    line = vectors[:, -1]
    if float(line @ gradient.mean(axis=0)) < 0.0:
        line = -line
    return float(values[-1] / np.trace(moment)), line


def mean_share(gradient: Array) -> float:
    r"""Energy of the mean, :math:`\lVert\bar g\rVert^2 / \overline{\lVert g\rVert^2}`; 0 to 1."""
    energy = float(np.square(gradient).sum(axis=1).mean())
    return float(np.square(gradient.mean(axis=0)).sum() / energy)


def dimension_energy(gradient: Array, horizon: int) -> Array:
    """Share of the gradients' energy in each action dimension, (A,); they sum to 1.

    Args:
        gradient: (N, D) with D = H A, row-major.
        horizon: H.
    """
    squares = np.square(gradient).mean(axis=0).reshape(horizon, -1).sum(axis=0)
    share: Array = squares / squares.sum()
    return share


def check_direction(
    gradient: Array, horizon: int, action_names: tuple[str, ...], settings: GateSettings
) -> Check:
    """The gradient must not be one direction in every state.

    Judged is the larger share of two: of the gradients as they are, and of their directions (each
    scaled to length 1), so that neither a few long ones nor many short ones hide the rest.

    Args:
        gradient: Over states and chunks, (N, D).
        horizon: H.
        action_names: (A,).
        settings: ``direction_share_max``.
    """
    name, most = "direction", settings.direction_share_max
    rule = f"share of the gradients in one state-independent direction: below {most:g}"
    length = np.linalg.norm(gradient, axis=1)
    moved = gradient[np.isfinite(length) & (length > 0.0)]
    if len(moved) < 2:
        reason = "there are no gradients that differ from zero. See the check 'gradient'."
        return Check(name, UNKNOWN, rule, reason, {})
    unit = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    raw, of_unit = direction_share(moved)[0], direction_share(unit)[0]
    share = max(raw, of_unit)
    energy = dimension_energy(moved, horizon)
    figures: dict[str, float | None] = {
        "share": share,
        "share_of_gradients": raw,
        "share_of_directions": of_unit,
        "share_of_mean_gradient": mean_share(moved),
        "share_of_mean_direction": mean_share(unit),
    }
    figures |= {
        f"energy_{axis}": float(part) for axis, part in zip(action_names, energy, strict=True)
    }
    main = int(np.argmax(energy))
    found = (
        f"it is {share:.3f} ({raw:.3f} of gradients, {of_unit:.3f} of directions); most energy is "
        f"in {action_names[main]}, {energy[main]:.0%}."
    )
    if share >= most:
        remedy = (
            "The critic wants the same in every state: train on data in which one state is left "
            "by different chunks."
        )
        return Check(name, FAIL, rule, f"{found} {remedy}", figures)
    return Check(name, PASS, rule, found, figures)
