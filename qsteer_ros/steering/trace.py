"""What happened at each denoising step, observed without changing it."""

from __future__ import annotations

from collections.abc import Sequence

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
    "critic_ratio",
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
        self._steps: list[tuple[Tensor, Tensor, Tensor, Tensor, Slope | None]] = []
        self._filled: Tensor | None = None

    def __len__(self) -> int:
        """Number of steps recorded."""
        return len(self._steps) if self._filled is None else self._filled.shape[1]

    def clear(self) -> None:
        """Forget what was recorded: those steps did not make the chunk."""
        self._steps.clear()
        self._filled = None

    def fill(self, columns: Tensor) -> None:
        """Take over a whole chunk from a loop that does not call `record`.

        Args:
            columns: What `columns` would give, (11, T, B) float32. Replaces what was recorded.
        """
        self._filled = columns

    def record(
        self,
        flow_time: Tensor,
        velocity: Tensor,
        guidance: Tensor | None,
        slope: Slope | None,
        critics: Tensor | None = None,
    ) -> None:
        """Note one step.

        Args:
            flow_time: (B,).
            velocity: The frozen field's answer, (B, H, A).
            guidance: What the rule adds to it (mode ``zero``: what it withheld), (B, H, A);
                None where the rule adds nothing.
            slope: The critic's answer; None where it was not asked.
            critics: The part of the guidance that comes from critics, before limits; None: all
                of it does.
        """
        pushed = torch.zeros_like(velocity) if guidance is None else guidance
        own = pushed if critics is None else critics
        step = (flow_time.detach(), velocity.detach(), pushed.detach(), own.detach(), slope)
        self._steps.append(step)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Everything recorded, name -> (T, B) float32, one row per evaluation of the field.

        That is one per denoising step with ``euler``, two with ``midpoint`` and ``heun`` (whose
        last step has one). Guidance is that of all rules together, real-time chunking included.
        ``velocity_norm`` and ``guidance_norm`` are norms over the whole chunk, ``ratio`` their
        quotient (guidance over velocity), ``cosine`` the cosine between the two, ``critic_ratio``
        that of the critic's share alone, before limits where it is not alone. ``q`` is the
        aggregated value where the rule asked (most rules: at the clipped clean prediction),
        ``q_min``, ``q_mean`` and ``q_spread`` (population standard deviation) the members' there,
        ``clipped_share`` the share of components that were clipped before it was asked. NaN says:
        not asked, or undefined because a norm is zero. Empty when nothing was recorded.
        """
        if len(self) == 0:
            return {}
        return dict(zip(FIELDS, self.columns().cpu().numpy(), strict=True))

    @torch.no_grad()
    def columns(self) -> Tensor:
        """The arrays as one tensor where the loop ran, (11, T, B) float32 in order of `FIELDS`.

        Nothing is read by the host, so that a loop can be captured together with it. At least
        one step must have been recorded.
        """
        if self._filled is not None:
            return self._filled
        times, velocities, guidances, critics, slopes = zip(*self._steps, strict=True)
        velocity = torch.stack(velocities).flatten(2)  # (T, B, H A)
        guidance = torch.stack(guidances).flatten(2)
        velocity_norm, guidance_norm = velocity.norm(dim=2), guidance.norm(dim=2)
        columns = (
            torch.stack(times),
            velocity_norm,
            guidance_norm,
            guidance_norm / velocity_norm,
            (velocity * guidance).sum(dim=2) / (velocity_norm * guidance_norm),
            torch.stack(critics).flatten(2).norm(dim=2) / velocity_norm,
            *_judged(slopes, like=velocity_norm),
        )
        return torch.stack([column.float() for column in columns])


def _judged(slopes: Sequence[Slope | None], *, like: Tensor) -> list[Tensor]:
    """What the critic said, (T, B) each; NaN in the rows of steps at which it was not asked."""
    answers = [slope for slope in slopes if slope is not None]
    if not answers:
        return [torch.full_like(like, torch.nan)] * len(FIELDS[6:])
    values = torch.stack([answer.values for answer in answers], dim=1)  # (E, T', B)
    clipped = torch.stack([answer.clipped for answer in answers]).flatten(2)
    said = (
        torch.stack([answer.value for answer in answers]),
        ensemble.minimum(values),
        ensemble.mean(values),
        values.std(dim=0, unbiased=False),
        clipped.to(like.dtype).mean(dim=2),
    )
    return [_in_place(rows, slopes, like=like) for rows in said]


def _in_place(rows: Tensor, slopes: Sequence[Slope | None], *, like: Tensor) -> Tensor:
    """Rows (T', B) at the steps that were asked, NaN at the others: (T, B)."""
    asked, silent = iter(rows), torch.full_like(like[0], torch.nan)
    return torch.stack([silent if slope is None else next(asked) for slope in slopes])
