"""Play in the suite: OGBench's scripted experts do one random thing after another.

The loop is that of OGBench's ``data_gen_scripts/generate_manipspace.py`` with
``--dataset_type=play``: a plan for a target drawn at random (a place for a cube, a button, the
drawer, the window), followed with noise, then the next one. Nothing in it knows about a task.

Source: OGBench, arXiv:2410.20092, and its repository (the script is not in the package).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import ConfigError
from qsteer_ros.sim.suite import button_states

# The oracles are imported after the suite, which chooses the GL library before MuJoCo is imported.
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle  # isort: skip
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle  # isort: skip
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle  # isort: skip
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle  # isort: skip

STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
    "cube-octuple": (0.0, 0.35),
}
"""Range from which an episode's probability of stacking one cube on another is drawn."""
ELSEWHERE = (0.5, 0.5)
SCENE_RIGHT_M, SCENE_LEFT_M = 0.29, -0.3
DRAWER_Z_M = (0.06, 0.08)
ATTEMPTS = 100


@dataclass(frozen=True)
class SuiteEpisode:
    """What one episode of play recorded; row t is the state before action t.

    Attributes:
        observation: (T, F).
        action: Normalised, (T, 5).
        qpos: Simulator positions, (T, nq).
        qvel: Simulator velocities, (T, nv).
        buttons: States of the buttons, (T, m); m is 0 where there are none.
        targets: Targets of the expert that ended, whether reached or not.
        reached: How many of them the environment called reached.
    """

    observation: NDArray[np.float32]
    action: NDArray[np.float32]
    qpos: NDArray[np.float32]
    qvel: NDArray[np.float32]
    buttons: NDArray[np.int8]
    targets: int
    reached: int


def play(
    env: Any,
    name: str,
    *,
    seed: int,
    steps: int = 1001,
    noise: float = 0.1,
    smoothing: float = 0.5,
) -> SuiteEpisode:
    """Let the scripted experts play for one episode.

    An episode of ``scene`` in which the cube leaves the part of the table where it can be seen
    is thrown away and played again from another seed, as OGBench does.

    Args:
        env: Made by ``suite.make(name)``. It is reset.
        name: Which environment it is.
        seed: Decides everything: the environment's generator, and numpy's global one, which the
            experts draw from.
        steps: Control steps of 50 ms, T.
        noise: Standard deviation of the noise on a plan, in units of the largest action.
        smoothing: Standard deviation of the Gaussian filter over that noise, in steps.

    Raises:
        ConfigError: No attempt gave an episode worth keeping.
    """
    for attempt in range(ATTEMPTS):
        drawn = int(np.random.SeedSequence((seed, attempt)).generate_state(1)[0])
        episode = _attempt(env, name, drawn, steps, noise, smoothing)
        if name != "scene" or in_sight(episode.qpos):
            return episode
    raise ConfigError(
        f"play in '{name}' must keep the cube in sight: {ATTEMPTS} attempts of {steps} steps did "
        "not. Ask for shorter episodes."
    )


def in_sight(qpos: NDArray[np.floating]) -> bool:
    """Whether the cube of ``scene`` stayed where a camera can see it or in the drawer, (T, nq)."""
    y, z = qpos[:, 15], qpos[:, 16]
    right = y >= SCENE_RIGHT_M
    left = (y <= SCENE_LEFT_M) & ((z < DRAWER_Z_M[0]) | (z > DRAWER_Z_M[1]))
    return not bool((right | left).any())


def _experts(env: Any, name: str, noise: float, smoothing: float) -> dict[str, Any]:
    """The scripted expert of each kind of target."""
    plan = {"env": env, "noise": noise, "noise_smoothing": smoothing}
    if name.startswith("cube"):
        return {"cube": CubePlanOracle(**plan)}
    if name.startswith("puzzle"):
        return {"button": ButtonPlanOracle(gripper_always_closed=True, **plan)}
    return {
        "cube": CubePlanOracle(**plan),
        "button": ButtonPlanOracle(**plan),
        "drawer": DrawerPlanOracle(**plan),
        "window": WindowPlanOracle(**plan),
    }


def _attempt(
    env: Any, name: str, seed: int, steps: int, noise: float, smoothing: float
) -> SuiteEpisode:
    np.random.seed(seed)  # noqa: NPY002 - the generator the experts draw from
    observation, info = env.reset(seed=seed % 2**31)
    stacking = np.random.uniform(*STACKING.get(name, ELSEWHERE))  # noqa: NPY002
    experts = _experts(env, name, noise, smoothing)
    expert = experts[info["privileged/target_task"]]
    expert.reset(observation, info)
    rows: dict[str, list[Any]] = {
        key: [] for key in ("observation", "action", "qpos", "qvel", "buttons")
    }
    targets = reached = 0
    for _ in range(steps):
        action = np.clip(expert.select_action(observation, info), -1.0, 1.0)
        rows["observation"].append(observation)
        rows["action"].append(action)
        rows["qpos"].append(env.data.qpos.copy())
        rows["qvel"].append(env.data.qvel.copy())
        rows["buttons"].append(button_states(env))
        observation, _, _, _, info = env.step(action)
        if expert.done:
            targets, reached = targets + 1, reached + int(info["success"])
            seen, told = env.set_new_target(p_stack=stacking)
            expert = experts[told["privileged/target_task"]]
            expert.reset(seen, told)
    arrays: dict[str, Any] = {
        key: np.asarray(values, dtype=np.int8 if key == "buttons" else np.float32)
        for key, values in rows.items()
    }
    return SuiteEpisode(**arrays, targets=targets, reached=reached)
