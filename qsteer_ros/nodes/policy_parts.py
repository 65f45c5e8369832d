"""What a configured policy node is made of: loaded, held against each other, warmed up."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from qsteer_ros import resources
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler
from qsteer_ros.motion.decoder import ActionDecoder, make_decoder
from qsteer_ros.motion.kinematics import Kinematics
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.nodes.policy_parameters import PolicyParameters
from qsteer_ros.policies.encoder import Encoder
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.types import Observation, RobotState


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything that turns an observation into joint points. Replaced as a whole, never changed.

    Attributes:
        robot: The robot file.
        decoder: From chunks to joint points.
        sizes: Camera name -> (height, width) that the encoder needs.
        steered: Encoder, policy and critic.
    """

    robot: RobotFile
    decoder: ActionDecoder
    sizes: dict[str, tuple[int, int]]
    steered: SteeredPolicy


def load(parameters: PolicyParameters) -> Parts:
    """Load what the parameters name and hold it against each other.

    Raises:
        ConfigError: A file is missing or wrong, or two of them do not belong together.
        DataError: A checkpoint is damaged.
    """
    device = _device(parameters.device)
    robot = RobotFile.load(parameters.robot)
    decoder = make_decoder(robot, Kinematics(robot))
    encoder = Encoder.load(resources.find(parameters.encoder), robot, device=device)
    policy = FlowPolicy.load(resources.find(parameters.policy), device=device)
    policy.interface.check_robot(robot, mine=f"policy '{parameters.policy}'")
    steered = SteeredPolicy(
        encoder,
        policy,
        _critic(parameters),
        parameters.steering_settings(),
        sampler=Sampler(parameters.denoising_steps),
        device=device,
    )
    _check_horizon(parameters, steered)
    return Parts(robot, decoder, dict(encoder.cameras), steered)


def revise(parts: Parts, before: PolicyParameters, after: PolicyParameters) -> Parts:
    """The parts after a change of parameters; only a changed critic is loaded.

    Raises:
        ConfigError: They do not go together; ``parts`` still work.
        DataError: The new critic is damaged; ``parts`` still work.
    """
    steered = parts.steered
    needs_loading = after.critic != before.critic
    critic = _critic(after) if needs_loading else steered.critic
    steered = replace(
        steered,
        critic=critic,
        settings=after.steering_settings(),
        sampler=Sampler(after.denoising_steps),
    )
    _check_horizon(after, steered)
    return replace(parts, steered=steered)


def warm_up(parts: Parts, *, least: int = 5, most: int = 30) -> float:
    """Decide on an empty scene until the time it takes is steady.

    Steady means that the last five decisions differ by less than half of their median.

    Returns:
        Median of the last five, ms.
    """
    joints = np.zeros(len(parts.robot.joints))
    images = {name: np.zeros((*size, 3), dtype=np.uint8) for name, size in parts.sizes.items()}
    observation = Observation(0, images, RobotState(0, joints, joints, 0.0))
    taken_ms: list[float] = []
    for seed in range(most):
        start_ns = time.perf_counter_ns()
        parts.steered.decide(observation, seed=seed)
        taken_ms.append((time.perf_counter_ns() - start_ns) * 1e-6)
        last = taken_ms[-5:]
        if len(taken_ms) >= least and max(last) - min(last) < 0.5 * statistics.median(last):
            break
    return statistics.median(taken_ms[-5:])


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "parameter 'device' is 'cuda', but torch finds no GPU. Set device: cpu to accept "
            "slower inference."
        )
    return torch.device(name)


def _critic(parameters: PolicyParameters) -> Critic | None:
    if not parameters.critic:
        return None
    return Critic.load(resources.find(parameters.critic), device=_device(parameters.device))


def _check_horizon(parameters: PolicyParameters, steered: SteeredPolicy) -> None:
    horizon = steered.policy.horizon
    if parameters.execute_steps > horizon:
        raise ConfigError(
            f"parameter 'execute_steps' must be at most {horizon}, the actions in a chunk of "
            f"'{parameters.policy}': got {parameters.execute_steps}."
        )
