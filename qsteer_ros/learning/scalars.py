"""Scalars of a training run, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from torch import Tensor

from qsteer_ros.learning.processes import Processes
from qsteer_ros.learning.settings import Training
from qsteer_ros.learning.states import run_folder

FOLDER = "tensorboard"


class Scalars:
    """Writes every ``every``-th step's scalars; points after a resumed step are replaced.

    Args:
        settings: ``log_every`` steps between points, 0 writes none; events go into
            ``tensorboard`` in the run's folder.
        first: Step at which the run begins.
        on: Whether this process writes.
    """

    def __init__(self, settings: Training, *, first: int, on: bool) -> None:
        self._every = settings.log_every
        self._writer: Any = None
        if self._every and on:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(run_folder(settings.out) / FOLDER)
            self._writer = SummaryWriter(folder, purge_step=first)  # type: ignore[no-untyped-call]

    def add(self, step: int, shown: Mapping[str, Tensor], processes: Processes) -> None:
        """Write this step's scalars if it is one to be written; every process has to call."""
        if not self._every or step % self._every:
            return
        values = processes.mean(shown)
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def __enter__(self) -> Scalars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()
