"""What became of a chunk: its value, its twin's, and whose clips it carries."""

from __future__ import annotations

import torch
from torch import Tensor

from qsteer_ros.ensemble import Aggregate, QFunction, spread
from qsteer_ros.policies.bookkeeping import check_finite
from qsteer_ros.steering.clips import clips, share
from qsteer_ros.steering.gradient import Bounds
from qsteer_ros.steering.trust_region import displacement

Facts = dict[str, float]


def judge(q: QFunction, chunk: Tensor, twin: Tensor | None, aggregate: Aggregate) -> Facts:
    """Values of the final chunk (1, H, A) and, if given, of its unguided twin.

    Returns:
        ``q_after`` and ``q_spread`` of the chunk; with a twin also ``q_unguided``, ``delta_q``
        and ``displacement`` (root mean square per action component).

    Raises:
        DataError: A value is not finite.
    """
    both = chunk if twin is None else torch.cat([chunk, twin])
    values = q(both)
    check_finite(values, "the critic's values of the chunk", "Check the critic.")
    reduced = aggregate(values).tolist()
    found = {"q_after": reduced[0], "q_spread": float(spread(values)[0])}
    if twin is not None:
        found |= {
            "q_unguided": reduced[1],
            "delta_q": reduced[0] - reduced[1],
            "displacement": float(displacement(chunk, twin)[0]),
        }
    return found


def clip_shares(unclipped: Tensor, twin_unclipped: Tensor | None, bounds: Bounds) -> Facts:
    """Shares of action components that the bounds cut off, (1, H, A) chunks.

    Returns:
        ``clipped_share``; with a twin also ``clipped_by_steering`` and ``clipped_by_policy``,
        which add up to it; see `steering.clips.clips`.
    """
    low, high = bounds
    found = {"clipped_share": float(share((unclipped < low) | (unclipped > high))[0])}
    if twin_unclipped is not None:
        whose = clips(unclipped, twin_unclipped, bounds)
        found["clipped_by_steering"] = float(share(whose.steering)[0])
        found["clipped_by_policy"] = float(share(whose.policy)[0])
    return found
