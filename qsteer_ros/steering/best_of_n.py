"""Best of N: let the critic choose among finished chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from qsteer_ros.ensemble import Aggregate, QFunction, minimum
from qsteer_ros.errors import DataError


@torch.no_grad()
def best_of_n(
    chunks: Tensor, q: QFunction, *, aggregate: Aggregate = minimum
) -> tuple[Tensor, int]:
    """Keep the chunk with the highest aggregated value.

    Args:
        chunks: Candidates for one observation, already clipped, (N, H, A).
        q: Critic for that observation, (N, H, A) -> (E, N).
        aggregate: How members become one value.

    Returns:
        The winner (1, H, A) and its index; of equals, the first.

    Raises:
        DataError: A value is not finite.

    Source:
        Rejection sampling of the QGF code, arXiv:2606.11087.
    """
    values = aggregate(q(chunks))  # (N,)
    if not bool(torch.isfinite(values).all()):
        raise DataError(
            "the critic's values of the candidates must be finite: "
            f"{int((~torch.isfinite(values)).sum())} of {len(values)} are not. "
            "Check the critic and the features it was given."
        )
    index = int(values.argmax())
    return chunks[index : index + 1], index
