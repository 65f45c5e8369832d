r"""Real-time chunking: a new chunk that goes on where the running one will be.

While a chunk is computed the robot executes the one before. Its next rows are past changing and
are held; the rows after them pull the new chunk towards the old one, less and less, so that the
robot does not jump when it changes over.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.steering.gradient import check_weight
from qsteer_ros.steering.guide import Held, Look, Push, Rule, check_fits

SCHEDULES = ("exponential", "linear", "ones", "zeros")


def rtc(
    previous: Tensor,
    *,
    committed: int,
    overlap: int,
    schedule: str = "exponential",
    max_weight: float = 5.0,
    keep_jacobian: bool = True,
) -> Rule:
    r"""Hold the rows that will have been executed, guide the next ones to the running chunk.

    With Y the running chunk, :math:`\hat a(x) = x + (1 - \tau)\, v(x, \tau)` the unclipped clean
    prediction and :math:`W = \operatorname{diag}(W_0, \dots, W_{H-1})` (see `row_weights`):

    .. math:: g = \min\Big(\beta, \frac{1 - \tau}{\tau\, r_\tau^2}\Big)
              \Big(\frac{\partial \hat a}{\partial x}\Big)^{\!\top} W \, (Y - \hat a), \qquad
              r_\tau^2 = \frac{(1 - \tau)^2}{\tau^2 + (1 - \tau)^2}

    At flow time 0 the first factor is :math:`\beta`. The published method guides committed rows as
    it guides the others, with weight 1, and executes the running chunk there. Here they go
    straight to their actions (see `guide.Held`), so that the policy sees them as noisy versions of
    what will be executed; their error still guides the other rows through the Jacobian.

    A step's trust region (`limits.Limits`) is on the sum, this guidance included: a tight
    ``max_ratio`` lets chunks jump again. One that is meant for a critic should leave 2 or more.

    Field and numbers are in normalised action units. Chunks are float32 or float64, on the device
    of the noise.

    Args:
        previous: Y, the running chunk moved so that row i of it and of the new chunk are due at
            the same time (`shifted`), (H, A) or (B, H, A). Rows from ``overlap`` on are not read.
        committed: d, rows that are executed before the new chunk can take effect: the expected
            latency in control steps, rounded up. They come out as they are in ``previous``: up
            to rounding by themselves, to the bit after `hold_rows`.
        overlap: Rows before it are guided, d <= overlap <= H; the paper's H - s, with s the rows
            executed between two chunks. At most the rows that the running chunk still has.
        schedule: How the weights fall from row d on: ``exponential`` (the paper), ``linear``,
            ``ones`` or ``zeros``.
        max_weight: :math:`\beta` >= 0, dimensionless; the paper's 5 (LeRobot: 10). The factor
            itself is never below 2, so that 2 or less is a constant. 0 only holds.
        keep_jacobian: False takes the identity for the Jacobian and saves the backward pass. That
            is what LeRobot's code does in effect: it computes v before it records gradients.

    Returns:
        A rule for `guide` whose guidance is zero in the committed rows. Idle when nothing is held
        and nothing guided.

    Raises:
        ConfigError: A number is out of range, a row that is read is not finite, or ``previous`` is
            no chunk; when the field is asked: it does not fit the field's chunk.

    Source:
        Real-Time Chunking, arXiv:2506.07339, eqs. 1 to 5 and Algorithm 1; its code
        (Physical-Intelligence/real-time-chunking-kinetix, ``FlowPolicy.realtime_action``).
    """
    _check(previous, committed, overlap)
    check_weight(max_weight, name="max_weight")
    horizon = previous.shape[-2]
    weights = row_weights(horizon, committed=committed, overlap=overlap, schedule=schedule)
    row = torch.arange(horizon, device=previous.device).unsqueeze(-1)  # (H, 1)
    target = torch.where(row < overlap, previous.detach(), torch.zeros_like(previous))
    held_rows = row < committed
    weight = previous.new_tensor(weights).unsqueeze(-1)
    reached = weights if keep_jacobian else weights[committed:]
    silent = max_weight == 0.0 or not any(reached)

    def push(look: Look) -> Push:
        check_fits(target, look.clean)
        if silent:
            return Push(torch.zeros_like(look.clean))
        error = weight * (target - look.clean)
        correction = look.pulled(error) if keep_jacobian else error
        guidance = guidance_weight(look.tau, max_weight=max_weight) * correction
        return Push(torch.where(held_rows, torch.zeros_like(guidance), guidance))

    return Rule(
        push,
        needs_pull=keep_jacobian and not silent,
        idle=committed == 0 and silent,
        held=Held(target, held_rows.squeeze(-1)) if committed else None,
    )


def row_weights(horizon: int, *, committed: int, overlap: int, schedule: str) -> list[float]:
    r"""How much each row of the running chunk counts, W.

    1 in committed rows i < d, 0 from ``overlap`` on, and in between, with
    :math:`c_i = \frac{\mathrm{overlap} - i}{\mathrm{overlap} - d + 1}`,

    =========== ===============================================
    exponential :math:`c_i \, (e^{c_i} - 1) / (e - 1)`
    linear      :math:`c_i`
    ones        1
    zeros       0
    =========== ===============================================

    Args:
        horizon: H.
        committed: d.
        overlap: At least d, at most H.
        schedule: One of `SCHEDULES`.

    Returns:
        H weights between 0 and 1.

    Raises:
        ConfigError: No schedule has this name.

    Source:
        arXiv:2506.07339, eq. 5; ``get_prefix_weights`` of its code.
    """

    def between(row: int) -> float:
        falling = (overlap - row) / (overlap - committed + 1)
        match schedule:
            case "exponential":
                return falling * math.expm1(falling) / math.expm1(1.0)
            case "linear":
                return falling
            case "ones":
                return 1.0
            case "zeros":
                return 0.0
            case _:
                raise ConfigError(
                    f"'schedule' must be one of {', '.join(SCHEDULES)}: got '{schedule}'."
                )

    between(committed)  # refuses an unknown name even where no row lies between
    fallen = [between(row) for row in range(committed, overlap)]
    return [1.0] * committed + fallen + [0.0] * (horizon - overlap)


def guidance_weight(tau: float, *, max_weight: float) -> float:
    r""":math:`\min\big(\beta, \frac{\tau^2 + (1-\tau)^2}{\tau (1-\tau)}\big)`; beta at 0 and 1."""
    if not 0.0 < tau < 1.0:
        return max_weight
    return min(max_weight, (tau**2 + (1.0 - tau) ** 2) / (tau * (1.0 - tau)))


def shifted(chunk: Tensor, elapsed: int) -> Tensor:
    """The running chunk as `rtc` wants it, ``elapsed`` control steps after its first row was due.

    Args:
        chunk: (H, A) or (B, H, A).
        elapsed: Rows that were due before the new chunk's first row, 0 to H.

    Returns:
        The same shape. The last ``elapsed`` rows do not exist and are NaN: an overlap that reads
        them is refused.

    Raises:
        ConfigError: ``elapsed`` is out of range.
    """
    horizon = chunk.shape[-2]
    if not 0 <= elapsed <= horizon:
        raise ConfigError(
            f"'elapsed' must be between 0 and the chunk's {horizon} rows: got {elapsed}."
        )
    nothing = torch.full_like(chunk[..., :elapsed, :], math.nan)
    return torch.cat([chunk[..., elapsed:, :], nothing], dim=-2)


def hold_rows(chunk: Tensor, held: Held | None) -> Tensor:
    """Write held actions into a finished chunk, bit for bit.

    Integration leads held rows to their actions up to rounding; this removes the rounding, and
    whatever was done to the chunk since.

    Args:
        chunk: (B, H, A).
        held: ``rule.held``; None holds nothing.

    Returns:
        (B, H, A); ``chunk`` itself where nothing is held.
    """
    if held is None:
        return chunk
    return torch.where(held.rows.view(1, -1, 1), held.actions, chunk)


def _check(previous: Tensor, committed: int, overlap: int) -> None:
    if previous.dim() not in (2, 3) or not previous.is_floating_point():
        raise ConfigError(
            "'previous' must be a chunk of floating point numbers (H, A) or (B, H, A): got "
            f"{tuple(previous.shape)} {previous.dtype}."
        )
    horizon = previous.shape[-2]
    if not 0 <= overlap <= horizon:
        raise ConfigError(
            f"'overlap' must be between 0 and the chunk's {horizon} rows: got {overlap}."
        )
    if not 0 <= committed <= overlap:
        raise ConfigError(
            f"'committed' must be between 0 and 'overlap' {overlap}: got {committed}. The running "
            "chunk ends before the new one can take effect: execute fewer rows of each chunk."
        )
    finite = torch.isfinite(previous[..., :overlap, :]).all(dim=-1).cpu()  # (overlap,) or (B, ...)
    bad = [row for row in range(overlap) if not bool(finite[..., row].all())]
    if bad:
        raise ConfigError(
            f"the {overlap} rows of 'previous' that are read must be finite: row {bad[0]} is not. "
            "Make 'overlap' at most the rows that the running chunk still has."
        )
