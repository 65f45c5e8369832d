"""Files of VLA prefixes: reading, batches, and features that are kept beside them.

A folder of ``*.safetensors``, one observation in each: ``prefix`` (L, D), float16 or float32;
``mask`` (L,) bool where some tokens are padding; ``proprio`` (P,). L may differ between files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.policies.extractors import Extractor

ROWS_AT_ONCE = 32
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PrefixFiles:
    """Checked files of prefixes.

    Attributes:
        paths: In the order of their names.
        width: D.
        tokens: Most tokens in a file.
        proprio_dim: P; 0 where the files hold none.
        hash: SHA-256 over names and contents.
    """

    paths: tuple[Path, ...]
    width: int
    tokens: int
    proprio_dim: int
    hash: str

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def batch(self, rows: Sequence[int]) -> Arrays:
        """Some of the files, padded to the longest of all.

        Returns:
            ``prefix`` (B, tokens, D) float32, zero where there is no token; ``mask``
            (B, tokens) bool; ``proprio`` (B, P) float32.
        """
        prefix = np.zeros((len(rows), self.tokens, self.width), np.float32)
        mask = np.zeros((len(rows), self.tokens), np.bool_)
        proprio = np.zeros((len(rows), self.proprio_dim), np.float32)
        for place, row in enumerate(rows):
            arrays = load_file(self.paths[row])
            length = len(arrays["prefix"])
            mask[place, :length] = arrays.get("mask", True)
            prefix[place, :length] = arrays["prefix"]
            prefix[place, ~mask[place]] = 0.0
            if self.proprio_dim:
                proprio[place] = arrays["proprio"]
        return {"prefix": prefix, "mask": mask, "proprio": proprio}


def find_prefixes(folder: str | Path) -> PrefixFiles:
    """Check every file of a folder.

    Raises:
        ConfigError: The folder holds no such file.
        DataError: A file is damaged, its arrays have other shapes or types than the first one's,
            a number is not finite, or it has no token; the message names it.
    """
    paths = tuple(sorted(Path(folder).glob("*.safetensors")))
    if not paths:
        raise ConfigError(
            f"'{folder}' must hold prefixes of a VLA, *.safetensors: there are none. "
            "Write one file per observation with 'prefix' (L, D)."
        )
    digest = hashlib.sha256()
    sizes: tuple[int, int] | None = None
    tokens = 0
    for path in paths:
        try:
            content = path.read_bytes()
            arrays = load_file(path)
        except Exception as error:
            raise DataError(f"'{path}' is damaged: {error}. Write it again.") from error
        digest.update(path.name.encode() + hashlib.sha256(content).digest())
        length, found = _checked(path, arrays)
        sizes = found if sizes is None else sizes
        if found != sizes:
            raise DataError(
                f"'{path}' must have the widths of the files before it, {sizes} (prefix, "
                f"proprio): it has {found}. Keep prefixes of one VLA and robot in a folder."
            )
        tokens = max(tokens, length)
    assert sizes is not None
    return PrefixFiles(paths, sizes[0], tokens, sizes[1], digest.hexdigest())


def _checked(path: Path, arrays: Arrays) -> tuple[int, tuple[int, int]]:
    """Length, and widths of prefix and proprioception."""
    prefix = arrays.get("prefix")
    if prefix is None or prefix.ndim != 2 or prefix.dtype not in (np.float16, np.float32):
        raise DataError(
            f"'{path}' must hold 'prefix', (L, D) float16 or float32: found "
            f"{None if prefix is None else (prefix.shape, str(prefix.dtype))}. Write it again."
        )
    mask = arrays.get("mask", np.ones(len(prefix), np.bool_))
    proprio = arrays.get("proprio", np.zeros(0, np.float32))
    if mask.shape != (len(prefix),) or mask.dtype != np.bool_ or not mask.any():
        raise DataError(
            f"'mask' of '{path}' must be ({len(prefix)},) bool with a True in it: found "
            f"{mask.shape} {mask.dtype}. Write it again."
        )
    if proprio.ndim != 1 or not (np.isfinite(prefix[mask]).all() and np.isfinite(proprio).all()):
        raise DataError(
            f"prefix and proprio (P,) of '{path}' must be finite: they are not. Write it again, "
            "or delete it."
        )
    return len(prefix), (prefix.shape[1], len(proprio))


def cache_features(extractor: Extractor, files: PrefixFiles, out: str | Path) -> Path:
    """Compute the features of all files once and keep them.

    Args:
        extractor: Of prefixes.
        files: What it reads.
        out: A safetensors file; it names extractor and files by their hashes.
    """
    parts = []
    for first in range(0, len(files), ROWS_AT_ONCE):
        arrays = files.batch(range(first, min(first + ROWS_AT_ONCE, len(files))))
        proprio = arrays.pop("proprio")
        parts.append(extractor.features_from_arrays(arrays, proprio).cpu().numpy())
    path = Path(out)
    partial = path.with_name(path.name + ".partial")
    save_file(
        {"features": np.concatenate(parts)},
        partial,
        {
            "extractor": extractor.hash,
            "prefixes": files.hash,
            "files": json.dumps([path.name for path in files.paths]),
        },
    )
    partial.replace(path)
    return path


def cached_features(
    path: str | Path, extractor: Extractor, files: PrefixFiles
) -> NDArray[np.float32]:
    """Features that :func:`cache_features` kept, (N, F), one row per file.

    Raises:
        ConfigError: There are none, or they are of another extractor or other files.
        DataError: The file is damaged.
    """
    try:
        with safe_open(path, "numpy") as file:  # type: ignore[no-untyped-call]
            meta, features = file.metadata() or {}, file.get_tensor("features")
    except FileNotFoundError as error:
        raise ConfigError(f"'{path}' must hold cached features: it is missing.") from error
    except Exception as error:
        raise DataError(f"'{path}' is damaged: {error}. Delete it.") from error
    for name, mine in (("extractor", extractor.hash), ("prefixes", files.hash)):
        if meta.get(name) != mine:
            raise ConfigError(
                f"cached features '{path}' must be of the same {name}: they are of "
                f"{str(meta.get(name))[:12]}, now it is {mine[:12]}. Delete the file."
            )
    found: NDArray[np.float32] = features
    return found
