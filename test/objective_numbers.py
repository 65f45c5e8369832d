"""Numbers that the objectives of critics are tried on, in float64."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MEMBERS, BATCH, POSITIONS, CANDIDATES = 3, 6, 4, 5
Array = NDArray[np.float64]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return drawn(*shape, seed=seed).requires_grad_(True)


def plain(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


BOOTSTRAP = torch.tensor([0.9, 0.0, 0.81, 0.9, 0.0, 0.9], dtype=torch.float64)
NEXT_VALID = torch.tensor([True, False, False, True, True, False])
VALID = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
ENDED = torch.tensor(
    [
        [False, False, False, False],
        [False, True, True, True],
        [True, True, True, True],
        [False, False, False, True],
        [False, False, False, False],
        [False, False, True, True],
    ]
)


def asymmetric(gap: float, expectile: float) -> float:
    return (expectile if gap > 0 else 1.0 - expectile) * gap**2
