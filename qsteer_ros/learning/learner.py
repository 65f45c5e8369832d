"""What a training program optimises: one module with its losses, its batches, its optimisers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
"""Every tensor has the batch as its first axis."""


class Learner(nn.Module):
    """Base class of everything :mod:`qsteer_ros.learning.trainer` trains.

    Whatever training changes is a submodule, parameter or buffer, target networks included: it is
    saved with the state of an unfinished run. What stays frozen is kept out of the module tree.

    Attributes:
        capturable: Whether a step is the same work on the device every time, so that it can be
            captured (see `captured`). What the host counts is counted in `after_step`, which is
            not captured; what else the step depends on is the `phase`.
    """

    capturable: ClassVar[bool] = False

    def phase(self) -> Hashable:
        """Changes whenever `forward` or `before_step` become other work."""
        return None

    @abstractmethod
    def draw(self, source: torch.Generator) -> Batch:
        """Everything random in one step: rows of the data, noise, flow times.

        The whole batch, also where several processes share it: each gets its rows of it.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars; ``loss`` is differentiated, the others are shown.

        Nothing is random in here, and every scalar is a mean over the batch, so that the mean
        over equal parts of it is that of the whole.
        """

    @abstractmethod
    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """What changes the weights, by name; always the same objects."""

    def before_step(self) -> None:
        """After the gradients and before the optimisers: what follows the weights before them."""

    def after_step(self) -> None:
        """After the optimisers."""
