"""The loop every training program shares: progress, saved states, interruption, resumption.

Whatever is random in a step depends on the seed and the number of that step only, so a run that
was interrupted and resumed ends with the same weights, bit for bit, as one that was not (on one
kind of processor, with one number of threads).
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError

STATE = "training_state"
"""Folder inside the output folder that holds weights and optimisers of an unfinished run."""


class Learner(Protocol):
    """Something that is trained step by step."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Everything with weights that change, by name."""
        ...

    @property
    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """What changes them, by name."""
        ...

    def update(self, step: int) -> Mapping[str, Tensor]:
        """Take optimiser step ``step`` (from 0) and return scalars to show."""
        ...


def train(
    learner: Learner,
    out: Path,
    *,
    settings: Any,
    data_hash: str,
    description: str,
    resume: bool,
) -> dict[str, float]:
    """Run a learner to ``settings.steps``.

    Args:
        learner: What is trained. It has been made with ``settings`` and nothing else random.
        out: Folder of the checkpoint; states are saved in ``training_state`` inside it.
        settings: A settings object with ``steps``, ``checkpoint_every`` and ``seed``.
        data_hash: Names the data, so that a run is not resumed on other data.
        description: Of the progress bar.
        resume: Start from the saved state, if there is one.

    Returns:
        Mean of each scalar over the last tenth of the steps taken.

    Raises:
        ConfigError: The saved state belongs to other settings or other data.
        KeyboardInterrupt: The user pressed Ctrl-C; the state has been saved.
    """
    identity = {"settings": asdict(settings), "data_hash": data_hash}
    first = _restore(learner, out / STATE, identity) if resume else 0
    history: dict[str, list[Tensor]] = {}
    with (
        _interruption() as interrupted,
        tqdm(total=settings.steps, initial=first, desc=description, unit="step") as bar,
    ):
        for step in range(first, settings.steps):
            shown = learner.update(step)
            if step >= settings.steps * 0.9:
                for name, value in shown.items():
                    history.setdefault(name, []).append(value)
            if step % 50 == 0:
                bar.set_postfix({k: f"{float(v):.4g}" for k, v in shown.items()}, refresh=False)
            bar.update()
            done = step + 1
            if interrupted or (done % settings.checkpoint_every == 0 and done < settings.steps):
                _save(learner, out / STATE, identity, done)
            if interrupted:
                raise KeyboardInterrupt
    return {name: float(torch.stack(values).mean()) for name, values in history.items()}


def generator(seed: int, step: int) -> torch.Generator:
    """The source of everything random in one step."""
    state = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def warmup_cosine(step: int, *, steps: int, warmup: int, floor: float) -> float:
    """Factor on the learning rate: linear to 1 in ``warmup`` steps, then cosine to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return floor + (1.0 - floor) * 0.5 * (1.0 + float(np.cos(np.pi * progress)))


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Set it for all parameters."""
    for group in optimiser.param_groups:
        group["lr"] = value


def single_threaded(threads: int) -> None:
    """Use this many CPU threads for tensor arithmetic in this process."""
    torch.set_num_threads(threads)


def arrays(module: nn.Module, prefix: str = "") -> dict[str, Any]:
    """Weights of a module as numpy arrays, named as in its state dict after ``prefix``."""
    return {prefix + k: v.detach().cpu().numpy() for k, v in module.state_dict().items()}


@contextmanager
def _interruption() -> Iterator[list[int]]:
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


def _save(learner: Learner, folder: Path, identity: Mapping[str, Any], step: int) -> None:
    tensors: dict[str, Any] = {}
    for name, module in learner.modules.items():
        tensors |= arrays(module, f"module/{name}/")
    for name, optimiser in learner.optimisers.items():
        for index, entries in optimiser.state_dict()["state"].items():
            for key, value in entries.items():
                tensors[f"optimiser/{name}/{index}/{key}"] = torch.as_tensor(value).numpy()
    checkpoints.save(folder, tensors, {"kind": STATE, "step": step, **identity})


def _restore(learner: Learner, folder: Path, identity: Mapping[str, Any]) -> int:
    """Load a saved state, if there is one; return the number of steps it has taken."""
    if not folder.exists():
        return 0
    saved = checkpoints.load(folder, kind=STATE)
    for name, value in json.loads(json.dumps(identity)).items():
        if saved.config[name] != value:
            raise ConfigError(
                f"'{folder}' must come from the same {name.replace('_', ' ')} to be resumed: it "
                f"has {saved.config[name]}, now it is {value}. Start afresh without --resume."
            )
    for name, module in learner.modules.items():
        prefix = f"module/{name}/"
        module.load_state_dict(
            {
                k.removeprefix(prefix): torch.from_numpy(v.copy())
                for k, v in saved.tensors.items()
                if k.startswith(prefix)
            }
        )
    for name, optimiser in learner.optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in saved.tensors.items():
            if key.startswith(f"optimiser/{name}/"):
                _, _, index, entry = key.split("/")
                state.setdefault(int(index), {})[entry] = torch.from_numpy(value.copy())
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        _lay_out_like_parameters(optimiser)
    return int(saved.config["step"])


def _lay_out_like_parameters(optimiser: torch.optim.Optimizer) -> None:
    """Give moments the memory layout of their parameters; fused optimisers pair raw memory."""
    for parameter, entries in optimiser.state.items():
        for name, value in entries.items():
            if value.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter).copy_(value)
