"""``qsteer up``: the launch files' systems where the launch packages are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from qsteer_ros.graph.environment import additions, shared_memory_remark
from qsteer_ros.graph.supervisor import Command, Supervisor, module_command
from qsteer_ros.graph.systems import parse_settings, system


def up(
    name: str,
    *,
    parameter_files: Sequence[str | Path] = (),
    settings: Sequence[str] = (),
    activate: bool | None = None,
    logs: str | Path = "log/qsteer",
    command: Command = module_command,
) -> int:
    """Run a system until it is done, a node dies, or the user stops it.

    Args:
        name: ``sim``, ``arm`` or ``replay``.
        parameter_files: Extra parameter files for every node.
        settings: ``NODE.PARAMETER=VALUE`` assignments that win over the files.
        activate: See :func:`qsteer_ros.graph.systems.system`.
        logs: A folder named after the time is made in it, with one log file per node.
        command: How a process becomes a command line.

    Returns:
        0 when the system was done or was stopped; 1 when a node died or had to be killed.

    Raises:
        ConfigError: A setting or a file is wrong; nothing has started.
    """
    processes = system(
        name,
        settings=parse_settings(settings),
        parameter_files=parameter_files,
        activate=activate,
    )
    folder = Path(logs) / datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    width = max(len(process.name) for process in processes)
    environment = {**os.environ, **additions(os.environ)}

    def show(node: str, line: str) -> None:
        sys.stdout.write(f"[{node:<{width}}] {line}\n")
        sys.stdout.flush()

    supervisor = Supervisor(
        processes, logs=folder, environment=environment, on_line=show, command=command
    )
    with supervisor:
        show("up", f"{name}: {', '.join(p.name for p in processes)}; logs in {folder}")
        if remark := shared_memory_remark():
            show("up", remark)
        outcome = supervisor.wait()
        assert outcome is not None  # no timeout was given
        show("up", f"{outcome.reason}; stopping the others")
        killed = supervisor.stop()
    if killed:
        show("up", f"had to be killed: {', '.join(killed)}")
    if outcome.status != 0:
        sys.stderr.write(f"qsteer up: {outcome.reason}\n")
    return 1 if killed else outcome.status


def set_live(assignments: Sequence[str]) -> int:
    """Set parameters of nodes that run on this machine, in a process of its own.

    Args:
        assignments: ``NODE.PARAMETER=VALUE``; those of one node take effect together.

    Returns:
        Exit status: 0, or 1 when a node refuses or does not answer; it has said why.

    Raises:
        ConfigError: An assignment cannot be read.
    """
    parse_settings(assignments)
    program = [sys.executable, "-m", "qsteer_ros.nodes.set_parameters", *assignments]
    return subprocess.run(
        program, env={**os.environ, **additions(os.environ)}, check=False
    ).returncode
