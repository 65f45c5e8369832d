"""Real-time chunking beside every rule that asks a critic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fields import swirl, wavy
from torch import Tensor
from two_ways import chunk_noise, running

from qsteer_ros.flow import Sampler, VelocityField
from qsteer_ros.steering.bptt import bptt
from qsteer_ros.steering.guide import Rule
from qsteer_ros.steering.noisy_gradient import noisy_gradient
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qgf_jacobian import qgf_jacobian
from qsteer_ros.steering.qpilots_u import qpilots_u
from qsteer_ros.steering.random_matched import random_matched
from qsteer_ros.steering.ratio import at_ratio
from qsteer_ros.steering.rtc import rtc
from qsteer_ros.steering.zero import zero

COMMITTED, OVERLAP = 2, 6

CRITICS: dict[str, Callable[[], Rule]] = {
    "qgf": lambda: qgf(wavy, weight=0.4),
    "qpilots_u": lambda: qpilots_u(wavy, weight=0.4),
    "qpilots_u without Jacobian": lambda: qpilots_u(wavy, weight=0.4, keep_jacobian=False),
    "random_matched": lambda: random_matched(qgf(wavy, weight=0.4), seed=2),
    "at_ratio": lambda: at_ratio(qgf(wavy, weight=1.0), 0.4),
    "zero": lambda: zero(qgf(wavy, weight=0.4)),
    "qgf_jacobian": lambda: qgf_jacobian(wavy, weight=0.4),
    "noisy_gradient": lambda: noisy_gradient(wavy, weight=0.1),
    "bptt": lambda: bptt(wavy, weight=0.4, sampler=Sampler(7)),
}


def chain(previous: Tensor | None = None, **options: object) -> Rule:
    y = running() if previous is None else previous
    return rtc(y, committed=COMMITTED, overlap=OVERLAP, **options)  # type: ignore[arg-type]


def at(tau: float, batch: int = 4) -> Tensor:
    return torch.full((batch,), tau, dtype=torch.float64)


def push(field: VelocityField, tau: float = 0.4) -> Tensor:
    return field(chunk_noise(4), at(tau)) - swirl(chunk_noise(4), at(tau))


def free_norm(tensor: Tensor) -> Tensor:
    return tensor[:, COMMITTED:].flatten(1).norm(dim=1)


def only_held() -> Rule:
    """Hold, but guide nothing."""
    return chain(max_weight=0.0)
