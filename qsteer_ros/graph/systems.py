"""The processes of each system: which node, with which parameters, and what its end means."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from qsteer_ros.errors import ConfigError
from qsteer_ros.resources import find

Value = bool | int | float | str | list[int] | list[float] | list[str]
Settings = Mapping[str, Mapping[str, Value]]
"""Node name -> parameter -> value."""

WhenDone = Literal["fail", "continue", "stop"]


@dataclass(frozen=True)
class Process:
    """One node in a process of its own.

    Attributes:
        name: Node name; also the prefix of its output and the name of its log file.
        executable: Console script, and module under ``qsteer_ros.nodes``.
        parameter_files: Files in order; a later one wins.
        parameters: Values that win over the files.
        remappings: (from, to) pairs of topic or service names.
        when_done: What it means that it ends with status 0: a failure of the system, nothing, or
            that the system is done. Any other status is a failure.
    """

    name: str
    executable: str
    parameter_files: tuple[Path, ...] = ()
    parameters: Mapping[str, Value] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    when_done: WhenDone = "fail"

    def ros_arguments(self) -> list[str]:
        """Command line after the executable. JSON is YAML, and quotes keep ``off`` a string."""
        arguments = ["--ros-args", "-r", f"__node:={self.name}"]
        for source, target in self.remappings:
            arguments += ["-r", f"{source}:={target}"]
        for file in self.parameter_files:
            arguments += ["--params-file", str(file)]
        for name, value in self.parameters.items():
            arguments += ["-p", f"{name}:={json.dumps(value)}"]
        return arguments


SYSTEMS = ("sim", "arm", "replay")
_PARAMETER_FILES = {
    "sim_node": "sim.yaml",
    "policy_node": "policy.yaml",
    "logger_node": "logger.yaml",
    "session_node": "session.yaml",
}


def system(
    name: str,
    *,
    settings: Settings | None = None,
    parameter_files: Sequence[str | Path] = (),
    activate: bool | None = None,
    session: bool = False,
) -> tuple[Process, ...]:
    """Describe a system.

    Args:
        name: ``sim``: simulator, policy, logger. ``arm``: policy and logger for an arm whose
            driver runs elsewhere. ``replay``: simulator and a logged episode.
        settings: Node name -> parameters that win over the files.
        parameter_files: Extra files for every node, read after the package's own.
        activate: Whether the policy may move the arm as soon as it is configured. ``None``: yes
            in simulation, no on an arm, where a person activates it.
        session: Add the session runner; the system is done when it is.

    Raises:
        ConfigError: An unknown system, node or file; a session without a simulator.
    """
    if name not in SYSTEMS:
        raise ConfigError(f"system must be one of {', '.join(SYSTEMS)}: got '{name}'.")
    if session and name != "sim":
        raise ConfigError(
            f"a session needs the simulator: system '{name}' has none. "
            "On an arm a person starts and judges each episode."
        )
    in_sim = {"use_sim_time": True}
    processes = {
        "sim": (_node("sim_node"), _node("policy_node", in_sim), _node("logger_node", in_sim)),
        "arm": (_node("policy_node"), _node("logger_node")),
        "replay": (_node("sim_node"), _node("replay_node", in_sim, when_done="stop")),
    }[name]
    if session:
        processes += (_node("session_node", in_sim, when_done="stop"),)
    elif name != "replay":
        active = activate if activate is not None else name == "sim"
        processes += (_node("autostart_node", {"activate": active}, when_done="continue"),)
    extra = tuple(find(file) for file in parameter_files)
    return _with_settings(processes, settings or {}, extra)


def parse_settings(assignments: Sequence[str]) -> dict[str, dict[str, Value]]:
    """Read ``NODE.PARAMETER=VALUE``; the value is JSON, and anything else is a string.

    Raises:
        ConfigError: An assignment has another form.
    """
    settings: dict[str, dict[str, Value]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        node, dot, parameter = path.partition(".")
        if not (equals and dot and node and parameter):
            raise ConfigError(
                f"a setting must read NODE.PARAMETER=VALUE: got '{assignment}'. "
                "For example: policy_node.steering=qgf"
            )
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        settings.setdefault(node, {})[parameter] = value
    return settings


def _node(
    name: str, parameters: Mapping[str, Value] | None = None, *, when_done: WhenDone = "fail"
) -> Process:
    file = _PARAMETER_FILES.get(name)
    files = (find(file),) if file else ()
    return Process(name, name, files, dict(parameters or {}), when_done=when_done)


def _with_settings(
    processes: tuple[Process, ...], settings: Settings, files: tuple[Path, ...]
) -> tuple[Process, ...]:
    names = [process.name for process in processes]
    for node in settings:
        if node not in names:
            close = difflib.get_close_matches(node, names, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"It has {', '.join(names)}."
            raise ConfigError(f"a setting must name a node of the system: got '{node}'. {hint}")
    return tuple(
        replace(
            process,
            parameter_files=process.parameter_files + files,
            parameters={**process.parameters, **settings.get(process.name, {})},
        )
        for process in processes
    )
