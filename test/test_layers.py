"""The import rules of the package, executable: a module imports only from rows above its own."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "qsteer_ros"
MODULES = sorted(PACKAGE.rglob("*.py"))

ROWS = (
    {"types", "errors", "resources", "interface"},
    {"capture", "compiling", "flow", "ensemble", "checkpoints", "motion", "replay", "step_costs"},
    {"dense_kernels", "weights", "posterior", "diffusion", "deadline"},
    {"dense", "trained"},
    {"steering", "critics", "sim"},
    {"policies"},
    {"learning"},
    {"evaluation", "graph"},
    {"cli", "nodes"},
)
ROS = {
    "rclpy", "builtin_interfaces", "diagnostic_msgs", "lifecycle_msgs", "rcl_interfaces",
    "rosgraph_msgs", "sensor_msgs", "std_msgs", "std_srvs", "trajectory_msgs",
    "ament_index_python", "launch", "launch_ros",
}  # fmt: skip
TORCH_FREE = {
    "types",
    "errors",
    "resources",
    "interface",
    "checkpoints",
    "motion",
    "replay",
    "sim",
    "graph",
}
TORCH_FREE_NODES = {"sim_node", "logger_node", "session_node", "replay_node", "autostart_node"}


def room(path: Path) -> str:
    """First part of a module's path: the folder, or the name of a file at the top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def row(name: str) -> int:
    """Row of a room; an unknown room fails here, so that new folders are placed on purpose."""
    return next(i for i, names in enumerate(ROWS) if name in names)


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports at run time, at any depth of the file.

    Blocks under ``if TYPE_CHECKING`` count as well: a type is a dependency too.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def own_rooms(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported(path) if name.split(".")[0] == "qsteer_ros")
    return {p[1] for p in parts if len(p) > 1} - {"__version__"}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_rows_above_its_own(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        assert own_rooms(path) == set()
        return
    for other in own_rooms(path) - {here}:
        above = row(other) < row(here) or row(other) == row(here) == 0  # the nouns share a row
        assert above, f"{name_of(path)} (row {row(here)}) imports {other} (row {row(other)})"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_nodes_import_ros(path: Path) -> None:
    found = top_level(path) & ROS
    assert not found or room(path) == "nodes", (
        f"{name_of(path)} imports {found}; move it to nodes/"
    )


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_sim_imports_the_simulator(path: Path) -> None:
    found = top_level(path) & {"mujoco", "ogbench", "dm_control", "gymnasium"}
    assert not found or room(path) == "sim", f"{name_of(path)} imports {found}; move it to sim/"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_compiled_loop_imports_its_compiler(path: Path) -> None:
    compiled = {"compiling.py", "dense_kernels.py"}
    fast = path.parent == PACKAGE / "policies" / "fast" or path.name in compiled
    assert "numba" not in top_level(path) or fast


def test_the_compiler_is_loaded_when_it_is_asked_and_not_before() -> None:
    loaded = import_all(["qsteer_ros.policies.steered", "qsteer_ros.learning.train_critic"])
    assert "numba" not in loaded


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_stays_out_of_what_must_run_without_it(path: Path) -> None:
    if room(path) in TORCH_FREE or path.stem in TORCH_FREE_NODES:
        assert "torch" not in top_level(path)


def test_launch_files_import_only_launch_and_the_graph() -> None:
    for path in (PACKAGE.parent / "launch").glob("*.py"):
        assert top_level(path) <= {"launch", "launch_ros", "qsteer_ros", "os"}, path.name
        assert own_rooms(path) <= {"graph", "nodes"}, path.name


def import_all(modules: list[str]) -> set[str]:
    """Top-level names in ``sys.modules`` of a fresh interpreter after importing ``modules``."""
    code = f"import sys, {', '.join(modules)}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", ["motion", "replay", "graph", "sim"])
def test_a_torch_free_room_loads_no_torch_by_any_path(name: str) -> None:
    if name == "sim":
        pytest.importorskip("ogbench")
    modules = [dotted(p) for p in MODULES if room(p) == name]
    assert "torch" not in import_all(modules)


@pytest.mark.parametrize("name", sorted(TORCH_FREE_NODES))
def test_a_torch_free_node_loads_no_torch_by_any_path(name: str) -> None:
    pytest.importorskip("rclpy")
    module = f"qsteer_ros.nodes.{name}"
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not part of this build")
    if name == "sim_node":
        pytest.importorskip("ogbench")
    assert "torch" not in import_all([module])


def test_the_command_line_loads_nothing_heavy_before_the_verb_is_known() -> None:
    assert not import_all(["qsteer_ros.cli"]) & {"torch", "mujoco", "rclpy", "numpy", "matplotlib"}
