"""The policy and the logger, for an arm whose driver runs elsewhere.

Arguments as in system.launch.py.
"""

from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution, ThisLaunchFileDir


def generate_launch_description():
    """Entry point of ``ros2 launch``."""
    source = PathJoinSubstitution([ThisLaunchFileDir(), "system.launch.py"])
    include = PythonLaunchDescriptionSource(source)
    return LaunchDescription(
        [IncludeLaunchDescription(include, launch_arguments={"system": "arm"}.items())]
    )
