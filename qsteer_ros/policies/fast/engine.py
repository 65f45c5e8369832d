"""The engine that runs the compiled loop."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.networks import EnsembleMLP
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler
from qsteer_ros.policies.fast import arithmetic, many_rows, one_row
from qsteer_ros.policies.fast.coverage import is_idle
from qsteer_ros.policies.fast.kept import Versions, counted, kept, versions_of
from qsteer_ros.policies.fast.packing import (
    LAYERS,
    Array,
    Packed,
    aligned,
    along_flow,
    critic_nets,
    field_net,
    pack_rows,
    pack_tiles,
    padded,
)
from qsteer_ros.policies.fast.steps import Steps
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.steering.settings import SteeringSettings
from qsteer_ros.steering.trace import Trace

NOBODY = Packed(np.zeros(2 * LAYERS, np.int64), aligned(0))
"""A critic without members."""


class _Weights(NamedTuple):
    """Packed networks, the versions of the tensors they were packed from, and scratch of a row."""

    versions: Versions
    field: Packed
    along: Array
    critic: Packed
    scratch: int


class CompiledEngine:
    """Runs the loop of one policy, critic, way of steering and sampler as compiled code.

    Weights are packed when the engine is made, and again when the networks' tensors have been
    written to since (as their version counters tell; ``tensor.data`` has none). Several threads
    may use one engine. A batch is shared by ``torch.get_num_threads()`` threads, a single chunk
    takes one; no bit of the result depends on their number.

    Attributes:
        name: ``compiled``.
    """

    name = "compiled"

    def __init__(
        self,
        policy: FlowPolicy,
        critic: Critic | None,
        settings: SteeringSettings,
        sampler: Sampler,
    ) -> None:
        """Pack the networks; what they are must be `coverage.not_covered`'s empty string."""
        self._policy, self._settings, self._sampler = policy, settings, sampler
        self._idle = is_idle(settings)
        self._critic = None if self._idle else critic
        networks = [policy.network, *([] if self._critic is None else [self._critic.network])]
        self._tensors = tuple(chain(*(counted(network) for network in networks)))
        parts = (policy, policy if self._critic is None else self._critic)
        self._statistics = [
            (part.feature_mean.numpy(), part.feature_std.numpy()) for part in parts
        ]
        self._times = np.asarray(sampler.flow_times[:-1], np.float32)
        self._numbers = _numbers(settings, policy.bounds)
        self._choices = {
            (guided, keep): _choices(settings, sampler, idle=self._idle or not guided, keep=keep)
            for guided in (False, True)
            for keep in (False, True)
        }
        self._packed: dict[bool, _Weights] = {}
        self._spare: dict[tuple[bool, int, int], list[Array]] = {}
        self._weights(many=settings.mode == "best_of_n")

    def denoise(
        self,
        features: Tensor,
        noise: Tensor,
        *,
        seed: int,
        trace: Trace | None = None,
        guided: bool = True,
    ) -> Tensor:
        """As `engines.Engine.denoise`; ``seed`` is not used, nothing here is random.

        Raises:
            ConfigError: Features or noise have another shape or type.
        """
        self._check(features, noise)
        batch, horizon, action_dim = noise.shape
        start = noise.detach().reshape(batch, -1).contiguous().numpy()
        chunk = np.empty_like(start)
        keep = trace is not None and guided and not self._idle
        weights = self._weights(many=batch > 1)
        members = int(weights.critic.table[0])
        steps = Steps.make(self._sampler.denoising_steps, start.shape, members, keep=keep)
        row = features.detach().numpy()[0]
        seen, judged = ((row - mean) / deviation for mean, deviation in self._statistics)
        arguments = (
            self._choices[guided, keep],
            self._numbers,
            self._times,
            *weights.field,
            weights.along,
            seen,
            *weights.critic,
            judged,
            start,
        )
        if batch == 1:
            self._run_one(weights, arguments, (chunk, *steps))
        else:
            self._run_many(weights, arguments, (chunk, *steps), batch)
        if keep:
            assert trace is not None
            first = int(self._choices[guided, keep][arithmetic.FIRST])
            steps.record(
                trace,
                self._times,
                (horizon, action_dim),
                first=first,
                aggregate=self._settings.aggregate,
                bounds=self._policy.bounds,
            )
        return torch.from_numpy(chunk).view(batch, horizon, action_dim)

    def _run_one(
        self, weights: _Weights, arguments: tuple[Any, ...], results: tuple[Any, ...]
    ) -> None:
        with _Borrowed(self._spare, (False, 1, weights.scratch)) as scratch:
            one_row.sample_one(*arguments, scratch[0], *results)

    def _run_many(
        self,
        weights: _Weights,
        arguments: tuple[Any, ...],
        results: tuple[Any, ...],
        batch: int,
    ) -> None:
        workers, block = _shares(batch, torch.get_num_threads())
        size = many_rows.scratch_size(weights.field, weights.critic, block)
        with _Borrowed(self._spare, (True, workers, size)) as scratch:

            def work(worker: int) -> None:
                split = np.array([worker, workers, block])
                many_rows.sample_rows(split, *arguments, scratch, *results)

            _on_threads(work, workers)

    def _weights(self, *, many: bool) -> _Weights:
        """The networks in rows or tiles, packed anew when a tensor has changed."""
        versions = versions_of(self._tensors)
        found = self._packed.get(many)
        if found is None or found.versions != versions:
            found = self._packed[many] = self._pack(versions, many)
        return found

    def _pack(self, versions: Versions, many: bool) -> _Weights:
        pack = pack_tiles if many else pack_rows
        network, times = self._policy.network, self._sampler.flow_times[:-1]
        field = kept(network, many, lambda: pack([field_net(network)]))
        along = kept(network, times, lambda: along_flow(network, times))
        critic = NOBODY
        if self._critic is not None:
            judge = self._critic.network
            assert isinstance(judge, EnsembleMLP)  # coverage.py has seen to it
            critic = kept(judge, many, lambda: pack(critic_nets(judge, network.chunk_dim)))
        scratch = one_row.scratch_size(field, critic)
        return _Weights(versions, field, along, critic, scratch)

    def _check(self, features: Tensor, noise: Tensor) -> None:
        """Refuse what the kernels would read past the end of."""
        interface = self._policy.interface
        expected = (1, interface.feature_dim)
        if tuple(features.shape) != expected:
            raise ConfigError(
                f"backend 'compiled' needs the features of one observation, {expected}: got "
                f"{tuple(features.shape)}."
            )
        shape = (interface.horizon, interface.action_dim)
        if noise.ndim != 3 or tuple(noise.shape[1:]) != shape or noise.shape[0] < 1:
            raise ConfigError(
                f"noise must have the shape (B, {shape[0]}, {shape[1]}): got {tuple(noise.shape)}."
            )
        for name, tensor in (("features", features), ("noise", noise)):
            if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                raise ConfigError(
                    f"backend 'compiled' needs {name} of type torch.float32 on cpu: got "
                    f"{tensor.dtype} on {tensor.device}. Set backend: eager for others."
                )


class _Borrowed:
    """Scratch of some size for one call: spare, or new where others use what is there."""

    def __init__(
        self, spare: dict[tuple[bool, int, int], list[Array]], key: tuple[bool, int, int]
    ) -> None:
        self._shelf, self._key = spare.setdefault(key, []), key

    def __enter__(self) -> Array:
        try:
            self._scratch = self._shelf.pop()
        except IndexError:
            _, workers, size = self._key
            size = padded(size, 16)
            self._scratch = aligned(workers * size).reshape(workers, size)
        return self._scratch

    def __exit__(self, *_: object) -> None:
        self._shelf.append(self._scratch)


def _shares(batch: int, threads: int) -> tuple[int, int]:
    """Workers, and rows of a block: as many blocks for each worker, of at most `BLOCK` rows."""
    workers = max(1, min(threads, -(-batch // 4)))
    blocks = padded(-(-batch // many_rows.BLOCK), workers)
    return workers, padded(-(-batch // blocks), 4)


def _on_threads(work: Callable[[int], None], workers: int) -> None:
    """Worker 0 is the caller; kernels let go of the interpreter."""
    failed: list[BaseException] = []

    def guarded(worker: int) -> None:
        try:
            work(worker)
        except BaseException as error:
            failed.append(error)

    others = [threading.Thread(target=guarded, args=(worker,)) for worker in range(1, workers)]
    for thread in others:
        thread.start()
    guarded(0)
    for thread in others:
        thread.join()
    if failed:
        raise failed[0]


def _numbers(settings: SteeringSettings, bounds: tuple[float, float]) -> Array:
    numbers = np.zeros(arithmetic.NUMBERS, np.float32)
    numbers[arithmetic.WEIGHT] = 1.0 if settings.ratio > 0.0 else settings.weight
    numbers[arithmetic.RHO] = settings.rho if settings.reduction == "pessimistic" else 0.0
    numbers[arithmetic.RATIO] = settings.ratio
    numbers[arithmetic.MAX_RATIO] = settings.max_ratio
    numbers[arithmetic.LOW], numbers[arithmetic.HIGH] = bounds
    return numbers


def _choices(
    settings: SteeringSettings, sampler: Sampler, *, idle: bool, keep: bool
) -> NDArray[np.int64]:
    mode, steps = settings.mode, sampler.denoising_steps
    choices = np.zeros(arithmetic.CHOICES, np.int64)
    choices[arithmetic.STEPS] = steps
    choices[arithmetic.FIRST] = steps if idle else int(mode == "qpilots_u")
    choices[arithmetic.MINIMUM] = settings.reduction == "min"
    choices[arithmetic.PULL] = mode == "qgf_jacobian" or (
        mode == "qpilots_u" and settings.keep_jacobian
    )
    choices[arithmetic.CUT] = mode == "qgf_jacobian"
    choices[arithmetic.MATCH] = mode == "qpilots_u"
    choices[arithmetic.ADD] = mode != "zero"
    choices[arithmetic.LIMIT] = math.isfinite(settings.max_ratio)
    choices[arithmetic.PROJECT] = settings.project
    choices[arithmetic.KEEP] = keep
    return choices
