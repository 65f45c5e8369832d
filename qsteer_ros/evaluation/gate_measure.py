"""Ask a critic about held-out windows: values, gradients, other chunks, other inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qsteer_ros import ensemble
from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.gate_checks_inputs import Effect, Effects, groups_of
from qsteer_ros.critics.gate_settings import GateSettings
from qsteer_ros.ensemble import Aggregate, QFunction
from qsteer_ros.evaluation.gate_held_out import HeldOut, Ints
from qsteer_ros.flow import Sampler, sample_noise
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.steering.gradient import NORMALISED, Bounds, slope_at
from qsteer_ros.types import Array

BATCH = 4096
DIFFERENCED = 32
"""Windows whose gradient is held against finite differences, in every component."""
STEP = 1e-5
"""Of a central difference in float64, normalised action."""
STILL = 0.05
"""Standard deviation, in those of the training data or in normalised action, below which an input
hardly varies: permuting it says nothing."""

Condition = Callable[[Tensor], QFunction]


@dataclass(frozen=True, eq=False)
class Measured:
    """What the critic said.

    Attributes:
        value: Aggregated value of the chunk in the data, (M,).
        state_value: Of the frozen policy's chunk in the same state, (M,); without a policy that of
            the data.
        rows: Windows that were examined closely, (N,).
        gradient: At the chunk in the data, (N, D).
        policy_gradient: At the frozen policy's chunk, (N, D); without a policy (0, D).
        exact: Autograd in float64, (n, D).
        differences: Central differences in float64, (n, D).
        random_gain: Value of the chunk in the data less those of random chunks, (N, k).
        shuffled_gain: The same for chunks of other episodes, (N, k).
        spread: Standard deviation over members at the chunk in the data, (N,).
        random_spread: At random chunks, (N k,).
        members: E.
        effects: Of permuting inputs.
    """

    value: Array
    state_value: Array
    rows: Ints
    gradient: Array
    policy_gradient: Array
    exact: Array
    differences: Array
    random_gain: Array
    shuffled_gain: Array
    spread: Array
    random_spread: Array
    members: int
    effects: Effects


def measure(
    critic: Critic, held_out: HeldOut, settings: GateSettings, *, policy: FlowPolicy | None = None
) -> Measured:
    """Ask everything the checks need; deterministic for a seed.

    Args:
        critic: Of the same features and chunks as the windows.
        held_out: The windows.
        settings: ``reduction``, ``rho``, ``rows``, ``random_chunks``, ``seed``.
        policy: Its chunks are where steering asks; None examines the chunks of the data alone.
    """
    aggregate = ensemble.aggregate(settings.reduction, rho=settings.rho)
    bounds = NORMALISED if policy is None else policy.bounds
    features = torch.from_numpy(held_out.features)
    chunk = torch.from_numpy(held_out.chunk)
    own = chunk if policy is None else policy_chunks(policy, features, seed=settings.seed)
    rows = spread_rows(held_out.episode, settings.rows)
    near, near_chunk = features[rows], chunk[rows]
    gradient = gradients(critic.condition, near, near_chunk, aggregate, bounds)
    beside = gradients(critic.condition, near, own[rows], aggregate, bounds)
    few = rows[np.unique(np.linspace(0, len(rows) - 1, DIFFERENCED).astype(int))]
    exact, differences = differenced(in_double(critic), features[few], own[few], aggregate, bounds)
    source = np.random.default_rng(settings.seed)
    inside = members(critic.condition, near, near_chunk)
    count, repeated = settings.random_chunks, near.repeat_interleave(settings.random_chunks, 0)
    drawn = source.uniform(*bounds, size=(len(rows) * count, *chunk.shape[1:]))
    random = members(critic.condition, repeated, torch.from_numpy(drawn).to(chunk))
    others = torch.from_numpy(_other_episodes(held_out.episode, rows, count, source))
    shuffled = members(critic.condition, repeated, chunk[others])
    base = aggregate(inside).double().numpy()[:, None]
    return Measured(
        value=values(critic.condition, features, chunk, aggregate),
        state_value=values(critic.condition, features, own, aggregate),
        rows=rows,
        gradient=gradient,
        policy_gradient=gradient[:0] if policy is None else beside,
        exact=exact,
        differences=differences,
        random_gain=base - aggregate(random).double().numpy().reshape(-1, count),
        shuffled_gain=base - aggregate(shuffled).double().numpy().reshape(-1, count),
        spread=_spread(inside),
        random_spread=_spread(random),
        members=len(inside),
        effects=permutation_effects(critic, near, near_chunk, aggregate, source),
    )


def wins(gain: Array) -> Array:
    """Share of the others that are worth less, ties half, (N, k) -> (N,)."""
    found: Array = ((gain > 0.0) + 0.5 * (gain == 0.0)).mean(axis=1)
    return found


def policy_chunks(policy: FlowPolicy, features: Tensor, *, seed: int) -> Tensor:
    """One chunk of the frozen policy per state, within its bounds, (M, H, A)."""
    sampler, shape = Sampler(), (len(features), policy.horizon, policy.action_dim)
    noise = sample_noise(shape, seed=seed, device=features.device)
    with torch.no_grad():
        parts = [
            sampler.denoise(policy.condition(features[cut]), noise[cut])
            for cut in _batches(len(features))
        ]
    return torch.cat(parts).clamp(*policy.bounds)


def members(condition: Condition, features: Tensor, chunk: Tensor) -> Tensor:
    """Values of every member, (E, B), row b of the features for chunk b."""
    with torch.no_grad():
        parts = [condition(features[cut])(chunk[cut]) for cut in _batches(len(chunk))]
    return torch.cat(parts, dim=1)


def values(condition: Condition, features: Tensor, chunk: Tensor, aggregate: Aggregate) -> Array:
    """Aggregated values, (B,)."""
    found: Array = aggregate(members(condition, features, chunk)).double().numpy()
    return found


def gradients(
    condition: Condition, features: Tensor, chunk: Tensor, aggregate: Aggregate, bounds: Bounds
) -> Array:
    """Gradient of the aggregated value as steering asks for it, (B, D)."""
    parts = [
        slope_at(condition(features[cut]), chunk[cut], aggregate=aggregate, bounds=bounds).gradient
        for cut in _batches(len(chunk))
    ]
    found: Array = torch.cat(parts).flatten(1).double().numpy()
    return found


def differenced(
    critic: Critic, features: Tensor, chunk: Tensor, aggregate: Aggregate, bounds: Bounds
) -> tuple[Array, Array]:
    r"""Gradient by autograd and by central differences of step `STEP`, both (n, D).

    .. math:: d_j = \frac{\bar Q(a + h e_j) - \bar Q(a - h e_j)}{2h}

    Args:
        critic: In float64.
        features: (n, F).
        chunk: (n, H, A), within the bounds.
        aggregate: (E, B) -> (B,).
        bounds: Of normalised actions.
    """
    features, chunk = features.double(), chunk.double()
    exact = gradients(critic.condition, features, chunk, aggregate, bounds)
    found = np.empty_like(exact)
    shifts = STEP * torch.eye(exact.shape[1], dtype=torch.float64).view(-1, *chunk.shape[1:])
    both = torch.cat([shifts, -shifts])
    for row, point in enumerate(chunk):
        same = features[row : row + 1].expand(len(both), -1)
        ahead, behind = np.split(values(critic.condition, same, point + both, aggregate), 2)
        found[row] = (ahead - behind) / (2 * STEP)
    return exact, found


def in_double(critic: Critic) -> Critic:
    """The same critic in float64."""
    return replace(
        critic,
        network=copy.deepcopy(critic.network).double(),
        feature_mean=critic.feature_mean.double(),
        feature_std=critic.feature_std.double(),
    )


def permutation_effects(
    critic: Critic,
    features: Tensor,
    chunk: Tensor,
    aggregate: Aggregate,
    source: np.random.Generator,
) -> Effects:
    """What permuting inputs between windows does to the value; see `gate_checks_inputs`."""
    order = torch.from_numpy(source.permutation(len(features)))
    base = values(critic.condition, features, chunk, aggregate)
    flat = chunk.flatten(1)

    def moved(of_features: Ints, of_chunk: Ints) -> float:
        seen, done = features.clone(), flat.clone()
        seen[:, of_features] = features[order][:, of_features]
        done[:, of_chunk] = flat[order][:, of_chunk]
        after = values(critic.condition, seen, done.view_as(chunk), aggregate)
        return float(np.sqrt(np.square(after - base).mean()))

    none = np.zeros(0, dtype=np.int64)
    every, whole = np.arange(features.shape[1]), np.arange(flat.shape[1])
    varied = (features.std(dim=0) > STILL * critic.feature_std).numpy()
    moves = (flat.std(dim=0) > STILL).numpy()
    parts = [
        Effect(name, "feature", group, bool(varied[list(inputs)].any()), moved(inputs, none))
        for name, inputs, group in _feature_parts(critic.feature_names)
    ] + [
        Effect(name, "chunk", group, bool(moves[list(inputs)].any()), moved(none, inputs))
        for name, inputs, group in _chunk_parts(critic.interface.action_names, critic.horizon)
    ]
    return Effects(moved(every, whole), moved(every, none), moved(none, whole), tuple(parts))


def _feature_parts(names: tuple[str, ...]) -> Iterator[tuple[str, Ints, bool]]:
    """Name, indices and whether it is a group; a group of one is not named twice."""
    groups = groups_of(names)
    for group, inputs in groups.items():
        yield group, np.array(inputs), True
    for index, name in enumerate(names):
        if name not in groups or len(groups[name]) > 1:
            yield name, np.array([index]), False


def _chunk_parts(names: tuple[str, ...], horizon: int) -> Iterator[tuple[str, Ints, bool]]:
    """Action dimensions, positions in the chunk, and single numbers of it."""
    count = len(names)
    for axis, name in enumerate(names):
        yield f"action {name}", np.arange(axis, horizon * count, count), True
    for position in range(horizon):
        yield f"position {position}", np.arange(position * count, (position + 1) * count), True
    for place in range(horizon * count):
        name = f"action {names[place % count]} at position {place // count}"
        yield name, np.array([place]), False


def spread_rows(episode: Ints, count: int) -> Ints:
    """At most about ``count`` rows, equally many from each episode and evenly through it."""
    numbers = np.unique(episode)
    if len(numbers) > count:
        numbers = numbers[np.linspace(0, len(numbers) - 1, count).astype(int)]
    quota = count // len(numbers)
    chosen = []
    for number in numbers:
        mine = np.flatnonzero(episode == number)
        chosen.append(mine[np.unique(np.linspace(0, len(mine) - 1, quota).astype(int))])
    return np.concatenate(chosen)


def _other_episodes(episode: Ints, rows: Ints, count: int, source: np.random.Generator) -> Ints:
    """For each row ``count`` windows of other episodes, of any where there is one, (N count,)."""
    everything = np.arange(len(episode))
    found = []
    for row in rows:
        others = np.flatnonzero(episode != episode[row])
        found.append(source.choice(others if len(others) else everything, count))
    return np.concatenate(found)


def _spread(found: Tensor) -> Array:
    spread: Array = found.double().std(dim=0, unbiased=False).numpy()
    return spread


def _batches(count: int) -> Iterator[slice]:
    return (slice(first, first + BATCH) for first in range(0, count, BATCH))
