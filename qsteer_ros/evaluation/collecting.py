"""Episodes of the simulated arm for training that goes on: played by the newest critic.

The arm executes chunks by OGBench's own control and the features are the simulator's truth, as in
the play a critic is first trained on. A whole chain with cameras is collected by running the
system with a logger and watching its folder.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from qsteer_ros import checkpoints, resources
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler
from qsteer_ros.interface import Interface
from qsteer_ros.learning.arrivals import Arrival
from qsteer_ros.learning.settings_online import OnlineSettings
from qsteer_ros.learning.transitions import Transitions, from_steps
from qsteer_ros.motion.kinematics import Kinematics
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.policies.bookkeeping import chunk_seed
from qsteer_ros.policies.features import Float32, proprioception, teacher_features
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.sim.world import World
from qsteer_ros.steering.settings import SteeringSettings

FIRST_SEED = 1_000_000
"""Initial states begin here: none of them is one that an evaluation uses."""

_KEY = "simulated"


class Played(NamedTuple):
    """What was seen and done in one episode.

    Attributes:
        features: Of every state, the last included, (N + 1, F).
        action: Executed, normalised, (N, A).
        solved: Whether the last state solves the task.
    """

    features: Float32
    action: Float32
    solved: bool


class Simulated:
    """Plays one episode after another, each with the critic that training has published last.

    Args:
        settings: ``policy``, ``steering``, ``steering_weight``, ``execute_steps``, ``max_steps``,
            ``goal``; the critic is read from ``out``.
        backend: Of the policy's loop, see `SteeredPolicy`.

    Raises:
        ConfigError: The policy is missing or does not fit the robot.
    """

    def __init__(self, settings: OnlineSettings, *, backend: str = "auto") -> None:
        if not settings.policy:
            raise ConfigError(
                "'policy' must name the policy that plays with simulate=true: got none. "
                "Add policy=checkpoints/policy."
            )
        robot = RobotFile.load(settings.robot)
        self._settings, self._backend, self._kinematics = settings, backend, Kinematics(robot)
        policy = FlowPolicy.load(resources.find(settings.policy))
        policy.interface.check_robot(robot, mine="the policy")
        if settings.execute_steps > policy.horizon:
            raise ConfigError(
                f"'execute_steps' must be at most the policy's horizon of {policy.horizon}: got "
                f"{settings.execute_steps}. Lower it."
            )
        self._policy = policy
        self._steering = _steering(settings)
        self._sampler = Sampler(settings.denoising_steps)
        self._world = World(goal=settings.goal, seed=FIRST_SEED)
        self._read: tuple[int, SteeredPolicy] | None = None

    def next(self, taken: Collection[str]) -> Arrival:
        """Play the first episode that is not among ``taken``."""
        settings = self._settings
        number = sum(key.startswith(_KEY) for key in taken)
        seed = FIRST_SEED + (settings.seed << 16) + number
        played = self._play(self._newest(), seed)
        key = f"{_KEY}-goal{settings.goal}-state{seed}"
        windows = windows_of(
            played, interface=self._policy.interface, discount=settings.discount, name=key
        )
        return Arrival(key, len(played.action), windows)

    def _newest(self) -> SteeredPolicy:
        """The policy steered by the critic in ``out``, which is read again when it has changed."""
        changed = (Path(self._settings.out) / checkpoints.WEIGHTS).stat().st_mtime_ns
        if self._read is None or self._read[0] != changed:
            critic = Critic.load(self._settings.out)
            steered = SteeredPolicy(
                None,
                self._policy,
                critic,
                self._steering,
                sampler=self._sampler,
                backend=self._backend,
            )
            self._read = (changed, steered)
        return self._read[1]

    def _play(self, policy: SteeredPolicy, seed: int) -> Played:
        settings, world = self._settings, self._world
        world.reset(goal=settings.goal, seed=seed)
        features, actions, chunks = [self._features()], list[NDArray[np.float32]](), 0
        while len(actions) < settings.max_steps and not world.success:
            seen = torch.from_numpy(features[-1][None])
            chunk = policy.act(seen, seed=chunk_seed(seed, chunks)).chunk
            chunks += 1
            for action in chunk[: min(settings.execute_steps, settings.max_steps - len(actions))]:
                world.scene.env.step(action)
                actions.append(np.asarray(action, dtype=np.float32))
                features.append(self._features())
                if world.success:
                    break
        return Played(np.stack(features), np.stack(actions), world.success)

    def _features(self) -> Float32:
        """What is true now, (F,)."""
        pose = self._world.privileged_cube_pose()
        w, x, y, z = pose[3:]
        yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        proprio = proprioception(self._world.robot_state(), self._kinematics)
        found: Float32 = teacher_features(proprio[None], pose[None, :3], np.array([yaw]))[0]
        return found


def windows_of(played: Played, *, interface: Interface, discount: float, name: str) -> Transitions:
    """All windows of an episode: -1 per step until it is solved.

    A solved episode is taken to stay solved, at rest, so that the windows that reach the end are
    whole. Of one that ran out of time the last state has no action; windows end before it.

    Args:
        played: The episode.
        interface: Its horizon is H.
        discount: gamma.
        name: Names the data.

    Raises:
        DataError: It is shorter than a window and not solved.
    """
    features, action, rest = played.features, played.action, interface.horizon
    count = len(action)
    if played.solved:
        features = np.concatenate([features, np.repeat(features[-1:], rest, axis=0)])
        action = np.concatenate([action, np.zeros((rest + 1, action.shape[1]), np.float32)])
    else:
        features = features[:-1]
    solved = np.arange(len(action)) >= count
    return from_steps(
        features=features,
        action=action,
        state_reward=np.where(solved, 0.0, -1.0).astype(np.float32),
        solved=solved,
        episode=np.zeros(len(action), dtype=np.int64),
        interface=interface,
        discount=discount,
        data_hash=name,
    )


def _steering(settings: OnlineSettings) -> SteeringSettings:
    found = SteeringSettings(settings.steering, weight=settings.steering_weight, rho=settings.rho)
    return found if settings.reduction == "auto" else replace(found, reduction=settings.reduction)
