"""The loop every training program shares: progress, saved states, interruption, resumption.

Whatever is random in a step depends on the seed and the number of that step only, so a run that
was interrupted and resumed ends with the same weights, bit for bit, as one that was not (on one
kind of processor, with one number of threads).

Under ``torchrun`` every process takes its rows of the same batch and PyTorch's
DistributedDataParallel averages the gradients: as many steps as one process, of the same batches.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from qsteer_ros import dense
from qsteer_ros.errors import DataError
from qsteer_ros.learning import states
from qsteer_ros.learning.captured import CapturedStep
from qsteer_ros.learning.learner import Batch, Learner
from qsteer_ros.learning.memory import keep_freed_memory
from qsteer_ros.learning.processes import Processes
from qsteer_ros.learning.scalars import Scalars
from qsteer_ros.learning.settings import Training

SHOW_EVERY = 50
_MAY_CHANGE = ("out", "checkpoint_every", "log_every")
"""Settings that a resumed run may have otherwise: no weight depends on them."""


class Trainer:
    """Takes optimiser steps, one at a time.

    Args:
        learner: What is trained.
        settings: Learning rate, schedule, clip and seed.
        processes: Those that share each batch; the default is this one alone.
    """

    def __init__(
        self, learner: Learner, settings: Training, processes: Processes | None = None
    ) -> None:
        keep_freed_memory()
        self.learner = learner.to(settings.device)
        self._settings = settings
        self._processes = Processes() if processes is None else processes
        self._model: nn.Module = self._processes.shared(learner)
        self._processes.check_batch(settings.batch)
        for optimiser in learner.optimisers().values():
            for group in optimiser.param_groups:
                group.setdefault("initial_lr", group["lr"])
        self._captured: CapturedStep | None = None
        if settings.cuda_graph:
            count = self._processes.count
            self._captured = CapturedStep(learner, self._update, count=count)

    def close(self) -> None:
        """Let go of what belongs to the group of processes, which must outlive it."""
        self._model = self.learner

    def step(self, number: int) -> dict[str, Tensor]:
        """Take step ``number`` (from 0); scalars are of this process's share of the batch."""
        settings, learner = self._settings, self.learner
        factor = warmup_cosine(
            number, steps=settings.steps, warmup=settings.warmup, floor=settings.lr_floor
        )
        batch = self._processes.share(learner.draw(generator(settings.seed, number)))
        if self._captured is not None:
            shown = self._captured(batch, factor=factor)
        else:
            for optimiser in learner.optimisers().values():
                for group in optimiser.param_groups:
                    group["lr"] = group["initial_lr"] * factor
            shown = self._update(batch)
        learner.after_step()
        return shown

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        """Losses, gradients and optimisers, with the learning rates these have."""
        optimisers = list(self.learner.optimisers().values())
        with dense.fast():
            shown: dict[str, Tensor] = self._model(batch)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        shown["loss"].backward()  # type: ignore[no-untyped-call]
        self.learner.before_step()
        for optimiser in optimisers:
            if self._settings.gradient_clip > 0.0:
                weights = [w for group in optimiser.param_groups for w in group["params"]]
                nn.utils.clip_grad_norm_(weights, self._settings.gradient_clip, foreach=True)
            optimiser.step()
        return {name: value.detach() for name, value in shown.items()}


def run(
    learner: Learner,
    settings: Training,
    *,
    data_hash: str,
    description: str,
    resume: bool,
    on_state: Callable[[int], None] = lambda step: None,
) -> dict[str, float]:
    """Train to ``settings.steps``.

    Args:
        learner: What is trained. It was made from ``settings`` and its data, nothing else.
        settings: How. States and scalars go to the folder ``settings.out`` + ``.run``.
        data_hash: Names the data, so that a run is not resumed on other data.
        description: Of the progress bar.
        resume: Start from the saved state, if there is one.
        on_state: Called with the number of steps taken after every saved state.

    Returns:
        Mean of each scalar over the last tenth of the steps.

    Raises:
        ConfigError: The saved state belongs to other settings or other data, the batch cannot
            be shared, or the step cannot be captured.
        DataError: The loss is not finite. The last saved state is kept.
        KeyboardInterrupt: The user pressed Ctrl-C; the step was finished and the state saved.
    """
    torch.set_num_threads(settings.threads)
    if settings.device != "cpu":
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
    same = {k: v for k, v in asdict(settings).items() if k not in _MAY_CHANGE}
    identity = {"settings": same, "data_hash": data_hash}
    with (
        Processes.of_torchrun(settings.device) as processes,
        closing(Trainer(learner, settings, processes)) as trainer,
    ):
        first = states.restore(learner, settings.out, identity) if resume else 0
        history: dict[str, list[Tensor]] = {}
        with (
            interruption() as interrupted,
            Scalars(settings, first=first, on=processes.first) as scalars,
            progress(settings.steps, first, description, on=processes.first) as bar,
        ):
            for number in range(first, settings.steps):
                shown = trainer.step(number)
                if number >= int(settings.steps * 0.9):
                    for name, value in shown.items():
                        history.setdefault(name, []).append(value)
                if number % SHOW_EVERY == 0:
                    check_finite(shown["loss"], number)
                    words = {k: f"{float(v):.4g}" for k, v in shown.items()}
                    bar.set_postfix(words, refresh=False)
                scalars.add(number, shown, processes)
                bar.update()
                done = number + 1
                stop = processes.any(bool(interrupted))
                if stop or (done % settings.checkpoint_every == 0 and done < settings.steps):
                    check_finite(shown["loss"], number)
                    if processes.first:
                        states.save(learner, settings.out, identity, done)
                        on_state(done)
                if stop:
                    raise KeyboardInterrupt
        return processes.mean(
            {name: torch.stack(values).mean() for name, values in history.items()}
        )


def generator(seed: int, step: int) -> torch.Generator:
    """The source of everything random in one step."""
    state = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def warmup_cosine(step: int, *, steps: int, warmup: int, floor: float) -> float:
    """Factor on the rate: linear to 1 in ``warmup`` steps, cosine to ``floor``, then flat."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def check_finite(loss: Tensor, step: int) -> None:
    """Refuse to go on with weights that are lost.

    Raises:
        DataError: The loss is not finite.
    """
    if not bool(torch.isfinite(loss)):
        raise DataError(
            f"the loss must be finite: it is {float(loss)} at step {step}. Lower learning_rate, "
            "set gradient_clip, or look for extreme values in the data."
        )


def progress(steps: int, first: int, description: str, *, on: bool = True) -> Any:
    """A bar with the time left."""
    return tqdm(total=steps, initial=first, desc=description, unit="step", disable=not on)


@contextmanager
def interruption() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C, which never cuts a step in half; a second one does."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread: nothing to catch
        yield caught
        return
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, previous)


def provenance(
    settings: Training, *, command: str, data_hash: str, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """What a checkpoint says about its training."""
    return {
        "command": command,
        "seed": settings.seed,
        "steps": settings.steps,
        "settings": asdict(settings),
        "data_hash": data_hash,
        "metrics": dict(metrics),
    }
