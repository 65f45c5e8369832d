r"""Value networks: an ensemble of MLPs evaluated as one batched product, and a state value.

Layout of a member, as in the QGF code: ``Dense, LayerNorm, GELU`` for every hidden layer, then a
linear head with one output. GELU is the tanh approximation and LayerNorm's epsilon is 1e-6; both
differ from PyTorch's defaults and both show in the golden files.

Source: github.com/zhouzypaul/qgf, arXiv:2606.11087.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qsteer_ros.errors import ConfigError

LAYER_NORM_EPSILON = 1e-6
"""flax's default."""


def critic_input(features: Tensor, chunk: Tensor) -> Tensor:
    """Join standardised features with a chunk, row-major: (B, F), (B, H, A) -> (B, F + H A).

    Features of one observation, (1, F), serve every chunk of the batch.
    """
    rows = features.expand(chunk.shape[0], -1)
    return torch.cat([rows, chunk.flatten(1)], dim=1)


class EnsembleMLP(nn.Module):
    """Independent MLPs with one output each, evaluated together.

    Every parameter carries a leading member axis, so that E members cost one batched product per
    layer. Member e depends on index e of every parameter and on nothing else.

    Attributes:
        members: E.
        in_dim: Width of the input.
        hidden: Widths of the hidden layers.

    Raises:
        ConfigError: A size is below 1 or there is no hidden layer.
    """

    def __init__(self, members: int, in_dim: int, hidden: Sequence[int] = (256, 256, 256)) -> None:
        """Draw Glorot-uniform kernels from torch's global generator; biases are 0, scales 1."""
        super().__init__()
        if min(members, in_dim, *hidden, len(hidden)) < 1:
            raise ConfigError(
                "EnsembleMLP needs at least one member, input and hidden unit per layer: got "
                f"members={members}, in_dim={in_dim}, hidden={tuple(hidden)}."
            )
        self.members, self.in_dim, self.hidden = members, in_dim, tuple(hidden)
        widths = [in_dim, *hidden, 1]
        self.kernels = nn.ParameterList(
            _glorot_uniform(members, fan_in, fan_out) for fan_in, fan_out in pairwise(widths)
        )
        self.biases = nn.ParameterList(torch.zeros(members, 1, width) for width in widths[1:])
        self.scales = nn.ParameterList(torch.ones(members, 1, width) for width in hidden)
        self.shifts = nn.ParameterList(torch.zeros(members, 1, width) for width in hidden)

    @property
    def architecture(self) -> dict[str, Any]:
        """What ``config.json`` says about this network."""
        return {"members": self.members, "hidden": list(self.hidden)}

    def forward(self, inputs: Tensor) -> Tensor:
        """One number per member: (B, in_dim) -> (E, B)."""
        signal = inputs.expand(self.members, -1, -1)  # (E, B, in_dim)
        for index, width in enumerate(self.hidden):
            signal = torch.baddbmm(self.biases[index], signal, self.kernels[index])
            signal = functional.layer_norm(signal, (width,), eps=LAYER_NORM_EPSILON)
            signal = torch.addcmul(self.shifts[index], signal, self.scales[index])
            signal = functional.gelu(signal, approximate="tanh")
        return torch.baddbmm(self.biases[-1], signal, self.kernels[-1]).squeeze(-1)  # (E, B)


class ValueMLP(nn.Module):
    """State value V(s): an ensemble of one on standardised features, (B, F) -> (B,)."""

    def __init__(self, feature_dim: int, hidden: Sequence[int] = (256, 256, 256)) -> None:
        """Initialise as :class:`EnsembleMLP`."""
        super().__init__()
        self.body = EnsembleMLP(1, feature_dim, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """Expected return from each row of features, (B, F) -> (B,)."""
        values: Tensor = self.body(features)
        return values.squeeze(0)


def _glorot_uniform(members: int, fan_in: int, fan_out: int) -> Tensor:
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    return torch.empty(members, fan_in, fan_out).uniform_(-bound, bound)
