r"""The RL token: one vector that a decoder needs to rebuild the prefix of a frozen VLA.

The prefix :math:`z_1 \dots z_M` (the VLA's last layer, width D) gets learned positions and one
learned token at its end; after two attention blocks that token is :math:`z_{rl}`. A causal decoder
rebuilds each :math:`z_i` from :math:`z_{rl}` and the :math:`z_j` before it:

.. math:: L = \frac{1}{M} \sum_i \frac{1}{D} \big\lVert d([z_{rl}, z_1 \dots z_{i-1}])_i
              - z_i \big\rVert^2

The prefix is data, never differentiated. What stands before it tells the decoder much about
:math:`z_i`, so it may learn to ignore :math:`z_{rl}`; see ``token_test``. Hiding most of it while
training (``keep``) makes the token worth reading.

Source: arXiv:2604.23073; layers as in github.com/RLinf/RLinf, rlt_token_transformer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qsteer_ros.errors import ConfigError
from qsteer_ros.policies.attention import SelfAttentionBlock, causal, sinusoidal


@dataclass(frozen=True)
class RLTokenShape:
    """Sizes of the autoencoder.

    Attributes:
        prefix_width: D, width of the VLA's tokens.
        width: d, of the blocks and of the RL token.
        max_tokens: Most tokens of a prefix.
        blocks: In the encoder, and again in the decoder.
        heads: Of each block.
    """

    prefix_width: int
    width: int
    max_tokens: int
    blocks: int = 2
    heads: int = 8

    def to_config(self) -> dict[str, int]:
        """Keys of ``config.json``."""
        return asdict(self)

    @classmethod
    def from_config(cls, architecture: Mapping[str, Any]) -> RLTokenShape:
        """Read it from ``config.json``."""
        return cls(**{name: int(architecture[name]) for name in cls.__dataclass_fields__})


class RLTokenEncoder(nn.Module):
    """Prefix to RL token."""

    def __init__(self, shape: RLTokenShape) -> None:
        super().__init__()
        self.shape = shape
        self.project = _projection(shape.prefix_width, shape.width)
        self.positions = nn.Parameter(sinusoidal(shape.max_tokens, shape.width))
        self.token = nn.Parameter(sinusoidal(1, shape.width))
        self.token_position = nn.Parameter(sinusoidal(1, shape.width))
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(shape.width, shape.heads) for _ in range(shape.blocks)
        )

    def forward(self, prefix: Tensor, mask: Tensor) -> Tensor:
        """The RL token of each prefix.

        Args:
            prefix: (B, L, D); what it holds where the mask is False does not matter.
            mask: (B, L) bool, True where there is a token.

        Returns:
            (B, d).
        """
        length = _checked_length(prefix, self.shape)
        signal = self.project(_without_padding(prefix, mask)) + self.positions[:length]
        token = (self.token + self.token_position).expand(len(prefix), 1, -1)
        signal = torch.cat([signal, token], dim=1)
        seen = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)[:, None, None, :]
        for block in self.blocks:
            signal = block(signal, seen)
        token_out: Tensor = signal[:, -1]
        return token_out


class RLTokenDecoder(nn.Module):
    """RL token and what stands before, to each token of the prefix."""

    def __init__(self, shape: RLTokenShape) -> None:
        super().__init__()
        self.shape = shape
        self.project = _projection(shape.prefix_width, shape.width)
        self.positions = nn.Parameter(sinusoidal(shape.max_tokens, shape.width))
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(shape.width, shape.heads) for _ in range(shape.blocks)
        )
        self.head = nn.Linear(shape.width, shape.prefix_width)

    def forward(
        self, token: Tensor, prefix: Tensor, mask: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Rebuild the prefix.

        Args:
            token: RL tokens, (B, d).
            prefix: (B, L, D).
            mask: (B, L) bool, True where there is a token.
            keep: (B, L) bool, False where the decoder is not shown a token of the prefix; None
                shows all of them.

        Returns:
            (B, L, D); row i does not depend on the prefix from i on.
        """
        length = _checked_length(prefix, self.shape)
        shown = mask if keep is None else mask & keep
        before = self.project(_without_padding(prefix, shown)[:, :-1])
        signal = torch.cat([token[:, None], before], dim=1) + self.positions[:length]
        present = torch.cat([mask.new_ones(len(mask), 1), mask[:, :-1]], dim=1)
        allowed = present[:, None, None, :] & causal(length, prefix.device)
        for block in self.blocks:
            signal = block(signal, allowed)
        rebuilt: Tensor = self.head(signal)
        return rebuilt


class RLTokenAutoencoder(nn.Module):
    """Encoder and decoder of the RL token."""

    def __init__(self, shape: RLTokenShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = RLTokenEncoder(shape)
        self.decoder = RLTokenDecoder(shape)

    def forward(self, prefix: Tensor, mask: Tensor, keep: Tensor | None = None) -> Tensor:
        """Error of rebuilding each prefix, (B,); see :class:`RLTokenDecoder`."""
        prefix = prefix.detach()
        rebuilt = self.decoder(self.encoder(prefix, mask), prefix, mask, keep)
        return reconstruction_errors(rebuilt, prefix, mask)


def reconstruction_errors(rebuilt: Tensor, prefix: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the tokens of each prefix, (B,).

    Args:
        rebuilt: (B, L, D).
        prefix: (B, L, D).
        mask: (B, L) bool; each row holds at least one True.
    """
    squared = (rebuilt - _without_padding(prefix, mask)).square().mean(dim=2)
    return (squared * mask).sum(dim=1) / mask.sum(dim=1)


def _projection(prefix_width: int, width: int) -> nn.Module:
    return nn.Identity() if prefix_width == width else nn.Linear(prefix_width, width)


def _without_padding(prefix: Tensor, mask: Tensor) -> Tensor:
    """Zeros where there is no token: not even an infinity there reaches the sums."""
    return torch.where(mask[..., None], prefix, 0.0)


def _checked_length(prefix: Tensor, shape: RLTokenShape) -> int:
    length, width = prefix.shape[1:]
    if width != shape.prefix_width or length > shape.max_tokens:
        raise ConfigError(
            f"this RL token reads prefixes of at most {shape.max_tokens} tokens of width "
            f"{shape.prefix_width}: got {length} of width {width}. Use prefixes of the VLA it was "
            "trained for, or train one for these."
        )
    return length
