"""The package as colcon and pip see it."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import qsteer_ros
from qsteer_ros.graph.systems import SYSTEMS, system

ROOT = Path(__file__).resolve().parent.parent
COLCON = Path(sys.executable).with_name("colcon")
BUILD_TIMEOUT_S = 300


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colcon workspace with a copy of what git tracks or would."""
    if not COLCON.is_file():
        pytest.skip("colcon is not installed")
    folder = tmp_path_factory.mktemp("workspace")
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        target = folder / "src" / "qsteer_ros" / name
        if (ROOT / name).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    return folder


@pytest.fixture(scope="module")
def installed(workspace: Path) -> Path:
    """The install space after ``colcon build``."""
    done = colcon(workspace, "build", "--event-handlers", "console_direct-")
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace / "install" / "qsteer_ros"


def colcon(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COLCON, *arguments],
        cwd=workspace,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
        env={**os.environ, "PATH": f"{COLCON.parent}:{os.environ['PATH']}"},
    )


def version_in(pattern: str, file: str) -> str:
    found = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert found, file
    return found.group(1)


def test_all_files_say_the_same_version() -> None:
    versions = {
        "package.xml": version_in(r"<version>(.+?)</version>", "package.xml"),
        "setup.py": version_in(r'version="(.+?)"', "setup.py"),
        "CHANGELOG.rst": version_in(r"^(\d+\.\d+\.\d+) \(", "CHANGELOG.rst"),
    }
    assert set(versions.values()) == {qsteer_ros.__version__}, versions


def test_every_node_of_a_system_is_a_console_script() -> None:
    scripts = dict(re.findall(r'"(\w+) = ([\w.]+):main"', (ROOT / "setup.py").read_text()))
    for name in SYSTEMS:
        for process in (*system(name), *(system("sim", session=True) if name == "sim" else ())):
            assert scripts[process.executable] == f"qsteer_ros.nodes.{process.executable}"


def test_console_scripts_point_at_functions() -> None:
    pytest.importorskip("rclpy")
    pytest.importorskip("ogbench")
    for module, function in re.findall(r'= ([\w.]+):(\w+)"', (ROOT / "setup.py").read_text()):
        assert callable(getattr(importlib.import_module(module), function))


def test_message_packages_that_are_imported_are_declared() -> None:
    declared = {e.text for e in ET.parse(ROOT / "package.xml").iter("exec_depend")}
    used = set()
    for path in (ROOT / "qsteer_ros" / "nodes").glob("*.py"):
        used |= set(re.findall(r"^from (\w+_msgs|std_srvs|rclpy)\b", path.read_text(), re.M))
        used |= set(
            re.findall(r"^from (builtin_interfaces|rcl_interfaces)\b", path.read_text(), re.M)
        )
    assert used <= declared


@pytest.mark.parametrize("name", ["scripts/demo", "scripts/test", "scripts/_setup.sh", ".ci/run"])
def test_scripts_are_valid_shell_and_can_be_run(name: str) -> None:
    subprocess.run(["bash", "-n", ROOT / name], check=True, timeout=10)
    assert os.access(ROOT / name, os.X_OK) is not name.endswith(".sh")


@pytest.mark.slow
def test_colcon_sees_an_ament_python_package(workspace: Path) -> None:
    assert colcon(workspace, "list").stdout.split() == [
        "qsteer_ros",
        str(Path("src") / "qsteer_ros"),
        "(ros.ament_python)",
    ]


@pytest.mark.slow
def test_an_installed_package_finds_its_shared_files(installed: Path) -> None:
    site = next(installed.glob("lib/python*/site-packages"))
    code = (
        "import qsteer_ros; from qsteer_ros.resources import find\n"
        "print(qsteer_ros.__file__)\n"
        "print(find('sim.yaml'))\n"
        "print(find('checkpoints/policy/model.safetensors'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    module, file, weights = done.stdout.splitlines()
    assert module.startswith(str(site))
    assert file == str(installed / "share/qsteer_ros/config/sim.yaml")
    assert Path(weights).stat().st_size > 1000


@pytest.mark.slow
def test_an_installed_package_has_what_ros2_looks_for(installed: Path) -> None:
    share = installed / "share"
    assert (share / "ament_index/resource_index/packages/qsteer_ros").is_file()
    assert (share / "qsteer_ros/package.xml").is_file()
    for name in SYSTEMS:
        assert (share / f"qsteer_ros/launch/{name}.launch.py").is_file()
    for executable in ("qsteer", "policy_node", "sim_node", "logger_node", "autostart_node"):
        assert os.access(installed / "lib/qsteer_ros" / executable, os.X_OK), executable
