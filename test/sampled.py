"""Posterior maps with known answers, and rules and pushes made of them."""

from __future__ import annotations

import math

import torch
from fields import (
    noise,
    swirl,
    wavy,
)
from torch import Tensor

from qsteer_ros import ensemble
from qsteer_ros.ensemble import QFunction
from qsteer_ros.flow import predict_clean
from qsteer_ros.posterior import PosteriorMap
from qsteer_ros.steering.guide import Rule, guide
from qsteer_ros.steering.qpilots_m import Tilt, qpilots_m

PLAIN = Tilt(mean=0.0, std=1.0, clip=math.inf)
MEAN = ensemble.mean


def small() -> Tensor:
    """Noise whose samples stay inside the bounds."""
    return 0.2 * noise()


def scattered(normals: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
    """A smooth map that mixes noise with the clean prediction of a field that knows the time."""
    clean = predict_clean(noisy_chunk, flow_time, swirl(noisy_chunk, flow_time)).unsqueeze(1)
    return clean + 0.1 * torch.sin(normals) * (1.0 + clean.flip(3).square())


def clean_only(normals: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
    """The map whose every sample is the clean prediction."""
    clean = predict_clean(noisy_chunk, flow_time, swirl(noisy_chunk, flow_time))
    return clean.unsqueeze(1).expand_as(normals)


class Heard:
    """A posterior map that remembers the noise it was given."""

    def __init__(self, posterior: PosteriorMap) -> None:
        self._posterior, self.noise = posterior, list[Tensor]()

    def __call__(self, normals: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        self.noise.append(normals.clone())
        return self._posterior(normals, noisy_chunk, flow_time)


def rule(
    q: QFunction = wavy, posterior: PosteriorMap = scattered, *, weight: float = 0.5, **o: object
) -> Rule:
    options = {"tilt": PLAIN, "seed": 3, **o}
    return qpilots_m(q, posterior, weight=weight, **options)  # type: ignore[arg-type]


def push(q: QFunction, posterior: PosteriorMap, tau: float, **options: object) -> Tensor:
    start, time = small(), torch.full((4,), tau, dtype=torch.float64)
    field = guide(swirl, rule(q, posterior, **options))
    return field(start, time) - swirl(start, time)
