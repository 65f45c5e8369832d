"""A trained noise policy: where a frozen flow policy should start, given an observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import sample_noise
from qsteer_ros.interface import Interface
from qsteer_ros.policies.noise_network import NoiseActor, SquashedGaussian
from qsteer_ros.trained import Trained


@dataclass(frozen=True, eq=False)
class ChosenNoise:
    """The noise for a batch of observations; what is left to choose is the randomness.

    Attributes:
        network: Scales the noise.
        distribution: Before tanh, flattened, one row per observation.
        shape: (H, A).
    """

    network: NoiseActor
    distribution: SquashedGaussian
    shape: tuple[int, int]

    def median(self) -> Tensor:
        """Noise without randomness: the median of every component, (B, H, A)."""
        return self._shaped(self.distribution.location)

    def at(self, gaussian: Tensor) -> Tensor:
        """What standard normal noise is turned into, (B, H, A) -> (B, H, A)."""
        return self._shaped(self.distribution.before_tanh(gaussian.flatten(1)))

    def draw(self, *, seed: int) -> Tensor:
        """Noise drawn with a seed: `at` the noise the policy alone would start from, (B, H, A)."""
        location = self.distribution.location
        shape = (len(location), *self.shape)
        return self.at(sample_noise(shape, seed=seed, device=location.device))

    def _shaped(self, point: Tensor) -> Tensor:
        return self.network.noise(point).view(len(point), *self.shape)


@dataclass(frozen=True, eq=False)
class NoisePolicy(Trained):
    r"""An actor whose action is the noise a frozen flow policy starts from.

    .. math:: z = s \tanh(\mu(o) + \sigma(o) \epsilon), \qquad a = \operatorname{denoise}(z)

    It means nothing for another flow policy than the one it was trained for, whose hash
    ``training`` names as ``policy_hash``.

    Attributes:
        network: Frozen.

    Raises:
        ConfigError: The network does not fit the interface, or no flow policy is named.

    Source:
        DSRL, arXiv:2506.15799.
    """

    KIND: ClassVar[str] = "noise_policy"
    PREFIX: ClassVar[str] = "actor"
    ARCHITECTURE: ClassVar[tuple[str, ...]] = ("hidden", "noise_scale")

    network: NoiseActor

    def __post_init__(self) -> None:
        """Refuse a network that was made for other features or chunks, or for nobody."""
        network = (self.network.feature_dim, self.network.chunk_dim)
        stated = (self.interface.feature_dim, self.interface.chunk_dim)
        if network != stated:
            raise ConfigError(
                f"a noise policy for {stated[0]} features and chunks of {stated[1]} must have a "
                f"network of these sizes: its network has {network[0]} and {network[1]}."
            )
        if not isinstance(self.training.get("policy_hash"), str):
            raise ConfigError(
                "a noise policy must name the flow policy it was trained for: 'policy_hash' is "
                "not among its facts of training. Train it again: qsteer train dsrl."
            )

    @staticmethod
    def build(architecture: Mapping[str, Any], interface: Interface) -> NoiseActor:
        """The actor that ``config.json`` describes."""
        return NoiseActor(
            interface.feature_dim,
            interface.chunk_dim,
            tuple(architecture["hidden"]),
            noise_scale=architecture["noise_scale"],
        )

    @property
    def policy_hash(self) -> str:
        """Of the checkpoint of the flow policy it was trained for."""
        return str(self.training["policy_hash"])

    @property
    def noise_scale(self) -> float:
        """s, the largest absolute value of a component of the noise."""
        return self.network.noise_scale

    def condition(self, features: Tensor) -> ChosenNoise:
        """Fix the observation; what remains is a distribution of noise.

        Args:
            features: As the encoder gives them, not standardised, (B, F).

        Raises:
            ConfigError: Features have another shape.
        """
        rows = self.standardised(features)
        shape = (self.horizon, self.action_dim)
        return ChosenNoise(self.network, self.network.distribution(rows), shape)
