"""What decides in an episode of the suite: a frozen policy, steered in one of several ways.

The same modes as on the arm, for many observations at once: row b of a batch has features and
noise of its own and does not influence the others. The noise of a decision, that of posterior
samples included, depends on its seed only, so that every method starts from the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.evaluation.suite_rollout import Actor, decision_seed
from qsteer_ros.flow import Sampler
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.noise_policy import NoisePolicy
from qsteer_ros.policies.posterior_map import MetaFlowMap
from qsteer_ros.posterior import PosteriorMap, glass_posterior
from qsteer_ros.steering.gradient_step import gradient_step
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.settings import SteeringSettings


def noise_of(seeds: Sequence[int], shape: tuple[int, int], *, each: int = 1) -> Tensor:
    """Standard normal noise of some decisions, (B each, H, A); those of one next to each other.

    The first of several is what a decision with one would get.

    Args:
        seeds: One per decision, B.
        shape: (H, A).
        each: Candidates per decision.
    """
    rows = [np.random.default_rng(seed).standard_normal((each, *shape)) for seed in seeds]
    return torch.from_numpy(np.concatenate(rows).astype(np.float32))


def steered_actor(
    policy: FlowPolicy,
    critic: Critic | None,
    settings: SteeringSettings,
    *,
    sampler: Sampler | None = None,
    posterior: MetaFlowMap | None = None,
) -> Actor:
    """A frozen policy, steered by a critic as the settings say.

    Args:
        policy: The policy.
        critic: Its critic; None will do for mode ``off``.
        settings: How.
        sampler: How the field is integrated; the default is ten Euler steps.
        posterior: ``qpilots_m``: the policy's trained map; None samples with the policy itself.

    Raises:
        ConfigError: The mode needs a critic and there is none, or the two do not fit.
    """
    if settings.needs_critic and critic is None:
        raise ConfigError(f"steering mode '{settings.mode}' needs a critic: none is given.")
    if critic is not None:
        critic.interface.check_same(
            policy.interface,
            mine="the critic",
            theirs="the policy",
            remedy="Train a critic for this policy: qsteer train critic.",
        )
    if posterior is not None:
        posterior.check_policy(policy)
    steps = Sampler() if sampler is None else sampler
    shape, bounds = (policy.horizon, policy.action_dim), policy.bounds

    def act(features: Tensor, seeds: Sequence[int]) -> Tensor:
        q = None if critic is None else critic.condition(features)
        each = settings.num_samples if settings.mode == "best_of_n" else 1
        noise = noise_of(seeds, shape, each=each)
        frozen = policy.condition(features)
        drawn = None
        if settings.mode == "qpilots_m":
            drawn = _each_its_own(
                glass_posterior(frozen, steps=settings.posterior_steps)
                if posterior is None
                else posterior.condition(features),
                seeds,
            )
        field = steer(
            frozen, q, settings, sampler=steps, bounds=bounds, seed=seeds[0], posterior=drawn
        )
        chunk = steps.denoise(field, noise).clamp(*bounds)
        if q is None or settings.mode not in ("best_of_n", "gradient_step"):
            return chunk
        if settings.mode == "gradient_step":
            ascent = gradient_step(
                chunk,
                q,
                step_size=settings.weight,
                steps=settings.ascent_steps,
                aggregate=settings.aggregate,
                direction="unit",
                keep="ascending",
                bounds=bounds,
            )
            return ascent.chunk
        best = settings.aggregate(q(chunk)).view(len(features), each).argmax(dim=1)
        return chunk.view(len(features), each, *shape)[torch.arange(len(features)), best]

    return act


def _each_its_own(posterior: PosteriorMap, seeds: Sequence[int]) -> PosteriorMap:
    """The same samples of a decision, whichever others it shares a batch with."""

    def samples(noise: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        tick = round(float(flow_time[0]) * 2**20)
        _, number, horizon, dims = noise.shape
        own = noise_of([decision_seed(s, tick) for s in seeds], (horizon, dims), each=number)
        return posterior(own.view_as(noise), noisy_chunk, flow_time)

    return samples


def noise_actor(
    policy: FlowPolicy, chooser: NoisePolicy, *, sampler: Sampler | None = None
) -> Actor:
    """A frozen policy whose noise is chosen by a trained actor (DSRL).

    Args:
        policy: The policy.
        chooser: Trained for this policy.
        sampler: How the field is integrated.

    Raises:
        ConfigError: The actor was trained for another policy.
    """
    if chooser.policy_hash != policy.hash:
        raise ConfigError(
            "a noise policy must be used with the flow policy it was trained for: it names "
            f"{chooser.policy_hash[:12]}, this is {policy.hash[:12]}. Train it again."
        )
    steps = Sampler() if sampler is None else sampler
    shape, bounds = (policy.horizon, policy.action_dim), policy.bounds

    def act(features: Tensor, seeds: Sequence[int]) -> Tensor:
        noise = chooser.condition(features).at(noise_of(seeds, shape))
        return steps.denoise(policy.condition(features), noise).clamp(*bounds)

    return act
