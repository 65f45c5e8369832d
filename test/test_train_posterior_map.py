"""Training a posterior map: its loss, its samples on a mixture, its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import spread_normals
from posteriors import LINES, clean_chunks, data_of, energy_test, exact_policy, space
from sampled import MEAN, rule
from torch import Tensor

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, predict_clean
from qsteer_ros.learning.settings_posterior_map import PosteriorMapSettings
from qsteer_ros.learning.train_posterior_map import (
    PosteriorLearner,
    distances,
    train_posterior_map,
)
from qsteer_ros.learning.trainer import Trainer
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP
from qsteer_ros.policies.posterior_map import MetaFlowMap
from qsteer_ros.posterior import PosteriorMap, glass_velocity
from qsteer_ros.steering.guide import guide

FREE = (-float("inf"), float("inf"))
NOTHING = torch.zeros(1, 1)
"""Features of a policy that sees nothing."""

TIMES = (0.0, 0.2, 0.5, 0.8)
LEVEL = 0.01


def settings(**given: object) -> PosteriorMapSettings:
    usual = {"steps": 1000, "hidden": "64,64", "learning_rate": 5e-3, "warmup": 50}
    return PosteriorMapSettings(**{**usual, "lr_floor": 0.02, **given})  # type: ignore[arg-type]


@cache
def trained() -> MetaFlowMap:
    """Distilled from the exact field of the mixtures, in seconds."""
    learner = PosteriorLearner(data_of(), exact_policy(), settings())
    trainer = Trainer(learner, settings())
    for number in range(settings().steps):
        trainer.step(number)
    return MetaFlowMap(
        learner.average, torch.zeros(1), torch.ones(1), space(), {"policy_hash": "exact"}
    )


# On mixtures of Gaussians, where the truth is known


def noisy(count: int, t: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean chunks, the noisy chunks made of them, and flow times."""
    clean = clean_chunks(count, seed)
    source = torch.Generator().manual_seed(seed + 1)
    normal = torch.randn(clean.shape, dtype=clean.dtype, generator=source)
    return clean, (1.0 - t) * normal + t * clean, torch.full((count,), t, dtype=clean.dtype)


def predicted(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
    velocity = exact_policy().condition(NOTHING)(noisy_chunk, flow_time)
    return predict_clean(noisy_chunk, flow_time, velocity)


def one_step(noisy_chunk: Tensor, flow_time: Tensor, seed: int = 5) -> Tensor:
    """One sample per noisy chunk."""
    noise = torch.randn((len(noisy_chunk), 1, 1, 2), generator=torch.Generator().manual_seed(seed))
    samples = trained().condition(NOTHING)(noise, noisy_chunk.float(), flow_time.float())
    return samples[:, 0].double()


@pytest.mark.parametrize("t", TIMES)
def test_one_step_samples_are_those_of_the_true_posterior(t: float) -> None:
    """Pairs of noisy and clean chunk, true against sampled; the point estimate must fail.

    What is compared is the noisy chunk together with the clean chunk's distance from the clean
    prediction, in units of the true spread: 500 true pairs against 500 others.
    """
    clean, at_clean, flow_time = noisy(500, t, seed=10)
    _, at_sample, _ = noisy(500, t, seed=20)
    spread = (clean - predicted(at_clean, flow_time)).std(dim=0)

    def pairs(chunk: Tensor, noisy_chunk: Tensor) -> Tensor:
        off = (chunk - predicted(noisy_chunk, flow_time)) / spread
        return torch.cat([noisy_chunk.flatten(1), off.flatten(1)], dim=1)

    true = pairs(clean, at_clean)
    assert energy_test(pairs(one_step(at_sample, flow_time), at_sample), true) > LEVEL
    point = predicted(at_sample, flow_time)
    assert energy_test(pairs(point, at_sample), true) < LEVEL
    if t > 0.3:  # one that does not look at the noisy chunk fails as well
        blind = one_step(at_sample, torch.zeros_like(flow_time))
        assert energy_test(pairs(blind, at_sample), true) < LEVEL


def test_at_flow_time_zero_samples_are_the_policys_chunks() -> None:
    _, noisy_chunk, flow_time = noisy(1000, 0.0, seed=30)
    samples = one_step(noisy_chunk, flow_time).flatten(1)
    assert energy_test(samples, clean_chunks(1000, 40).flatten(1)) > LEVEL
    assert energy_test(samples + 0.15, clean_chunks(1000, 40).flatten(1)) < LEVEL


def test_each_sample_is_near_where_the_frozen_field_takes_its_noise() -> None:
    found = distances(trained(), exact_policy(), data_of(), seed=1)
    assert list(found) == [
        "distance_at_0.0",
        "distance_at_0.3",
        "distance_at_0.6",
        "distance_at_0.9",
    ]
    assert max(found.values()) < 0.25


CURVES = torch.tensor([2.0, 1.5], dtype=torch.float64)


def both_ends(chunk: Tensor) -> Tensor:
    """A critic that prefers the far ends, and so says nothing at the middle between two modes."""
    return (chunk.flatten(1).square() @ CURVES.to(chunk.dtype)).unsqueeze(0)


def point_estimate(noise: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
    """The clean prediction as the only sample: QPILOTS-U's gradient."""
    return predicted(noisy_chunk, flow_time).unsqueeze(1).expand_as(noise)


def test_qpilots_m_with_the_map_finds_the_tilted_mean_where_the_point_estimate_does_not() -> None:
    truth = torch.tensor(
        [line.tilted_mean(float(c)) for line, c in zip(LINES, CURVES, strict=True)]
    )
    frozen = torch.tensor([line.mean for line in LINES])
    assert (truth - frozen).norm() > 0.2  # the tilt is worth measuring

    def error(posterior: PosteriorMap, samples: int) -> float:
        steered = rule(
            both_ends,
            posterior,
            weight=1.0,
            scaling="tilt",
            aggregate=MEAN,
            num_samples=samples,
        )
        field = guide(exact_policy().condition(NOTHING), steered, bounds=FREE)
        start = spread_normals(256, 2).float().view(-1, 1, 2)
        found = Sampler(25).denoise(field, start).flatten(1).mean(dim=0)
        return float((found - truth).norm())

    sampled, point = error(trained().condition(NOTHING), 16), error(point_estimate, 1)
    assert sampled < 0.08
    assert point > 0.15


# The learner


def learnt_policy() -> FlowPolicy:
    """A policy with features, made without training."""
    torch.manual_seed(3)
    return FlowPolicy(
        FlowMLP(3, 4, (16, 16)).requires_grad_(False),
        torch.randn(3),
        torch.rand(3) + 0.5,
        space(horizon=2, features=3),
        hash="learnt",
    )


def some_data(count: int = 200) -> Transitions:
    rng = np.random.default_rng(0)
    return Transitions(
        features=rng.normal(size=(count, 3)).astype(np.float32),
        chunk=rng.uniform(-1, 1, (count, 2, 2)).astype(np.float32),
        interface=space(horizon=2, features=3),
        data_hash="some",
    )


@pytest.mark.parametrize("steps", [0, 3])
def test_the_loss_is_what_its_equations_say(steps: int) -> None:
    """Row by row, with plain numbers for times and GLASS of one row."""
    options = settings(
        batch=6, diagonal_weight=2.0, consistency_weight=0.3, hidden="8,8", whole_steps=steps
    )
    policy = learnt_policy()
    learner = PosteriorLearner(some_data(), policy, options)
    batch = learner.draw(torch.Generator().manual_seed(0))
    found = learner(batch)

    def average(row: int, x: Tensor, y: Tensor, r: float, q: float) -> Tensor:
        features = (batch["features"][row] - policy.feature_mean) / policy.feature_std
        time = batch["flow_time"][row : row + 1]
        moved: Tensor = learner.network(
            features[None], x[None], time, y[None], torch.tensor([r]), torch.tensor([q])
        )
        return moved[0]

    diagonal, consistency, went = [], [], list[int]()
    for row in range(6):
        t, inner = float(batch["flow_time"][row]), float(batch["inner_time"][row])
        r, q, share = (float(batch[name][row]) for name in ("start", "end", "share"))
        first, second, third = batch["noise"][row]
        a = batch["chunk"][row]
        x, y = (1 - t) * first + t * a, (1 - inner) * second + inner * a
        unit = learner.network.unit(torch.tensor([t]), torch.tensor([inner]))[0]
        field = policy.condition(batch["features"][row : row + 1])
        w = glass_velocity(field, y.view(1, 2, 2), inner, x.view(1, 2, 2), t).flatten()
        diagonal.append((((average(row, x, y, inner, inner) - w) / unit) ** 2).mean())
        y = (1 - r) * third + r * a
        m = r + share * (q - r)
        one = average(row, x, y, r, m)
        two = average(row, x, y + (m - r) * one, m, q)
        target = (share * one + (1 - share) * two).detach()
        if steps > 0 and (r, q) == (0.0, 1.0):
            times = [1 - (1 - k / steps) ** 2 for k in range(steps + 1)]
            y_k = y.view(1, 2, 2)
            for k in range(steps):
                h = times[k + 1] - times[k]
                known = (x.view(1, 2, 2), t)
                half = y_k + 0.5 * h * glass_velocity(field, y_k, times[k], *known)
                y_k = y_k + h * glass_velocity(field, half, times[k] + 0.5 * h, *known)
            target = y_k.flatten() - y
            went.append(row)
        unit = learner.network.unit(torch.tensor([t]), torch.tensor([r]))[0]
        consistency.append((((average(row, x, y, r, q) - target) / unit) ** 2).mean())
    assert bool(went) == (steps > 0)
    d, c = torch.stack(diagonal).mean(), torch.stack(consistency).mean()
    torch.testing.assert_close(found["diagonal"], d, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["consistency"], c, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["loss"], 2.0 * d + 0.3 * c, rtol=1e-4, atol=1e-6)
    weights = list(learner.network.parameters())
    mine = torch.autograd.grad(found["loss"], weights)
    by_hand = torch.autograd.grad(2.0 * d + 0.3 * c, weights)
    for one, two in zip(mine, by_hand, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


def test_a_batch_is_a_function_of_its_source_and_a_part_of_it_is_a_smaller_batch() -> None:
    learner = PosteriorLearner(some_data(), learnt_policy(), settings(batch=8, hidden="8,8"))
    one, two = (learner.draw(torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    halves = [{name: rows[part] for name, rows in one.items()} for part in (slice(4), slice(4, 8))]
    losses = [learner(half)["loss"] for half in halves]
    torch.testing.assert_close(learner(one)["loss"], (losses[0] + losses[1]) / 2.0)


def test_the_teacher_is_no_part_of_what_is_trained() -> None:
    policy = learnt_policy()
    learner = PosteriorLearner(some_data(), policy, settings(batch=8, hidden="8,8"))
    before = policy.network.head.weight.clone()
    trainer = Trainer(learner, settings(batch=8, hidden="8,8"))
    for number in range(3):
        trainer.step(number)
    assert torch.equal(policy.network.head.weight, before)
    mine = {id(weight) for weight in learner.parameters()}
    assert not mine & {id(weight) for weight in policy.network.parameters()}


@pytest.mark.parametrize(("ema", "taken", "rate"), [(0.2, 3, 9 / 13), (0.2, 100, 0.2)])
def test_the_average_follows_fast_at_first_and_then_at_its_rate(
    ema: float, taken: int, rate: float
) -> None:
    learner = PosteriorLearner(some_data(), learnt_policy(), settings(ema=ema, hidden="8,8"))
    learner.taken += taken
    with torch.no_grad():
        for weight in learner.network.parameters():
            weight.fill_(1.0)
        for weight in learner.average.parameters():
            weight.fill_(0.0)
    learner.after_step()
    for weight in learner.average.parameters():
        torch.testing.assert_close(weight, torch.full_like(weight, rate))
    assert int(learner.taken) == taken + 1


def test_statistics_of_the_chunks_are_those_of_the_data() -> None:
    data = some_data()
    data.chunk[:, 1, 1] = 0.25  # a component that never moves
    learner = PosteriorLearner(data, learnt_policy(), settings(hidden="8,8"))
    flat = data.chunk.reshape(len(data), 4)
    np.testing.assert_allclose(learner.network.chunk_mean, flat.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(
        learner.average.chunk_std, np.maximum(flat.std(axis=0, ddof=1), 0.05), rtol=1e-5
    )


def test_data_of_another_space_are_refused() -> None:
    other = replace(some_data(), interface=replace(some_data().interface, control_dt_s=0.1))
    with pytest.raises(ConfigError, match="the data and the policy must have the same control_dt"):
        PosteriorLearner(other, learnt_policy(), settings())


# The program


def program(folder: Path, **given: object) -> PosteriorMapSettings:
    return settings(
        **{
            "policy": str(folder / "policy"),
            "out": str(folder / "map"),
            "steps": 6,
            "batch": 8,
            "hidden": "8,8",
            "log_every": 0,
            **given,
        }
    )


def weights(folder: Path) -> dict[str, np.ndarray]:
    return dict(checkpoints.load(folder, kind="posterior_map").tensors)


def test_the_program_writes_a_map_of_its_policy(tmp_path: Path) -> None:
    learnt_policy().save(tmp_path / "policy")
    metrics = train_posterior_map(program(tmp_path), transitions=some_data(), command="typed")
    loaded, policy = MetaFlowMap.load(tmp_path / "map"), FlowPolicy.load(tmp_path / "policy")
    loaded.check_policy(policy)
    assert loaded.interface == policy.interface
    assert torch.equal(loaded.feature_mean, policy.feature_mean)
    assert torch.equal(loaded.feature_std, policy.feature_std)
    assert loaded.training["command"] == "typed"
    assert loaded.training["data_hash"] == "some"
    assert loaded.training["metrics"] == metrics
    assert {"loss", "diagonal", "consistency", "distance_at_0.3"} <= set(metrics)


def test_a_resumed_map_has_the_weights_of_one_that_was_not_interrupted(tmp_path: Path) -> None:
    learnt_policy().save(tmp_path / "policy")
    whole = program(tmp_path, out=str(tmp_path / "whole"))
    train_posterior_map(whole, transitions=some_data())
    halted = program(tmp_path, checkpoint_every=3)

    class Halt(Exception):
        pass

    stepped = Trainer.step

    def until_five(self: Trainer, number: int) -> dict[str, Tensor]:
        if number == 5:
            raise Halt
        return stepped(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", until_five)
        with pytest.raises(Halt):
            train_posterior_map(halted, transitions=some_data())
    train_posterior_map(halted, transitions=some_data(), resume=True)
    found, wanted = weights(tmp_path / "map"), weights(tmp_path / "whole")
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


def test_another_horizon_than_the_policys_is_refused(tmp_path: Path) -> None:
    learnt_policy().save(tmp_path / "policy")
    with pytest.raises(
        ConfigError, match=r"'horizon' must be the policy's, 2: got 5\. Leave it out"
    ):
        train_posterior_map(program(tmp_path, horizon=5), transitions=some_data())
