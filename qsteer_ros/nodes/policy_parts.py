"""What a configured policy node is made of: loaded and held against each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from qsteer_ros import resources
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.motion.decoder import ActionDecoder, make_decoder
from qsteer_ros.motion.kinematics import Kinematics
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.nodes.policy_parameters import PolicyParameters
from qsteer_ros.policies.calibrated import calibrated
from qsteer_ros.policies.extractors import load_camera_extractor
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.gated import check_gated
from qsteer_ros.policies.noise_policy import NoisePolicy
from qsteer_ros.policies.posterior_map import MetaFlowMap
from qsteer_ros.policies.running import check_overlap
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.steering.settings import SteeringSettings
from qsteer_ros.step_costs import StepCosts


@dataclass(frozen=True, eq=False)
class Pace:
    """What a decision costs, for its deadline.

    Attributes:
        costs: Of its denoising steps; brought up to date by every chunk.
        after_ns: From the denoised chunk to the decision, unguided twin included.
    """

    costs: StepCosts
    after_ns: int


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything that turns an observation into joint points. Replaced as a whole, never changed.

    Attributes:
        robot: The robot file.
        decoder: From chunks to joint points.
        sizes: Camera name -> (height, width) that the encoder needs.
        steered: Encoder, policy, critic and what else takes part in a decision.
        pace: What its decisions cost; None where nobody has to know.
    """

    robot: RobotFile
    decoder: ActionDecoder
    sizes: dict[str, tuple[int, int]]
    steered: SteeredPolicy
    pace: Pace | None = None


def load(parameters: PolicyParameters) -> Parts:
    """Load what the parameters name and hold it against each other.

    Raises:
        ConfigError: A file is missing or wrong, or two of them do not belong together.
        DataError: A checkpoint is damaged.
    """
    device = _device(parameters.device)
    robot = RobotFile.load(parameters.robot)
    decoder = make_decoder(robot, Kinematics(robot))
    encoder = load_camera_extractor(resources.find(parameters.encoder), robot, device=device)
    policy = FlowPolicy.load(resources.find(parameters.policy), device=device)
    policy.interface.check_robot(robot, mine=f"policy '{parameters.policy}'")
    critic = _critic(parameters)
    steered = SteeredPolicy(
        encoder,
        policy,
        critic,
        _settings(parameters, critic, policy),
        sampler=parameters.sampler(),
        device=device,
        backend=parameters.backend,
        noise_policy=_noise_policy(parameters),
        posterior_map=_posterior_map(parameters),
    )
    _check_gate(parameters, steered, robot)
    _check_horizon(parameters, steered)
    return Parts(robot, decoder, dict(encoder.cameras), steered)


def revise(parts: Parts, before: PolicyParameters, after: PolicyParameters) -> Parts:
    """The parts after a change of parameters; only what is named anew is loaded.

    Raises:
        ConfigError: They do not go together, or the critic is not calibrated and has to be;
            ``parts`` still work.
        DataError: What is new is damaged; ``parts`` still work.
    """
    steered = parts.steered
    critic = _critic(after) if after.critic != before.critic else steered.critic
    chooser, posterior = steered.noise_policy, steered.posterior_map
    if after.noise_policy != before.noise_policy:
        chooser = _noise_policy(after)
    if after.posterior_map != before.posterior_map:
        posterior = _posterior_map(after)
    steered = replace(
        steered,
        critic=critic,
        noise_policy=chooser,
        posterior_map=posterior,
        settings=_settings(after, critic, steered.policy),
        sampler=after.sampler(),
        backend=after.backend,
    )
    _check_gate(after, steered, parts.robot)
    _check_horizon(after, steered)
    return replace(parts, steered=steered)


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


def _noise_policy(parameters: PolicyParameters) -> NoisePolicy | None:
    if not parameters.noise_policy:
        return None
    folder = resources.find(parameters.noise_policy)
    return NoisePolicy.load(folder, device=_device(parameters.device))


def _posterior_map(parameters: PolicyParameters) -> MetaFlowMap | None:
    if not parameters.posterior_map:
        return None
    folder = resources.find(parameters.posterior_map)
    return MetaFlowMap.load(folder, device=_device(parameters.device))


def _settings(
    parameters: PolicyParameters, critic: Critic | None, policy: FlowPolicy
) -> SteeringSettings:
    """The steering that is chosen, with what only the critic's calibration knows."""
    return calibrated(
        parameters.steering_settings(),
        parameters.critic,
        critic,
        policy,
        sampler=parameters.sampler(),
        weight=parameters.guidance == "calibrated",
    )


def _check_gate(parameters: PolicyParameters, steered: SteeredPolicy, robot: RobotFile) -> None:
    """A critic steers only when it has passed the gate, unless the user says so by name."""
    critic, encoder = steered.critic, steered.encoder
    if parameters.allow_ungated_critic or critic is None or not steered.settings.needs_critic:
        return
    try:
        check_gated(
            parameters.critic,
            critic=critic.hash,
            policy=steered.policy.hash,
            robot=robot.hash,
            encoder=None if encoder is None else encoder.hash,
        )
    except ConfigError as error:
        raise ConfigError(
            f"{error} Or set allow_ungated_critic: true to steer by it all the same."
        ) from error


def _check_horizon(parameters: PolicyParameters, steered: SteeredPolicy) -> None:
    horizon = steered.policy.horizon
    if parameters.execute_steps > horizon:
        raise ConfigError(
            f"parameter 'execute_steps' must be at most {horizon}, the actions in a chunk of "
            f"'{parameters.policy}': got {parameters.execute_steps}."
        )
    if parameters.real_time_chunking:
        check_overlap(execute_steps=parameters.execute_steps, horizon=horizon)
