"""Any system of ``qsteer_ros.graph`` under ``ros2 launch``; ``qsteer up`` starts the same ones."""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from qsteer_ros.graph.environment import additions
from qsteer_ros.graph.systems import SYSTEMS, parse_settings, system

ARGUMENTS = (
    DeclareLaunchArgument("system", choices=list(SYSTEMS), description="which system"),
    DeclareLaunchArgument(
        "params", default_value="", description="extra parameter files, separated by commas"
    ),
    DeclareLaunchArgument(
        "settings",
        default_value="",
        description="NODE.PARAMETER=VALUE assignments, separated by blanks",
    ),
    DeclareLaunchArgument(
        "activate",
        default_value="auto",
        choices=["auto", "true", "false"],
        description="let the policy move the arm once configured; auto: only in sim",
    ),
)


def ended(process):
    """What is done when a process ends."""

    def decide(event, context):
        if event.returncode == 0 and process.when_done == "continue":
            return []
        done = event.returncode == 0 and process.when_done == "stop"
        reason = f"{process.name} " + ("is done" if done else f"ended: {event.returncode}")
        return [LogInfo(msg=reason), Shutdown(reason=reason)]

    return decide


def nodes(context):
    """One action per process of the chosen system."""
    given = {a.name: LaunchConfiguration(a.name).perform(context) for a in ARGUMENTS}
    processes = system(
        given["system"],
        settings=parse_settings(given["settings"].split()),
        parameter_files=[file for file in given["params"].split(",") if file],
        activate={"auto": None, "true": True, "false": False}[given["activate"]],
    )
    return [
        Node(
            package="qsteer_ros",
            executable=process.executable,
            name=process.name,
            parameters=[*map(str, process.parameter_files), dict(process.parameters)],
            remappings=list(process.remappings),
            additional_env=additions(os.environ),
            output="both",
            on_exit=ended(process),
        )
        for process in processes
    ]


def generate_launch_description():
    """Entry point of ``ros2 launch``."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes)])
