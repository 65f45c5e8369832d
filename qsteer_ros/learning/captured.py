"""A training step on a GPU without Python: captured once, replayed for every batch.

A step of small networks is hundreds of kernels, each of which costs the host more time to launch
than the GPU to run. A CUDA graph launches them at once. What is captured is the trainer's own
step: losses, gradients, what follows the weights before the step, clip and Adam. What changes from
step to step is copied into the buffers that the captured kernels read: the batch, drawn as ever,
and the learning rate, which is rounded to float32 there.

Before a capture the step is taken a few times, as PyTorch asks, so that libraries load and
memory is laid out; weights and optimisers are put back afterwards. Gradients are None when the
capture begins, so that their memory is the graph's.

Source: PyTorch, "CUDA semantics: CUDA graphs", whole-network capture.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from qsteer_ros import capture
from qsteer_ros.errors import ConfigError
from qsteer_ros.learning.learner import Batch, Learner

Work = Callable[[Batch], dict[str, Tensor]]
"""Takes one step of a batch in place; scalars that carry no gradient."""


class _Replay(NamedTuple):
    """One captured step.

    Attributes:
        run: Launches it.
        batch: Where it reads the batch.
        names: Of the scalars.
        scalars: Where it leaves them, one after the other.
    """

    run: Callable[[], None]
    batch: Batch
    names: tuple[str, ...]
    scalars: Tensor


class CapturedStep:
    """Takes steps by replaying them; captured again for another phase or shape of the batch.

    The first step must come after a saved state was loaded: a graph holds on to the memory that
    weights and optimisers have then.

    Args:
        learner: Must be ``capturable``, on a CUDA device, with optimisers of the Adam family.
        work: What a step is, but for the learning rate and `Learner.after_step`.
        count: Processes that share each batch; one.

    Raises:
        ConfigError: The learner, its device or its optimisers cannot be captured.
    """

    def __init__(self, learner: Learner, work: Work, *, count: int = 1) -> None:
        check(learner, count=count)
        self._learner, self._work = learner, work
        self._replays: dict[Hashable, _Replay] = {}
        self._prepared = False

    def __call__(self, batch: Batch, *, factor: float) -> dict[str, Tensor]:
        """Take one step; the host does not wait for the GPU.

        Args:
            batch: As drawn, on the learner's device.
            factor: On the learning rate.

        Raises:
            ConfigError: The step cannot be captured: something in it makes the host wait.
        """
        self._prepare()
        for optimiser in self._learner.optimisers().values():
            for group in optimiser.param_groups:
                group["lr"].fill_(group["initial_lr"] * factor)
        replay = self._replay_of(batch)
        for name, tensor in batch.items():
            replay.batch[name].copy_(tensor, non_blocking=True)
        replay.run()
        return dict(zip(replay.names, replay.scalars.clone().unbind(), strict=True))

    def _prepare(self) -> None:
        """Give optimisers a learning rate in memory, and the promise to keep to the device."""
        if self._prepared:
            return
        for optimiser in self._learner.optimisers().values():
            for group in optimiser.param_groups:
                device = group["params"][0].device
                group["capturable"] = True
                group["lr"] = torch.full((), float(group["lr"]), device=device)
        self._prepared = True

    def _replay_of(self, batch: Batch) -> _Replay:
        shapes = tuple((k, tuple(v.shape), v.dtype) for k, v in sorted(batch.items()))
        key = self._learner.phase(), shapes
        if key not in self._replays:
            self._replays[key] = self._captured({k: v.clone() for k, v in batch.items()})
        return self._replays[key]

    def _captured(self, batch: Batch) -> _Replay:
        names: list[str] = []

        def step() -> Tensor:
            shown = self._work(batch)
            names[:] = shown
            return torch.stack([value.float() for value in shown.values()])

        def forget_gradients() -> None:
            for optimiser in self._learner.optimisers().values():
                optimiser.zero_grad(set_to_none=True)

        before = state_of(self._learner)
        device = _device_of(self._learner)
        try:
            with capture.one_at_a_time:
                with warnings.catch_warnings():  # Adam would rather not step uncaptured
                    warnings.filterwarnings("ignore", message=".*capturable=True.*")
                    capture.warm_up(step, device)
                put_back(self._learner, before)
                forget_gradients()
                graph, scalars = capture.captured(step, device)
        except RuntimeError as error:
            put_back(self._learner, before)
            forget_gradients()
            raise ConfigError(
                "cuda_graph=true needs a step that can be captured: "
                f"{' '.join(str(error).split())[:300]} Train with cuda_graph=false."
            ) from error
        return _Replay(graph.replay, batch, tuple(names), scalars)


def check(learner: Learner, *, count: int) -> None:
    """Refuse what cannot be captured, before anything is.

    Raises:
        ConfigError: The learner, its device or its optimisers cannot be captured, or several
            processes share each batch.
    """
    device = _device_of(learner)
    reasons = {
        f"one process: {count} share each batch": count == 1,
        f"device=cuda: the learner is on '{device}'": device.type == "cuda",
        f"a program whose step is the same every time: {type(learner).__name__} is none": (
            learner.capturable
        ),
        "optimisers of the Adam family, fused": all(map(_fits, learner.optimisers().values())),
    }
    for wanted, holds in reasons.items():
        if not holds:
            raise ConfigError(f"cuda_graph=true needs {wanted}. Train with cuda_graph=false.")


def _device_of(learner: Learner) -> torch.device:
    return next(learner.parameters()).device


def _fits(optimiser: Optimizer) -> bool:
    return isinstance(optimiser, Adam) and all(g.get("fused") for g in optimiser.param_groups)


State = tuple[dict[str, Tensor], list[dict[tuple[int, str], Tensor]]]
"""Weights by name, and entries of each optimiser by parameter and name."""


def state_of(learner: Learner) -> State:
    """A copy of everything that a step changes in the device's memory."""
    return (
        {name: tensor.clone() for name, tensor in learner.state_dict().items()},
        [
            {key: tensor.clone() for key, tensor in _entries(optimiser).items()}
            for optimiser in learner.optimisers().values()
        ],
    )


@torch.no_grad()
def put_back(learner: Learner, state: State) -> None:
    """Write a copy into the memory it was taken from.

    An entry that an optimiser has made since is set to zero, which is what Adam begins with.
    """
    weights, optimisers = state
    for name, tensor in learner.state_dict().items():
        tensor.copy_(weights[name])
    for optimiser, entries in zip(learner.optimisers().values(), optimisers, strict=True):
        for key, tensor in _entries(optimiser).items():
            if key in entries:
                tensor.copy_(entries[key])
            else:
                tensor.zero_()


def _entries(optimiser: Optimizer) -> dict[tuple[int, str], Tensor]:
    weights: list[Any] = [w for group in optimiser.param_groups for w in group["params"]]
    found: dict[tuple[int, str], Tensor] = {}
    for index, weight in enumerate(weights):
        entries: Mapping[str, Tensor] = optimiser.state.get(weight, {})
        found |= {(index, name): value for name, value in entries.items()}
    return found
