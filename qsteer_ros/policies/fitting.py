"""Whether encoder, policy, critic and settings were made for each other."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.noise_policy import NoisePolicy
from qsteer_ros.policies.posterior_map import MetaFlowMap
from qsteer_ros.steering.settings import SteeringSettings
from qsteer_ros.types import Observation


class ObservationEncoder(Protocol):
    """What turns an observation into features.

    Attributes:
        hash: Of its checkpoint.
        feature_names: Name of each feature it gives.
    """

    hash: str
    feature_names: tuple[str, ...]

    def features(self, observation: Observation) -> Tensor:
        """Features of one observation, (1, F)."""
        ...


def check_parts(
    encoder: ObservationEncoder | None,
    policy: FlowPolicy,
    critic: Critic | None,
    settings: SteeringSettings,
    *,
    noise_policy: NoisePolicy | None = None,
    posterior_map: MetaFlowMap | None = None,
) -> None:
    """Refuse a combination that would act on meaningless numbers.

    A noise policy and a posterior map are held against the policy whether the mode asks them or
    not: the mode may change at any chunk.

    Raises:
        ConfigError: Horizon, action order or scale, features or encoder differ, a noise policy or
            a posterior map is of another policy, or the mode lacks a critic, statistics of its
            values, or a noise policy.
    """
    if settings.needs_noise_policy and noise_policy is None:
        raise ConfigError(
            f"steering mode '{settings.mode}' needs a noise policy: none is loaded. Set "
            "'noise_policy' to what 'qsteer train dsrl' wrote, or steering: off."
        )
    if settings.needs_critic and critic is None:
        raise ConfigError(
            f"steering mode '{settings.mode}' needs a critic: none is loaded. "
            "Set parameter 'critic', or steering: off."
        )
    if settings.mode == "qpilots_m":
        _ = settings.tilt  # refuses when the critic's values are not known
    if critic is not None:
        critic.interface.check_same(
            policy.interface,
            mine="the critic",
            theirs="the policy",
            remedy="Train a critic for this policy: qsteer train critic.",
        )
    if noise_policy is not None:
        _check_made_for(policy, noise_policy, "noise policy", "dsrl")
    if posterior_map is not None:
        _check_made_for(policy, posterior_map, "posterior map", "posterior-map")
    if encoder is not None:
        _check_encoder(encoder, policy, critic)


def _check_made_for(
    policy: FlowPolicy, part: NoisePolicy | MetaFlowMap, name: str, program: str
) -> None:
    """Refuse a part that was trained for another policy."""
    remedy = f"Train one for this policy: qsteer train {program} policy=..."
    part.interface.check_same(
        policy.interface, mine=f"the {name}", theirs="the policy", remedy=remedy
    )
    if part.policy_hash != policy.hash:
        raise ConfigError(
            f"the {name} must be used with the policy it was trained for: that is "
            f"{part.policy_hash[:12]}, loaded is {policy.hash[:12] or 'unsaved'}. {remedy}"
        )


def _check_encoder(encoder: ObservationEncoder, policy: FlowPolicy, critic: Critic | None) -> None:
    parts = {"policy": policy.interface}
    if critic is not None:
        parts["critic"] = critic.interface
    for name, interface in parts.items():
        if tuple(encoder.feature_names) != interface.feature_names:
            raise ConfigError(
                f"the encoder must give the {interface.feature_dim} features that the {name} "
                f"was trained on: it gives {len(encoder.feature_names)}, or others. "
                "Set parameter 'encoder' to the one they were trained with."
            )
        if interface.encoder_hash not in (None, encoder.hash):
            raise ConfigError(
                f"the {name} must be used with the encoder it was trained for: that is "
                f"{str(interface.encoder_hash)[:12]}, loaded is {encoder.hash[:12]}. "
                f"Set parameter 'encoder', or train the {name} for this one."
            )
