from pathlib import Path

from setuptools import find_packages, setup

NAME = "qsteer_ros"
ROOT = Path(__file__).resolve().parent


def shared_files(folder):
    """(destination, files) pairs that install a folder of the repository under share/."""
    folders = sorted({p.parent for p in (ROOT / folder).rglob("*") if p.is_file()})
    return [
        (
            str(Path("share") / NAME / f.relative_to(ROOT)),
            sorted(str(p.relative_to(ROOT)) for p in f.iterdir() if p.is_file()),
        )
        for f in folders
    ]


setup(
    name=NAME,
    version="0.1.0",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        *shared_files("launch"),
        *shared_files("config"),
    ],
    python_requires=">=3.11",
    install_requires=[
        "setuptools",
        "numpy",
        "torch",
        "numba",
        "safetensors",
        "pyyaml",
        "tqdm",
        "tensorboard",
        "mcap",
        "rosbags",
        "pin",
        "simplejpeg",
        "pillow",
        "matplotlib",
    ],
    extras_require={
        "sim": ["ogbench==1.2.2", "mujoco==4.0.0"],
        "ros-wheels": [
            "ros-rclpy[fastrtps]==7.1.6",
            "ros-jazzy-diagnostic-msgs",
            "ros-jazzy-lifecycle-msgs",
            "ros-jazzy-rosgraph-msgs",
            "ros-jazzy-sensor-msgs",
            "ros-jazzy-std-msgs",
            "ros-jazzy-std-srvs",
            "ros-jazzy-trajectory-msgs",
        ],
        "test": [
            "pytest",
            "mypy",
            "ruff",
            "mcap-ros2-support",
            "colcon-core",
            "colcon-ros",
            "colcon-package-information",
            "colcon-python-setup-py",
            "colcon-recursive-crawl",
            "colcon-library-path",
        ],
    },
    zip_safe=True,
    maintainer="qsteer_ros maintainers",
    maintainer_email="maintainers@qsteer-ros.org",
    description=(
        "Frozen flow and VLA policies on real arms, steered by a critic's action gradient, "
        "with a log that trains the next critic."
    ),
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "qsteer = qsteer_ros.cli:main",
            "autostart_node = qsteer_ros.nodes.autostart_node:main",
            "policy_node = qsteer_ros.nodes.policy_node:main",
            "logger_node = qsteer_ros.nodes.logger_node:main",
            "sim_node = qsteer_ros.nodes.sim_node:main",
            "session_node = qsteer_ros.nodes.session_node:main",
            "replay_node = qsteer_ros.nodes.replay_node:main",
        ],
    },
)
