"""Small policies, critics and encoders that fit together, with weights drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.networks import EnsembleMLP
from qsteer_ros.interface import Interface
from qsteer_ros.policies.average_velocity import AverageVelocity
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP
from qsteer_ros.policies.noise_network import NoiseActor
from qsteer_ros.policies.noise_policy import NoisePolicy
from qsteer_ros.policies.posterior_map import MetaFlowMap
from qsteer_ros.types import Observation, RobotState

INTERFACE = Interface(
    horizon=3,
    action_names=("dx", "dyaw"),
    action_scale=(0.05, 0.3),
    feature_names=("joint", "cube_x", "cube_y", "gripper"),
    control_dt_s=0.05,
    encoder_hash="e" * 64,
)
MEAN, STD = torch.tensor([0.0, 1.0, -1.0, 0.5]), torch.tensor([1.0, 2.0, 0.5, 0.1])
FEATURES = torch.tensor([[0.3, -0.2, 0.1, 0.6]])


def _drawn(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    network.requires_grad_(False)


def make_policy(seed: int = 0, interface: Interface = INTERFACE) -> FlowPolicy:
    network = FlowMLP(interface.feature_dim, interface.chunk_dim, (16, 16))
    _drawn(network, seed)
    return FlowPolicy(network, MEAN, STD, interface, {"steps": 7}, f"policy{seed}")


def make_critic(seed: int = 1, interface: Interface = INTERFACE, members: int = 2) -> Critic:
    network = EnsembleMLP(members, interface.feature_dim + interface.chunk_dim, (16, 16))
    _drawn(network, seed)
    return Critic(network, MEAN, STD, interface, {"steps": 9}, f"critic{seed}")


def make_noise_policy(
    policy: FlowPolicy | None = None, *, noise_scale: float = 0.8
) -> NoisePolicy:
    """For a policy, where it is; for `make_policy` if none is given."""
    made = policy or make_policy()
    sizes = made.interface.feature_dim, made.interface.chunk_dim, (16, 16)
    network = NoiseActor(*sizes, noise_scale=noise_scale)
    _drawn(network, seed=4)
    network.to(made.feature_mean.device)
    return NoisePolicy(network, *_of(made), {"policy_hash": made.hash}, "noise4")


def make_posterior_map(policy: FlowPolicy | None = None) -> MetaFlowMap:
    """For a policy, where it is; for `make_policy` if none is given."""
    made = policy or make_policy()
    middle, spread = (fill(made.interface.chunk_dim) for fill in (torch.zeros, torch.ones))
    network = AverageVelocity(made.interface.feature_dim, middle, spread, (16, 16))
    _drawn(network, seed=6)
    network.to(made.feature_mean.device)
    return MetaFlowMap(network, *_of(made), {"policy_hash": made.hash}, "map6")


def _of(policy: FlowPolicy) -> tuple[Tensor, Tensor, Interface]:
    return policy.feature_mean, policy.feature_std, policy.interface


def other(**changes: object) -> Interface:
    """The common interface with some fields changed."""
    return replace(INTERFACE, **changes)  # type: ignore[arg-type]


@dataclass
class FixedEncoder:
    """An encoder that reads one pixel."""

    hash: str = "e" * 64
    feature_names: tuple[str, ...] = INTERFACE.feature_names

    def features(self, observation: Observation) -> Tensor:
        brightness = float(observation.images["front"][0, 0, 0]) / 255.0
        return FEATURES + brightness


def observation(brightness: int = 0) -> Observation:
    image = np.full((4, 6, 3), brightness, dtype=np.uint8)
    robot = RobotState(90, np.zeros(6), np.zeros(6), 0.0)
    return Observation(100, {"front": image}, robot, {"front": 100})
