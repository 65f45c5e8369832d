"""Which action a noisy chunk stands for: the point at which a critic is asked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, VelocityField
from qsteer_ros.steering.gradient import Bounds
from qsteer_ros.steering.guide import Look

ESTIMATES = ("euler", "noisy", "chain")

SAME_TIME = 1e-9
"""Flow times closer than this are one grid point, so that rounding adds no step."""

Estimate = Callable[[Look], tuple[Tensor, Bounds | None]]
"""One look -> the chunk to judge (B, H, A), and the bounds it is clipped to first."""


def estimate(name: str, *, sampler: Sampler | None = None, clip: bool = True) -> Estimate:
    r"""The estimate of the clean action with this name.

    ===== ==================================================================================
    euler :math:`x + (1 - \tau) v(x, \tau)`, one Euler step to the end: costs nothing more
    noisy x itself, never clipped: no estimate at all (QFQL)
    chain the end of the path, by ``sampler``: as many evaluations as steps are left
    ===== ==================================================================================

    Args:
        name: ``euler``, ``noisy`` or ``chain``.
        sampler: Integrates the frozen field; read by ``chain`` only.
        clip: Whether the point is clipped to the action bounds before it is judged; ``noisy``
            never is.

    Raises:
        ConfigError: No estimate has this name, or ``chain`` has no sampler.

    Source:
        Q-Guided Flow, arXiv:2606.11087; ``noisy`` as in its code.
    """
    match name:
        case "euler":
            return lambda look: (look.clean, look.bounds if clip else None)
        case "noisy":
            return lambda look: (look.noisy_chunk, None)
        case "chain":
            if sampler is None:
                raise ConfigError(
                    "estimate 'chain' needs 'sampler': got None. It integrates the frozen field "
                    "to flow time 1; pass the sampler that denoises."
                )
            chosen = sampler

            def chain(look: Look) -> tuple[Tensor, Bounds | None]:
                with torch.no_grad():
                    end = finish(look.whole, look.noisy_chunk, look.tau, chosen)
                return end, look.bounds if clip else None

            return chain
        case _:
            raise ConfigError(f"'estimate' must be one of {', '.join(ESTIMATES)}: got '{name}'.")


def finish(field: VelocityField, noisy_chunk: Tensor, tau: float, sampler: Sampler) -> Tensor:
    """Integrate a field from any flow time to 1; nothing is clipped.

    Args:
        field: At every flow time; the frozen one.
        noisy_chunk: x at flow time ``tau``, (B, H, A).
        tau: In [0, 1]. Between two grid points (a midpoint), the first step goes to the next
            grid point.
        sampler: Integrator and grid.

    Returns:
        x at flow time 1, (B, H, A), differentiable in ``noisy_chunk`` if gradients are recorded.
    """
    left, first_step = remaining(sampler, tau)
    return left.denoise(field, noisy_chunk, first_step=first_step)


def remaining(sampler: Sampler, tau: float) -> tuple[Sampler, int]:
    """What a sampler has still to do from a flow time on: a sampler and its first step."""
    later = tuple(time for time in sampler.flow_times if time > tau + SAME_TIME)
    first_step = sampler.denoising_steps - len(later)
    if not later or (first_step >= 0 and sampler.flow_times[first_step] == tau):
        return sampler, first_step
    return Sampler(len(later), sampler.integrator, times=(tau, *later)), 0
