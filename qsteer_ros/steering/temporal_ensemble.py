"""Temporal ensembling: average what chunks of different ages want for the same time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError


def temporal_ensemble(chunks: Sequence[Tensor], offsets: Sequence[int], *, decay: float) -> Tensor:
    r"""Average chunks that were decided at different times, row by row of the same due time.

    Row i of chunk j is due i - offset_j control steps from now. For the row due in n steps, over
    the chunks that reach that far, :math:`i_j` = 0 for the oldest, 1 for the next, ...:

    .. math:: a_n = \frac{\sum_j e^{-m\, i_j}\, a^{(j)}_{n + \mathrm{offset}_j}}
                         {\sum_j e^{-m\, i_j}}

    Training-free and without a critic; every action lies between the smallest and largest that the
    chunks want, so it stays inside the action bounds. Between two modes the average may be
    neither: `rtc` chooses one of them.

    Args:
        chunks: Each (B, H, A), in any order; one stacked tensor (N, B, H, A) will do.
        offsets: For each chunk, how many of its rows were due before now: 0 <= offset < H,
            all different. 0 is a chunk that was decided just now.
        decay: m, per chunk. 0 is the plain mean; above 0 the oldest counts most (ACT: 0.01);
            below 0 the newest does.

    Returns:
        What is due from now on, (B, H - min(offsets), A): as far as the newest chunk reaches. One
        chunk alone comes back bit for bit.

    Raises:
        ConfigError: No chunk, another number of offsets, shapes that differ, an offset out of
            range or twice, or a decay that is not finite.

    Source:
        ACT, arXiv:2304.13705, section III-B and Algorithm 2; w_0 is the oldest there, in ACT's
        code and in LeRobot's ``ACTTemporalEnsembler``.
    """
    _check(chunks, offsets, decay)
    newest, oldest_first = min(offsets), sorted(range(len(offsets)), key=lambda j: -offsets[j])
    reach = chunks[0].shape[1] - newest
    latest = chunks[oldest_first[-1]][:, newest:]  # (B, reach, A)
    wanted, reaches = [], []
    for j in oldest_first:
        due = chunks[j][:, offsets[j] :]
        # Rows beyond a chunk's end are filled from the newest chunk and weigh nothing.
        wanted.append(torch.cat([due, latest[:, due.shape[1] :]], dim=1))
        reaches.append(torch.arange(reach, device=latest.device) < due.shape[1])
    stacked, valid = torch.stack(wanted), torch.stack(reaches)  # (N, B, reach, A), (N, reach)
    rank = torch.arange(len(chunks), device=latest.device, dtype=latest.dtype)
    # Chunks that do not reach a row are its oldest: counting ranks from there changes each weight
    # by the same factor, which the normalisation removes.
    exponent = (-decay * rank).unsqueeze(1).expand(valid.shape).masked_fill(~valid, -math.inf)
    weight = exponent.softmax(dim=0).view(len(chunks), 1, reach, 1)
    mean = (weight * stacked).sum(dim=0)
    return torch.minimum(torch.maximum(mean, stacked.amin(dim=0)), stacked.amax(dim=0))


def _check(chunks: Sequence[Tensor], offsets: Sequence[int], decay: float) -> None:
    if len(chunks) == 0 or len(chunks) != len(offsets):
        raise ConfigError(
            "'chunks' and 'offsets' must be as many, and at least one: got "
            f"{len(chunks)} and {len(offsets)}."
        )
    shapes = sorted({tuple(chunk.shape) for chunk in chunks})
    if len(shapes) > 1 or len(shapes[0]) != 3:
        raise ConfigError(f"all chunks must have one shape (B, H, A): got {shapes}.")
    horizon = shapes[0][1]
    if any(not 0 <= offset < horizon for offset in offsets) or len(set(offsets)) < len(offsets):
        raise ConfigError(
            f"'offsets' must be different numbers from 0 to {horizon - 1}: got {list(offsets)}. "
            "Drop chunks that have run out."
        )
    if not math.isfinite(decay):
        raise ConfigError(f"'decay' must be finite: got {decay}. 0 is the plain mean.")
