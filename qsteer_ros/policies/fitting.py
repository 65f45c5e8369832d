"""Whether encoder, policy, critic and settings were made for each other."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.policies.flow_policy import FlowPolicy
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
) -> None:
    """Refuse a combination that would act on meaningless numbers.

    Raises:
        ConfigError: Horizon, action order or scale, features or encoder differ, or the mode lacks
            a critic or statistics of its values.
    """
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
    if encoder is not None:
        _check_encoder(encoder, policy, critic)


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
