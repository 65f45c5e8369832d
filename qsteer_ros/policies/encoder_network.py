r"""The camera encoder's network: from two pictures and the measured joints to the cube's pose.

Each view passes through a small convolutional network that ends in 16 maps. Of every map the
*spatial soft-argmax* is taken, the mean picture coordinate under the softmax of the map,

.. math:: \bar u = \sum_{ij} \mathrm{softmax}(m)_{ij} \, u_{ij},

and for 6 of them also the mean of the feature vectors under it. Together with 13 measured numbers
(joint positions, pinch point, its yaw, gripper and effort) an MLP turns this into the cube's
position and four-fold yaw: once in the frame of the world, once in that of the gripper, blended by
a learned gate. Far from the cube the fixed camera knows best; in the hand the wrist camera does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

PROPRIO_INDEX = (*range(6), *range(12, 19))
"""Which of the 19 measured features the network sees: all but the joint velocities."""
MAPS, POOLED_MAPS, CHANNELS = 16, 6, 32


def soft_argmax(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean coordinate under the softmax of each map.

    Args:
        maps: (B, M, h, w), logits.

    Returns:
        Coordinates (B, M, 2): x to the right and y down, -1 to 1 from the centre of the first
        pixel to that of the last. And the softmax itself, (B, M, h * w).
    """
    height, width = maps.shape[-2:]
    weight = torch.softmax(maps.flatten(2), dim=-1)
    x = torch.linspace(-1.0, 1.0, width, dtype=maps.dtype, device=maps.device)
    y = torch.linspace(-1.0, 1.0, height, dtype=maps.dtype, device=maps.device)
    grid = torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1)  # (h w, 2)
    return weight @ grid, weight


class ViewNetwork(nn.Module):
    """One camera's picture to 16 image points and 6 feature vectors, (B, 32 + 6 * 32).

    Attributes:
        in_bfloat16: Run the convolutions in bfloat16, to train faster. Coordinates never are:
            eight bits of them would be a centimetre.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_bfloat16 = False
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 48, 8, stride=4, padding=2),
            nn.ReLU(),
            nn.Conv2d(48, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.ReLU(),
        )
        self.maps = nn.Conv2d(CHANNELS, MAPS, 1)

    def forward(self, picture: Tensor) -> Tensor:
        """(B, 3, H, W), roughly in [-1, 3], to (B, 224)."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.in_bfloat16):
            signal = self.trunk(picture)
            maps = self.maps(signal)
        points, weight = soft_argmax(maps.float())
        pooled = weight[:, :POOLED_MAPS] @ signal.float().flatten(2).transpose(1, 2)
        return torch.cat([points.flatten(1), pooled.flatten(1)], dim=1)


class CubeNetwork(nn.Module):
    """Pictures and 13 measured numbers to the cube's pose.

    Args:
        cameras: Names of the views, in the order of their networks.
    """

    proprio_mean: Tensor
    proprio_std: Tensor

    def __init__(self, cameras: Sequence[str]) -> None:
        super().__init__()
        self.cameras = tuple(cameras)
        self.views = nn.ModuleDict({name: ViewNetwork() for name in cameras})
        inputs = len(self.cameras) * (2 * MAPS + POOLED_MAPS * CHANNELS) + len(PROPRIO_INDEX)
        self.body = nn.Sequential(
            nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()
        )
        self.head = nn.Linear(128, 12)
        self.register_buffer("proprio_mean", torch.zeros(len(PROPRIO_INDEX)))
        self.register_buffer("proprio_std", torch.ones(len(PROPRIO_INDEX)))

    def forward(self, pictures: Mapping[str, Tensor], proprio: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate the cube's pose.

        Args:
            pictures: Camera name -> (B, H, W, 3) uint8.
            proprio: The 19 measured features, (B, 19).

        Returns:
            The scaled cube position 10 (k - c), (B, 3), and an estimate of (cos, sin) of 4 x yaw,
            (B, 2), whose length is below 1 where the network is unsure.
        """
        views = [self.views[name](_normalised(pictures[name])) for name in self.cameras]
        measured = (proprio[:, PROPRIO_INDEX] - self.proprio_mean) / self.proprio_std
        out = self.head(self.body(torch.cat([*views, measured], dim=1))).float()
        tool, cos, sin = proprio[:, 12:15], proprio[:, 15:16], proprio[:, 16:17]
        gate = torch.sigmoid(out[:, 10:12])
        ahead = _turned(out[:, 3:5], cos, sin)
        in_gripper = tool + torch.cat([ahead, out[:, 5:6]], dim=1)
        position = gate[:, :1] * out[:, :3] + (1 - gate[:, :1]) * in_gripper
        cos_2, sin_2 = cos * cos - sin * sin, 2 * sin * cos
        cos_4, sin_4 = cos_2 * cos_2 - sin_2 * sin_2, 2 * sin_2 * cos_2
        turned = _turned(out[:, 8:10], cos_4, sin_4)
        return position, gate[:, 1:] * out[:, 6:8] + (1 - gate[:, 1:]) * turned


def _normalised(picture: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) around 0; the table is dark."""
    return picture.permute(0, 3, 1, 2).float().mul_(4.0 / 255.0).sub_(0.8)


def _turned(vector: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, 2) by an angle given by its cosine and sine, (B, 1)."""
    x, y = vector[:, :1], vector[:, 1:]
    return torch.cat([cos * x - sin * y, sin * x + cos * y], dim=1)
