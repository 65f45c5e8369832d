"""Q-guided flow with the Jacobian of the clean prediction kept."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from qsteer_ros.ensemble import Aggregate, QFunction, minimum
from qsteer_ros.errors import ConfigError
from qsteer_ros.steering import jacobian as ways
from qsteer_ros.steering.coefficient import coefficient as along_flow
from qsteer_ros.steering.gradient import Slope, check_weight, slope_at
from qsteer_ros.steering.guide import Look, Push, Rule
from qsteer_ros.steering.jacobian import WayBack
from qsteer_ros.steering.step_noise import StepNoise

JACOBIANS = ("plain", "regularised", "orthogonal", "smoothed")


def qgf_jacobian(
    q: QFunction,
    *,
    weight: float,
    aggregate: Aggregate = minimum,
    coefficient: str = "constant",
    jacobian: str = "plain",
    epsilon: float = 0.1,
    num_samples: int = 4,
    perturbation: float = 0.1,
    seed: int = 0,
) -> Rule:
    r"""Add the critic's gradient with respect to the noisy chunk to a frozen velocity field.

    .. math:: v_w(x, \tau) = v(x, \tau) + w \, c(\tau) \, J^\top \nabla_{\hat a} \bar Q(\hat a),
              \qquad \hat a = \operatorname{clip}\big(x + (1 - \tau) \, v(x, \tau)\big)

    =========== ===============================================================================
    plain       J of the clipped map :math:`x \mapsto \hat a`: what is saturated counts nothing
    regularised :math:`I + \epsilon J`, J as above
    orthogonal  :math:`U V^\top` of the unclipped map's :math:`J = U S V^\top`; H A products
    smoothed    mean of the unclipped map's J over K noisy chunks :math:`x + \sigma \epsilon_k`
    =========== ===============================================================================

    With ``coefficient="tilt"`` and a critic that is linear, on data that is Gaussian, ``plain``
    *is* the velocity of the density tilted by :math:`e^{w Q}`.

    Args:
        q: Critic for the same observation, (B, H, A) -> (E, B); target networks.
        weight: w >= 0, in (normalised action)^2 per unit of return. 0 leaves the field alone.
        aggregate: How members become one value.
        coefficient: c: ``constant`` or ``tilt``; see `coefficient`.
        jacobian: ``plain``, ``regularised``, ``orthogonal`` or ``smoothed``.
        epsilon: Of ``regularised``, >= 0; the paper's is 0.1.
        num_samples: K >= 1 of ``smoothed``; not published.
        perturbation: sigma >= 0 of ``smoothed``, normalised action units; not published.
        seed: Of the perturbations, >= 0. They depend on seed, flow time and shape of a chunk
            alone, and are the same for every row of a batch.

    Returns:
        A rule for `guide`.

    Raises:
        ConfigError: A value is out of range, or an option has no such value.

    Source:
        Q-Guided Flow, arXiv:2606.11087: ``plain`` is its code's ``apply_jacobian``; the others
        are in the paper only.
    """
    check_weight(weight)
    factor = along_flow(coefficient)
    normal = StepNoise(seed)
    back = _way_back(jacobian, epsilon, num_samples, perturbation, normal)

    def push(look: Look) -> Push:
        slope = slope_at(q, look.clean, aggregate=aggregate, bounds=look.bounds)
        return Push(weight * factor.at(look.tau) * back(look, slope), slope)

    smoothed = jacobian == "smoothed"
    return Rule(
        push,
        needs_pull=not smoothed,
        after=factor.after,
        idle=weight == 0.0,
        reseed=normal.reseed if smoothed else None,
    )


def _way_back(
    name: str, epsilon: float, num_samples: int, perturbation: float, normal: StepNoise
) -> WayBack:
    match name:
        case "plain":
            return ways.plain
        case "regularised":
            check_weight(epsilon, name="epsilon")
            return partial(ways.regularised, epsilon=epsilon)
        case "orthogonal":
            return ways.orthogonal
        case "smoothed":
            return _smoothed(num_samples, perturbation, normal)
        case _:
            raise ConfigError(f"'jacobian' must be one of {', '.join(JACOBIANS)}: got '{name}'.")


def _smoothed(num_samples: int, perturbation: float, normal: StepNoise) -> WayBack:
    if num_samples < 1:
        raise ConfigError(f"'num_samples' must be at least 1: got {num_samples}.")
    if not (math.isfinite(perturbation) and perturbation >= 0.0):
        raise ConfigError(
            f"'perturbation' must be finite and at least 0: got {perturbation}. Standard "
            "deviation, in normalised action units."
        )

    def back(look: Look, slope: Slope) -> Tensor:
        noisy = look.noisy_chunk
        shape = torch.Size((num_samples, 1, *noisy.shape[1:]))
        drawn = normal(look.tau, shape, like=noisy.float())  # the same for every float type
        return ways.smoothed(look, slope, perturbation * drawn.to(noisy.dtype))

    return back
