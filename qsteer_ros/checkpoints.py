"""Checkpoints: a folder of ``model.safetensors`` and ``config.json``. No pickle, no torch.

The folder is written under a temporary name and renamed, so a killed process leaves either the
old checkpoint or the new one, never half of one. Between two renames the old one is called
``NAME.previous``; whoever reads or writes next gives it its name back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from qsteer_ros.errors import ConfigError, DataError

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True)
class Checkpoint:
    """Weights and everything needed to use them.

    Attributes:
        path: Folder it was read from.
        tensors: Name -> array.
        config: Contents of ``config.json``; ``kind`` names what it is (encoder, policy, critic).
        hash: SHA-256 over weights and config, hexadecimal.
    """

    path: Path
    tensors: Mapping[str, NDArray[Any]]
    config: Mapping[str, Any]
    hash: str


def save(
    folder: str | Path, tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any]
) -> Path:
    """Write a checkpoint folder atomically, replacing one that is there.

    Raises:
        ConfigError: What is there is no checkpoint; see `check_replaceable`.
        DataError: A tensor holds a value that is not finite. Nothing has been written.
    """
    target = Path(folder)
    recover(target)
    check_replaceable(target)
    for name, tensor in tensors.items():
        if not np.all(np.isfinite(tensor)):
            raise DataError(f"checkpoint tensor '{name}' must be finite; refusing to save it.")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, partial / WEIGHTS)
    (partial / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    previous = target.with_name(target.name + ".previous")
    shutil.rmtree(previous, ignore_errors=True)
    if target.exists():
        os.replace(target, previous)
    os.replace(partial, target)
    shutil.rmtree(previous, ignore_errors=True)
    return target


def recover(folder: str | Path) -> None:
    """Put back an old checkpoint that a killed process took away and did not replace.

    Does nothing where there is a checkpoint.
    """
    target = Path(folder)
    previous = target.with_name(target.name + ".previous")
    if previous.is_dir() and not target.exists():
        os.replace(previous, target)


def check_replaceable(folder: str | Path) -> None:
    """Refuse to put a checkpoint where something else is, which would be deleted.

    Raises:
        ConfigError: There is a file, or a folder that holds something but no checkpoint.
    """
    path = Path(folder)
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(
            f"'{path}' must be a folder, to get a checkpoint: it is a file. Choose another."
        )
    ours, held = {WEIGHTS, CONFIG}, {entry.name for entry in path.iterdir()}
    if not (held <= ours or ours <= held):  # half of a checkpoint is nothing to keep
        raise ConfigError(
            f"'{path}' must be new, empty, or a checkpoint, which is replaced: it holds other "
            "files. Choose another folder."
        )


def load(folder: str | Path, *, kind: str) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        folder: The folder.
        kind: What it must be: ``encoder``, ``policy`` or ``critic``.

    Raises:
        ConfigError: The folder or one of its two files is missing, or it is of another kind.
        DataError: A file is damaged.
    """
    path, config = Path(folder), config_of(folder, kind=kind)
    digest = hashlib.sha256()
    for name in (WEIGHTS, CONFIG):
        digest.update((path / name).read_bytes())
    try:
        tensors = load_file(path / WEIGHTS)
    except Exception as error:
        raise _damaged(path, error) from error
    return Checkpoint(path, tensors, config, digest.hexdigest())


def config_of(folder: str | Path, *, kind: str) -> Mapping[str, Any]:
    """Contents of a checkpoint's ``config.json``; its weights are not read.

    Raises:
        ConfigError: The folder or one of its two files is missing, or it is of another kind.
        DataError: The file is damaged.
    """
    path = Path(folder)
    recover(path)
    for name in (WEIGHTS, CONFIG):
        if not (path / name).is_file():
            raise ConfigError(
                f"'{path}' must be a {kind} checkpoint: it has no {name}. "
                "Give the folder that 'qsteer train' wrote."
            )
    try:
        config: Mapping[str, Any] = json.loads((path / CONFIG).read_text())
        found = config.get("kind")
    except Exception as error:
        raise _damaged(path, error) from error
    if found != kind:
        raise ConfigError(
            f"'{path}' must be a {kind} checkpoint: its config.json says "
            f"'{found}'. Check the parameter that names it."
        )
    return config


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"checkpoint '{path}' is damaged: {error}. Train or copy it again.")


def architecture(checkpoint: Checkpoint, keys: tuple[str, ...]) -> Mapping[str, Any]:
    """The ``architecture`` object of a checkpoint's config.

    Raises:
        ConfigError: It is missing, or lacks one of ``keys``.
    """
    found = checkpoint.config.get("architecture")
    if not isinstance(found, Mapping) or not set(keys) <= set(found):
        raise ConfigError(
            f"'{checkpoint.path}' must state an architecture with {', '.join(keys)} in its "
            f"config.json: found {found}. Train it again."
        )
    return found
