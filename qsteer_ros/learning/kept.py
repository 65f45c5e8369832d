"""Transitions as files: what an unfinished run has taken in, so that it can go on without it.

A file is an ``.npz`` without pickle, written under a temporary name and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qsteer_ros.errors import DataError
from qsteer_ros.interface import Interface
from qsteer_ros.learning.transitions import Transitions

_META = "meta"


def keep(path: Path, transitions: Transitions) -> None:
    """Write transitions, replacing a file that is there."""
    meta = {
        "interface": transitions.interface.to_config(),
        "data_hash": transitions.data_hash,
        "episodes": list(transitions.episodes),
    }
    arrays: dict[str, Any] = {_META: np.array(json.dumps(meta)), **transitions.arrays()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        np.savez(partial, **arrays)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def kept(path: Path) -> Transitions:
    """Read what `keep` wrote.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: Mapping[str, Any] = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays[_META]))
        return Transitions(
            interface=Interface.from_config(meta["interface"], source=str(path)),
            data_hash=meta["data_hash"],
            episodes=tuple(meta["episodes"]),
            **{name: array for name, array in arrays.items() if name != _META},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{path}' must hold the transitions this run had taken in: {error}. Start afresh "
            "without --resume."
        ) from error
