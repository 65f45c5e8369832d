"""The launch files against the description they read; skipped where launch is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qsteer_ros.graph.systems import SYSTEMS, system

pytest.importorskip("launch")
pytest.importorskip("launch_ros")

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.utilities import is_a, perform_substitutions
from launch_ros.actions import Node

LAUNCH = Path(__file__).resolve().parent.parent / "launch"


def actions(name: str, **arguments: str) -> list[object]:
    """Everything a launch file comes to, includes and functions resolved."""
    context = LaunchContext()
    source = PythonLaunchDescriptionSource(str(LAUNCH / f"{name}.launch.py"))
    waiting: list[object] = [IncludeLaunchDescription(source, launch_arguments=arguments.items())]
    found: list[object] = []
    while waiting:
        action = waiting.pop(0)
        if is_a(action, Node):
            found.append(action)
            continue
        found.append(action)
        waiting = [*(action.visit(context) or []), *waiting]
    return found


def nodes(name: str, **arguments: str) -> dict[str, Node]:
    return {a._Node__node_name: a for a in actions(name, **arguments) if is_a(a, Node)}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_launch_file_starts_the_processes_of_its_system(name: str) -> None:
    assert list(nodes(name)) == [process.name for process in system(name)]


def test_arguments_are_documented() -> None:
    declared = {a.name: a for a in actions("sim") if is_a(a, DeclareLaunchArgument)}
    assert set(declared) == {"system", "params", "settings", "activate"}
    assert all(a.description for a in declared.values())


def test_settings_reach_the_node() -> None:
    context = LaunchContext()
    policy = nodes("sim", settings="policy_node.steering=qgf policy_node.seed=3")["policy_node"]
    given = policy._Node__parameters[-1]
    plain = {perform_substitutions(context, list(k)): v for k, v in given.items()}
    assert plain["seed"] == 3
    assert yaml.safe_load(perform_substitutions(context, list(plain["steering"]))) == "qgf"


def test_nothing_moves_on_an_arm_unless_asked() -> None:
    def activates(**arguments: str) -> object:
        context = LaunchContext()
        given = nodes("arm", **arguments)["autostart_node"]._Node__parameters[-1]
        return {perform_substitutions(context, list(k)): v for k, v in given.items()}["activate"]

    assert activates() is False
    assert activates(activate="true") is True
