"""How numba compiles the package's kernels, and arithmetic that several of them share."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np

FAST: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
    "nogil": True,
}
"""Sums may be reordered. ``nnan`` and ``ninf`` are not set: what is not finite must stay so."""

inner = numba.njit(**FAST)
"""Decorator of a function that kernels call; compiled as part of them."""

f32 = np.float32
SATURATED = f32(7.90531110763549805)


def fingerprint(sources: Sequence[Path] = ()) -> int:
    """Of this file and the sources of a kernel.

    numba keeps machine code of a kernel until the file that holds the kernel changes, whatever
    changes in files it calls. A number that every kernel closes over makes it look at all.
    """
    digest = hashlib.sha256()
    for path in (Path(__file__), *sources):
        digest.update(path.read_bytes())
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


@inner
def tanh(v):  # type: ignore[no-untyped-def]
    """Rational approximation of degree 13/6, within some float32 roundings; 1 beyond 7.9.

    Source: Eigen, ``ptanh_float``; the one XLA uses.
    """
    s = v * v
    p = f32(-2.76076847742355e-16)
    p = p * s + f32(2.00018790482477e-13)
    p = p * s + f32(-8.60467152213735e-11)
    p = p * s + f32(5.12229709037114e-08)
    p = p * s + f32(1.48572235717979e-05)
    p = p * s + f32(6.37261928875436e-04)
    p = p * s + f32(4.89352455891786e-03)
    q = f32(1.19825839466702e-06)
    q = q * s + f32(1.18534705686654e-04)
    q = q * s + f32(2.26843463243900e-03)
    q = q * s + f32(4.89352518554385e-03)
    t = v * p / q
    t = f32(-1) if v < -SATURATED else t  # a NaN passes both
    return f32(1) if v > SATURATED else t
