"""How kernels are compiled: once per machine, when the first engine is made."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

FAST: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
    "nogil": True,
}
"""Sums may be reordered. ``nnan`` and ``ninf`` are not set: what is not finite must stay so."""

inner = numba.njit(**FAST)
"""Decorator of a function that kernels call; compiled as part of them."""


SOURCES = (
    "arithmetic",
    "building",
    "many_rows",
    "network_of_rows",
    "one_row",
    "packing",
    "product",
)
"""Files that machine code is made of."""


def fingerprint(folder: Path = Path(__file__).parent) -> int:
    """Of the sources of all kernels.

    numba keeps machine code of a kernel until the file that holds the kernel changes, whatever
    changes in files it calls. A number that every kernel closes over makes it look at all.
    """
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((folder / f"{name}.py").read_bytes())
    return int.from_bytes(digest.digest()[:4], "little")


def compiled(signature: Any, function: Callable[..., None]) -> Callable[..., None]:
    """Compile a kernel for one signature now, or load its machine code from an earlier time.

    Machine code is kept beside the source or, where that cannot be written, in the user's cache
    folder (``NUMBA_CACHE_DIR`` sets another). Without any such place the kernel works all the
    same and is compiled anew by every process.

    Args:
        signature: Of numba types; other arguments are refused with a TypeError.
        function: Writes its result into its arguments. It reads `fingerprint` from its closure.
    """
    try:
        kernel: Callable[..., None] = numba.njit(signature, cache=True, **FAST)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        logging.getLogger(__name__).warning(
            "compiled kernels cannot be kept: %s. They are compiled at every start, which takes "
            "some ten seconds. Set NUMBA_CACHE_DIR to a folder that can be written.",
            error,
        )
        kernel = numba.njit(signature, **FAST)(function)
    return kernel
