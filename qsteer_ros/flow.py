r"""Velocity fields and their integration: the one idea the package is built on.

A frozen policy, once it has seen an observation, *is* a velocity field. Flow time runs from 0
(Gaussian noise) to 1 (action) everywhere; a field trained with the opposite convention is turned
round once, at the edge, by :func:`from_noise_at_one`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError, DataError

VelocityField = Callable[[Tensor, Tensor], Tensor]
"""(noisy_chunk (B, H, A), flow_time (B,)) -> velocity (B, H, A), normalised action units."""

INTEGRATORS = ("euler", "midpoint", "heun")
SHORTEST_STEP = 3e-7
"""Of flow time. float32 resolves 6e-8 near 1, where a field must not be asked."""


@runtime_checkable
class TimedField(Protocol):
    """A velocity field whose form depends on flow time as a plain number.

    An integrator knows its flow times before it starts. It asks `at` once per evaluation and
    calls what it gets, so that nothing inside a step has to look at the value of a tensor.
    """

    def __call__(self, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        """As any velocity field; every row must have the same flow time."""
        ...

    def at(self, flow_time: float) -> VelocityField:
        """The field at this flow time."""
        ...


@dataclass(frozen=True)
class Scheduled:
    """The `TimedField` made of a function from flow time to velocity field.

    Attributes:
        at: Flow time -> velocity field at that time.
    """

    at: Callable[[float], VelocityField]

    def __call__(self, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        """Velocity (B, H, A); reads the flow time from the tensor.

        Raises:
            DataError: Rows differ in flow time: a batch that is denoised together shares it.
        """
        first = float(flow_time[0])
        if bool((flow_time != flow_time[0]).any()):
            raise DataError(
                "all rows of a batch must have the same flow time: got "
                f"{float(flow_time.min())} to {float(flow_time.max())}."
            )
        return self.at(first)(noisy_chunk, flow_time)


def field_at(velocity_field: VelocityField, flow_time: float) -> VelocityField:
    """What to call at this flow time: ``velocity_field.at(flow_time)``, or the field itself."""
    if isinstance(velocity_field, TimedField):
        return velocity_field.at(flow_time)
    return velocity_field


@dataclass(frozen=True)
class Sampler:
    r"""How a velocity field is integrated from noise to an action chunk.

    With :math:`h_k = \tau_{k+1} - \tau_k` one step is

    ======== =====================================================================
    euler    :math:`x + h v(x, \tau)`, order 1, one evaluation; the papers' choice
    midpoint :math:`x + h v(x + \tfrac h2 v(x, \tau), \tau + \tfrac h2)`, order 2, two
    heun     :math:`x + \tfrac h2 (v_1 + v_2)`, :math:`v_2 = v(x + h v_1, \tau + h)`, order 2, two
    ======== =====================================================================

    No integrator asks at flow time 1, where fields of concentrated data have a pole: Heun's last
    step is an Euler step, which with ``time_power`` p below 1 is long and lowers its order to 2p.
    Nothing is clipped.

    Attributes:
        denoising_steps: T >= 1.
        integrator: ``euler``, ``midpoint`` or ``heun``.
        time_power: p > 0 of the schedule :math:`\tau_k = 1 - (1 - k/T)^p`: 1 is uniform, above 1
            puts shorter steps near the action, below 1 near the noise.
        times: Explicit flow times instead, T + 1 numbers that rise from >= 0 to 1; overrides
            ``time_power``. They may start above 0 (a diffusion schedule that does not reach pure
            noise).

    Raises:
        ConfigError: A value is out of range.
    """

    denoising_steps: int = 10
    integrator: str = "euler"
    time_power: float = 1.0
    times: tuple[float, ...] | None = field(default=None)

    def __post_init__(self) -> None:
        """Refuse what no integrator can do."""
        if self.denoising_steps < 1:
            raise ConfigError(f"'denoising_steps' must be at least 1: got {self.denoising_steps}.")
        if self.integrator not in INTEGRATORS:
            raise ConfigError(
                f"'integrator' must be one of {', '.join(INTEGRATORS)}: got '{self.integrator}'."
            )
        if not (math.isfinite(self.time_power) and self.time_power > 0.0):
            raise ConfigError(
                f"'time_power' must be finite and positive: got {self.time_power}. 1 is uniform."
            )
        if self.times is not None and not (
            len(self.times) == self.denoising_steps + 1
            and self.times[0] >= 0.0
            and self.times[-1] == 1.0
        ):
            raise ConfigError(
                f"'times' must be {self.denoising_steps + 1} numbers that rise from at least "
                f"0 to 1: got {self.times}."
            )
        for start, end in itertools.pairwise(self.flow_times):
            if not end - start >= SHORTEST_STEP:
                name = "time_power" if self.times is None else "times"
                raise ConfigError(
                    f"'{name}' must give steps of at least {SHORTEST_STEP} of flow time, which "
                    f"float32 still tells apart: got one from {start} to {end}."
                )

    @cached_property
    def flow_times(self) -> tuple[float, ...]:
        """tau_0 to tau_T = 1."""
        if self.times is not None:
            return self.times
        count = self.denoising_steps
        if self.time_power == 1.0:
            return tuple(step / count for step in range(count + 1))
        return tuple(1.0 - (1.0 - step / count) ** self.time_power for step in range(count + 1))

    def step(self, velocity_field: VelocityField, noisy_chunk: Tensor, step: int) -> Tensor:
        """One step, from flow_times[step] to flow_times[step + 1]; (B, H, A) -> (B, H, A).

        Raises:
            ConfigError: There is no such step.
        """
        if not 0 <= step < self.denoising_steps:
            raise ConfigError(f"a step must be 0 to {self.denoising_steps - 1}: got {step}.")
        start, end = self.flow_times[step], self.flow_times[step + 1]
        first = self._ask(velocity_field, noisy_chunk, start)
        if self.integrator == "euler" or (self.integrator == "heun" and end >= 1.0):
            return self._moved(noisy_chunk, first, start, end)
        if self.integrator == "midpoint":
            middle = 0.5 * (start + end)
            halfway = noisy_chunk + (middle - start) * first
            inner = self._ask(velocity_field, halfway, middle)
            return self._moved(noisy_chunk, inner, start, end)
        there = self._moved(noisy_chunk, first, start, end)
        second = self._ask(velocity_field, there, end)
        return self._moved(noisy_chunk, 0.5 * (first + second), start, end)

    def denoise(
        self, velocity_field: VelocityField, noisy_chunk: Tensor, *, first_step: int = 0
    ) -> Tensor:
        """Integrate to flow time 1.

        Args:
            velocity_field: Frozen or steered.
            noisy_chunk: x at ``flow_times[first_step]``, (B, H, A): noise, if that is the first.
                Not modified.
            first_step: Steps before it are taken as done.

        Returns:
            x at flow time 1, (B, H, A), with the dtype and device of ``noisy_chunk``.

        Raises:
            ConfigError: ``first_step`` is not one of 0 to T.
        """
        if not 0 <= first_step <= self.denoising_steps:
            raise ConfigError(
                f"'first_step' must be 0 to {self.denoising_steps}: got {first_step}."
            )
        for step in range(first_step, self.denoising_steps):
            noisy_chunk = self.step(velocity_field, noisy_chunk, step)
        return noisy_chunk

    def _ask(self, velocity_field: VelocityField, noisy_chunk: Tensor, flow_time: float) -> Tensor:
        rows = noisy_chunk.new_full((noisy_chunk.shape[0],), flow_time)  # (B,)
        return field_at(velocity_field, flow_time)(noisy_chunk, rows)

    def _moved(self, noisy_chunk: Tensor, velocity: Tensor, start: float, end: float) -> Tensor:
        if self.times is None and self.time_power == 1.0:
            return noisy_chunk + velocity / self.denoising_steps
        return noisy_chunk + (end - start) * velocity


def denoise(velocity_field: VelocityField, noise: Tensor, *, denoising_steps: int) -> Tensor:
    r"""Integrate a velocity field from noise to an action chunk with explicit Euler steps.

    .. math:: x_{k+1} = x_k + \tfrac1T v(x_k, \tau_k), \qquad \tau_k = k / T

    `Sampler` has other integrators and schedules.

    Args:
        velocity_field: Frozen or steered.
        noise: x at flow time 0, (B, H, A). Not modified.
        denoising_steps: T >= 1.

    Returns:
        x at flow time 1, (B, H, A), with the dtype and device of ``noise``.

    Raises:
        ConfigError: ``denoising_steps`` is below 1.
    """
    return Sampler(denoising_steps).denoise(velocity_field, noise)


def predict_clean(noisy_chunk: Tensor, flow_time: Tensor, velocity: Tensor) -> Tensor:
    r"""One Euler step to flow time 1: :math:`\hat a = x + (1 - \tau) v`, (B, H, A)."""
    return noisy_chunk + (1.0 - flow_time).view(-1, 1, 1) * velocity


def from_noise_at_one(velocity_field: VelocityField) -> VelocityField:
    """Adapt a field trained with noise at flow time 1 (openpi, LeRobot) to noise at 0."""

    def turned(inner: VelocityField) -> VelocityField:
        return lambda noisy_chunk, flow_time: -inner(noisy_chunk, 1.0 - flow_time)

    if isinstance(velocity_field, TimedField):
        timed = velocity_field
        return Scheduled(lambda flow_time: turned(timed.at(1.0 - flow_time)))
    return turned(velocity_field)


def sample_noise(shape: tuple[int, ...], *, seed: int, device: torch.device) -> Tensor:
    """Standard normal noise that depends on nothing but ``seed`` and ``shape``, float32.

    It is drawn on the CPU, so a GPU and a CPU start from the same chunk.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device)
