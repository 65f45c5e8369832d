"""Transitions as tensors that batches are drawn from; more can be appended while training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.learning.learner import Batch
from qsteer_ros.learning.transitions import Transitions

STD_FLOOR = 0.1
"""Least standard deviation a feature is divided by. A joint that hardly moves in the data would
otherwise turn a disturbance of one degree into fifteen standard deviations."""


class Buffer:
    """Rows to draw batches from: those it was made with are old, appended ones are new.

    Args:
        transitions: The first rows.
        needs: Arrays wanted beside features and chunk.
        device: Where the tensors are.
        new_share: Share of each batch drawn from new rows, as soon as there are some; None draws
            uniformly from all.

    Raises:
        ConfigError: The transitions lack one of ``needs``, or the share is out of range.
    """

    def __init__(
        self,
        transitions: Transitions,
        needs: Sequence[str] = (),
        *,
        device: torch.device | str = "cpu",
        new_share: float | None = None,
    ) -> None:
        self.interface = transitions.interface
        self._needs, self._device = tuple(needs), torch.device(device)
        self.mix(new_share)
        self._tensors = self._of(transitions)
        self._old = len(transitions)

    def __len__(self) -> int:
        """Rows."""
        return len(self._tensors["features"])

    @property
    def new(self) -> int:
        """Rows that were appended."""
        return len(self) - self._old

    @property
    def features(self) -> Tensor:
        """(M, F)."""
        return self._tensors["features"]

    def mix(self, new_share: float | None) -> None:
        """Change the share of each batch that is drawn from new rows.

        Raises:
            ConfigError: It is out of range.
        """
        if new_share is not None and not 0.0 <= new_share <= 1.0:
            raise ConfigError(f"'new_share' must be in [0, 1]: got {new_share}.")
        self._new_share = new_share

    def rows(self, count: int, source: torch.Generator) -> Tensor:
        """Draw row numbers, (count,), with replacement."""
        if self._new_share is None or self.new == 0:
            return torch.randint(len(self), (count,), generator=source)
        fresh = round(count * self._new_share)
        return torch.cat(
            [
                torch.randint(self._old, (count - fresh,), generator=source),
                torch.randint(self._old, len(self), (fresh,), generator=source),
            ]
        )

    def take(self, rows: Tensor) -> Batch:
        """These rows of every tensor."""
        index = rows.to(self._device)
        return {name: t.index_select(0, index) for name, t in self._tensors.items()}

    def append(self, transitions: Transitions) -> None:
        """Add new rows.

        Raises:
            ConfigError: They live in another space, or lack an array. Nothing has been added.
        """
        transitions.interface.check_same(
            self.interface,
            mine="new transitions",
            theirs="the buffer",
            remedy="Record with the policy and encoder that this training began with.",
        )
        added = self._of(transitions)
        self._tensors = {
            name: torch.cat([tensor, added[name]]) for name, tensor in self._tensors.items()
        }

    def _of(self, transitions: Transitions) -> Batch:
        arrays = transitions.needed(*self._needs)
        return {
            name: torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
            for name, array in arrays.items()
        }


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and floored standard deviation of every feature, (F,) each.

    Raises:
        DataError: There is only one row.
    """
    if len(features) < 2:
        raise DataError(
            f"statistics of features need at least 2 rows: got {len(features)}. Record more."
        )
    return features.mean(dim=0), features.std(dim=0).clamp_min(STD_FLOOR)
