"""Settings of the training programs: one flat frozen dataclass each. Standard library only.

A field's default, meaning and bounds are declared once; the command line is made from them
(:func:`add_options`) and values are checked against them (:func:`checked`).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

from qsteer_ros.errors import ConfigError

Settings = TypeVar("Settings")


def option(
    default: float | str, meaning: str, *, bounds: tuple[float, float] | None = None
) -> Any:
    """A dataclass field with its meaning and, for numbers, the closed interval it must lie in."""
    return field(default=default, metadata={"meaning": meaning, "bounds": bounds})


@dataclass(frozen=True)
class DataSettings:
    """What ``qsteer data`` generates."""

    transitions: int = option(300_000, "Control steps of play.", bounds=(1001, 1e8))
    frames: int = option(16_000, "Training frames, each from every camera.", bounds=(0, 1e7))
    test_frames: int = option(1_200, "Frames from other play, for measuring.", bounds=(0, 1e6))
    noise: float = option(0.1, "Noise on the expert's plan.", bounds=(0.0, 1.0))
    smoothing: float = option(0.5, "Smoothing of that noise, in steps.", bounds=(0.0, 100.0))
    random_cube: float = option(0.3, "Share of frames with the cube moved.", bounds=(0.0, 1.0))
    camera_shift_m: float = option(
        0.015, "Largest displacement of the front camera along each axis.", bounds=(0.0, 0.2)
    )
    camera_turn_deg: float = option(
        1.0, "Largest rotation of the front camera about each axis.", bounds=(0.0, 20.0)
    )
    workers: int = option(2, "Processes.", bounds=(1, 256))
    seed: int = option(0, "Decides every episode and frame.", bounds=(0, 2**31))


@dataclass(frozen=True)
class EncoderSettings:
    """How ``qsteer train encoder`` trains."""

    steps: int = option(14_000, "Optimiser steps.", bounds=(1, 1e7))
    batch: int = option(32, "Frames per step.", bounds=(1, 4096))
    learning_rate: float = option(1.5e-3, "Peak, AdamW, cosine to 2 %.", bounds=(1e-7, 1.0))
    weight_decay: float = option(1e-4, "AdamW.", bounds=(0.0, 1.0))
    yaw_weight: float = option(0.3, "Weight of the yaw loss.", bounds=(0.0, 100.0))
    bfloat16: int = option(1, "1: forward pass in bfloat16 while training.", bounds=(0, 1))
    checkpoint_every: int = option(1000, "Steps between saved states.", bounds=(1, 1e7))
    threads: int = option(1, "CPU threads.", bounds=(1, 256))
    seed: int = option(0, "Decides weights and batches.", bounds=(0, 2**31))


@dataclass(frozen=True)
class PolicySettings:
    """How ``qsteer train bc`` trains."""

    horizon: int = option(5, "Actions per chunk.", bounds=(1, 100))
    hidden: int = option(256, "Width of each of the three layers.", bounds=(8, 4096))
    steps: int = option(20_000, "Optimiser steps.", bounds=(1, 1e7))
    batch: int = option(256, "Chunks per step.", bounds=(1, 65_536))
    learning_rate: float = option(
        1e-3, "Peak, Adam, 200 steps of warm-up, cosine to 5 %.", bounds=(1e-7, 1.0)
    )
    cube_noise_m: float = option(
        0.0, "Noise on the cube's position, standard deviation.", bounds=(0.0, 0.1)
    )
    checkpoint_every: int = option(2000, "Steps between saved states.", bounds=(1, 1e7))
    threads: int = option(1, "CPU threads.", bounds=(1, 256))
    seed: int = option(0, "Decides weights, batches and noise.", bounds=(0, 2**31))


@dataclass(frozen=True)
class CriticSettings:
    """How ``qsteer train critic`` trains."""

    goal: int = option(1, "Goal whose reward is learned (1, 2 or 3).", bounds=(1, 3))
    horizon: int = option(5, "Actions per chunk.", bounds=(1, 100))
    hidden: int = option(256, "Width of each of the three layers.", bounds=(8, 4096))
    ensemble: int = option(2, "Q networks.", bounds=(1, 32))
    steps: int = option(4_000, "Optimiser steps.", bounds=(1, 1e7))
    batch: int = option(256, "Transitions per step.", bounds=(1, 65_536))
    learning_rate: float = option(
        1e-3, "Peak, Adam, 200 steps of warm-up, cosine to 5 %.", bounds=(1e-7, 1.0)
    )
    discount: float = option(0.99, "Per control step.", bounds=(0.0, 1.0))
    expectile: float = option(0.9, "Of the value loss.", bounds=(0.5, 0.999))
    ema: float = option(0.02, "Rate of the target networks.", bounds=(1e-5, 1.0))
    cube_noise_m: float = option(
        0.0, "Noise on the cube's position, standard deviation.", bounds=(0.0, 0.1)
    )
    checkpoint_every: int = option(1000, "Steps between saved states.", bounds=(1, 1e7))
    threads: int = option(1, "CPU threads.", bounds=(1, 256))
    seed: int = option(0, "Decides weights, batches and noise.", bounds=(0, 2**31))


PROGRAMS: dict[str, tuple[type[Any], str]] = {
    "encoder": (EncoderSettings, "cameras to features"),
    "bc": (PolicySettings, "the flow policy, cloned from play"),
    "critic": (CriticSettings, "values of chunks for one goal"),
}
"""Training programs by the name they have on the command line."""


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


def checked(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings from names and values; what is left out keeps its default.

    Raises:
        ConfigError: A name is unknown, or a value has the wrong type or lies out of bounds.
    """
    known = {entry.name: entry for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    types = get_type_hints(kind)
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"{kind.__name__} has no setting '{name}': it has {sorted(known)}. "
                "Correct or remove it."
            )
        wanted: type[Any] = types[name]
        right = isinstance(value, (int, float) if wanted is float else wanted)
        if not right or isinstance(value, bool):
            raise ConfigError(
                f"setting '{name}' must be of type {wanted.__name__}: got {value!r}. "
                f"{known[name].metadata['meaning']}"
            )
        bounds = known[name].metadata["bounds"]
        if bounds is not None and not bounds[0] <= value <= bounds[1]:
            raise ConfigError(
                f"setting '{name}' must be in [{bounds[0]:g}, {bounds[1]:g}]: got {value}. "
                f"{known[name].metadata['meaning']}"
            )
    return kind(**values)


def given(arguments: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The options of ``kind`` that the user wrote, by field name."""
    names = {entry.name for entry in dataclasses.fields(kind)}
    return {name: value for name, value in vars(arguments).items() if name in names}
