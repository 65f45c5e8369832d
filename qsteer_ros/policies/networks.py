r"""The small flow network and the loss that trains it.

Layout, as in the QGF code: input ``[features, noisy chunk, time embedding]``; hidden layers
``Dense, LayerNorm, GELU`` except the last, which has no LayerNorm; linear head. GELU is the tanh
approximation and LayerNorm's epsilon is 1e-6.

Source: github.com/zhouzypaul/qgf, arXiv:2606.11087.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from qsteer_ros import dense
from qsteer_ros.dense import LAYER_NORM_EPSILON
from qsteer_ros.errors import ConfigError

EMBEDDING_DIM = 16
TIME_EMBEDDINGS = ("log16", "sinusoidal16")
TIME_SAMPLINGS = ("uniform", "grid11")


def sinusoidal16(flow_time: Tensor) -> Tensor:
    r"""Transformer embedding of the QGF code.

    .. math:: [\cos \omega_k, \sin \omega_k], \qquad
              \omega_k = 10^4 \, \tau \, e^{-\ln(10^4) \, k / 8}, \quad k = 0, \dots, 7

    Computed in float32 whatever the input: its arguments reach 1e4, and a float64 evaluation
    would differ from the reference by 2e-4. (B,) -> (B, 16) float32, cosines first.
    """
    half = EMBEDDING_DIM // 2
    exponent = torch.arange(half, dtype=torch.float32, device=flow_time.device)
    frequency = torch.exp(-math.log(10000.0) * exponent / half)
    angle = (10000.0 * flow_time.float()).unsqueeze(1) * frequency
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)


def log16(flow_time: Tensor) -> Tensor:
    """Cosines, then sines, of flow time at 8 angular frequencies log-spaced from 1 to 30.

    (B,) -> (B, 16) float32. Neighbouring points of a ten-step grid stay apart, and nothing turns
    more than half a circle between them.
    """
    half = EMBEDDING_DIM // 2
    frequency = torch.logspace(0.0, math.log10(30.0), half, device=flow_time.device)
    angle = flow_time.float().unsqueeze(1) * frequency
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)


def _time_embedding(name: str) -> Callable[[Tensor], Tensor]:
    """The embedding with this name, (B,) -> (B, 16).

    Raises:
        ConfigError: No embedding has this name.
    """
    match name:
        case "log16":
            return log16
        case "sinusoidal16":
            return sinusoidal16
        case _:
            raise ConfigError(
                f"'time_embedding' must be one of {', '.join(TIME_EMBEDDINGS)}: got '{name}'."
            )


class FlowMLP(nn.Module):
    """Velocity of a noisy chunk, given standardised features and flow time (0 noise, 1 action).

    Attributes:
        feature_dim: F.
        chunk_dim: D = horizon x action_dim; chunks are flattened row-major.
        hidden: Widths of the hidden layers.
        time_embedding: Name of the time embedding.

    Raises:
        ConfigError: A size is below 1, there is no hidden layer, or the embedding is unknown.
    """

    def __init__(
        self,
        feature_dim: int,
        chunk_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        time_embedding: str = "log16",
    ) -> None:
        """Draw Glorot-uniform hidden kernels and a LeCun-normal head; biases are 0."""
        super().__init__()
        if min(feature_dim, chunk_dim, *hidden, len(hidden)) < 1:
            raise ConfigError(
                "FlowMLP needs at least one feature, action and hidden unit per layer: got "
                f"feature_dim={feature_dim}, chunk_dim={chunk_dim}, hidden={tuple(hidden)}."
            )
        self.feature_dim, self.chunk_dim, self.hidden = feature_dim, chunk_dim, tuple(hidden)
        self.time_embedding = time_embedding
        self._embed = _time_embedding(time_embedding)
        widths = [feature_dim + chunk_dim + EMBEDDING_DIM, *hidden]
        self.layers = nn.ModuleList(
            nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(width, eps=LAYER_NORM_EPSILON) for width in hidden[:-1]
        )
        self.head = nn.Linear(hidden[-1], chunk_dim)
        self._initialise()

    @property
    def architecture(self) -> dict[str, Any]:
        """What ``config.json`` says about this network."""
        return {"hidden": list(self.hidden), "time_embedding": self.time_embedding}

    def embed(self, flow_time: Tensor) -> Tensor:
        """What the first layer sees of flow time, (B,) -> (B, 16) float32."""
        return self._embed(flow_time)

    def forward(self, features: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        """Velocity, in normalised action units per unit of flow time.

        Args:
            features: Standardised, (B, F).
            noisy_chunk: Flattened row-major, (B, D).
            flow_time: (B,), 0 noise to 1 action.

        Returns:
            (B, D).
        """
        embedding = self.embed(flow_time).to(noisy_chunk.dtype)
        signal = torch.cat([features, noisy_chunk, embedding], dim=1)
        if dense.applies(signal):
            layers = [*self.layers, self.head]
            return dense.perceptron(
                signal,
                [cast(Tensor, layer.weight) for layer in layers],
                [cast(Tensor, layer.bias) for layer in layers],
                [cast(Tensor, norm.weight) for norm in self.norms],
                [cast(Tensor, norm.bias) for norm in self.norms],
            )
        for index, layer in enumerate(self.layers):
            signal = layer(signal)
            if index < len(self.norms):
                signal = self.norms[index](signal)
            signal = functional.gelu(signal, approximate="tanh")
        velocity: Tensor = self.head(signal)
        return velocity

    def _initialise(self) -> None:
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        # Source: jax.nn.initializers.lecun_normal; 0.8796 is the sd of a normal cut at two sd.
        deviation = math.sqrt(1.0 / self.hidden[-1]) / 0.87962566103423978
        nn.init.trunc_normal_(self.head.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        nn.init.zeros_(self.head.bias)


def flow_matching_loss(
    network: FlowMLP, features: Tensor, chunk: Tensor, *, noise: Tensor, flow_time: Tensor
) -> Tensor:
    r"""Behaviour cloning: regress the velocity of the straight path from noise to action.

    .. math:: \operatorname{mean} \big( v(s, x_\tau, \tau) - (a - x_0) \big)^2,
              \qquad x_\tau = (1 - \tau) x_0 + \tau a

    Args:
        network: The velocity network.
        features: Standardised, (B, F).
        chunk: a, actions of the data, flattened, (B, D).
        noise: x_0, standard normal, (B, D).
        flow_time: tau, (B,), see :func:`sample_flow_time`.

    Returns:
        Mean over batch and dimensions, a scalar.
    """
    tau = flow_time.unsqueeze(1)
    noisy_chunk = (1.0 - tau) * noise + tau * chunk
    velocity: Tensor = network(features, noisy_chunk, flow_time)
    return (velocity - (chunk - noise)).square().mean()


def sample_flow_time(
    batch: int, *, sampling: str = "uniform", generator: torch.Generator | None = None
) -> Tensor:
    """Flow times to train at, (batch,) float32.

    Args:
        batch: How many.
        sampling: ``uniform`` on [0, 1), or ``grid11``: one of 0, 0.1, ..., 1 as in the QGF code,
            which includes 1.
        generator: Where randomness comes from; None is torch's global generator.

    Raises:
        ConfigError: ``sampling`` is neither.
    """
    match sampling:
        case "uniform":
            return torch.rand(batch, generator=generator)
        case "grid11":
            return torch.randint(0, 11, (batch,), generator=generator) / 10
        case _:
            raise ConfigError(
                f"'sampling' must be one of {', '.join(TIME_SAMPLINGS)}: got '{sampling}'."
            )
