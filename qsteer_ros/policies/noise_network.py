r"""The network of a noise-space actor: a Gaussian pushed through tanh.

Layout, as in the QGF code: hidden layers ``Dense, GELU`` without LayerNorm, then two linear heads
for the mean and the logarithm of the standard deviation. GELU is the tanh approximation.

Source: DSRL, arXiv:2506.15799; github.com/zhouzypaul/qgf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qsteer_ros.errors import ConfigError

LOG_STD_RANGE = (-5.0, 2.0)
"""The logarithm of the standard deviation is cut to this interval before tanh."""

HEAD_GAIN = 0.1
"""Of the Glorot-uniform heads: an untrained actor is tanh of almost standard normal noise."""


@dataclass(frozen=True, eq=False)
class SquashedGaussian:
    r"""The distribution of :math:`y = \tanh(\mu + \sigma \epsilon)` for standard normal noise.

    Attributes:
        location: mu, (B, D).
        log_std: Logarithm of sigma, (B, D).
    """

    location: Tensor
    log_std: Tensor

    def before_tanh(self, gaussian: Tensor) -> Tensor:
        r""":math:`u = \mu + \sigma \epsilon`, (B, D).

        Args:
            gaussian: epsilon, standard normal, (B, D).
        """
        return self.location + self.log_std.exp() * gaussian

    def log_density(self, gaussian: Tensor) -> Tensor:
        r"""Logarithm of the density of y at the point that epsilon leads to, (B,).

        .. math:: \log p(y) = \sum_i \Big[ -\tfrac12 \epsilon_i^2 - \log \sigma_i
                  - \tfrac12 \log 2\pi - \log(1 - \tanh^2 u_i) \Big]

        The last term is computed as :math:`2 (\log 2 - u - \operatorname{softplus}(-2u))`, which
        is exact where tanh has rounded to 1. The volume is that of y, in [-1, 1]^D.

        Args:
            gaussian: epsilon, (B, D).
        """
        point = self.before_tanh(gaussian)
        normal = -0.5 * gaussian.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)
        stretch = 2.0 * (math.log(2.0) - point - functional.softplus(-2.0 * point))
        return (normal - stretch).sum(dim=1)


class NoiseActor(nn.Module):
    """Features to the distribution of the noise a policy starts from.

    Attributes:
        feature_dim: F.
        chunk_dim: D = H A.
        hidden: Widths of the hidden layers.
        noise_scale: s, the largest absolute value of a component of the noise.

    Raises:
        ConfigError: A size is below 1, there is no hidden layer, or ``noise_scale`` is not
            positive.
    """

    def __init__(
        self,
        feature_dim: int,
        chunk_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        noise_scale: float = 1.0,
    ) -> None:
        """Draw Glorot-uniform kernels from torch's global generator; biases are 0."""
        super().__init__()
        if min(feature_dim, chunk_dim, *hidden, len(hidden)) < 1:
            raise ConfigError(
                "NoiseActor needs at least one feature, action component and hidden unit per "
                f"layer: got feature_dim={feature_dim}, chunk_dim={chunk_dim}, "
                f"hidden={tuple(hidden)}."
            )
        if not (math.isfinite(noise_scale) and noise_scale > 0.0):
            raise ConfigError(
                f"'noise_scale' must be finite and positive: got {noise_scale}. It bounds the "
                "noise; 0.4 to 1.4 are usual."
            )
        self.feature_dim, self.chunk_dim, self.hidden = feature_dim, chunk_dim, tuple(hidden)
        self.noise_scale = float(noise_scale)
        widths = [feature_dim, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.location = nn.Linear(hidden[-1], chunk_dim)
        self.log_std = nn.Linear(hidden[-1], chunk_dim)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            _initialise(layer, gain=1.0)
        _initialise(self.location, gain=HEAD_GAIN)
        _initialise(self.log_std, gain=HEAD_GAIN)

    @property
    def architecture(self) -> dict[str, Any]:
        """What ``config.json`` says about this network."""
        return {"hidden": list(self.hidden), "noise_scale": self.noise_scale}

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Location and logarithm of the standard deviation before tanh, each (B, D).

        Args:
            features: Standardised, (B, F).
        """
        signal = features
        for layer in self.layers:
            signal = functional.gelu(layer(signal), approximate="tanh")
        return self.location(signal), self.log_std(signal).clamp(*LOG_STD_RANGE)

    def distribution(self, features: Tensor) -> SquashedGaussian:
        """What `forward` describes; ``features`` standardised, (B, F)."""
        return SquashedGaussian(*self(features))

    def noise(self, point: Tensor) -> Tensor:
        r"""Start of a policy's path: :math:`z = s \operatorname{clip}(\tanh u, -1, 1)`.

        Args:
            point: u, before tanh, any shape.
        """
        return torch.tanh(point).clamp(-1.0, 1.0) * self.noise_scale


def _initialise(layer: nn.Linear, *, gain: float) -> None:
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    nn.init.zeros_(layer.bias)
