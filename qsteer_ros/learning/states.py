"""The state of an unfinished run: weights and optimisers, as a checkpoint folder.

A run that writes its checkpoint to ``out`` keeps everything else in ``out.run`` beside it:
``training_state`` until it is finished, and ``tensorboard``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError
from qsteer_ros.learning.learner import Learner

STATE = "training_state"
"""Folder inside the run's folder, and the kind of its checkpoint."""


def run_folder(out: str | Path) -> Path:
    """Where a run keeps what is not its checkpoint."""
    path = Path(out)
    return path.with_name(path.name + ".run")


def save(learner: Learner, out: str | Path, identity: Mapping[str, Any], step: int) -> None:
    """Write the state after ``step`` steps atomically, replacing an older one.

    Raises:
        DataError: A weight is not finite. The older state is kept.
    """
    tensors: dict[str, Any] = {
        f"learner/{name}": _array(value) for name, value in learner.state_dict().items()
    }
    for name, optimiser in learner.optimisers().items():
        for index, entries in optimiser.state_dict()["state"].items():
            for key, value in entries.items():
                tensors[f"optimiser/{name}/{index}/{key}"] = _array(torch.as_tensor(value))
    checkpoints.save(run_folder(out) / STATE, tensors, {"kind": STATE, "step": step, **identity})


def restore(learner: Learner, out: str | Path, identity: Mapping[str, Any]) -> int:
    """Load a saved state, if there is one; return the number of steps it has taken.

    Raises:
        ConfigError: It belongs to other settings or other data.
        DataError: It is damaged.
    """
    folder = run_folder(out) / STATE
    checkpoints.recover(folder)
    if not folder.exists():
        return 0
    saved = checkpoints.load(folder, kind=STATE)
    for name, value in json.loads(json.dumps(identity)).items():
        if saved.config.get(name) != value:
            raise ConfigError(
                f"'{folder}' must come from the same {name.replace('_', ' ')} to be resumed: "
                f"{_difference(saved.config.get(name), value)}. Start afresh without --resume."
            )
    device = next(learner.parameters()).device
    tensors = {k: torch.from_numpy(np.array(v)).to(device) for k, v in saved.tensors.items()}
    learner.load_state_dict(_below(tensors, "learner/"))
    for name, optimiser in learner.optimisers().items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, f"optimiser/{name}/").items():
            index, entry = key.split("/")
            state.setdefault(int(index), {})[entry] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        _lay_out_like_parameters(optimiser)
    return int(saved.config["step"])


def finish(out: str | Path, save: Callable[[str | Path], object]) -> None:
    """Write the checkpoint of a finished run and let go of its state; one process writes.

    Args:
        out: Folder of the checkpoint.
        save: Writes it to a folder.
    """
    if int(os.environ.get("RANK", "0")) == 0:
        save(out)
        shutil.rmtree(run_folder(out) / STATE, ignore_errors=True)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()


def _difference(saved: Any, now: Any) -> str:
    """The first setting that differs, or both values."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in now:
            if saved.get(name) != now[name]:
                return f"'{name}' was {saved.get(name)}, now it is {now[name]}"
    return f"it has {saved}, now it is {now}"


def _lay_out_like_parameters(optimiser: torch.optim.Optimizer) -> None:
    """Give moments the memory layout of their parameters; fused optimisers pair raw memory."""
    for parameter, entries in optimiser.state.items():
        for name, value in entries.items():
            if value.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter).copy_(value)
