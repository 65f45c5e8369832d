r"""Critics as functions: what steering asks, and how an ensemble's answers become one number.

A critic that has seen an observation is a function from action chunks to the values its members
give them. It stands beside :data:`qsteer_ros.flow.VelocityField`: steering knows these two types
and nothing of the networks behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError, DataError

QFunction = Callable[[Tensor], Tensor]
"""chunk (B, H, A), normalised -> value of each ensemble member (E, B), return units."""

Aggregate = Callable[[Tensor], Tensor]
"""values (E, B) -> one value per chunk (B,)."""

VARIANCE_FLOOR = 1e-8
"""Added under the square root, return units squared: std has no gradient where members agree."""

REDUCTIONS = ("min", "mean", "pessimistic")


def minimum(values: Tensor) -> Tensor:
    """Smallest member, (B,): QGF's default."""
    return values.amin(dim=0)


def mean(values: Tensor) -> Tensor:
    """Mean over members, (B,)."""
    return values.mean(dim=0)


def spread(values: Tensor) -> Tensor:
    """Population standard deviation over members, (B,), return units; its gradient is finite."""
    return (values.var(dim=0, unbiased=False) + VARIANCE_FLOOR).sqrt()


def pessimistic(rho: float) -> Aggregate:
    r"""Mean less a share of the spread.

    .. math:: \bar Q = \operatorname{mean}_j Q_j - \rho \operatorname{std}_j Q_j

    The standard deviation is that of the population (divided by E), with a floor of 1e-4 return
    units so that its gradient is finite, namely zero, where all members agree. With two members
    the term is close to noise: rho 0 is the safer choice there.

    Args:
        rho: Weight of the spread, >= 0.

    Returns:
        An aggregate, (E, B) -> (B,).

    Raises:
        ConfigError: ``rho`` is negative or not finite.

    Source:
        QPILOTS, arXiv:2606.14801, eq. 12.
    """
    if not (math.isfinite(rho) and rho >= 0.0):
        raise ConfigError(f"'rho' must be finite and at least 0: got {rho}. Weight of the spread.")

    def mean_less_spread(values: Tensor) -> Tensor:
        return mean(values) - rho * spread(values)

    return mean_less_spread


def check_shape(values: Tensor, batch: int) -> None:
    """Refuse values that are not (E, B); reads no value.

    Raises:
        ConfigError: The shape is another; reduced along a wrong axis it would steer one row.
    """
    if values.ndim != 2 or values.shape[1] != batch or values.shape[0] < 1:
        raise ConfigError(
            f"a critic must give one value per member and chunk, (E, {batch}): got "
            f"{tuple(values.shape)}. Stack the members' values along the first axis."
        )


def probe(q: QFunction, chunk: Tensor) -> None:
    """Ask a critic once, before anything is sampled, and refuse an answer nobody can follow.

    Args:
        q: Critic for one observation.
        chunk: Any chunks it must be able to judge, (B, H, A).

    Raises:
        ConfigError: The answer has not the shape (E, B).
        DataError: A value is not finite.
    """
    with torch.no_grad():
        values = q(chunk)
    check_shape(values, chunk.shape[0])
    if not bool(torch.isfinite(values).all()):
        raise DataError(
            "the critic's values must be finite: "
            f"{int((~torch.isfinite(values)).sum())} of {values.numel()} are not. Nothing was "
            "sampled. Check the critic and the features it was given."
        )


def aggregate(reduction: str, *, rho: float = 0.0) -> Aggregate:
    """The aggregate with this name.

    Args:
        reduction: ``min``, ``mean`` or ``pessimistic``.
        rho: Weight of the spread; read by ``pessimistic`` only.

    Raises:
        ConfigError: No aggregate has this name, or ``rho`` is out of range.
    """
    match reduction:
        case "min":
            return minimum
        case "mean":
            return mean
        case "pessimistic":
            return pessimistic(rho)
        case _:
            raise ConfigError(
                f"'reduction' must be one of {', '.join(REDUCTIONS)}: got '{reduction}'."
            )
