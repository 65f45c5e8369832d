"""Small play and transitions for tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qsteer_ros.learning.play import Play, arm_interface
from qsteer_ros.learning.transitions import Transitions


def play(steps: int = 40, episodes: int = 2, seed: int = 0) -> Play:
    """Arms that wander and a cube that is carried along the x axis."""
    rng = np.random.default_rng(seed)
    rows = steps * episodes
    cube = np.zeros((rows, 3), dtype=np.float32)
    cube[:, 0] = np.tile(np.linspace(0.3, 0.6, steps), episodes)
    return Play(
        qpos=rng.normal(size=(rows, 21)).astype(np.float32),
        ctrl=rng.normal(size=(rows, 7)).astype(np.float32),
        action=rng.uniform(-1, 1, (rows, 5)).astype(np.float32),
        proprio=rng.normal(size=(rows, 19)).astype(np.float32),
        cube_xyz=cube,
        cube_yaw=np.zeros(rows, dtype=np.float32),
        episode=np.repeat(np.arange(episodes), steps),
        hash="play",
    )


def random_transitions(count: int = 300, seed: int = 1) -> Transitions:
    rng = np.random.default_rng(seed)
    return Transitions(
        features=rng.normal(size=(count, 27)).astype(np.float32),
        chunk=rng.uniform(-1, 1, (count, 5, 5)).astype(np.float32),
        interface=arm_interface(5),
        data_hash="random",
        reward=-rng.random(count).astype(np.float32),
        bootstrap=np.full(count, 0.95, dtype=np.float32),
        next_features=rng.normal(size=(count, 27)).astype(np.float32),
        rewards=-rng.random((count, 5)).astype(np.float32),
        ended=np.zeros((count, 5), dtype=np.bool_),
        next_chunk=rng.uniform(-1, 1, (count, 5, 5)).astype(np.float32),
        next_valid=np.ones(count, dtype=np.bool_),
        mc_return=-10.0 * rng.random(count).astype(np.float32),
        truncated=np.zeros(count, dtype=np.bool_),
        success=rng.random(count) < 0.5,
        episode=np.arange(count) // 20,
    )


def write_play(folder: Path, episodes: int = 2, steps: int = 30) -> Path:
    """A data set as ``qsteer data`` lays it out."""
    rng = np.random.default_rng(0)
    (folder / "play").mkdir(parents=True)
    for index in range(episodes):
        widths = {"qpos": 21, "qvel": 20, "ctrl": 7, "action": 5, "tool_xyz": 3}
        arrays = {k: rng.normal(size=(steps, w)).astype(np.float32) for k, w in widths.items()}
        arrays |= {k: rng.random(steps).astype(np.float32) for k in ("effort", "tool_yaw")}
        np.savez(folder / "play" / f"episode_{index:05d}.npz", **arrays)
    return folder
