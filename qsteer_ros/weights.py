"""Between PyTorch modules and the arrays of a checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qsteer_ros.checkpoints import Checkpoint
from qsteer_ros.errors import DataError


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
