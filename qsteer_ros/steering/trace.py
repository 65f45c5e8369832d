"""What happened at each denoising step, observed without changing it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros import ensemble
from qsteer_ros.steering.gradient import Slope

FIELDS = (
    "flow_time",
    "velocity_norm",
    "guidance_norm",
    "ratio",
    "cosine",
    "q",
    "q_min",
    "q_mean",
    "q_spread",
    "clipped_share",
)


class Trace:
    """Collects, per denoising step and sample, how the critic bent the field.

    Steering rules hand in tensors they computed anyway; nothing is evaluated until `arrays` is
    called, so a traced chunk is the untraced chunk bit for bit. Use one trace per chunk.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, Tensor, Tensor, Slope | None]] = []

    def __len__(self) -> int:
        """Number of steps recorded."""
        return len(self._steps)

    def record(
        self, flow_time: Tensor, velocity: Tensor, guidance: Tensor | None, slope: Slope | None
    ) -> None:
        """Note one step.

        Args:
            flow_time: (B,).
            velocity: The frozen field's answer, (B, H, A).
            guidance: What the rule adds to it (mode ``zero``: what it withheld), (B, H, A);
                None where the rule adds nothing.
            slope: The critic's answer; None where it was not asked.
        """
        pushed = torch.zeros_like(velocity) if guidance is None else guidance
        self._steps.append((flow_time.detach(), velocity.detach(), pushed.detach(), slope))

    @torch.no_grad()
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Everything recorded, name -> (T, B) float32, one row per denoising step.

        ``velocity_norm`` and ``guidance_norm`` are norms over the whole chunk, ``ratio`` their
        quotient (guidance over velocity), ``cosine`` the cosine between the two. ``q`` is the
        aggregated value at the clipped clean prediction, ``q_min``, ``q_mean`` and ``q_spread``
        (population standard deviation) the members' there, ``clipped_share`` the share of that
        prediction's components that were clipped. NaN says: not asked, or undefined because a
        norm is zero. Empty when nothing was recorded.
        """
        if not self._steps:
            return {}
        rows = [_row(*step) for step in self._steps]
        return {
            name: torch.stack([row[name] for row in rows]).float().cpu().numpy() for name in FIELDS
        }


def _row(
    flow_time: Tensor, velocity: Tensor, guidance: Tensor, slope: Slope | None
) -> dict[str, Tensor]:
    along, push = velocity.flatten(1), guidance.flatten(1)
    velocity_norm, guidance_norm = along.norm(dim=1), push.norm(dim=1)
    unknown = torch.full_like(velocity_norm, torch.nan)
    row = {
        "flow_time": flow_time,
        "velocity_norm": velocity_norm,
        "guidance_norm": guidance_norm,
        "ratio": guidance_norm / velocity_norm,
        "cosine": (along * push).sum(dim=1) / (velocity_norm * guidance_norm),
    }
    if slope is None:
        return row | dict.fromkeys(FIELDS[5:], unknown)
    return row | {
        "q": slope.value,
        "q_min": ensemble.minimum(slope.values),
        "q_mean": ensemble.mean(slope.values),
        "q_spread": slope.values.std(dim=0, unbiased=False),
        "clipped_share": slope.clipped.flatten(1).to(velocity.dtype).mean(dim=1),
    }
