"""MLPs of which E are evaluated as one batched product per layer: what every critic is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from qsteer_ros import dense
from qsteer_ros.dense import LAYER_NORM_EPSILON
from qsteer_ros.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
    "relu": functional.relu,
    "elu": functional.elu,
    "mish": functional.mish,
    "tanh": torch.tanh,
}
"""By name; ``gelu`` is the tanh approximation, as in the QGF code."""


class BatchedMLP(nn.Module):
    """Weights of E independent MLPs: ``Dense, LayerNorm or not, activation``, a linear head.

    Every parameter carries a leading member axis, so that E members cost one batched product per
    layer. Member e depends on index e of every parameter and on nothing else. What a layer sees
    beside the layer before it is for a class that derives to say, by `fan_in`.

    Attributes:
        members: E.
        hidden: Widths of the hidden layers.
        outputs: Numbers per member and row.
        activation: Name of the activation, see `ACTIVATIONS`.
        layer_norm: Whether a hidden layer has a LayerNorm between product and activation.

    Raises:
        ConfigError: A size is below 1, there is no hidden layer, or no activation has this name.
    """

    def __init__(
        self,
        members: int,
        fan_in: Sequence[int],
        hidden: Sequence[int],
        *,
        outputs: int,
        activation: str,
        layer_norm: bool,
    ) -> None:
        """Draw Glorot-uniform kernels from torch's global generator; biases are 0, scales 1.

        Args:
            members: E.
            fan_in: What every hidden layer and the head see, one number more than ``hidden``.
            hidden: Widths of the hidden layers.
            outputs: Numbers per member and row.
            activation: A key of `ACTIVATIONS`.
            layer_norm: Whether hidden layers have a LayerNorm.
        """
        super().__init__()
        if min(members, outputs, len(hidden), *fan_in, *hidden) < 1:
            raise ConfigError(
                f"{type(self).__name__} needs at least one member, input, output and hidden unit "
                f"per layer: got members={members}, inputs={tuple(fan_in)}, "
                f"hidden={tuple(hidden)}, outputs={outputs}."
            )
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"'activation' must be one of {', '.join(ACTIVATIONS)}: got '{activation}'."
            )
        self.members, self.hidden, self.outputs = members, tuple(hidden), outputs
        self.activation, self.layer_norm = activation, layer_norm
        self._activate = ACTIVATIONS[activation]
        widths = [*hidden, outputs]
        normed = hidden if layer_norm else ()
        self.kernels = nn.ParameterList(
            glorot_uniform(members, rows, columns)
            for rows, columns in zip(fan_in, widths, strict=True)
        )
        self.biases = nn.ParameterList(torch.zeros(members, 1, width) for width in widths)
        self.scales = nn.ParameterList(torch.ones(members, 1, width) for width in normed)
        self.shifts = nn.ParameterList(torch.zeros(members, 1, width) for width in normed)

    def layer(self, index: int, signal: Tensor) -> Tensor:
        """One hidden layer of all members, (E, B, in) -> (E, B, width)."""
        signal = torch.baddbmm(self.biases[index], signal, self.kernels[index])
        if self.layer_norm:
            width = (self.hidden[index],)
            signal = functional.layer_norm(signal, width, eps=LAYER_NORM_EPSILON)
            signal = torch.addcmul(self.shifts[index], signal, self.scales[index])
        return self._activate(signal)

    def whole(self, inputs: Tensor) -> Tensor | None:
        """All layers at once, (B, in) -> (E, B, outputs), where `dense` offers it; else None."""
        if self.activation != "gelu" or not self.layer_norm or not dense.applies(inputs):
            return None
        return dense.perceptron(inputs, self.kernels, self.biases, self.scales, self.shifts)

    def head(self, signal: Tensor) -> Tensor:
        """The linear head of all members, (E, B, in) -> (E, B, outputs)."""
        return torch.baddbmm(self.biases[-1], signal, self.kernels[-1])


def glorot_uniform(members: int, fan_in: int, fan_out: int) -> Tensor:
    """Kernels (E, in, out) from torch's global generator."""
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    return torch.empty(members, fan_in, fan_out).uniform_(-bound, bound)
