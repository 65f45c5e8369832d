"""The training programs by name, and what runs one. Nothing heavy is imported to list them."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError
from qsteer_ros.learning.settings import Training, read


class Program(NamedTuple):
    """Where a training program is.

    Attributes:
        settings: ``module:class`` of its settings, below ``qsteer_ros.learning``.
        run: ``module:function``, (settings, *, resume, command) -> metrics; it writes the
            checkpoint.
        meaning: One line.
        parts: Folders of ``out`` that get a checkpoint; an empty name is ``out`` itself.
    """

    settings: str
    run: str
    meaning: str
    parts: tuple[str, ...] = ("",)


PROGRAMS: dict[str, Program] = {
    "encoder": Program(
        "settings_encoder:EncoderSettings", "train_encoder:train_encoder", "cameras to features"
    ),
    "bc": Program(
        "settings_bc:PolicySettings", "train_bc:train_policy", "the flow policy, cloned from play"
    ),
    "image-bc": Program(
        "settings_image_bc:ImageBcSettings",
        "train_image_bc:train_image_bc",
        "encoder and flow policy together, cloned from logged pictures",
        ("encoder", "policy"),
    ),
    "rl-token": Program(
        "settings_rl_token:RLTokenSettings",
        "train_rl_token:train_rl_token",
        "prefixes of a frozen VLA to one vector",
    ),
    "critic": Program(
        "settings_critic:CriticSettings", "train_critic:train_critic", "values of chunks"
    ),
    "online": Program(
        "settings_online:OnlineSettings",
        "online:train_online",
        "a critic on fixed data, then on new episodes as they come",
    ),
    "posterior-map": Program(
        "settings_posterior_map:PosteriorMapSettings",
        "train_posterior_map:train_posterior_map",
        "samples of the clean chunk in one step, for qpilots_m",
    ),
    "qvgm": Program(
        "settings_qvgm:QvgmSettings",
        "train_qvgm:train_qvgm",
        "a policy taught by a critic, which then acts without it",
    ),
    "dsrl": Program(
        "settings_dsrl:DsrlSettings", "train_dsrl:train_dsrl", "an actor that chooses the noise"
    ),
}
"""Training programs by the name they have on the command line."""


def settings_of(program: str) -> type[Training]:
    """The settings' dataclass of a program."""
    kind: type[Training] = _find(PROGRAMS[program].settings)
    return kind


def train_program(
    program: str,
    words: Sequence[str],
    *,
    config: str | Path | None = None,
    resume: bool = False,
    **parts: Any,
) -> str:
    """Train what ``program`` names and say what came of it.

    Args:
        program: A key of :data:`PROGRAMS`.
        words: Settings written ``key=value``.
        config: YAML file of settings.
        resume: Continue an interrupted run.
        parts: Further arguments of the program's function: what it needs of rows below this one.

    Returns:
        Checkpoint folder and metrics as JSON.

    Raises:
        ConfigError: A setting is wrong, the data are missing, there is no such device, or ``out``
            cannot get a checkpoint.
        DataError: The data are damaged.
    """
    settings = read(settings_of(program), words, config=config)
    if not settings.out:
        raise ConfigError(
            f"qsteer train {program} must be told where its checkpoint goes: 'out' is empty. "
            f"Add out=checkpoints/{program}."
        )
    from qsteer_ros.learning import states

    check_out(settings.out, PROGRAMS[program].parts)
    choose_device(settings.device)
    if resume and not (state := states.run_folder(settings.out) / states.STATE).exists():
        sys.stderr.write(f"nothing to resume in '{state}': starting from step 0.\n")
    run: Any = _find(PROGRAMS[program].run)
    metrics = run(settings, resume=resume, command=command(), **parts)
    return json.dumps({"checkpoint": settings.out, **metrics})


def check_out(out: str, parts: Sequence[str] = ("",)) -> None:
    """Find out before the training, not after it, that its checkpoint cannot be written.

    Args:
        out: Folder of the checkpoint.
        parts: See `Program`.

    Raises:
        ConfigError: It has no name, holds something else, or the folder that it is to be in
            cannot be written.
    """
    path = Path(out)
    if path.name in ("", ".."):
        raise ConfigError(f"'out' must be a folder with a name: got '{out}'. Add one.")
    for part in parts:
        checkpoints.check_replaceable(path / part)
    there = path.absolute().parent
    while not there.exists():
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ConfigError(
            f"'out' must be in a folder that can be written: got '{out}', and '{there}' cannot. "
            "Choose another."
        )


def choose_device(device: str) -> None:
    """Make sure that there is such a device; ``cuda`` is each process's own GPU under torchrun.

    Raises:
        ConfigError: There is none.
    """
    import torch

    kind, _, number = device.partition(":")
    if device not in ("cpu", "cuda") and not (kind == "cuda" and number.isdecimal()):
        raise ConfigError(f"'device' must be cpu, cuda or cuda:N: got '{device}'.")
    if kind == "cpu":
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = int(number or os.environ.get("LOCAL_RANK", "0"))
    if wanted >= found:
        raise ConfigError(
            f"'device' must be there: '{device}' asks for GPU {wanted}, PyTorch finds {found}. "
            "Use device=cpu, or a PyTorch for CUDA on a machine with that many."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if number:
            raise ConfigError(
                f"'device' must be cuda under torchrun, one GPU per process: got '{device}'."
            )
        torch.cuda.set_device(wanted)


def command() -> str:
    """What the user typed."""
    return " ".join(["qsteer", *sys.argv[1:]])


def _find(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"qsteer_ros.learning.{module}"), name)
