"""The simulated arm and the commands of a logged episode; arguments as in system.launch.py."""

from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution, ThisLaunchFileDir


def generate_launch_description():
    """Entry point of ``ros2 launch``."""
    source = PathJoinSubstitution([ThisLaunchFileDir(), "system.launch.py"])
    include = PythonLaunchDescriptionSource(source)
    return LaunchDescription(
        [IncludeLaunchDescription(include, launch_arguments={"system": "replay"}.items())]
    )
