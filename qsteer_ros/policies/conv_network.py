r"""A small convolutional encoder and the random crop it is trained with.

One view, shrunk to S x S: four convolutions 3 x 3 without padding, 32 channels, strides
2, 1, 1, 1, each with a ReLU; then

.. math:: z = \tanh(\mathrm{LayerNorm}(W \, \mathrm{flatten}(\cdot) + b)) \in (-1, 1)^{50}

It is not trained alone: the gradient comes from whatever reads its features.

Source: the pixel encoder of DSRL (github.com/ajwagen/dsrl, arXiv:2506.15799) after DrQ
(arXiv:2004.13649), whose random crop shifts a picture by up to 4 pixels and repeats its border.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from qsteer_ros.errors import ConfigError

CHANNELS = 32
STRIDES = (2, 1, 1, 1)
FEATURES_PER_VIEW = 50
CROP_PIXELS = 4
LEAST_SIZE = 16
LAYER_NORM_EPSILON = 1e-6
"""flax's default."""


def shrink(pictures: Tensor, size: int) -> Tensor:
    """Area average of pictures on a square grid, whatever their proportions.

    Args:
        pictures: (B, H, W, 3) uint8.
        size: S; pictures that are smaller along a side are enlarged along it.

    Returns:
        (B, 3, S, S) uint8, rounded: training keeps its pictures in this form, and a decision
        sees the same numbers.
    """
    planes = pictures.permute(0, 3, 1, 2)
    if planes.shape[-2:] == (size, size):
        return planes.contiguous()
    return functional.adaptive_avg_pool2d(planes.float(), size).round_().to(torch.uint8)


def draw_offsets(count: int, source: torch.Generator) -> Tensor:
    """Shifts of a random crop, (count, 2) of 0 to 8, row and column; 4 changes nothing."""
    return torch.randint(0, 2 * CROP_PIXELS + 1, (count, 2), generator=source)


def crop(pictures: Tensor, offsets: Tensor) -> Tensor:
    """Pictures of the same size, cut out of ones with their border repeated 4 times.

    Args:
        pictures: (B, 3, S, S).
        offsets: Upper left corner within the larger picture, (B, 2), see :func:`draw_offsets`.

    Returns:
        (B, 3, S, S), same type.
    """
    size = pictures.shape[-1]
    grid = torch.arange(size, device=pictures.device) - CROP_PIXELS
    rows, columns = ((offsets[:, i, None] + grid).clamp(0, size - 1) for i in (0, 1))  # (B, S)
    batch = torch.arange(len(pictures), device=pictures.device)[:, None, None]
    cut: Tensor = pictures[batch, :, rows[:, :, None], columns[:, None, :]]  # (B, S, S, 3)
    return cut.permute(0, 3, 1, 2)


class ConvView(nn.Module):
    """One view, (B, 3, S, S) uint8, to 50 features.

    Args:
        size: S.

    Raises:
        ConfigError: A picture is too small for four convolutions.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < LEAST_SIZE:
            raise ConfigError(
                f"pictures must be at least {LEAST_SIZE} pixels wide: got {size}. Set 'size'."
            )
        layers: list[nn.Module] = []
        channels, side = 3, size
        for stride in STRIDES:
            convolution = nn.Conv2d(channels, CHANNELS, 3, stride=stride)
            nn.init.orthogonal_(convolution.weight, gain=math.sqrt(2.0))
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            layers += [convolution, nn.ReLU()]
            channels, side = CHANNELS, (side - 3) // stride + 1
        self.convolutions = nn.Sequential(*layers)
        self.dense = nn.Linear(CHANNELS * side * side, FEATURES_PER_VIEW)
        nn.init.xavier_uniform_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)
        self.norm = nn.LayerNorm(FEATURES_PER_VIEW, eps=LAYER_NORM_EPSILON)

    def forward(self, picture: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to (B, 50) in (-1, 1)."""
        signal = self.convolutions(picture.float() / 255.0 - 0.5)
        features: Tensor = torch.tanh(self.norm(self.dense(signal.flatten(1))))
        return features


class ConvNetwork(nn.Module):
    """All views, each with its own network.

    Attributes:
        cameras: Names of the views, in the order of their features.
        size: S, pixels; what pictures are shrunk to.
    """

    def __init__(self, cameras: Sequence[str], size: int) -> None:
        super().__init__()
        self.cameras, self.size = tuple(cameras), size
        self.views = nn.ModuleDict({name: ConvView(size) for name in cameras})

    def forward(self, pictures: Mapping[str, Tensor]) -> Tensor:
        """Camera name -> (B, 3, S, S) uint8, to (B, 50 V)."""
        return torch.cat([self.views[name](pictures[name]) for name in self.cameras], dim=1)
