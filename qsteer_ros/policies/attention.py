r"""Pre-norm self-attention blocks, as the RL token's encoder and decoder use them.

.. math::
    y &= x + W_o \, \mathrm{attention}(\mathrm{LN}(x)) \\
    z &= y + W_3 \big( u \odot \mathrm{GELU}(g) \big), \qquad
    (u, g) = W_2 W_1 \, \mathrm{LN}(y)

with :math:`W_1: d \to r d`, :math:`W_2: r d \to 2 r d`, :math:`W_3: r d \to d` and r = 4. There is
a linear map before the gate, so that the block has :math:`4 d^2 + 40 d^2` weights, not the
:math:`4 d^2 + 12 d^2` of the usual gated MLP.

Source: github.com/RLinf/RLinf, rlinf/models/embodiment/modules/rlt_token_transformer.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from qsteer_ros.errors import ConfigError

MLP_RATIO = 4


def sinusoidal(count: int, width: int) -> Tensor:
    r"""Positions of a transformer, (count, width): what learned tables start from.

    .. math:: p_{i, 2k} = \sin(i \, 10^{-8 k / d}), \qquad p_{i, 2k+1} = \cos(i \, 10^{-8 k / d})
    """
    exponent = torch.arange(0, width, 2, dtype=torch.float32) / width
    angle = torch.arange(count, dtype=torch.float32)[:, None] * 10000.0**-exponent
    table = torch.empty(count, width)
    table[:, 0::2] = angle.sin()
    table[:, 1::2] = angle.cos()[:, : width // 2]
    return table


class SelfAttentionBlock(nn.Module):
    """One block; see the module.

    Args:
        width: d.
        heads: Each of d / heads numbers.

    Raises:
        ConfigError: The width cannot be shared out among the heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ConfigError(
                f"the width of attention must be a multiple of its heads: got {width} and {heads}."
            )
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.into_heads = nn.Linear(width, 3 * width)
        self.out_of_heads = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, MLP_RATIO * width)
        self.gate = nn.Linear(MLP_RATIO * width, 2 * MLP_RATIO * width)
        self.narrow = nn.Linear(MLP_RATIO * width, width)
        nn.init.xavier_uniform_(self.into_heads.weight)
        nn.init.zeros_(self.into_heads.bias)
        nn.init.zeros_(self.out_of_heads.bias)

    def forward(self, signal: Tensor, allowed: Tensor) -> Tensor:
        """Mix positions.

        Args:
            signal: (B, L, d).
            allowed: True where a position (second to last axis) may see another (last axis), to
                be broadcast to (B, heads, L, L); every position sees at least one.

        Returns:
            (B, L, d).
        """
        batch, length, width = signal.shape
        joined: Tensor = self.into_heads(self.attention_norm(signal))
        query, key, value = joined.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        signal = signal + self.out_of_heads(mixed.transpose(1, 2).reshape(batch, length, width))
        linear, gate = self.gate(self.widen(self.mlp_norm(signal))).chunk(2, dim=-1)
        out: Tensor = signal + self.narrow(linear * functional.gelu(gate))
        return out


def causal(length: int, device: torch.device) -> Tensor:
    """Every position sees itself and those before it, (length, length) bool."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
