r"""Diffusion policies as velocity fields.

A variance-preserving diffusion mixes action :math:`a` and noise :math:`\epsilon` with other
weights than a flow:

.. math:: x^{vp}_s = \alpha_s a + \sigma_s \epsilon, \quad \alpha_s^2 + \sigma_s^2 = 1
          \qquad\qquad x_\tau = \tau a + (1 - \tau) \epsilon

Where signal-to-noise ratios agree, :math:`\tau = \alpha / (\alpha + \sigma)`, one is a multiple of
the other, :math:`x^{vp} = x_\tau / \rho` with :math:`\rho = \sqrt{\tau^2 + (1 - \tau)^2}`, and the
velocity of the flow is :math:`v = \hat a - \hat\epsilon`. A DDIM step without added noise
(:math:`\eta = 0`) keeps :math:`\hat a` and :math:`\hat\epsilon` and changes their weights, which
on the right is a straight line: it *is* an Euler step of flow time. So whatever steers a flow
policy steers a diffusion policy, and ``schedule.sampler(steps)`` is DDIM.

Source:
    DDIM, arXiv:2010.02502, eqs. 12 and 13. v-prediction: arXiv:2202.00512, appendix D.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, Scheduled, VelocityField

DiffusionModel = Callable[[Tensor, Tensor], Tensor]
"""(noisy chunk in units of unit variance (B, H, A), timestep (B,)) -> prediction (B, H, A)."""

PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "trailing")
ASKED = ("nearest", "fractional")
ON_GRID = 1e-3
"""A flow time this near to a timestep, in timesteps, is that timestep's: float32 reads it so."""


@dataclass(frozen=True)
class DiffusionSchedule:
    r"""How much signal is left at each training timestep.

    Attributes:
        signal: :math:`\bar\alpha_i = \alpha_i^2` of timestep i, T numbers that fall from below 1
            to at least 0 (``alphas_cumprod`` in diffusers). Timestep 0 is the cleanest.

    Raises:
        ConfigError: The numbers do not fall, or leave [0, 1).
    """

    signal: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what is no diffusion."""
        falls = all(high > low for high, low in itertools.pairwise(self.signal))
        if not (self.signal and falls and self.signal[0] < 1.0 and self.signal[-1] >= 0.0):
            raise ConfigError(
                "'signal' must fall from below 1 to at least 0: got "
                f"{len(self.signal)} numbers, {self.signal[:2]} to {self.signal[-2:]}. "
                "It is the cumulative product of 1 - beta."
            )

    @staticmethod
    def from_betas(betas: Sequence[float]) -> DiffusionSchedule:
        r""":math:`\bar\alpha_i = \prod_{j \le i} (1 - \beta_j)`."""
        kept = (1.0 - float(beta) for beta in betas)
        return DiffusionSchedule(tuple(itertools.accumulate(kept, lambda one, two: one * two)))

    @staticmethod
    def linear(count: int, *, start: float = 1e-4, end: float = 0.02) -> DiffusionSchedule:
        """Betas evenly spaced (DDPM, arXiv:2006.11239): diffusers' ``linear``."""
        return DiffusionSchedule.from_betas(_evenly(start, end, count))

    @staticmethod
    def scaled_linear(count: int, *, start: float = 1e-4, end: float = 0.02) -> DiffusionSchedule:
        """Square roots of betas evenly spaced: diffusers' ``scaled_linear``."""
        roots = _evenly(math.sqrt(start), math.sqrt(end), count)
        return DiffusionSchedule.from_betas([root * root for root in roots])

    @staticmethod
    def cosine(count: int, *, max_beta: float = 0.999) -> DiffusionSchedule:
        """Nichol and Dhariwal (arXiv:2102.09672, eq. 17): diffusers' ``squaredcos_cap_v2``."""

        def left(share: float) -> float:
            return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

        shares = [index / count for index in range(count + 1)]
        betas = [1.0 - left(end) / left(start) for start, end in itertools.pairwise(shares)]
        return DiffusionSchedule.from_betas([min(beta, max_beta) for beta in betas])

    @staticmethod
    def vp(count: int, *, low: float = 0.1, high: float = 10.0) -> DiffusionSchedule:
        """The schedule of few timesteps in IDQL's, DAC's and QGF's code (arXiv:2112.07804)."""
        shares = ((2 * step - 1) / (2 * count**2) for step in range(1, count + 1))
        return DiffusionSchedule.from_betas(
            [1.0 - math.exp(-low / count - (high - low) * share) for share in shares]
        )

    @cached_property
    def angles(self) -> tuple[float, ...]:
        r""":math:`\arctan(\sigma_i / \alpha_i)`, rising from 0 (action) to pi/2 (noise)."""
        return tuple(math.atan2(math.sqrt(1.0 - left), math.sqrt(left)) for left in self.signal)

    @cached_property
    def taus(self) -> tuple[float, ...]:
        """Flow time of each timestep; falling."""
        pairs = ((math.sqrt(left), math.sqrt(1.0 - left)) for left in self.signal)
        return tuple(alpha / (alpha + sigma) for alpha, sigma in pairs)

    def timestep(self, flow_time: float) -> float:
        """The timestep with the signal-to-noise ratio of a flow time, between two if need be.

        It is interpolated in the angle arctan(sigma / alpha), which is finite at both ends and,
        for the cosine schedule, linear in the timestep. Beyond the cleanest timestep it is 0.

        Raises:
            ConfigError: The flow time is 1, or noisier than the noisiest timestep.
        """
        angle = math.atan2(1.0 - flow_time, flow_time)
        last = len(self.angles) - 1
        if not (flow_time < 1.0 and angle <= self.angles[-1] * (1.0 + 1e-6)):
            raise ConfigError(
                f"this diffusion model knows flow times from {self.taus[-1]:.6g} to below 1: "
                f"asked at {flow_time}. Take its schedule's flow times: schedule.sampler(steps)."
            )
        above = bisect_right(self.angles, angle)
        if above == 0:
            return 0.0
        if above > last:
            return float(last)
        low, high = self.angles[above - 1], self.angles[above]
        found = above - 1 + (angle - low) / (high - low)
        return float(round(found)) if abs(found - round(found)) < ON_GRID else found

    def flow_times(self, timesteps: Sequence[int]) -> tuple[float, ...]:
        """Flow times of timesteps, noisiest first, and 1 for the finished action.

        Raises:
            ConfigError: The timesteps do not fall, or the schedule lacks one.
        """
        steps = [int(timestep) for timestep in timesteps]
        falls = all(high > low for high, low in itertools.pairwise(steps))
        if not (steps and falls and steps[0] < len(self.signal) and steps[-1] >= 0):
            raise ConfigError(
                f"timesteps must fall within {len(self.signal) - 1} to 0: got {steps}."
            )
        return (*(self.taus[step] for step in steps), 1.0)

    def timesteps(self, steps: int, *, spacing: str = "leading") -> tuple[int, ...]:
        """The subset that DDIM visits, noisiest first, named as diffusers' ``timestep_spacing``.

        Args:
            steps: How many.
            spacing: ``leading`` is diffusers' default and stops short of the noisiest timestep;
                ``trailing`` begins there.

        Raises:
            ConfigError: There are not so many timesteps, or no such spacing.
        """
        count = len(self.signal)
        if not 1 <= steps <= count:
            raise ConfigError(f"steps must be 1 to {count}, the trained timesteps: got {steps}.")
        match spacing:
            case "leading":
                return tuple(step * (count // steps) for step in reversed(range(steps)))
            case "trailing":
                return tuple(round(count - step * count / steps) - 1 for step in range(steps))
            case _:
                raise ConfigError(
                    f"'spacing' must be one of {', '.join(SPACINGS)}: got '{spacing}'."
                )

    def sampler(
        self, steps: int, *, spacing: str = "leading", integrator: str = "euler"
    ) -> Sampler:
        """Integrator over a subset of the timesteps; with ``euler`` this is DDIM.

        The others also ask between timesteps. Give it ``enter(noise, sampler.flow_times[0])``.
        """
        times = self.flow_times(self.timesteps(steps, spacing=spacing))
        return Sampler(steps, integrator=integrator, times=times)


def enter(noise: Tensor, flow_time: float) -> Tensor:
    r"""Noise as the noisy chunk at which a diffusion sampler begins.

    A schedule that stops short of pure noise begins at a flow time above 0. Its samplers put
    standard normal noise there in place of a chunk of unit variance, which in flow time is
    :math:`x_\tau = \rho\, \epsilon`, :math:`\rho = \sqrt{\tau^2 + (1 - \tau)^2}`.

    Args:
        noise: Standard normal, (B, H, A).
        flow_time: Of the sampler's first step.

    Returns:
        x at that flow time, (B, H, A); the noise itself at flow time 0.
    """
    return noise if flow_time == 0.0 else math.hypot(flow_time, 1.0 - flow_time) * noise


def diffusion_field(
    model: DiffusionModel,
    schedule: DiffusionSchedule,
    *,
    predicts: str = "epsilon",
    clip: tuple[float, float] | None = None,
    asked: str = "nearest",
) -> VelocityField:
    r"""Turn a diffusion model into a velocity field on flow time 0 = noise, 1 = action.

    With u the model's answer at :math:`x^{vp} = x / \rho` the velocity is

    ============ ==================================== =======================================
    epsilon      u is :math:`\hat\epsilon`            :math:`(x - u) / \tau`
    sample       u is :math:`\hat a`                  :math:`(u - x) / (1 - \tau)`
    v_prediction :math:`\alpha \epsilon - \sigma a`   :math:`((2 \tau - 1)\, x / \rho - u) / \rho`
    ============ ==================================== =======================================

    Args:
        model: Conditioned on one observation, (B, H, A), (B,) -> (B, H, A), differentiable in its
            first argument.
        schedule: The one it was trained with.
        predicts: What it predicts, named as diffusers' ``prediction_type``.
        clip: Bounds of the clean prediction, None for none. The velocity then leads to the
            clipped prediction: :math:`(\operatorname{clip}(\hat a) - x) / (1 - \tau)`, as DDPM
            does and as DDIM does with ``use_clipped_model_output=True``. diffusers' DDIM without
            that flag moves on with the noise of the unclipped prediction, which no velocity field
            can express.
        asked: What the model is asked between timesteps. ``nearest`` is the nearest timestep, an
            int64 tensor; ``fractional`` the interpolated one, in the dtype of the chunk, for
            models that embed time continuously. On a timestep they agree.

    Returns:
        A `flow.TimedField`. It refuses (ConfigError) flow time 1 and flow times below the
        schedule's.

    Raises:
        ConfigError: An argument has no such value; or an epsilon-prediction with a schedule that
            reaches pure noise, of which it says nothing about the action.
    """
    for name, value, known in (("predicts", predicts, PREDICTIONS), ("asked", asked, ASKED)):
        if value not in known:
            raise ConfigError(f"'{name}' must be one of {', '.join(known)}: got '{value}'.")
    if predicts == "epsilon" and schedule.signal[-1] == 0.0:
        raise ConfigError(
            "an epsilon-prediction needs some signal at every timestep: the last has none. Use a "
            "schedule that stops short of pure noise, or a model that predicts the sample or v."
        )
    if clip is not None and not clip[0] < clip[1]:
        raise ConfigError(f"'clip' must be two rising numbers: got {clip}.")

    def at(tau: float) -> VelocityField:
        timestep = schedule.timestep(tau)
        radius = math.hypot(tau, 1.0 - tau)

        def velocity_at(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
            rows = _rows(noisy_chunk, timestep, asked)
            answer = model(noisy_chunk / radius, rows)
            velocity = _velocity(noisy_chunk, answer, tau, radius, predicts)
            if clip is None:
                return velocity
            clean = (noisy_chunk + (1.0 - tau) * velocity).clamp(*clip)
            return (clean - noisy_chunk) / (1.0 - tau)

        return velocity_at

    return Scheduled(at)


def _velocity(x: Tensor, answer: Tensor, tau: float, radius: float, predicts: str) -> Tensor:
    match predicts:
        case "epsilon":
            return (x - answer) / tau
        case "sample":
            return (answer - x) / (1.0 - tau)
        case _:
            return ((2.0 * tau - 1.0) / radius * x - answer) / radius


def _rows(noisy_chunk: Tensor, timestep: float, asked: str) -> Tensor:
    """The timestep as a model takes it, (B,)."""
    shape = (noisy_chunk.shape[0],)
    if asked == "nearest":
        return noisy_chunk.new_full(shape, round(timestep), dtype=torch.int64)
    return noisy_chunk.new_full(shape, timestep)


def _evenly(start: float, end: float, count: int) -> list[float]:
    return [start + (end - start) * index / max(count - 1, 1) for index in range(count)]
