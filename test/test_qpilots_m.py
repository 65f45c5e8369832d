"""QPILOTS-M: the log-mean-exp over posterior samples and its gradient."""

from __future__ import annotations

import pytest
import torch
from fields import (
    STEPS,
    Counting,
    hill,
    never,
    noise,
    numerical_gradient,
    swirl,
    times,
    wavy,
)
from sampled import MEAN, PLAIN, Heard, clean_only, push, rule, scattered, small
from torch import Tensor

from qsteer_ros import ensemble
from qsteer_ros.ensemble import Aggregate, QFunction
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.flow import Sampler, sample_noise
from qsteer_ros.posterior import PosteriorMap, glass_posterior
from qsteer_ros.steering.guide import Held, Push, Rule, guide
from qsteer_ros.steering.qpilots_m import Tilt, log_mean_exp
from qsteer_ros.steering.qpilots_u import qpilots_u
from qsteer_ros.steering.random_matched import random_matched
from qsteer_ros.steering.trace import Trace


def potential(
    q: QFunction, normals: Tensor, time: Tensor, *, reduce: Aggregate, tilt: Tilt
) -> QFunction:
    """V with this noise, written sample by sample, in plain numbers' order."""

    def value(point: Tensor) -> Tensor:
        samples = scattered(normals, point, time)
        assert samples.abs().max() < 1.0  # else the differences would see the clip
        weights = [
            torch.exp(tilt.inverse_temperature * (reduce(q(samples[:, n])) - tilt.mean) / tilt.std)
            for n in range(normals.shape[1])
        ]
        return torch.log(sum(weights) / len(weights))  # type: ignore[arg-type]

    return value


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("tilt", [PLAIN, Tilt(mean=0.3, std=0.2, clip=50.0)])
def test_the_gradient_is_that_of_the_log_mean_exp_over_the_samples(
    num_samples: int, tilt: Tilt
) -> None:
    """Against central differences with the noise held, through a map that knows the time."""
    reduce = ensemble.pessimistic(0.5)
    for tau in (0.1, 0.5, 0.9):
        heard = Heard(scattered)
        options = {"num_samples": num_samples, "tilt": tilt, "scaling": "tilt"}
        found = push(wavy, heard, tau, weight=tau / (1.0 - tau), **options)
        (normals,) = heard.noise
        time = torch.full((4,), tau, dtype=torch.float64)
        value = potential(wavy, normals, time, reduce=reduce, tilt=tilt)
        torch.testing.assert_close(found, numerical_gradient(value, small()), atol=1e-7, rtol=1e-6)


def test_the_gradient_goes_through_the_posterior_of_the_frozen_field() -> None:
    posterior = glass_posterior(swirl, steps=3)
    heard = Heard(posterior)
    found = push(wavy, heard, 0.4, scaling="tilt", weight=0.4 / 0.6, aggregate=MEAN)
    time = torch.full((4,), 0.4, dtype=torch.float64)

    def value(point: Tensor) -> Tensor:
        samples = posterior(heard.noise[0], point, time).flatten(0, 1)
        return log_mean_exp(MEAN(wavy(samples)).view(4, 4))

    inside = (posterior(heard.noise[0], small(), time).abs() < 1.0).flatten(1).all(dim=1)
    assert inside.sum() >= 2  # else the differences would see the clip
    numerical = numerical_gradient(value, small())
    torch.testing.assert_close(found[inside], numerical[inside], atol=1e-7, rtol=1e-6)


def test_each_step_moves_the_chunk_by_alpha_times_the_drift() -> None:
    for alpha in (0.1, 2.0):
        field = guide(swirl, rule(weight=alpha, posterior=glass_posterior(swirl, steps=2)))
        sampler, chunk = Sampler(STEPS), noise()
        for step, flow_time in enumerate(times(4)):
            velocity = swirl(chunk, flow_time)
            frozen, moved = sampler.step(swirl, chunk, step), sampler.step(field, chunk, step)
            displacement = (moved - frozen).flatten(1).norm(dim=1)
            drift = velocity.flatten(1).norm(dim=1) if step else torch.zeros(4).double()
            torch.testing.assert_close(displacement, alpha * drift / STEPS)
            chunk = moved


@pytest.mark.parametrize("scaling", ["drift", "tilt"])
def test_the_first_step_is_the_frozen_policys_and_asks_neither_map_nor_critic(
    scaling: str,
) -> None:
    heard, critic = Heard(scattered), Counting(wavy)
    field = guide(swirl, rule(critic, heard, scaling=scaling))
    start = torch.zeros(4, dtype=torch.float64)
    assert torch.equal(field(noise(), start), swirl(noise(), start))
    assert (heard.noise, critic.asked) == ([], [])


def test_a_map_that_is_scheduled_is_asked_with_a_plain_number() -> None:
    asked = list[float]()

    class Timed:
        def __call__(self, normals: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
            raise AssertionError("the map was asked without its flow time")

        def at(self, flow_time: float) -> PosteriorMap:
            asked.append(flow_time)
            return scattered

    timed = Sampler(STEPS).denoise(guide(swirl, rule(posterior=Timed())), noise())
    assert asked == [step / STEPS for step in range(1, STEPS)]
    assert torch.equal(timed, Sampler(STEPS).denoise(guide(swirl, rule()), noise()))


def test_weight_zero_is_the_frozen_policy_itself() -> None:
    assert guide(swirl, rule(never, weight=0.0)) is swirl


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
def test_one_sample_that_is_the_clean_prediction_is_qpilots_u(tau: float) -> None:
    start, time = noise(), torch.full((4,), tau, dtype=torch.float64)  # some are clipped
    one = guide(swirl, rule(posterior=clean_only, num_samples=1, weight=0.7))(start, time)
    universal = guide(swirl, qpilots_u(wavy, weight=0.7))(start, time)
    torch.testing.assert_close(one, universal, atol=1e-12, rtol=1e-12)
    collapsed = glass_posterior(swirl, steps=1, integrator="euler")
    glass = rule(posterior=collapsed, weight=0.7)
    torch.testing.assert_close(guide(swirl, glass)(start, time), universal, atol=1e-7, rtol=1e-7)


def test_a_negated_critic_reverses_the_push_of_one_sample() -> None:
    up = push(hill(0.6), scattered, 0.5, num_samples=1, aggregate=MEAN)
    down = push(lambda a: -hill(0.6)(a), scattered, 0.5, num_samples=1, aggregate=MEAN)
    torch.testing.assert_close(down, -up)


@pytest.mark.parametrize("scaling", ["drift", "tilt"])
def test_a_negated_critic_pushes_away_from_the_top(scaling: str) -> None:
    def distance(sign: float) -> Tensor:
        field = guide(swirl, rule(lambda a: sign * hill(0.5)(a), weight=0.3, scaling=scaling))
        return (Sampler(STEPS).denoise(field, noise()) - 0.5).flatten(1).norm(dim=1)

    frozen = (Sampler(STEPS).denoise(swirl, noise()) - 0.5).flatten(1).norm(dim=1)
    assert (distance(1.0) < frozen).all()
    assert (distance(-1.0) > frozen).all()


def test_samples_outside_the_bounds_are_judged_at_them_and_still_guided() -> None:
    start = torch.full((1, 3, 2), 4.0, dtype=torch.float64)
    time = torch.full((1,), 0.5, dtype=torch.float64)
    critic = Counting(hill(0.2))

    def wide(normals: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        return noisy_chunk.unsqueeze(1) + 0.1 * torch.sin(normals)

    field = guide(lambda x, tau: -0.1 * x, rule(critic, wide, weight=1.0))
    added = field(start, time) + 0.1 * start
    assert torch.equal(critic.asked[0], torch.ones(5, 3, 2, dtype=torch.float64))
    torch.testing.assert_close(added, torch.full_like(added, -0.4))  # alpha |v|, downhill


def test_the_trace_reports_q_at_the_clean_prediction_from_the_same_call() -> None:
    critic, universal, mine = Counting(wavy), Trace(), Trace()
    start, time = noise(), torch.full((4,), 0.5, dtype=torch.float64)
    guide(swirl, qpilots_u(wavy, weight=0.5), trace=universal)(start, time)
    guide(swirl, rule(critic, weight=0.5), trace=mine)(start, time)
    for name in ("q", "q_min", "q_mean", "q_spread", "clipped_share", "velocity_norm"):
        assert mine.arrays()[name] == pytest.approx(universal.arrays()[name]), name
    assert mine.arrays()["ratio"] == pytest.approx(0.5)
    assert [tuple(asked.shape) for asked in critic.asked] == [(4 * (4 + 1), 3, 2)]


def test_noise_differs_between_samples_rows_steps_and_seeds_and_repeats_when_asked_again() -> None:
    def heard(seed: int) -> list[Tensor]:
        map_ = Heard(scattered)
        Sampler(STEPS).denoise(guide(swirl, rule(posterior=map_, seed=seed)), noise())
        return map_.noise

    first, again, other = heard(0), heard(0), heard(1)
    assert len(first) == STEPS - 1
    assert all(map(torch.equal, first, again))
    assert torch.cat([*first, *other]).flatten(0, 1).unique(dim=0).shape[0] == 18 * 16
    everything = torch.cat(first).flatten()
    assert abs(float(everything.mean())) < 0.1
    assert float(everything.std()) == pytest.approx(1.0, abs=0.1)


def test_the_samples_have_nothing_to_do_with_other_noise_of_the_same_seed() -> None:
    heard = Heard(scattered)
    control = random_matched(rule(posterior=heard, seed=5, num_samples=1), seed=5)
    start, time = noise(), torch.full((4,), 0.5, dtype=torch.float64)
    direction = (guide(swirl, control)(start, time) - swirl(start, time)).flatten()
    initial = sample_noise((4, 3, 2), seed=5, device=torch.device("cpu")).double().flatten()
    for other in (direction, initial):
        cosine = torch.cosine_similarity(heard.noise[0].flatten(), other, dim=0)
        assert cosine.abs() < 0.7


def test_rows_do_not_influence_one_another() -> None:
    changed = noise()
    changed[1:] += 5.0
    field = guide(swirl, rule())
    sampler = Sampler(STEPS)
    assert torch.equal(sampler.denoise(field, noise())[:1], sampler.denoise(field, changed)[:1])


@pytest.mark.parametrize("posterior", [scattered, glass_posterior(swirl, steps=2)])
def test_the_callers_gradient_mode_does_not_matter(posterior: PosteriorMap) -> None:
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    field = guide(swirl, rule(lambda chunk: scale * wavy(chunk), posterior))
    expected = Sampler(STEPS).denoise(field, noise())
    assert not expected.requires_grad
    with torch.no_grad():
        assert torch.equal(Sampler(STEPS).denoise(field, noise()), expected)
    with torch.inference_mode():
        fresh = guide(swirl, rule(lambda chunk: scale * wavy(chunk), posterior))
        assert torch.equal(Sampler(STEPS).denoise(fresh, noise()), expected)
    assert scale.grad is None


def test_single_precision_stays_single() -> None:
    field = guide(swirl, rule(posterior=glass_posterior(swirl, steps=2)))
    exact = Sampler(STEPS).denoise(field, noise())
    start, time = noise().float(), torch.full((4,), 0.5)
    assert field(start, time).dtype == torch.float32
    assert exact.dtype == torch.float64


@pytest.mark.parametrize("per_row", [False, True])
def test_samples_are_judged_with_the_held_actions_and_only_the_rest_is_pushed(
    per_row: bool,
) -> None:
    actions = 0.3 * noise(seed=4)[: 4 if per_row else 1]
    rows = torch.tensor([True, False, False])
    held = Held(actions if per_row else actions[0], rows)
    hold = Rule(lambda look: Push(torch.zeros_like(look.clean)), held=held)
    start, time = small(), torch.full((4,), 0.5, dtype=torch.float64)

    def pushed(**options: object) -> tuple[Tensor, Counting, Tensor]:
        critic, heard = Counting(wavy), Heard(scattered)
        both = guide(swirl, rule(critic, heard, aggregate=MEAN, weight=1.0, **options), hold)
        found = both(start, time) - guide(swirl, hold)(start, time)
        return found, critic, heard.noise[0]

    found, critic, normals = pushed(scaling="tilt")
    asked = critic.asked[0].view(4, 5, 3, 2)
    assert torch.equal(asked[:, :, 0], actions[:, :1].expand(4, 5, 2))

    def value(point: Tensor) -> Tensor:
        samples = scattered(normals, point, time)
        executed = torch.where(rows.view(1, 1, -1, 1), actions.unsqueeze(1), samples)
        return log_mean_exp(MEAN(wavy(executed.flatten(0, 1))).view(4, 4))

    expected = numerical_gradient(value, start)
    assert (found[:, 0] == 0).all()
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], atol=1e-7, rtol=1e-6)
    drift = swirl(start, time)[:, 1:].flatten(1).norm(dim=1)
    torch.testing.assert_close(pushed()[0].flatten(1).norm(dim=1), drift)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_and_a_cpu_steer_alike_from_the_same_seed() -> None:
    def chunk(device: str) -> Tensor:
        field = guide(swirl, rule(posterior=glass_posterior(swirl, steps=3)))
        return Sampler(STEPS).denoise(field, noise().to(device)).cpu()

    torch.testing.assert_close(chunk("cuda"), chunk("cpu"), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "'weight' must be finite and at least 0: got -1.0"),
        ({"num_samples": 0}, "'num_samples' must be at least 1: got 0"),
        ({"scaling": "none"}, "'scaling' must be one of drift, tilt: got 'none'"),
        ({"seed": -1}, "'seed' must be at least 0: got -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule(**options)  # type: ignore[arg-type]


def test_a_map_of_another_shape_or_without_a_gradient_is_refused() -> None:
    with pytest.raises(DataError, match=r"samples of shape \(4, 4, 3, 2\): got \(4, 1, 3, 2\)"):
        push(wavy, lambda e, x, t: x.unsqueeze(1), 0.5)
    with pytest.raises(DataError, match="must be differentiable in the noisy chunk"):
        push(wavy, lambda e, x, t: scattered(e, x, t).detach(), 0.5)
