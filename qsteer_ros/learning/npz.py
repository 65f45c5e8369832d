"""Reading the files of a data set: whole, alike, finite, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import DataError

Arrays = dict[str, NDArray[Any]]


def read_npz(path: Path, *, remedy: str) -> Arrays:
    """All arrays of a file, in the file's order.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"'{path}' is damaged: {reason}. {remedy}") from error


def check_rows(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, tuple[int | None, ...]],
    *,
    remedy: str,
) -> int:
    """Refuse arrays that are not rows of finite numbers side by side.

    Args:
        path: Their file, which the message names.
        arrays: What it holds; arrays that ``shapes`` does not name are not looked at.
        shapes: Shape of a row of each array that must be there; None is any width.
        remedy: What to do about a bad file.

    Returns:
        Number of rows.

    Raises:
        DataError: An array is missing, has no rows or other rows than the first, or holds a
            number that is not finite.
    """
    absent = [name for name in shapes if name not in arrays]
    if absent:
        raise DataError(
            f"'{path}' must hold {', '.join(shapes)}: it lacks {', '.join(absent)}. {remedy}"
        )
    first = next(iter(shapes))
    count = len(arrays[first]) if arrays[first].ndim else 0
    if count == 0:
        raise DataError(f"'{path}' must hold rows: '{first}' is empty. {remedy}")
    for name, shape in shapes.items():
        array = arrays[name]
        wanted = (count, *shape)
        fits = array.ndim == len(wanted) and all(
            w is None or w == n for w, n in zip(wanted, array.shape, strict=True)
        )
        if not fits:
            text = ", ".join("any" if w is None else str(w) for w in wanted)
            raise DataError(
                f"'{name}' of '{path}' must have shape ({text}): it has {array.shape}. {remedy}"
            )
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            found = (
                f"{int((~np.isfinite(array)).sum())} of {array.size} are not"
                if array.dtype.kind == "f"
                else f"they are {array.dtype}"
            )
            raise DataError(f"'{name}' of '{path}' must be finite numbers: {found}. {remedy}")
    return count
