"""Memory of a process that makes and drops the same tensors thousands of times."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of glibc's ``mallopt``."""

_LARGEST_BLOCK = 32 * 2**20
_LARGEST_REST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed, up to 2 GiB, for the next step.

    It would give it back to the system and ask for it again in every step; the system clears what
    it gives, page by page, which takes up to a third of the time of a step.

    Returns:
        Whether the C library could be asked; only glibc can. Nothing but time depends on it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {_MMAP_THRESHOLD: _LARGEST_BLOCK, _TRIM_THRESHOLD: _LARGEST_REST}
    return all([bool(mallopt(name, value)) for name, value in wanted.items()])
