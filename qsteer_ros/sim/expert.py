"""Goal-free play of a scripted expert: the behaviour the policy is cloned from.

The expert is OGBench's ``CubePlanOracle``: it picks the cube up and puts it down at a place
drawn at random, over and over, with noise on its plan. Nothing in its play knows about a goal, so
a policy cloned from it rarely solves a given one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.sim.scene import Scene

# The oracle is imported after the scene, which chooses the GL library before MuJoCo is imported.
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle  # isort: skip

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class PlayEpisode:
    """What one episode of play recorded; row t is the state before action t is taken.

    Attributes:
        qpos: Simulator positions, (T, 21): arm 0-5 (rad), gripper 6-13, cube pose 14-20.
        qvel: Simulator velocities, (T, 20).
        ctrl: Joint targets (rad) and gripper command (0-255) that action t led to, (T, 7).
        action: Normalised end-effector deltas in [-1, 1], (T, 5).
        effort: Grip effort as a fraction of its full scale, (T,).
        tool_xyz: Pinch point in the world, (T, 3), m.
        tool_yaw: Its yaw, (T,), rad.
        subtasks: Pick-and-place cycles started.
        subtasks_done: Of those that ended, how many left the cube within 4 cm of their target.
    """

    qpos: Float32
    qvel: Float32
    ctrl: Float32
    action: Float32
    effort: Float32
    tool_xyz: Float32
    tool_yaw: Float32
    subtasks: int
    subtasks_done: int


def play_episode(
    scene: Scene, *, seed: int, steps: int = 1001, noise: float = 0.1, smoothing: float = 0.5
) -> PlayEpisode:
    """Let the scripted expert play for one episode.

    Args:
        scene: A scene made with ``mode="data_collection"``. It is reset.
        seed: Decides everything: the same seed gives the same episode. OGBench draws the scene
            from the environment's generator and the plan from numpy's global one; both are seeded.
        steps: Control steps of 50 ms, T.
        noise: Standard deviation of the noise on the plan, in units of the largest action.
        smoothing: Standard deviation of the Gaussian filter over that noise, in steps.
    """
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator the oracle draws from
    env = scene.env
    observation, info = env.reset(seed=seed % 2**31)
    oracle = CubePlanOracle(env=env, noise=noise, noise_smoothing=smoothing)
    oracle.reset(observation, info)
    rows: dict[str, list[Any]] = {
        name: [] for name in ("qpos", "qvel", "ctrl", "action", "effort", "tool_xyz", "tool_yaw")
    }
    subtasks, done = 1, 0
    for _ in range(steps):
        qpos = scene.data.qpos.copy()
        tool_xyz, tool_yaw = scene.pinch(qpos)
        action = np.clip(oracle.select_action(observation, info), -1.0, 1.0)
        rows["qpos"].append(qpos)
        rows["qvel"].append(scene.data.qvel.copy())
        rows["effort"].append(info["proprio/gripper_contact"][0])
        rows["tool_xyz"].append(tool_xyz)
        rows["tool_yaw"].append(np.float64(tool_yaw))
        observation, _, _, _, info = env.step(action)
        rows["action"].append(action)
        rows["ctrl"].append(scene.data.ctrl.copy())
        if oracle.done:
            subtasks, done = subtasks + 1, done + int(info["success"])
            oracle.reset(*env.set_new_target(p_stack=0.0))
    arrays = {name: np.asarray(values, dtype=np.float32) for name, values in rows.items()}
    return PlayEpisode(**arrays, subtasks=subtasks, subtasks_done=done)
