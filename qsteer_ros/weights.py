"""Between PyTorch modules and the arrays of a checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qsteer_ros.checkpoints import Checkpoint
from qsteer_ros.errors import ConfigError, DataError


def arrays_of(module: nn.Module, *, prefix: str) -> dict[str, NDArray[Any]]:
    """Parameters of a module as arrays, named ``prefix.name``."""
    return {
        f"{prefix}.{name}": tensor.detach().cpu().numpy()
        for name, tensor in module.state_dict().items()
    }


def load_frozen(
    module: nn.Module, checkpoint: Checkpoint, *, prefix: str, device: torch.device | str
) -> None:
    """Fill a module from a checkpoint, move it to the device and freeze it.

    Raises:
        DataError: A parameter is missing, unknown or of another shape.
    """
    stored = {
        name.removeprefix(f"{prefix}."): torch.from_numpy(np.array(array))
        for name, array in checkpoint.tensors.items()
        if name.startswith(f"{prefix}.")
    }
    try:
        module.load_state_dict(stored, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"checkpoint '{checkpoint.path}' must hold the weights its config.json describes: "
            f"{reason} Train or copy it again."
        ) from error
    module.to(device).eval().requires_grad_(False)


def statistics_of(
    checkpoint: Checkpoint, feature_dim: int, *, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the features it was trained on, each (F,).

    Raises:
        DataError: They are missing, of another length, or a deviation is not positive.
    """
    found = []
    for name in ("feature_mean", "feature_std"):
        array = checkpoint.tensors.get(name)
        if array is None or array.shape != (feature_dim,):
            raise DataError(
                f"checkpoint '{checkpoint.path}' must hold '{name}' of shape ({feature_dim},): "
                f"found {None if array is None else array.shape}. Refusing to act on unscaled "
                "features; train it again."
            )
        found.append(torch.from_numpy(np.array(array)).to(device))
    if not bool((found[1] > 0).all()):
        raise DataError(
            f"'feature_std' of checkpoint '{checkpoint.path}' must be positive: "
            f"got {float(found[1].min())}. Train it again."
        )
    return found[0], found[1]


def standardise(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Features in units of the training data's spread, (B, F); never an inference tensor."""
    with torch.inference_mode(False), torch.no_grad():
        return (features - mean) / deviation


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, *, rate: float) -> None:
    r"""Move the target's parameters towards the online ones.

    .. math:: \bar\theta \leftarrow \bar\theta + r \, (\theta - \bar\theta)

    The QGF code calls it with the online parameters from *before* the current critic step.

    Args:
        target: Changed in place.
        online: Same architecture.
        rate: r in (0, 1]; 1 copies.

    Raises:
        ConfigError: ``rate`` is not inside (0, 1]. Nothing has changed.
    """
    if not 0.0 < rate <= 1.0:
        raise ConfigError(f"'rate' must be inside (0, 1]: got {rate}. 0.005 is usual.")
    slow: list[Tensor] = list(target.parameters())
    fast: list[Tensor] = list(online.parameters())
    torch._foreach_lerp_(slow, fast, rate)


def rows_for(features: Tensor, chunks: int) -> Tensor:
    """One row of features per chunk: row b serves chunks b k to b k + k - 1.

    Args:
        features: One row for all chunks, or one for every k of them, (B, F).
        chunks: k B.

    Returns:
        (k B, F); of one row, a view.

    Raises:
        ConfigError: The chunks cannot be shared out evenly.
    """
    rows = len(features)
    if rows == chunks:
        return features
    if rows == 1:
        return features.expand(chunks, -1)
    if rows == 0 or chunks % rows:
        raise ConfigError(
            "every row of features must serve equally many chunks: got "
            f"{rows} rows for {chunks} chunks. Give one row, or one per chunk."
        )
    return features.unsqueeze(1).expand(-1, chunks // rows, -1).flatten(0, 1)
