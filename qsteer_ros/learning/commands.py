"""From the options of ``qsteer train`` to a training run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from qsteer_ros.learning.settings import (
    PROGRAMS,
    CriticSettings,
    EncoderSettings,
    PolicySettings,
    checked,
)


def train_program(program: str, options: Mapping[str, Any]) -> str:
    """Train what ``program`` names and say what came of it.

    Args:
        program: A key of :data:`~qsteer_ros.learning.settings.PROGRAMS`.
        options: Parsed command line: ``out``, ``data``, ``resume``, for a critic also
            ``episodes``, ``encoder`` and ``robot``; and the settings the user wrote.

    Returns:
        The checkpoint's metrics as JSON.

    Raises:
        ConfigError: A setting is wrong or the data are missing.
        DataError: The data are damaged.
    """
    kind = PROGRAMS[program][0]
    names = {entry.name for entry in fields(kind)}
    settings = checked(kind, {k: v for k, v in options.items() if k in names})
    out: Path = options["out"]
    resume, command = bool(options["resume"]), _command()
    metrics: Mapping[str, float]
    if isinstance(settings, EncoderSettings):
        from qsteer_ros.learning.train_encoder import train_encoder

        metrics = train_encoder(options["data"], out, settings, resume=resume, command=command)
    elif isinstance(settings, PolicySettings):
        from qsteer_ros.learning.train_bc import train_policy

        metrics = train_policy(options["data"], out, settings, resume=resume, command=command)
    else:
        assert isinstance(settings, CriticSettings)
        from qsteer_ros.learning.train_critic import play_transitions, train_critic

        if options.get("episodes") is None:
            transitions = play_transitions(options["data"], settings)
        else:
            from qsteer_ros.learning.logged import logged_transitions

            transitions = logged_transitions(
                options["episodes"],
                settings,
                encoder=options["encoder"],
                robot=options["robot"],
            )
        metrics = train_critic(transitions, out, settings, resume=resume, command=command)
    return json.dumps({"checkpoint": str(out), **metrics})


def _command() -> str:
    """What the user typed."""
    return " ".join(["qsteer", *sys.argv[1:]])
