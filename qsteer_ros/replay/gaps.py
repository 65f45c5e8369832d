"""Missing frames and lost messages, counted from stamps and from the publisher's own count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EDGE_PERIODS = 5


@dataclass(frozen=True)
class Gap:
    """Frames missing after one stamp.

    Attributes:
        after_ns: Stamp of the last frame before the gap; the episode's start when there is none.
        frames: How many are missing.
    """

    after_ns: int
    frames: int


def missing_frames(
    stamps_ns: Sequence[int],
    period_ns: int | None,
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> list[Gap]:
    """Find frames missing from a periodic stream.

    Two stamps that lie n periods apart (rounded) have n - 1 frames missing between them. At the
    edges of the episode the stream may begin and end up to five periods late or early: drivers
    need that long, and a clock may be slightly behind.

    Args:
        stamps_ns: Header stamps, in any order; equal ones count once.
        period_ns: Nominal period; None takes the median difference.
        start_ns: Start of the episode, if frames are due from there on.
        end_ns: End of the episode, if frames are due until then.
    """
    stamps = np.unique(np.asarray(stamps_ns, dtype=np.int64))
    if period_ns is None and stamps.size > 1:
        period_ns = int(np.median(np.diff(stamps)))
    if not period_ns:
        return []
    if stamps.size == 0:
        if start_ns is None or end_ns is None or end_ns <= start_ns:
            return []
        return [Gap(start_ns, (end_ns - start_ns) // period_ns)]
    steps = (np.diff(stamps) + period_ns // 2) // period_ns
    gaps = [Gap(int(stamps[i]), int(steps[i]) - 1) for i in np.flatnonzero(steps > 1)]
    if start_ns is not None and int(stamps[0]) - start_ns > EDGE_PERIODS * period_ns:
        gaps.insert(0, Gap(start_ns, (int(stamps[0]) - start_ns) // period_ns - 1))
    if end_ns is not None and end_ns - int(stamps[-1]) > EDGE_PERIODS * period_ns:
        gaps.append(Gap(int(stamps[-1]), (end_ns - int(stamps[-1])) // period_ns))
    return gaps


def lost_messages(sequences: Sequence[int]) -> int:
    """Messages missing from a publisher's count; a count that starts again begins a new run."""
    steps = np.diff(np.asarray(sequences, dtype=np.int64))
    return int(np.sum(steps[steps > 1] - 1))
