r"""Value networks: what every critic can be asked, the flat ensemble, and a state value.

Layout of a member of :class:`EnsembleMLP`, as in the QGF code: ``Dense, LayerNorm, GELU`` for
every hidden layer, then a linear head with one output. GELU is the tanh approximation and
LayerNorm's epsilon is 1e-6; both differ from PyTorch's defaults and both show in the golden files.

Source: github.com/zhouzypaul/qgf, arXiv:2606.11087.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qsteer_ros.critics.layers import BatchedMLP
from qsteer_ros.dense import LAYER_NORM_EPSILON
from qsteer_ros.weights import rows_for

__all__ = ["LAYER_NORM_EPSILON", "EnsembleMLP", "QNetwork", "ValueMLP", "critic_input"]


def critic_input(features: Tensor, chunk: Tensor) -> Tensor:
    """Join standardised features with a chunk, row-major: (B, F), (k B, H, A) -> (k B, F + H A).

    Features of one observation, (1, F), serve every chunk of the batch (see `weights.rows_for`).
    """
    return torch.cat([rows_for(features, len(chunk)), chunk.flatten(1)], dim=1)


class QNetwork(BatchedMLP):
    """An ensemble that judges chunks: with one output the whole chunk, with H its positions.

    Attributes:
        in_dim: Features and numbers of a chunk together.
    """

    in_dim: int

    @property
    def architecture(self) -> dict[str, Any]:
        """What ``config.json`` says about this network; `kinds.make_network` reads it."""
        raise NotImplementedError

    def positions(self, features: Tensor, chunk: Tensor) -> Tensor:
        """Value of every output.

        Args:
            features: Standardised, (B, F); see `weights.rows_for`.
            chunk: Normalised, (k B, H, A).

        Returns:
            (E, k B, outputs).
        """
        raise NotImplementedError

    def q(self, features: Tensor, chunk: Tensor) -> Tensor:
        r"""Value of the chunk, which is what steering asks; arguments as for `positions`.

        With one output, that of every member, (E, k B). With H outputs the members become one,
        (1, k B), because their positions are combined before they are added:

        .. math:: Q(s, a) = \sum_{i<H} \min_e Q_e^{(i)}(s, a)

        It has no spread: every reduction of the ensemble gives this one value.

        Source: Q-VGM, arXiv:2606.08015v2.
        """
        values = self.positions(features, chunk)
        if self.outputs == 1:
            return values.squeeze(-1)
        return values.amin(dim=0, keepdim=True).sum(dim=-1)


class EnsembleMLP(QNetwork):
    """Independent MLPs on features and chunk, evaluated together.

    Attributes:
        in_dim: Width of the input.

    Raises:
        ConfigError: A size is below 1, there is no hidden layer, or no activation has this name.
    """

    def __init__(
        self,
        members: int,
        in_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        outputs: int = 1,
        activation: str = "gelu",
        layer_norm: bool = True,
    ) -> None:
        """Draw Glorot-uniform kernels from torch's global generator; biases are 0, scales 1."""
        super().__init__(
            members,
            [in_dim, *hidden],
            hidden,
            outputs=outputs,
            activation=activation,
            layer_norm=layer_norm,
        )
        self.in_dim = in_dim

    @property
    def architecture(self) -> dict[str, Any]:
        """What ``config.json`` says about this network."""
        return {
            "kind": "flat",
            "members": self.members,
            "hidden": list(self.hidden),
            "outputs": self.outputs,
            "activation": self.activation,
            "layer_norm": self.layer_norm,
        }

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, in_dim) -> (E, B), or (E, B, outputs) where there are several."""
        values = self._all(inputs)
        return values.squeeze(-1) if self.outputs == 1 else values

    def positions(self, features: Tensor, chunk: Tensor) -> Tensor:
        """As in `QNetwork`."""
        return self._all(critic_input(features, chunk))

    def _all(self, inputs: Tensor) -> Tensor:
        values = self.whole(inputs)
        if values is not None:
            return values
        signal = inputs.expand(self.members, -1, -1)  # (E, B, in_dim)
        for index in range(len(self.hidden)):
            signal = self.layer(index, signal)
        return self.head(signal)


class ValueMLP(torch.nn.Module):
    """State value V(s): an ensemble of one on standardised features, (B, F) -> (B,).

    With H outputs it is the value at every position of a chunk, (B, F) -> (B, H).
    """

    def __init__(
        self,
        feature_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        outputs: int = 1,
        activation: str = "gelu",
        layer_norm: bool = True,
    ) -> None:
        """Initialise as :class:`EnsembleMLP`."""
        super().__init__()
        self.body = EnsembleMLP(
            1, feature_dim, hidden, outputs=outputs, activation=activation, layer_norm=layer_norm
        )

    def forward(self, features: Tensor) -> Tensor:
        """Expected return from each row of features, (B, F) -> (B,) or (B, H)."""
        values: Tensor = self.body(features)
        return values.squeeze(0)
