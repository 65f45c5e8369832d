"""QGF and its magnitude control."""

from __future__ import annotations

import pytest
import torch
from fields import (
    STEPS,
    Counting,
    hill,
    noise,
    numerical_gradient,
    swirl,
    times,
    towards,
    wavy,
)

from qsteer_ros import ensemble
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import denoise, predict_clean, sample_noise
from qsteer_ros.steering.gradient import norm_per_sample, slope_at
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.limits import Limits
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.random_matched import random_matched
from qsteer_ros.steering.step_noise import StepNoise
from qsteer_ros.steering.trace import Trace
from qsteer_ros.steering.zero import zero


@pytest.mark.parametrize(("weight", "end"), [(0.0, 0.3), (1.0, 0.4), (3.0, 0.6)])
def test_on_concentrated_data_only_the_last_push_stays(weight: float, end: float) -> None:
    """Every later step undoes earlier guidance: the chunk ends at mu + w g(mu) / T."""
    field = guide(towards(0.3), qgf(hill(0.8), weight=weight))
    chunk = denoise(field, noise(), denoising_steps=10)
    torch.testing.assert_close(chunk, torch.full_like(chunk, end))


def test_the_guidance_is_the_weight_times_the_gradient_at_the_clean_prediction() -> None:
    for flow_time in times(4):
        velocity = swirl(noise(), flow_time)
        clean = predict_clean(noise(), flow_time, velocity).clamp(-1, 1)
        expected = 0.7 * numerical_gradient(lambda chunk: wavy(chunk).amin(dim=0), clean)
        guidance = guide(swirl, qgf(wavy, weight=0.7))(noise(), flow_time) - velocity
        torch.testing.assert_close(guidance, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(("reduction", "rho"), [("min", 0.0), ("mean", 0.0), ("pessimistic", 0.7)])
def test_the_gradient_is_that_of_the_chosen_aggregate(reduction: str, rho: float) -> None:
    reduce = ensemble.aggregate(reduction, rho=rho)
    flow_time = torch.full((4,), 0.3, dtype=torch.float64)
    velocity = swirl(noise(), flow_time)
    prediction = predict_clean(noise(), flow_time, velocity)
    slope = slope_at(wavy, prediction, aggregate=reduce, bounds=(-1.0, 1.0))
    clean = prediction.clamp(-1, 1)
    torch.testing.assert_close(
        slope.gradient,
        numerical_gradient(lambda chunk: reduce(wavy(chunk)), clean),
        atol=1e-8,
        rtol=1e-6,
    )
    torch.testing.assert_close(slope.value, reduce(wavy(clean)))
    torch.testing.assert_close(slope.values, wavy(clean))


def test_the_gradient_of_the_minimum_follows_the_smaller_member_row_by_row() -> None:
    flow_time = torch.zeros(4, dtype=torch.float64)
    start = noise(seed=1)
    velocity = swirl(start, flow_time)
    clean = predict_clean(start, flow_time, velocity).clamp(-1, 1)
    smaller = wavy(clean).argmin(dim=0)
    assert set(smaller.tolist()) == {0, 1}  # both members are in use
    guidance = guide(swirl, qgf(wavy, weight=1.0))(start, flow_time) - velocity
    for row, member in enumerate(smaller):
        of_member = numerical_gradient(lambda chunk, m=member: wavy(chunk)[m], clean)
        torch.testing.assert_close(guidance[row], of_member[row], atol=1e-8, rtol=1e-6)


def test_a_clipped_component_is_still_guided() -> None:
    start = torch.full((1, 3, 2), 4.0, dtype=torch.float64)
    flow_time = torch.full((1,), 0.5, dtype=torch.float64)
    critic = Counting(hill(0.2))
    trace = Trace()
    field = guide(lambda x, tau: torch.zeros_like(x), qgf(critic, weight=1.0), trace=trace)
    torch.testing.assert_close(field(start, flow_time), torch.full_like(start, -2 * 0.8))
    assert torch.equal(critic.asked[0], torch.ones_like(start))
    assert trace.arrays()["clipped_share"].item() == 1.0


def test_the_guidance_doubles_with_the_weight() -> None:
    flow_time = torch.full((4,), 0.4, dtype=torch.float64)
    velocity = swirl(noise(), flow_time)
    once = guide(swirl, qgf(wavy, weight=0.2))(noise(), flow_time) - velocity
    twice = guide(swirl, qgf(wavy, weight=0.4))(noise(), flow_time) - velocity
    torch.testing.assert_close(twice, 2 * once)


def test_a_small_weight_acts_in_proportion() -> None:
    frozen = denoise(swirl, noise(), denoising_steps=STEPS)

    def slope(weight: float) -> torch.Tensor:
        guided = denoise(guide(swirl, qgf(wavy, weight=weight)), noise(), denoising_steps=STEPS)
        return (guided - frozen) / weight

    torch.testing.assert_close(slope(1e-4), slope(1e-5), atol=1e-3, rtol=1e-2)


def test_the_limit_shortens_guidance_that_is_too_long_and_keeps_its_direction() -> None:
    flow_time = torch.full((4,), 0.4, dtype=torch.float64)
    velocity = swirl(noise(), flow_time)
    free = (guide(swirl, qgf(wavy, weight=0.5))(noise(), flow_time) - velocity).flatten(1)
    limited = (
        guide(swirl, qgf(wavy, weight=0.5), limits=Limits(max_ratio=0.2))(noise(), flow_time)
        - velocity
    )
    limited = limited.flatten(1)
    assert (free.norm(dim=1) > 0.2 * velocity.flatten(1).norm(dim=1)).all()
    torch.testing.assert_close(limited.norm(dim=1), 0.2 * velocity.flatten(1).norm(dim=1))
    torch.testing.assert_close(
        torch.cosine_similarity(free, limited), torch.ones(4, dtype=torch.float64)
    )


def test_the_limit_leaves_shorter_guidance_alone() -> None:
    flow_time = torch.full((4,), 0.4, dtype=torch.float64)
    free = guide(swirl, qgf(wavy, weight=0.01))(noise(), flow_time)
    assert torch.equal(
        guide(swirl, qgf(wavy, weight=0.01), limits=Limits(max_ratio=0.5))(noise(), flow_time),
        free,
    )


def test_a_limit_on_no_gradient_is_no_guidance() -> None:
    flow_time = torch.full((4,), 0.4, dtype=torch.float64)
    flat = guide(
        swirl, qgf(lambda chunk: 0.0 * wavy(chunk), weight=1.0), limits=Limits(max_ratio=0.2)
    )
    assert torch.equal(flat(noise(), flow_time), swirl(noise(), flow_time))


def test_a_limit_that_means_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="'max_ratio' must be positive: got -1"):
        guide(swirl, qgf(wavy, weight=1.0), limits=Limits(max_ratio=-1.0))
    with pytest.raises(ConfigError, match="'max_ratio' must be positive: got -1"):
        guide(swirl, random_matched(qgf(wavy, weight=1.0), seed=0), limits=Limits(max_ratio=-1.0))


@pytest.mark.parametrize("max_ratio", [float("inf"), 0.1])
def test_random_matched_is_as_long_as_the_guidance_it_stands_in_for(max_ratio: float) -> None:
    for flow_time in times(4):
        velocity = swirl(noise(), flow_time)
        guided = guide(swirl, qgf(wavy, weight=0.5), limits=Limits(max_ratio=max_ratio))
        control = guide(
            swirl,
            random_matched(qgf(wavy, weight=0.5), seed=3),
            limits=Limits(max_ratio=max_ratio),
        )
        one = (guided(noise(), flow_time) - velocity).flatten(1)
        other = (control(noise(), flow_time) - velocity).flatten(1)
        torch.testing.assert_close(one.norm(dim=1), other.norm(dim=1))
        assert (torch.cosine_similarity(one, other).abs() < 0.999).all()


def test_random_matched_answers_the_same_when_asked_twice() -> None:
    flow_time = torch.full((4,), 0.4, dtype=torch.float64)
    field = guide(swirl, random_matched(qgf(wavy, weight=0.5), seed=3))
    assert torch.equal(field(noise(), flow_time), field(noise(), flow_time))


def random_direction(like: torch.Tensor, flow_time: torch.Tensor, *, seed: int) -> torch.Tensor:
    normal = StepNoise(seed)(float(flow_time[0]), like.shape, like=like)
    return normal / norm_per_sample(normal)


def test_random_directions_differ_between_seeds_steps_and_rows() -> None:
    found = [
        random_direction(noise(2), torch.full((2,), time, dtype=torch.float64), seed=seed)[row]
        for seed in (0, 1)
        for time in (0.0, 0.1)
        for row in (0, 1)
    ]
    flat = torch.stack(found).flatten(1)
    torch.testing.assert_close(flat.norm(dim=1), torch.ones(8, dtype=torch.float64))
    off_diagonal = flat @ flat.T - torch.eye(8, dtype=torch.float64)
    assert off_diagonal.abs().max() < 0.999


def test_the_direction_has_nothing_to_do_with_the_noise_of_the_same_seed() -> None:
    like = torch.zeros(1, 5, 5)
    cosines = torch.stack(
        [
            torch.cosine_similarity(
                random_direction(like, torch.zeros(1), seed=seed).flatten(),
                sample_noise((1, 5, 5), seed=seed, device=torch.device("cpu")).flatten(),
                dim=0,
            )
            for seed in range(50)
        ]
    )
    assert cosines.abs().mean() < 0.3  # 0.16 expected of independent directions


def test_directions_are_spread_evenly() -> None:
    like = torch.zeros(4000, 2, 2, dtype=torch.float64)
    direction = random_direction(like, torch.zeros(4000), seed=0).flatten(1)
    assert direction.mean(dim=0).abs().max() < 0.03
    torch.testing.assert_close(
        direction.T @ direction / 4000, torch.eye(4, dtype=torch.float64) / 4, atol=0.03, rtol=0
    )


def test_zero_reports_the_guidance_that_it_withheld() -> None:
    flow_time = torch.full((4,), 0.4, dtype=torch.float64)
    withheld, added = Trace(), Trace()
    guide(swirl, zero(qgf(wavy, weight=0.3)), trace=withheld)(noise(), flow_time)
    guide(swirl, qgf(wavy, weight=0.3), trace=added)(noise(), flow_time)
    for name, values in added.arrays().items():
        assert (withheld.arrays()[name] == values).all(), name


def test_the_tilt_coefficient_multiplies_the_guidance_by_the_odds_of_the_flow_time() -> None:
    for flow_time in list(times(4))[1:]:
        tau, velocity = float(flow_time[0]), swirl(noise(), flow_time)
        constant = guide(swirl, qgf(wavy, weight=0.3))(noise(), flow_time) - velocity
        tilted = guide(swirl, qgf(wavy, weight=0.3, coefficient="tilt"))(noise(), flow_time)
        torch.testing.assert_close(tilted - velocity, (1 - tau) / tau * constant)


def test_an_unknown_coefficient_is_refused() -> None:
    with pytest.raises(ConfigError, match="'coefficient' must be one of constant, tilt: got 'x'"):
        qgf(wavy, weight=1.0, coefficient="x")
