"""The readable loop on a GPU without Python: captured once, replayed for every chunk.

A chunk of ten steps is hundreds of small kernels, each of which costs the host more time to launch
than the GPU to run. A CUDA graph launches them all at once. What is captured is the readable loop
itself, with the same kernels in the same order: the chunk and its trace are the eager ones bit for
bit. What changes from chunk to chunk, features, noise and the random numbers of a rule, is copied
into the buffers that the captured kernels read.

Replays must follow one another on one stream, see :mod:`qsteer_ros.capture`.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from qsteer_ros import capture
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, Scheduled, VelocityField, field_at, sample_noise
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.steering.guide import Rule, guide
from qsteer_ros.steering.modes import critic_rule
from qsteer_ros.steering.settings import FIELD_MODES, SteeringSettings
from qsteer_ros.steering.trace import Trace


class CudaGraph:
    """The engine ``cuda_graph``: replays captured loops; see `engines.Engine`.

    Captured when the engine is made: the steered loop for the number of candidates of the mode,
    and the unguided one if the settings can ask for the twin. Another batch size is captured when
    it first comes. Memory is freed with the engine. Threads may share an engine, and one may make
    an engine while another replays its own; all must use the same stream.

    Args:
        policy: The frozen policy, on ``device``.
        critic: On ``device``; None will do for mode ``off``.
        settings: How it steers.
        sampler: How the field is integrated.
        device: A CUDA device.

    Raises:
        ConfigError: The device is no CUDA device, or the loop cannot be captured: a network that
            makes the host wait for the GPU, or too little memory.
    """

    name = "cuda_graph"

    def __init__(
        self,
        policy: FlowPolicy,
        critic: Critic | None,
        settings: SteeringSettings,
        sampler: Sampler,
        device: torch.device,
    ) -> None:
        if device.type != "cuda":
            raise ConfigError(
                f"backend 'cuda_graph' needs a CUDA device: the policy is on '{device}'. "
                "Set parameter 'device' to cuda, or 'backend' to auto."
            )
        self._bends = settings.mode in FIELD_MODES
        if self._bends and critic is None:
            raise ConfigError(f"steering mode '{settings.mode}' needs a critic: got None.")
        self._policy, self._critic = policy, critic
        self._settings, self._sampler = settings, sampler
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._loops: dict[tuple[int, bool], _Loop] = {}
        self._lock = threading.Lock()  # buffers serve one chunk at a time
        self._loop(settings.num_samples if settings.mode == "best_of_n" else 1, guided=True)
        if settings.twin_rate > 0.0 or not math.isinf(settings.max_displacement):
            self._loop(1, guided=False)

    def denoise(
        self,
        features: Tensor,
        noise: Tensor,
        *,
        seed: int,
        trace: Trace | None = None,
        guided: bool = True,
    ) -> Tensor:
        """As in `engines.Engine`; the host does not wait for the GPU.

        Raises:
            ConfigError: Features or noise have another shape, type or device than the policy's.
        """
        self._check(features, noise)
        with self._lock, torch.cuda.device(self._device):
            return self._loop(len(noise), guided=guided).replay(features, noise, seed, trace)

    def _loop(self, rows: int, *, guided: bool) -> _Loop:
        key = rows, guided and self._bends
        if key not in self._loops:
            self._loops[key] = self._capture(*key)
        return self._loops[key]

    def _capture(self, rows: int, guided: bool) -> _Loop:
        critic = self._critic if guided else None
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(self._device):
                return _Loop(
                    self._policy, critic, self._settings, self._sampler, self._device, rows
                )
        except RuntimeError as error:
            raise ConfigError(
                f"backend 'cuda_graph' must be able to capture mode '{self._settings.mode}' with "
                f"{rows} chunks: {' '.join(str(error).split())[:300]} Set 'backend' to eager."
            ) from error

    def _check(self, features: Tensor, noise: Tensor) -> None:
        row = (1, self._policy.interface.feature_dim)
        chunk = (self._policy.horizon, self._policy.action_dim)
        for name, tensor, fits in (
            ("features", features, tuple(features.shape) == row),
            ("noise", noise, noise.ndim == 3 and tuple(noise.shape[1:]) == chunk),
        ):
            if not (fits and tensor.dtype == torch.float32 and tensor.device == self._device):
                wanted = row if name == "features" else ("B", *chunk)
                raise ConfigError(
                    f"{name} must have shape ({', '.join(map(str, wanted))}), float32, on "
                    f"{self._device}: got {tuple(tensor.shape)}, {tensor.dtype}, on "
                    f"{tensor.device}."
                )


class _Observed:
    """Field and value function of the observation in a buffer; rules are made on them once.

    `look` belongs into the capture: it standardises what is in the buffer then.
    """

    def __init__(self, policy: FlowPolicy, critic: Critic | None, features: Tensor) -> None:
        self._policy, self._critic, self._features = policy, critic, features
        self.look()

    def look(self) -> None:
        """Condition policy and critic on the features in the buffer."""
        self._field = self._policy.condition(self._features)
        self._q = None if self._critic is None else self._critic.condition(self._features)

    @property
    def field(self) -> VelocityField:
        """The frozen field."""
        return Scheduled(lambda tau: field_at(self._field, tau))

    def q(self, chunk: Tensor) -> Tensor:
        """The critic, (B, H, A) -> (E, B)."""
        assert self._q is not None, "only rules that steer ask a critic"
        return self._q(chunk)


class _Loop:
    """One captured loop with its buffers; ``critic`` None integrates the frozen field."""

    def __init__(
        self,
        policy: FlowPolicy,
        critic: Critic | None,
        settings: SteeringSettings,
        sampler: Sampler,
        device: torch.device,
        rows: int,
    ) -> None:
        self._features = torch.zeros(1, policy.interface.feature_dim, device=device)
        shape = (rows, policy.horizon, policy.action_dim)
        self._noise = sample_noise(shape, seed=0, device=device)
        observed = _Observed(policy, critic, self._features)
        self._rules, self._seed = list[Rule](), 0
        if critic is not None:
            rule = critic_rule(observed.field, observed.q, settings, sampler=sampler, seed=0)
            self._rules.append(rule)
        trace = Trace()
        field = guide(
            observed.field, *self._rules, bounds=policy.bounds, limits=settings.limits, trace=trace
        )

        def chunk() -> Tensor:
            trace.clear()
            observed.look()
            return sampler.denoise(field, self._noise)

        def rehearsal() -> None:
            chunk()
            if len(trace):
                trace.columns()

        with capture.one_at_a_time:
            capture.warm_up(rehearsal, device)
            self._graph, self._chunk = capture.captured(chunk, device)
            self._summary: tuple[torch.cuda.CUDAGraph, Tensor] | None = None
            if len(trace):
                self._summary = capture.captured(trace.columns, device, after=self._graph)
                trace.clear()

    def replay(self, features: Tensor, noise: Tensor, seed: int, trace: Trace | None) -> Tensor:
        """The chunk of these features, noise and seed, (B, H, A)."""
        self._features.copy_(features)
        self._noise.copy_(noise)
        if seed != self._seed:
            for rule in self._rules:
                if rule.reseed is not None:
                    rule.reseed(seed)
            self._seed = seed
        self._graph.replay()
        if trace is not None and self._summary is not None:
            graph, columns = self._summary
            graph.replay()
            trace.fill(columns.clone())
        return self._chunk.clone()
