"""The recorded control steps of test/recorded, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np

DT_S = 0.05


def play():
    """Name -> array, one row per control step."""
    with np.load(Path(__file__).parent / "recorded" / "play_steps.npz") as file:
        return {name: file[name].astype(np.float64) for name in file.files}


def chunk_starts(steps, horizon=5, stride=7):
    """Rows from which ``horizon`` further ones are in the same episode."""
    rows = np.arange(0, len(steps["q"]) - horizon, stride)
    return rows[steps["episode"][rows] == steps["episode"][rows + horizon]]
