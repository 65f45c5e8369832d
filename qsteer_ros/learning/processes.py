"""Processes that share each batch, started by ``torchrun``; one alone without it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from qsteer_ros.errors import ConfigError
from qsteer_ros.learning.learner import Batch, Learner


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is.

    Attributes:
        rank: From 0.
        count: Of processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    @contextmanager
    def of_torchrun(cls, device: str) -> Iterator[Processes]:
        """Join the processes ``torchrun`` has started; outside of it, this process alone.

        Args:
            device: Gradients travel by NCCL between GPUs and by Gloo between CPUs.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield cls()
            return
        joined = not distributed.is_initialized()
        if joined:
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        try:
            yield cls(distributed.get_rank(), distributed.get_world_size())
        finally:
            if joined:
                distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and shows."""
        return self.rank == 0

    def shared(self, learner: Learner) -> nn.Module:
        """The learner, with gradients averaged over the processes where there are several."""
        if self.count == 1:
            return learner
        return DistributedDataParallel(learner)

    def check_batch(self, batch: int) -> None:
        """Refuse a batch that cannot be shared equally.

        Raises:
            ConfigError: It is no multiple of the number of processes.
        """
        if batch % self.count:
            raise ConfigError(
                f"'batch' must be a multiple of the {self.count} processes that share it: got "
                f"{batch}. Use {batch - batch % self.count or self.count}."
            )

    def share(self, batch: Batch) -> Batch:
        """This process's rows."""
        if self.count == 1:
            return batch
        return {name: tensor[self.rank :: self.count] for name, tensor in batch.items()}

    def any(self, flag: bool) -> bool:
        """Whether it is set in any process; every process has to ask."""
        if self.count == 1:
            return flag
        found = torch.tensor(int(flag), device=self._device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return bool(found)

    def mean(self, scalars: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean of each scalar over the processes; every process has to ask."""
        if self.count == 1 or not scalars:
            return {name: float(value) for name, value in scalars.items()}
        stacked = torch.stack([value.float() for value in scalars.values()]).to(self._device)
        distributed.all_reduce(stacked)
        return dict(zip(scalars, (stacked / self.count).tolist(), strict=True))

    @property
    def _device(self) -> torch.device:
        cuda = distributed.get_backend() == "nccl"
        return torch.device("cuda" if cuda else "cpu")
