"""Settings of the training programs: one flat frozen dataclass each. Standard library and YAML.

A field's default, meaning and bounds are declared once. Values come from a YAML file and from
``key=value`` words, the words last (:func:`read`), and are checked against the declaration
(:func:`checked`). The settings of a program are in ``settings_<program>.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from qsteer_ros.errors import ConfigError

Settings = TypeVar("Settings")

_WORDS = {"true": True, "false": False}


def option(
    default: float | str | bool, meaning: str, *, bounds: tuple[float, float] | None = None
) -> Any:
    """A dataclass field with its meaning and, for numbers, the closed interval it must lie in."""
    return field(default=default, metadata={"meaning": meaning, "bounds": bounds})


@dataclass(frozen=True)
class Training:
    """What every training program needs to know. Programs give their own defaults."""

    out: str = option("", "Folder that gets the checkpoint.")
    steps: int = option(10_000, "Optimiser steps.", bounds=(1, 1e9))
    batch: int = option(256, "Rows per step, over all processes.", bounds=(1, 1e6))
    learning_rate: float = option(1e-3, "Peak.", bounds=(0.0, 1.0))
    warmup: int = option(200, "Steps in which the rate rises to its peak.", bounds=(0, 1e9))
    lr_floor: float = option(
        0.05, "Share of the peak at the end of the cosine; 1 keeps it constant.", bounds=(0.0, 1.0)
    )
    gradient_clip: float = option(
        0.0, "Longest gradient of one optimiser's parameters; 0 sets no limit.", bounds=(0.0, 1e9)
    )
    device: str = option("cpu", "cpu, cuda or cuda:N.")
    cuda_graph: bool = option(False, "On a GPU: capture a step and replay it.")
    tf32: bool = option(False, "On a GPU: products with 10 bits of fraction, faster.")
    threads: int = option(1, "CPU threads of a process.", bounds=(1, 256))
    checkpoint_every: int = option(1000, "Steps between saved states.", bounds=(1, 1e9))
    log_every: int = option(
        100, "Steps between scalars for TensorBoard; 0 writes none.", bounds=(0, 1e9)
    )
    seed: int = option(0, "Decides weights, batches and noise.", bounds=(0, 2**31))


@dataclass(frozen=True)
class ChunkSource(Training):
    """Where features and chunks come from."""

    data: str = option("data/cube", "Folder of play: of qsteer data, or of a public suite.")
    episodes: str = option("", "Folder of logged episodes; overrides data.")
    encoder: str = option("checkpoints/encoder", "Makes the features of logged episodes.")
    robot: str = option("robot_ur5e_sim.yaml", "Robot file of logged episodes.")
    horizon: int = option(5, "Actions per chunk.", bounds=(1, 1000))


@dataclass(frozen=True)
class RewardSource(ChunkSource):
    """Where rewards come from."""

    goal: int = option(1, "Goal of the simulated arm or of logged episodes.", bounds=(1, 1e6))
    task: int = option(1, "Task of a public suite's environment.", bounds=(1, 100))
    sparse: bool = option(False, "Suite: -1 until solved, not one per condition unmet.")
    discount: float = option(0.99, "Per control step.", bounds=(0.0, 1.0))


def widths(text: str) -> tuple[int, ...]:
    """Widths of layers, written ``256,256,256``.

    Raises:
        ConfigError: It is no list of positive integers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            f"widths of layers must be positive integers with commas: got '{text}'. "
            "Three layers of 256 are written 256,256,256."
        )
    return tuple(int(part) for part in parts)


def read(
    kind: type[Settings], words: Sequence[str] = (), *, config: str | Path | None = None
) -> Settings:
    """Settings from a YAML file and ``key=value`` words; the words win.

    Args:
        kind: Dataclass of the program.
        words: Such as ``steps=2000``.
        config: YAML file of keys and values; None: only the words.

    Raises:
        ConfigError: A word is not ``key=value`` or written twice, the file is missing or no
            mapping, a name is unknown, or a value has the wrong type or lies out of bounds.
    """
    values = {} if config is None else _from_file(Path(config))
    written: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (equals and name.isidentifier()):
            raise ConfigError(
                f"settings must be written key=value: got '{word}'. "
                f"Known keys: {', '.join(_fields(kind))}."
            )
        if name in written:
            raise ConfigError(f"setting '{name}' must be given once: got it twice. Remove one.")
        written[name] = text
    return checked(kind, {**values, **written})


def checked(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings from names and values; what is left out keeps its default.

    Texts are read as the field's type: ``"1e-3"`` is a number where a number is wanted.

    Raises:
        ConfigError: A name is unknown, or a value has the wrong type or lies out of bounds.
    """
    known, types = _fields(kind), get_type_hints(kind)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"{kind.__name__} has no setting '{name}': it has {', '.join(sorted(known))}. "
                f"{_nearest(name, list(known))}"
            )
        found[name] = _typed(name, value, types[name], known[name].metadata["meaning"])
        bounds = known[name].metadata["bounds"]
        if bounds is not None and not bounds[0] <= found[name] <= bounds[1]:
            raise ConfigError(
                f"setting '{name}' must be in [{bounds[0]:g}, {bounds[1]:g}]: got {value}. "
                f"{known[name].metadata['meaning']}"
            )
    return kind(**found)


def described(kind: type[Any]) -> str:
    """One line per setting: name, default, meaning; for the help of a program."""
    lines = [
        f"  {name}={entry.default}  {entry.metadata['meaning']}"
        for name, entry in _fields(kind).items()
    ]
    return "settings (key=value):\n" + "\n".join(lines)


def add_options(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """Give a parser one option per field; only those the user wrote are set."""
    types = get_type_hints(kind)
    for entry in dataclasses.fields(kind):
        parser.add_argument(
            "--" + entry.name.replace("_", "-"),
            type=types[entry.name],
            default=argparse.SUPPRESS,
            metavar=types[entry.name].__name__.upper(),
            help=f"{entry.metadata['meaning']} (default {entry.default})".replace("%", "%%"),
        )


def given(arguments: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The options of ``kind`` that the user wrote, by field name."""
    names = {entry.name for entry in dataclasses.fields(kind)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def _fields(kind: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {entry.name: entry for entry in dataclasses.fields(kind)}


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"Did you mean '{close[0]}'?" if close else "Correct or remove it."


def _typed(name: str, value: Any, wanted: type[Any], meaning: str) -> Any:
    """The value as ``wanted``; refuses what is something else."""
    found = value
    if isinstance(value, str) and wanted is not str:
        found = _parsed(value, wanted)
    if wanted is float and isinstance(found, int) and not isinstance(found, bool):
        found = float(found)
    if type(found) is not wanted:
        raise ConfigError(
            f"setting '{name}' must be of type {wanted.__name__}: got {value!r}. {meaning}"
        )
    return found


def _parsed(text: str, wanted: type[Any]) -> Any:
    if wanted is bool:
        return _WORDS.get(text.lower(), text)
    try:
        return wanted(text)
    except ValueError:
        return text


def _from_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"'{path}' must be a YAML file of settings: {error.strerror}. Correct --config."
        ) from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"'{path}' must be YAML: {reason}. Correct the file.") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"'{path}' must hold keys and values: got {type(content).__name__}. "
            "Write one setting per line, such as steps: 2000."
        )
    return {str(name): value for name, value in content.items()}
