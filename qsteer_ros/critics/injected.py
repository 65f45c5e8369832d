r"""A critic that sees the action at every layer.

Features of a vision-language-action model are far wider than a chunk: a network that is shown the
chunk once, beside 2048 numbers of state, learns to ignore it. Here every hidden layer gets it
again:

.. math::

    \bar s &= \operatorname{LayerNorm}([z ; W_p \, p]) \\
    h_0 &= g_0([\bar s ; a]), \qquad h_{l+1} = g_{l+1}([h_l ; a])

Source: Q-VGM, arXiv:2606.08015, section on the critic. The paper does not state activation,
normalisation inside, nor whether the head sees the action; the defaults are SiLU, none, no.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qsteer_ros.critics.layers import glorot_uniform
from qsteer_ros.critics.networks import QNetwork
from qsteer_ros.dense import LAYER_NORM_EPSILON
from qsteer_ros.errors import ConfigError
from qsteer_ros.weights import rows_for


class InjectedMLP(QNetwork):
    """Independent MLPs that get the chunk at every hidden layer, evaluated together.

    Attributes:
        feature_dim: F; the last ``proprio`` of them are projected first.
        chunk_dim: D, numbers in a chunk.
        proprio: P, how many of the last features are proprioception.
        proprio_dim: Width they are projected to; without effect when P is 0.
        inject_head: Whether the head sees the chunk too.

    Raises:
        ConfigError: A size is below 1, there are fewer features than ``proprio``, or no activation
            has this name.
    """

    def __init__(
        self,
        members: int,
        feature_dim: int,
        chunk_dim: int,
        hidden: Sequence[int] = (512, 512, 256),
        *,
        outputs: int = 1,
        activation: str = "silu",
        layer_norm: bool = False,
        inject_head: bool = False,
        proprio: int = 0,
        proprio_dim: int = 256,
    ) -> None:
        """Draw Glorot-uniform kernels from torch's global generator; biases are 0, scales 1."""
        if not (0 <= proprio <= feature_dim and proprio_dim >= 1):
            raise ConfigError(
                f"'proprio' must be 0 to {feature_dim}, the number of features, and 'proprio_dim' "
                f"at least 1: got {proprio} and {proprio_dim}."
            )
        state = feature_dim - proprio + (proprio_dim if proprio else 0)
        before = [state, *hidden]
        seen = [width + chunk_dim for width in before]
        if not inject_head:
            seen[-1] = before[-1]
        super().__init__(
            members,
            seen if min(feature_dim, chunk_dim) > 0 else [0] * len(seen),
            hidden,
            outputs=outputs,
            activation=activation,
            layer_norm=layer_norm,
        )
        self.feature_dim, self.chunk_dim, self.in_dim = (
            feature_dim,
            chunk_dim,
            feature_dim + chunk_dim,
        )
        self.inject_head, self.proprio, self.proprio_dim = inject_head, proprio, proprio_dim
        self.state_scale = nn.Parameter(torch.ones(members, 1, state))
        self.state_shift = nn.Parameter(torch.zeros(members, 1, state))
        if proprio:
            self.projection = nn.Parameter(glorot_uniform(members, proprio, proprio_dim))

    @property
    def architecture(self) -> dict[str, Any]:
        """What ``config.json`` says about this network."""
        return {
            "kind": "injected",
            "members": self.members,
            "hidden": list(self.hidden),
            "outputs": self.outputs,
            "activation": self.activation,
            "layer_norm": self.layer_norm,
            "inject_head": self.inject_head,
            "proprio": self.proprio,
            "proprio_dim": self.proprio_dim,
        }

    def forward(self, inputs: Tensor) -> Tensor:
        """Features and flattened chunk side by side, (B, F + D) -> (E, B) or (E, B, outputs)."""
        values = self._all(inputs[:, : self.feature_dim], inputs[:, self.feature_dim :])
        return values.squeeze(-1) if self.outputs == 1 else values

    def positions(self, features: Tensor, chunk: Tensor) -> Tensor:
        """As in `QNetwork`."""
        return self._all(rows_for(features, len(chunk)), chunk.flatten(1))

    def _all(self, features: Tensor, action: Tensor) -> Tensor:
        actions = action.expand(self.members, -1, -1)  # (E, B, D)
        signal = torch.cat([self._state(features), actions], dim=2)
        for index in range(len(self.hidden)):
            signal = self.layer(index, signal)
            if index + 1 < len(self.hidden) or self.inject_head:
                signal = torch.cat([signal, actions], dim=2)
        return self.head(signal)

    def _state(self, features: Tensor) -> Tensor:
        """s_bar of every member, (B, F) -> (E, B, S)."""
        wide = features.expand(self.members, -1, -1)
        if self.proprio:
            first = self.feature_dim - self.proprio
            projected = torch.bmm(wide[:, :, first:], self.projection)
            wide = torch.cat([wide[:, :, :first], projected], dim=2)
        normal = functional.layer_norm(wide, wide.shape[2:], eps=LAYER_NORM_EPSILON)
        return torch.addcmul(self.state_shift, normal, self.state_scale)
