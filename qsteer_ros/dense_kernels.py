"""What `dense` does between two products, compiled: each row of a batch is read once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

from qsteer_ros.compiling import compiled, f32, fingerprint, inner, tanh

EPSILON = f32(1e-6)
ROOT = f32(0.7978845608028654)
CUBIC = f32(0.044715)

row_ = numba.float32[::1]
rows_ = numba.float32[:, ::1]


@inner
def gelu(values, slopes):  # type: ignore[no-untyped-def]
    """GELU of each number, in place, and its derivative."""
    for c in range(values.shape[0]):
        v = values[c]
        square = v * v
        t = tanh(ROOT * v * (f32(1) + CUBIC * square))
        half = f32(0.5) + f32(0.5) * t
        inside = ROOT * (f32(1) + f32(3) * CUBIC * square)
        values[c] = v * half
        slopes[c] = half + f32(0.5) * v * (f32(1) - t * t) * inside


@inner
def gelu_only(values):  # type: ignore[no-untyped-def]
    """GELU of each number, in place."""
    for c in range(values.shape[0]):
        v = values[c]
        t = tanh(ROOT * v * (f32(1) + CUBIC * v * v))
        values[c] = f32(0.5) * v * (f32(1) + t)


@inner
def add(row, total):  # type: ignore[no-untyped-def]
    """Total += row. A loop that touches few arrays is one that LLVM vectorises."""
    for c in range(row.shape[0]):
        total[c] += row[c]


@inner
def standardise(row):  # type: ignore[no-untyped-def]
    """Take the mean from a row and divide by its standard deviation; one over the latter."""
    width = row.shape[0]
    total = f32(0)
    for c in range(width):
        total += row[c]
    mean = total / f32(width)
    total = f32(0)
    for c in range(width):
        total += (row[c] - mean) * (row[c] - mean)
    k = f32(1) / np.sqrt(total / f32(width) + EPSILON)
    for c in range(width):
        row[c] = (row[c] - mean) * k
    return k


@inner
def standardise_back(row, normal, k):  # type: ignore[no-untyped-def]
    """From the slope of a standardised row to that of the row before, in place."""
    width = row.shape[0]
    total, along = f32(0), f32(0)
    for c in range(width):
        total += row[c]
        along += row[c] * normal[c]
    total, along = total / f32(width), along / f32(width)
    for c in range(width):
        row[c] = k * (row[c] - total - normal[c] * along)


def _gelu(mark: int) -> tuple[Callable[..., None], ...]:
    def activate(z, slopes):  # type: ignore[no-untyped-def]
        mark  # noqa: B018
        for r in range(z.shape[0]):
            gelu(z[r], slopes[r])

    def activate_back(g, slopes, bias):  # type: ignore[no-untyped-def]
        mark  # noqa: B018
        bias[:] = f32(0)
        for r in range(g.shape[0]):
            row, slope = g[r], slopes[r]
            for c in range(g.shape[1]):
                row[c] *= slope[c]
            add(row, bias)

    return (
        compiled(numba.void(rows_, rows_), activate),
        compiled(numba.void(rows_, rows_, row_), activate_back),
    )


def _normalised(mark: int) -> tuple[Callable[..., None], ...]:
    def normalise(z, scale, shift, out, slopes, inverse):  # type: ignore[no-untyped-def]
        mark  # noqa: B018
        for r in range(z.shape[0]):
            row, after = z[r], out[r]
            inverse[r] = standardise(row)
            for c in range(z.shape[1]):
                after[c] = row[c] * scale[c] + shift[c]
            gelu(after, slopes[r])

    def normalise_back(  # type: ignore[no-untyped-def]
        g, normal, scale, slopes, inverse, scales, shifts, bias
    ):
        mark  # noqa: B018
        scales[:] = f32(0)
        shifts[:] = f32(0)
        bias[:] = f32(0)
        for r in range(g.shape[0]):
            row, n, slope = g[r], normal[r], slopes[r]
            for c in range(g.shape[1]):
                row[c] *= slope[c]
            add(row, shifts)
            for c in range(g.shape[1]):
                scales[c] += row[c] * n[c]
            for c in range(g.shape[1]):
                row[c] *= scale[c]
            standardise_back(row, n, inverse[r])
            add(row, bias)

    return (
        compiled(numba.void(rows_, row_, row_, rows_, rows_, row_), normalise),
        compiled(numba.void(rows_, rows_, row_, rows_, row_, row_, row_, row_), normalise_back),
    )


def _forwards_only(mark: int) -> tuple[Callable[..., None], ...]:
    def activate_only(z):  # type: ignore[no-untyped-def]
        mark  # noqa: B018
        for r in range(z.shape[0]):
            gelu_only(z[r])

    def normalise_only(z, scale, shift):  # type: ignore[no-untyped-def]
        mark  # noqa: B018
        for r in range(z.shape[0]):
            row = z[r]
            standardise(row)
            for c in range(z.shape[1]):
                row[c] = row[c] * scale[c] + shift[c]
            gelu_only(row)

    return (
        compiled(numba.void(rows_), activate_only),
        compiled(numba.void(rows_, row_, row_), normalise_only),
    )


_mark = fingerprint([Path(__file__)])
activate, activate_back = _gelu(_mark)
"""GELU of every row, and the way back.

``activate`` changes ``z`` into the result and keeps GELU's derivative. ``activate_back`` changes
``g``, the slope of the result, into that of ``z``; ``bias`` gets that of a bias added to ``z``
before. Shapes: (B, N) and (N,).
"""

normalise, normalise_back = _normalised(_mark)
"""LayerNorm of every row with scale and shift, then GELU, and the way back.

``normalise`` changes ``z`` into the normalised rows, and writes ``out``, GELU's derivative and
one over each row's standard deviation. ``normalise_back`` changes ``g``, the slope of ``out``,
into that of the first ``z``, and writes the slopes of the parameters, ``bias`` as above. Shapes:
(B, N); parameters and their slopes (N,); ``inverse`` (B,).
"""

activate_only, normalise_only = _forwards_only(_mark)
"""The same where there is no way back: they change ``z`` into the result."""
