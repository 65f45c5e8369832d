"""Ways to compute the path of a chunk; the readable one is the reference, the others are faster.

A **backend** is the user's word, an **engine** the object that makes the path. Every engine gives
the readable loop's chunk up to rounding (a test holds each to it) and its own chunks bit for bit.

========== ==================================================================================
eager      the readable loop: `steering.modes.steer` and `flow.Sampler`; every mode, any device
compiled   CPU: the whole loop as one compiled kernel, gradients in closed form
cuda_graph CUDA: the readable loop, captured once and replayed without Python
auto       ``compiled`` on a CPU, ``cuda_graph`` on CUDA, where they can do what is asked; else
           ``eager``. Which one made a chunk is in its record.
========== ==================================================================================
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler
from qsteer_ros.policies.cuda_graph import CudaGraph
from qsteer_ros.policies.fast.coverage import not_covered
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.steering.settings import SteeringSettings
from qsteer_ros.steering.trace import Trace

BACKENDS = ("auto", "eager", "compiled", "cuda_graph")


class Engine(Protocol):
    """Makes the path of a chunk for one policy, critic, way of steering and sampler.

    Attributes:
        name: Of the backend, for the record.
    """

    name: str

    def denoise(
        self,
        features: Tensor,
        noise: Tensor,
        *,
        seed: int,
        trace: Trace | None = None,
        guided: bool = True,
    ) -> Tensor:
        """Integrate the steered field from noise to flow time 1.

        Args:
            features: Of one observation, as the encoder gives them, (1, F).
            noise: (B, H, A), float32, on the engine's device. Not modified.
            seed: Of the chunk; decides what is random in a mode.
            trace: Gets what the readable loop would put there; changes no bit of the result.
            guided: False integrates the frozen field: the unguided twin, bit for bit what an
                engine for mode ``off`` gives.

        Returns:
            x at flow time 1, (B, H, A), not clipped; a new tensor.
        """
        ...


def make_engine(
    backend: str,
    policy: FlowPolicy,
    critic: Critic | None,
    settings: SteeringSettings,
    sampler: Sampler,
    device: torch.device,
    *,
    mapped: bool = False,
) -> Engine | None:
    """The engine of a backend; None is the readable loop.

    Args:
        backend: One of `BACKENDS`.
        policy: The frozen policy, on ``device``.
        critic: On ``device``; None will do for mode ``off``.
        settings: How it steers.
        sampler: How the field is integrated.
        device: Where it runs.
        mapped: Whether the mode gets its samples from a trained posterior map, which only the
            readable loop asks.

    Raises:
        ConfigError: No backend has this name, or one that was asked for by name cannot do it.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"'backend' must be one of {', '.join(BACKENDS)}: got '{backend}'.")
    if mapped:
        if backend in ("auto", "eager"):
            return None
        raise ConfigError(
            f"backend '{backend}' cannot ask a posterior map: one is loaded for mode "
            f"'{settings.mode}'. Set backend: auto, or load no posterior map."
        )
    if backend == "cuda_graph" or (backend == "auto" and device.type == "cuda"):
        try:
            return CudaGraph(policy, critic, settings, sampler, device)
        except ConfigError:
            if backend != "auto":
                raise
    if backend == "compiled" or (backend == "auto" and device.type == "cpu"):
        obstacle = not_covered(policy, critic, settings, sampler, device)
        if not obstacle:
            from qsteer_ros.policies.fast.engine import CompiledEngine  # compiles when imported

            return CompiledEngine(policy, critic, settings, sampler)
        if backend == "compiled":
            raise ConfigError(
                f"for backend 'compiled', {obstacle}. Set backend: auto, which takes the readable "
                "loop where it has to."
            )
    return None
