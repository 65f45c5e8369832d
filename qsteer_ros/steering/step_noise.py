"""Random numbers inside a field that stays a function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_STREAM = 0x52414E44
"""Keeps directions apart from other uses of the same seed, such as the initial noise."""


class StepNoise:
    """Standard normal noise that depends on seed, flow time and shape alone.

    It is drawn on the CPU, so a GPU and a CPU see the same numbers, and kept: what was asked
    once is not drawn, nor moved to the device, again.

    Args:
        seed: >= 0.
        times: Flow times that will be asked: drawn and moved together, with the first one.
    """

    def __init__(self, seed: int, times: Sequence[float] = ()) -> None:
        self._seed = seed
        self._times = tuple(times)
        self._drawn: dict[tuple[float, torch.Size, torch.device, torch.dtype], Tensor] = {}

    def __call__(self, tau: float, shape: torch.Size, *, like: Tensor) -> Tensor:
        """Noise of this shape for this flow time, with the dtype and device of ``like``."""
        kind = (torch.Size(shape), like.device, like.dtype)
        if (tau, *kind) not in self._drawn:
            wanted = dict.fromkeys((tau, *(time for time in self._times if time < 1.0)))
            missing = [time for time in wanted if (time, *kind) not in self._drawn]
            with torch.inference_mode(False):
                drawn = torch.stack([self._draw(time, shape, like.dtype) for time in missing])
                for time, noise in zip(missing, drawn.to(like.device), strict=True):
                    self._drawn[time, *kind] = noise
        return self._drawn[tau, *kind]

    def reseed(self, seed: int) -> None:
        """Draw what was asked so far anew for another seed, into the tensors it is in.

        For loops that were captured with these tensors. The host does not wait for the device.
        """
        self._seed = seed
        for device, dtype in {key[2:] for key in self._drawn}:
            some = {key: kept for key, kept in self._drawn.items() if key[2:] == (device, dtype)}
            drawn = torch.cat([self._draw(*key[:2], dtype).flatten() for key in some])
            if device.type == "cuda":  # at once, from memory the GPU can read by itself
                drawn = drawn.pin_memory().to(device, non_blocking=True)
            parts = torch.split(drawn, [kept.numel() for kept in some.values()])
            for kept, part in zip(some.values(), parts, strict=True):
                kept.copy_(part.view_as(kept))

    def _draw(self, tau: float, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        tick = round(tau * 2**20)
        sequence = np.random.SeedSequence([_STREAM, self._seed, tick])
        (state,) = sequence.generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state) >> 1)
        return torch.randn(shape, generator=generator, dtype=dtype)
