"""What took part: hashes of the package's source, of checkpoints and of the robot file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from qsteer_ros import __version__, checkpoints
from qsteer_ros.resources import find

CHECKPOINTS = ("encoder", "policy", "critic", "noise_policy", "posterior_map")


def source_hash() -> str:
    """SHA-256 over the package's Python files, names and contents, hexadecimal."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def provenance(files: Mapping[str, str | None]) -> dict[str, str]:
    """Version of the package and hashes of everything named.

    Args:
        files: ``robot`` -> robot file; a kind of `CHECKPOINTS`, or that and more as in
            ``critic_goal1`` -> checkpoint folder, as the user wrote them. An empty name is left
            out.

    Raises:
        ConfigError: One of them does not exist or is of another kind.
        DataError: A checkpoint is damaged.
    """
    made_from = {"package": f"{__version__}+{source_hash()[:12]}"}
    for name, path in files.items():
        if not path:
            continue
        found = find(path)
        kind = next((kind for kind in CHECKPOINTS if f"{name}_".startswith(f"{kind}_")), None)
        if kind is not None:
            made_from[name] = checkpoints.load(found, kind=kind).hash
        else:
            made_from[name] = hashlib.sha256(found.read_bytes()).hexdigest()
    return made_from
