"""Capturing work on a GPU as a CUDA graph, while others may be using the GPU.

Two streams per device keep a capture away from what is running: one for warm-up, one that captures
and on which nothing ever runs. cuBLAS has a workspace per stream, so the kernels of graphs share
theirs with no kernel outside graphs. Replays must follow one another on one stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

WARM_UPS = 3
"""Times before the capture: libraries load, autograd starts its thread, allocators settle."""

one_at_a_time = threading.Lock()
"""torch allows one capture at a time in a process."""


@cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """For warm-up and for capture."""
    first: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    second: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return first, second


def warm_up(work: Callable[[], object], device: torch.device) -> None:
    """Do the work a few times before it is captured, and wait for it."""
    stream, _ = _streams(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    stream.synchronize()


def captured(
    work: Callable[[], Tensor],
    device: torch.device,
    *,
    after: torch.cuda.CUDAGraph | None = None,
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Capture work that may read what another graph leaves; the graph and where its result is.

    Unlike ``torch.cuda.graph`` this neither waits for the device nor empties caches: another
    engine may be serving. Other threads may use the GPU meanwhile.
    """
    graph = torch.cuda.CUDAGraph()
    pool = None if after is None else after.pool()
    with torch.cuda.stream(_streams(device)[1]):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            result = work()
        except BaseException:
            _abandon(graph)
            raise
        graph.capture_end()
    return graph, result


def _abandon(graph: torch.cuda.CUDAGraph) -> None:
    """End a capture that failed; what ended it is what the caller hears of."""
    try:
        graph.capture_end()
    except RuntimeError:
        return
