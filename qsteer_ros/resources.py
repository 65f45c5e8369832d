"""Where the files installed beside the code are: robot files, parameters, trained checkpoints."""

from __future__ import annotations

from pathlib import Path

from qsteer_ros.errors import ConfigError


def share_directory() -> Path:
    """Folder that holds ``config/`` and ``launch/``: the source tree, or ``share/qsteer_ros``.

    Raises:
        ConfigError: The package was copied without its shared files.
    """
    package = Path(__file__).resolve().parent
    if (package.parent / "package.xml").is_file():
        return package.parent
    for parent in package.parents:
        if (parent / "share" / "qsteer_ros" / "config").is_dir():
            return parent / "share" / "qsteer_ros"
    raise ConfigError(
        f"qsteer_ros needs its shared files: none found above {package}. "
        "Install the package with colcon or pip rather than copying it."
    )


def find(path: str | Path) -> Path:
    """Resolve a path given by the user: as it stands, else under ``config/`` of the package.

    Raises:
        ConfigError: Neither exists.
    """
    given = Path(path).expanduser()
    if given.exists():
        return given.resolve()
    shared = share_directory() / "config" / given
    if not given.is_absolute() and shared.exists():
        return shared
    places = [str(given.absolute())] + ([] if given.is_absolute() else [str(shared)])
    raise ConfigError(f"'{path}' must exist: nothing at {' or '.join(places)}. Check the path.")
