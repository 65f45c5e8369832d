r"""The prefix of a frozen VLA as features, without training: mean over its tokens.

.. math:: f = \Big[ P \, \mathrm{LN}\Big( \frac{\sum_i m_i z_i}{\sum_i m_i} \Big),\; s \Big]

with the mask m, LayerNorm without parameters and, where wanted, a fixed matrix
:math:`P_{ij} \sim N(0, 1/D)`, so that every feature has unit variance. s is the proprioception.

Source: Q-Forge's state features, a projection to 512.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError, DataError

ARCHITECTURE = "pooled_prefix_v1"
PREFIX, MASK = "prefix", "mask"
"""Names of the arrays that extractors of a prefix are given."""


class PooledPrefix:
    """Mean token, normalised, perhaps projected.

    Attributes:
        feature_names: ``prefix_0`` ... and ``proprio_0`` ...
        hash: SHA-256 of the checkpoint.
    """

    def __init__(
        self,
        prefix_width: int,
        proprio_dim: int,
        projection: Tensor | None,
        *,
        checkpoint_hash: str,
    ) -> None:
        self._width, self._proprio_dim = prefix_width, proprio_dim
        self._projection = projection
        count = prefix_width if projection is None else len(projection)
        self.feature_names = prefix_feature_names("prefix", count, proprio_dim)
        self.hash = checkpoint_hash

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> PooledPrefix:
        """Read a checkpoint that :func:`save_pooled_prefix` wrote.

        Raises:
            ConfigError: It is another kind of checkpoint.
            DataError: It is damaged.
        """
        saved = checkpoints.load(folder, kind="encoder")
        keys = ("name", "prefix_width", "proprio_dim", "projection")
        found = checkpoints.architecture(saved, keys)
        if found["name"] != ARCHITECTURE:
            raise ConfigError(
                f"'{folder}' must have architecture '{ARCHITECTURE}': it has '{found['name']}'."
            )
        width, outputs = int(found["prefix_width"]), int(found["projection"])
        projection = None
        if outputs:
            array = saved.tensors.get("projection")
            if array is None or array.shape != (outputs, width):
                raise DataError(
                    f"'{folder}' must hold a projection of shape ({outputs}, {width}): found "
                    f"{None if array is None else array.shape}. Make it again."
                )
            projection = torch.from_numpy(np.array(array)).to(device)
        return cls(width, int(found["proprio_dim"]), projection, checkpoint_hash=saved.hash)

    @torch.no_grad()
    def features_from_arrays(
        self, inputs: Mapping[str, NDArray[Any]], proprio: NDArray[np.floating]
    ) -> Tensor:
        """The features of N observations.

        Args:
            inputs: ``prefix``, (N, L, D), and ``mask``, (N, L) bool; without it every token
                counts.
            proprio: (N, P).

        Returns:
            (N, F) float32.

        Raises:
            ConfigError: A shape is another one.
            DataError: A prefix has no token.
        """
        device = "cpu" if self._projection is None else self._projection.device
        prefix, mask = prefix_of(inputs, self._width, device)
        measured = proprio_of(proprio, len(prefix), self._proprio_dim, device)
        present = torch.where(mask[..., None], prefix, 0.0)
        mean = present.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        pooled = functional.layer_norm(mean, (self._width,))
        if self._projection is not None:
            pooled = pooled @ self._projection.T
        return torch.cat([pooled, measured], dim=1)


def save_pooled_prefix(
    folder: str | Path,
    *,
    prefix_width: int,
    proprio_dim: int,
    projection: int = 512,
    seed: int = 0,
) -> PooledPrefix:
    """Make a checkpoint; there is nothing to train.

    Args:
        folder: Where; one that is there is replaced.
        prefix_width: D, width of the VLA's tokens.
        proprio_dim: P.
        projection: Features to project to; 0 keeps all D.
        seed: Decides the matrix, which is stored.

    Raises:
        ConfigError: A size is out of range.
    """
    if prefix_width < 1 or proprio_dim < 0 or projection < 0:
        raise ConfigError(
            "a pooled prefix needs a positive width: got "
            f"prefix_width={prefix_width}, proprio_dim={proprio_dim}, projection={projection}."
        )
    source = np.random.default_rng(seed)
    matrix = source.standard_normal((projection, prefix_width)) / np.sqrt(prefix_width)
    config = {
        "kind": "encoder",
        "architecture": {
            "name": ARCHITECTURE,
            "prefix_width": prefix_width,
            "proprio_dim": proprio_dim,
            "projection": projection,
        },
        "feature_names": list(
            prefix_feature_names("prefix", projection or prefix_width, proprio_dim)
        ),
        "training": {"seed": seed},
    }
    tensors = {"projection": matrix.astype(np.float32)} if projection else {}
    checkpoints.save(folder, tensors, config)
    return PooledPrefix.load(folder)


def prefix_feature_names(name: str, count: int, proprio_dim: int) -> tuple[str, ...]:
    """``name_0`` ... and ``proprio_0`` ..., (count + proprio_dim,)."""
    return (
        *(f"{name}_{i}" for i in range(count)),
        *(f"proprio_{i}" for i in range(proprio_dim)),
    )


def prefix_of(
    inputs: Mapping[str, NDArray[Any]], width: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Prefix (N, L, D) float32 and mask (N, L) bool of what an extractor is given.

    Raises:
        ConfigError: A shape is another one.
        DataError: A prefix has no token.
    """
    array = inputs.get(PREFIX)
    if array is None or array.ndim != 3 or array.shape[2] != width:
        raise ConfigError(
            f"this extractor reads prefixes of shape (N, L, {width}): got "
            f"{None if array is None else array.shape}. Use the VLA it was made for."
        )
    mask = inputs.get(MASK, np.ones(array.shape[:2], dtype=np.bool_))
    if mask.shape != array.shape[:2] or mask.dtype != np.bool_:
        raise ConfigError(
            f"the mask of prefixes must be {array.shape[:2]} bool: got {mask.shape} {mask.dtype}."
        )
    if not mask.any(axis=1).all():
        raise DataError("a prefix must have at least one token: one mask is empty.")
    prefix = torch.from_numpy(np.ascontiguousarray(array)).to(device, torch.float32)
    return prefix, torch.from_numpy(np.ascontiguousarray(mask)).to(device)


def proprio_of(
    proprio: NDArray[np.floating], count: int, width: int, device: torch.device | str
) -> Tensor:
    """Proprioception (N, P) float32 of what an extractor is given.

    Raises:
        ConfigError: Its shape is another one.
    """
    if proprio.shape != (count, width):
        raise ConfigError(
            f"this extractor needs proprioception of shape ({count}, {width}): got "
            f"{proprio.shape}. Use the robot it was made for."
        )
    return torch.from_numpy(np.ascontiguousarray(proprio)).to(device, torch.float32)
