"""QPILOTS-M: the gradient of the log-mean-exp of Q over samples of the clean chunk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qsteer_ros.ensemble import Aggregate, QFunction, pessimistic
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.posterior import PosteriorMap, posterior_at
from qsteer_ros.steering.coefficient import coefficient
from qsteer_ros.steering.gradient import Slope, check_weight, leaf, local_gradients, slope_at
from qsteer_ros.steering.guide import Held, Look, Push, Rule
from qsteer_ros.steering.ratio import match_drift
from qsteer_ros.steering.step_noise import StepNoise

SCALINGS = ("drift", "tilt")

_STREAM = 0x504F5354 << 64
"""Keeps posterior noise apart from other noise per step of the same seed."""


@dataclass(frozen=True)
class Tilt:
    r"""How a value becomes the logarithm of a weight.

    .. math:: z(\bar Q) = \tau \, \operatorname{clip}\Big(\frac{\bar Q - \text{mean}}{\text{std}},
              -c, c\Big)

    **A saturated sample has no gradient.** Where :math:`|\bar Q - \text{mean}| > c\,\text{std}`,
    the clip is flat: the sample keeps its share of the weight and adds no direction, and where
    all samples of a chunk are saturated, nothing is added at all. With stale statistics (a critic
    that has moved on) or a small c, steering goes silent exactly where the critic is surest; the
    trace then shows a ratio of 0.

    Attributes:
        mean: Of the aggregated value over the critic's data, return units.
        std: Its standard deviation, return units, > 0. See
            `qsteer_ros.critics.statistics.RunningStatistics`.
        clip: c > 0, in standard deviations; infinity does not clip.
        inverse_temperature: tau > 0, the strength of the tilt; the paper's 1.

    Raises:
        ConfigError: A value is out of range.
    """

    mean: float
    std: float
    clip: float
    inverse_temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no normalisation."""
        if not math.isfinite(self.mean):
            raise ConfigError(f"tilt 'mean' must be finite: got {self.mean}. Mean of the values.")
        if not (math.isfinite(self.std) and self.std > 0.0):
            raise ConfigError(
                f"tilt 'std' must be finite and positive: got {self.std}. A critic that gives "
                "every chunk the same value cannot steer; train it further."
            )
        if not self.clip > 0.0:
            raise ConfigError(
                f"tilt 'clip' must be positive: got {self.clip}. Standard deviations beyond which "
                "a value has no gradient; infinity does not clip."
            )
        if not (math.isfinite(self.inverse_temperature) and self.inverse_temperature > 0.0):
            raise ConfigError(
                "tilt 'inverse_temperature' must be finite and positive: got "
                f"{self.inverse_temperature}. Weight 0 switches guidance off."
            )

    def __call__(self, value: Tensor) -> Tensor:
        """Log-weight of each value, any shape, no unit."""
        normalised = (value - self.mean) / self.std
        return self.inverse_temperature * normalised.clamp(-self.clip, self.clip)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    r""":math:`\log \frac1N \sum_n e^{z_n}` over the last axis, (..., N) -> (...).

    Between the mean and the maximum; its gradient weighs samples by their softmax.
    """
    return torch.logsumexp(log_weights, dim=-1) - math.log(log_weights.shape[-1])


def qpilots_m(
    q: QFunction,
    posterior: PosteriorMap,
    *,
    weight: float,
    tilt: Tilt,
    seed: int,
    aggregate: Aggregate | None = None,
    num_samples: int = 4,
    scaling: str = "drift",
    times: Sequence[float] = (),
) -> Rule:
    r"""Push the field along the gradient of the log-tilt potential, estimated from samples.

    .. math:: X_n = \operatorname{clip}[\text{posterior}(\epsilon_n; x, t)], \qquad
              g = \nabla_x \log \frac1N \sum_{n=1}^N e^{z(\bar Q(X_n))}

    The gradient goes through the critic and through the map's dependence on x; the frozen field's
    own evaluation is not differentiated. The clip is straight-through: it moves the point that is
    judged and lets the gradient pass. What is added is

    ========== ======================================================= ========================
    ``drift``  :math:`\alpha \lVert v \rVert g / (\lVert g \rVert +`   the paper's: a bounded
               :math:`10^{-8})`                                        push, no sampler of pi*
    ``tilt``   :math:`\alpha \frac{1-t}{t} g`                          alpha = 1 samples the
                                                                       policy tilted by e^z, in
                                                                       the limit of many steps
                                                                       and samples
    ========== ======================================================= ========================

    At flow time 0 nothing is added and neither map nor critic is asked: the potential does not
    depend on x there. Noise is a function of seed, flow time and shape, so the field stays a
    function. An affine change of Q that the tilt's mean and std follow changes nothing; with a
    fixed tilt the scale of Q decides how the samples are weighed.

    Where actions are held (real-time chunking), samples are judged with these in their place.

    Per step the critic judges N + 1 chunks per row in one call: the samples, and the clean
    prediction for the trace, whose ``q`` is the value there as with every other method.

    Args:
        q: Critic for the same observation, (B, H, A) -> (E, B), any B; target networks.
        posterior: Where the samples come from: a trained meta flow map, or
            `posterior.glass_posterior` of the frozen field.
        weight: alpha >= 0; with ``drift`` the ratio of guidance to velocity. 0 leaves the field
            alone.
        tilt: How values become log-weights.
        seed: Of the samples' noise, >= 0; use another one for every chunk.
        aggregate: How members become one value; None is mean less half the spread.
        num_samples: N >= 1.
        scaling: ``drift`` or ``tilt``.
        times: Flow times that will be asked: their noise is drawn together, at the first.

    Returns:
        A rule for `guide`. In its `Slope`, ``gradient`` is that of the potential with respect to a
        shift of all samples together; the rest speaks of the clean prediction.

    Raises:
        ConfigError: A value is out of range.
        DataError: (From the rule) the map's samples have another shape, or no gradient.

    Source:
        QPILOTS, arXiv:2606.14801, eqs. 12 and 17 and its QPILOTS-M; the estimator is that of Meta
        Flow Maps, arXiv:2601.14430. The clip of samples and the statistics of the normalisation
        are ours: the paper's are not known.
    """
    check_weight(weight)
    _check(num_samples, scaling, seed)
    reduce = pessimistic(0.5) if aggregate is None else aggregate
    draw = StepNoise(_STREAM + seed, times)

    def potential(values: Tensor) -> Tensor:
        """(E, B (N + 1)) -> (B,); the last chunk of each row is only there to be reported."""
        return log_mean_exp(tilt(reduce(values).view(-1, num_samples + 1)[:, :num_samples]))

    def push(look: Look) -> Push:
        batch, *shape = look.noisy_chunk.shape
        noise = draw(look.tau, torch.Size((batch, num_samples, *shape)), like=look.noisy_chunk)
        with local_gradients():
            start, time = leaf(look.noisy_chunk), look.flow_time.clone()
            samples = posterior_at(posterior, look.tau)(noise, start, time)
        _check_samples(samples, noise)
        executed = _with_held(samples.detach(), look.held)
        chunks = torch.cat([executed, look.clean.unsqueeze(1)], dim=1)
        judged = slope_at(q, chunks.flatten(0, 1), aggregate=potential, bounds=look.bounds)
        at_samples = _without_held(judged.gradient.view_as(chunks)[:, :num_samples], look.held)
        with local_gradients():
            (gradient,) = torch.autograd.grad(samples, start, grad_outputs=at_samples.clone())
        gradient, slope = look.free(gradient), _at_clean(judged, at_samples, reduce)
        if scaling == "drift":
            return Push(match_drift(gradient, look.free(look.velocity), ratio=weight), slope)
        return Push(weight * coefficient("tilt").at(look.tau) * gradient, slope)

    def reseed(seed: int) -> None:
        draw.reseed(_STREAM + seed)

    return Rule(push, after=0.0, idle=weight == 0.0, reseed=reseed)


def _with_held(samples: Tensor, held: Held | None) -> Tensor:
    """Samples (B, N, H, A) as they would be executed: held rows are their actions."""
    if held is None:
        return samples
    actions = held.actions.unsqueeze(1) if held.actions.ndim == 3 else held.actions
    return torch.where(held.rows.view(1, 1, -1, 1), actions, samples)


def _without_held(gradient: Tensor, held: Held | None) -> Tensor:
    """Gradient at samples (B, N, H, A), zero in held rows."""
    if held is None:
        return gradient
    return torch.where(held.rows.view(1, 1, -1, 1), torch.zeros_like(gradient), gradient)


def _at_clean(judged: Slope, at_samples: Tensor, reduce: Aggregate) -> Slope:
    """What is reported: the answer at the clean prediction, the last chunk of each row."""
    every = at_samples.shape[1] + 1
    values = judged.values[:, every - 1 :: every]
    clipped = judged.clipped[every - 1 :: every]
    return Slope(at_samples.sum(dim=1), values, reduce(values), clipped)


def _check(num_samples: int, scaling: str, seed: int) -> None:
    if num_samples < 1:
        raise ConfigError(f"'num_samples' must be at least 1: got {num_samples}.")
    if scaling not in SCALINGS:
        raise ConfigError(f"'scaling' must be one of {', '.join(SCALINGS)}: got '{scaling}'.")
    if seed < 0:
        raise ConfigError(f"'seed' must be at least 0: got {seed}.")


def _check_samples(samples: Tensor, noise: Tensor) -> None:
    if samples.shape != noise.shape:
        raise DataError(
            f"the posterior map must give samples of shape {tuple(noise.shape)}: got "
            f"{tuple(samples.shape)}."
        )
    if not samples.requires_grad:
        raise DataError(
            "the posterior map must be differentiable in the noisy chunk: its samples carry no "
            "gradient. Do not detach inside the map, nor run it without gradients."
        )
