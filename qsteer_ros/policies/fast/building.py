"""How kernels are compiled: once per machine, when the first engine is made."""

from __future__ import annotations

from pathlib import Path

from qsteer_ros import compiling
from qsteer_ros.compiling import FAST, compiled, inner

__all__ = ["FAST", "SOURCES", "compiled", "fingerprint", "inner"]

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
    """Of the sources of all kernels, see `compiling.fingerprint`."""
    return compiling.fingerprint([folder / f"{name}.py" for name in SOURCES])
