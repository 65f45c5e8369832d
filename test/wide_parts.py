"""Policies and critics of any size, and both ways to compute their chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.networks import EnsembleMLP
from qsteer_ros.flow import Sampler
from qsteer_ros.interface import Interface
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.settings import SteeringSettings
from qsteer_ros.steering.trace import Trace


def interface_of(features: int, horizon: int, action_dim: int) -> Interface:
    return Interface(
        horizon=horizon,
        action_names=tuple(f"a{i}" for i in range(action_dim)),
        action_scale=(1.0,) * action_dim,
        feature_names=tuple(f"f{i}" for i in range(features)),
        control_dt_s=0.05,
        encoder_hash=None,
    )


def made_of(
    field: FlowMLP, ensemble: EnsembleMLP, *, horizon: int, statistics: tuple[Tensor, Tensor]
) -> tuple[FlowPolicy, Critic]:
    interface = interface_of(field.feature_dim, horizon, field.chunk_dim // horizon)
    return (
        FlowPolicy(field, *statistics, interface),
        Critic(ensemble, statistics[0] + 0.1, statistics[1], interface),
    )


def drawn(
    *,
    hidden: tuple[int, ...] = (48, 100, 64),
    critic_hidden: tuple[int, ...] = (40, 70),
    members: int = 2,
    chunk: tuple[int, int] = (5, 5),
    features: int = 7,
    seed: int = 0,
) -> tuple[FlowPolicy, Critic, Tensor]:
    """A policy, a critic and features of an observation; every parameter is its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = chunk[0] * chunk[1]
        field, ensemble = (
            FlowMLP(features, size, hidden),
            EnsembleMLP(members, features + size, critic_hidden),
        )
        for network in (field, ensemble):
            network.requires_grad_(False)
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        statistics = torch.randn(features), torch.rand(features) + 0.5
        policy, critic = made_of(field, ensemble, horizon=chunk[0], statistics=statistics)
        return policy, critic, torch.randn(1, features)


def readable(
    policy: FlowPolicy,
    critic: Critic,
    settings: SteeringSettings,
    features: Tensor,
    noise: Tensor,
    *,
    sampler: Sampler | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """The chunk by the readable loop."""
    sampler = sampler or Sampler()
    with torch.no_grad():
        field, q = policy.condition(features), critic.condition(features)
        return sampler.denoise(steer(field, q, settings, sampler=sampler, trace=trace), noise)
