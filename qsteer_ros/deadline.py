r"""Denoising against a deadline: guidance is dropped first, then steps.

A chunk is either guided in every step or in none. When time runs short the guided chunk is given
up and the frozen policy starts again from the noise, so that what comes out is the frozen
policy's chunk bit for bit; guidance is given up early enough for that. With c the cost of a step,
guided step k of T is taken only while

.. math:: \text{time left} \ge c^{guided}_k + \sum_{j < T} c^{frozen}_j

Only when the frozen policy's own steps do not fit are there fewer of them. Everything is decided
between steps: a step that has begun is never interrupted.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, VelocityField
from qsteer_ros.step_costs import StepCosts, upper_quartile

Clock = Callable[[], int]
"""Monotonic time, ns."""


@dataclass(frozen=True, eq=False)
class Deadline:
    """When a chunk must be done, and what its steps cost.

    Attributes:
        at_ns: On ``time.monotonic_ns``.
        costs: Estimates for the way it is steered; brought up to date by every chunk.
    """

    at_ns: int
    costs: StepCosts


@dataclass(frozen=True)
class DeadlineRecord:
    """How a chunk came about.

    Attributes:
        guidance: ``kept``, ``dropped``, or ``none`` where the steered field is the frozen one.
        dropped_at: Guided steps that were done when guidance was dropped; else None. Their result
            was discarded; a trace of the steered field still holds them.
        path: Flow times between which the chunk was integrated: the sampler's, or a part of them.
        last_resort: Whether it was led to flow time 1 by one Euler step because not even one step
            of the sampler's integrator fitted.
        planned_steps: T.
        spent_ns: From the call until the chunk was finished.
        left_ns: Until the deadline when the chunk was finished; negative when it was missed.
    """

    guidance: str
    dropped_at: int | None
    path: tuple[float, ...]
    last_resort: bool
    planned_steps: int
    spent_ns: int
    left_ns: int

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> DeadlineRecord:
        """From a log; names it does not know are left out."""
        known = {entry.name for entry in fields(cls)}
        values = {name: value for name, value in plain.items() if name in known}
        return cls(**{**values, "path": tuple(values["path"])})

    @property
    def steps(self) -> int:
        """Steps that made the chunk."""
        return len(self.path) - 1

    @property
    def steps_dropped(self) -> int:
        """Steps that were left out."""
        return self.planned_steps - self.steps

    @property
    def met(self) -> bool:
        """Whether the chunk was finished by the deadline."""
        return self.left_ns >= 0


def denoise_before(
    steered: VelocityField,
    frozen: VelocityField,
    noise: Tensor,
    sampler: Sampler,
    *,
    deadline_ns: int,
    costs: StepCosts,
    clock: Clock = time.monotonic_ns,
) -> tuple[Tensor, DeadlineRecord]:
    """Integrate to flow time 1 by a deadline, as far as that can be had.

    In this order, as time allows: every step guided; every step frozen; fewer, longer frozen
    steps, whose flow times are among the sampler's; one frozen Euler step. The last is also what a
    deadline that is over before the start leads to: there is always a chunk at flow time 1. A
    single Euler step lands on the mean of what the policy might do, which may be none of it, so
    look at the record before acting on a chunk of few steps or after its time.

    Args:
        steered: What `guide` returned. The very object ``frozen`` means there is no guidance.
        frozen: The field without steering.
        noise: x at the sampler's first flow time, (B, H, A). Not modified.
        sampler: Steps if nothing is short.
        deadline_ns: On ``clock``, when the chunk must be finished.
        costs: Estimates for these fields and this sampler; brought up to date.
        clock: Monotonic, ns. On CUDA it is read after the kernels of each step have finished: this
            is the price of a deadline, and a loop without one has no such stops.

    Returns:
        The chunk, (B, H, A), and how it came about. Where nothing was short the chunk is, bit for
        bit, ``sampler.denoise(steered, noise)``; where only guidance was dropped,
        ``sampler.denoise(frozen, noise)``.

    Raises:
        ConfigError: ``costs`` were measured for another number of steps.
    """
    if len(costs.frozen) != sampler.denoising_steps:
        raise ConfigError(
            f"step costs must be of {sampler.denoising_steps} steps: got {len(costs.frozen)}. "
            "Measure them with this sampler: measure_costs."
        )
    now = _after_kernels(clock, noise.device)
    run = _Run(sampler, costs, now, deadline_ns)
    start = now()
    chunk, dropped_at = None, None
    if steered is not frozen:
        chunk, dropped_at = run.guided(steered, noise)
    guidance = "none" if steered is frozen else "dropped" if chunk is None else "kept"
    visited, last_resort = tuple(range(sampler.denoising_steps + 1)), False
    if chunk is None:
        chunk, visited, last_resort = run.frozen(frozen, noise)
    end = now()
    return chunk, DeadlineRecord(
        guidance=guidance,
        dropped_at=dropped_at,
        path=tuple(sampler.flow_times[step] for step in visited),
        last_resort=last_resort,
        planned_steps=sampler.denoising_steps,
        spent_ns=end - start,
        left_ns=deadline_ns - end,
    )


def repeat(
    field: VelocityField, noise: Tensor, sampler: Sampler, record: DeadlineRecord
) -> Tensor:
    """The chunk of a record again, bit for bit, without a clock.

    Args:
        field: The steered one if guidance was kept, else the frozen one.
        noise: As then.
        sampler: As then.
        record: What `denoise_before` returned.
    """
    visited = [sampler.flow_times.index(flow_time) for flow_time in record.path]
    chunk = noise
    for step, target in itertools.pairwise(visited):
        last_resort = record.last_resort and target == sampler.denoising_steps
        chunk = _moved(sampler, field, chunk, step, target, last_resort)
    return chunk


def measure_costs(
    steered: VelocityField,
    frozen: VelocityField,
    noise: Tensor,
    sampler: Sampler,
    *,
    rounds: int = 8,
    clock: Clock = time.monotonic_ns,
) -> StepCosts:
    """Measure every step before the first chunk is due.

    Args:
        steered: As for `denoise_before`, on a typical observation.
        frozen: As there.
        noise: As there.
        sampler: As there.
        rounds: Measured chunks of each kind, of which the upper quartile counts; one more goes
            before them unmeasured, because a first call compiles and allocates.
        clock: As there.

    Raises:
        ConfigError: ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ConfigError(f"'rounds' must be at least 1: got {rounds}.")
    now = _after_kernels(clock, noise.device)

    def measured(field: VelocityField) -> list[int]:
        chunks = [_timed(field, noise, sampler, now) for _ in range(rounds + 1)]
        return [upper_quartile(costs) for costs in zip(*chunks[1:], strict=True)]

    costs = measured(frozen)
    return StepCosts(costs if steered is frozen else measured(steered), costs)


@dataclass
class _Run:
    """One chunk on its way."""

    sampler: Sampler
    costs: StepCosts
    now: Clock
    deadline_ns: int

    def guided(self, steered: VelocityField, x: Tensor) -> tuple[Tensor | None, int | None]:
        """The guided chunk; or None and the number of steps after which it was given up."""
        count, before = self.sampler.denoising_steps, self.now()
        for step in range(count):
            if self.deadline_ns - before < self.costs.guided[step] + sum(self.costs.frozen):
                self.costs.missed("guided", range(step, count))
                return None, step
            x = self.sampler.step(steered, x, step)
            after = self.now()
            self.costs.saw("guided", step, after - before)
            before = after
        return x, None

    def frozen(self, field: VelocityField, x: Tensor) -> tuple[Tensor, tuple[int, ...], bool]:
        """The frozen chunk in as many steps as fit, where they began and ended, and how it ended.

        The last is True when the way to the end was one evaluation, because no step fitted.
        """
        count, before = self.sampler.denoising_steps, self.now()
        visited, measured, last_resort = [0], set[int](), False
        while (step := visited[-1]) < count:
            stride = _stride(self.costs.frozen[step:], self.deadline_ns - before)
            if stride == 0 and step + 1 == count and self.sampler.integrator != "midpoint":
                stride = 1  # which is one evaluation
            last_resort = stride == 0
            target = min(step + stride, count) if stride else count
            x = _moved(self.sampler, field, x, step, target, last_resort)
            after = self.now()
            if self._costs_alike(step, target, last_resort):
                self.costs.saw("frozen", step, after - before)
                measured.add(step)
            visited.append(target)
            before = after
        if last_resort or len(visited) <= count:
            self.costs.missed("frozen", set(range(count)) - measured)
        return x, tuple(visited), last_resort

    def _costs_alike(self, step: int, target: int, last_resort: bool) -> bool:
        """Whether a step to target asks the field as often as the sampler's own step."""
        last = self.sampler.denoising_steps
        match self.sampler.integrator:
            case "heun":
                return (target == last) == (step + 1 == last)
            case "midpoint":
                return not last_resort
            case _:
                return True


def _moved(
    sampler: Sampler, field: VelocityField, x: Tensor, step: int, target: int, last_resort: bool
) -> Tensor:
    """From flow_times[step] to flow_times[target] in one step: x there."""
    if target == step + 1 and not last_resort:
        return sampler.step(field, x, step)
    start, end = sampler.flow_times[step], sampler.flow_times[target]
    times = (start, end, 1.0) if end < 1.0 else (start, 1.0)
    integrator = "euler" if last_resort else sampler.integrator
    return Sampler(len(times) - 1, integrator=integrator, times=times).step(field, x, 0)


def _stride(costs: Sequence[int], left_ns: int) -> int:
    """How many of the planned steps, of these costs, to take as one; 0 is all, Euler's way."""
    if sum(costs) <= left_ns:
        return 1
    fitting = left_ns // max(costs) if left_ns > 0 else 0
    return -(-len(costs) // fitting) if fitting else 0


def _timed(field: VelocityField, x: Tensor, sampler: Sampler, now: Clock) -> list[int]:
    """Cost of each step of one chunk, ns."""
    readings = [now()]
    for step in range(sampler.denoising_steps):
        x = sampler.step(field, x, step)
        readings.append(now())
    return [after - before for before, after in itertools.pairwise(readings)]


def _after_kernels(clock: Clock, device: torch.device) -> Clock:
    """The clock, read when the device has done what it was given."""
    if device.type != "cuda":
        return clock

    def read() -> int:
        torch.cuda.current_stream(device).synchronize()
        return clock()

    return read
