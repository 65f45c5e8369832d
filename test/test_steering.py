"""What holds for every steering mode."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fields import (
    ACTION_DIM,
    HORIZON,
    STEPS,
    Counting,
    hill,
    never,
    noise,
    swirl,
    times,
    wavy,
)
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, VelocityField, denoise, from_noise_at_one
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.settings import CHUNK_MODES, FIELD_MODES, MODES, SteeringSettings
from qsteer_ros.steering.trace import FIELDS, Trace

ASKING = FIELD_MODES
PUSHING = tuple(mode for mode in FIELD_MODES if mode != "zero")
CLIMBING = tuple(mode for mode in PUSHING if mode not in ("random_matched", "noisy_gradient"))
CLEAN = tuple(mode for mode in FIELD_MODES if mode != "noisy_gradient")
"""Modes that ask at an estimate of the clean action, not at the noisy one."""
NOISELESS = ("zero", *(mode for mode in CLIMBING if mode != "qpilots_m"))
BLIND = ("off", *CHUNK_MODES)


def settings(mode: str, weight: float = 0.3, **others: object) -> SteeringSettings:
    if mode == "noisy_gradient":
        weight *= 0.1  # times the inverse temperature of 10
    values = {"tilt_mean": 0.0, "tilt_std": 1.0, "tilt_clip": 10.0, **others}
    return SteeringSettings(mode=mode, weight=weight, **values)  # type: ignore[arg-type]


def steered(mode: str, *, field: VelocityField = swirl, **others: object) -> VelocityField:
    return steer(field, wavy, settings(mode, **others), seed=11)


def run(field: VelocityField, start: Tensor | None = None) -> Tensor:
    return denoise(field, noise() if start is None else start, denoising_steps=STEPS)


@pytest.mark.parametrize("mode", BLIND)
def test_a_mode_that_leaves_the_field_alone_returns_it_and_asks_no_critic(mode: str) -> None:
    assert steer(swirl, never, settings(mode)) is swirl
    assert steer(swirl, None, settings(mode)) is swirl


@pytest.mark.parametrize("mode", PUSHING)
def test_weight_zero_is_the_frozen_policy_itself_and_asks_no_critic(mode: str) -> None:
    assert steer(swirl, never, settings(mode, weight=0.0)) is swirl


def test_zero_asks_the_critic_once_per_step_and_changes_no_bit() -> None:
    critic = Counting(wavy)
    field = steer(swirl, critic, settings("zero"))
    assert torch.equal(run(field), run(swirl))
    assert len(critic.asked) == STEPS


def test_zero_keeps_even_the_sign_of_a_zero_velocity() -> None:
    field = steer(lambda x, tau: -torch.zeros_like(x), wavy, settings("zero"))
    velocity = field(noise(), torch.zeros(4, dtype=torch.float64))
    assert torch.signbit(velocity).all()


@pytest.mark.parametrize("mode", PUSHING)
def test_a_mode_that_pushes_changes_the_chunk(mode: str) -> None:
    assert not torch.allclose(run(steered(mode)), run(swirl), atol=1e-3)


@pytest.mark.parametrize(("mode", "queries"), [("qgf", STEPS), ("qpilots_u", STEPS - 1)])
def test_the_critic_is_asked_once_per_guided_step(mode: str, queries: int) -> None:
    critic = Counting(wavy)
    run(steer(swirl, critic, settings(mode)))
    assert len(critic.asked) == queries


@pytest.mark.parametrize("mode", CLEAN)
def test_the_critic_is_asked_inside_the_bounds_only(mode: str) -> None:
    critic = Counting(wavy)
    run(steer(swirl, critic, settings(mode)), 3.0 * noise())
    asked = torch.stack(critic.asked)
    assert asked.abs().max() == 1.0


@pytest.mark.parametrize("mode", CLEAN)
def test_other_bounds_are_respected(mode: str) -> None:
    critic = Counting(wavy)
    run(steer(swirl, critic, settings(mode), bounds=(-0.2, 0.1)), 3.0 * noise())
    asked = torch.stack(critic.asked)
    assert (asked.min(), asked.max()) == (-0.2, 0.1)


@pytest.mark.parametrize("mode", ASKING)
def test_a_trace_does_not_change_a_bit_and_sees_every_step(mode: str) -> None:
    trace = Trace()
    traced = steer(swirl, wavy, settings(mode), seed=11, trace=trace)
    assert torch.equal(run(traced), run(steered(mode)))
    arrays = trace.arrays()
    assert tuple(arrays) == FIELDS
    assert len(trace) == STEPS
    assert {array.shape for array in arrays.values()} == {(STEPS, 4)}


@pytest.mark.parametrize("mode", ASKING)
def test_one_row_does_not_depend_on_the_others(mode: str) -> None:
    changed = noise()
    changed[1:] += 5.0
    assert torch.equal(run(steered(mode), noise())[:1], run(steered(mode), changed)[:1])


@pytest.mark.parametrize("mode", NOISELESS)
def test_a_chunk_alone_is_the_chunk_it_is_in_a_batch(mode: str) -> None:
    alone = run(steered(mode), noise()[:1])
    torch.testing.assert_close(run(steered(mode), noise())[:1], alone)


@pytest.mark.parametrize("mode", NOISELESS)
def test_permuting_the_batch_permutes_the_chunks(mode: str) -> None:
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(run(steered(mode), noise()[order]), run(steered(mode))[order])


@pytest.mark.parametrize("mode", ASKING)
def test_the_callers_gradient_mode_does_not_matter(mode: str) -> None:
    field = steered(mode)
    expected = run(field)
    with torch.no_grad():
        assert torch.equal(run(field), expected)
    with torch.inference_mode():
        assert torch.equal(run(field, noise().clone()), expected)


@pytest.mark.parametrize("mode", ASKING)
def test_no_graph_reaches_the_next_step_and_no_weight_collects_a_gradient(mode: str) -> None:
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    policy_weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    field = steer(
        lambda x, tau: policy_weight * swirl(x, tau),
        lambda chunk: weight * wavy(chunk),
        settings(mode),
    )
    with torch.no_grad():
        chunk = run(field)
    assert not chunk.requires_grad
    assert weight.grad is None
    assert policy_weight.grad is None


@pytest.mark.parametrize("mode", ASKING)
def test_a_frozen_field_stays_without_a_graph_even_where_gradients_are_on(mode: str) -> None:
    assert torch.is_grad_enabled()
    assert not run(steered(mode)).requires_grad


@pytest.mark.parametrize("mode", ASKING)
def test_the_noisy_chunk_is_not_modified(mode: str) -> None:
    start = noise()
    steered(mode)(start, torch.full((4,), 0.5, dtype=torch.float64))
    assert torch.equal(start, noise())
    assert not start.requires_grad


@pytest.mark.parametrize("mode", ASKING)
def test_a_mode_that_needs_a_critic_refuses_to_go_without(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"'{mode}' needs a critic: none is loaded"):
        steer(swirl, None, settings(mode))


@pytest.mark.parametrize("mode", PUSHING)
@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_weight_that_means_nothing_is_refused(mode: str, weight: float) -> None:
    with pytest.raises(ConfigError, match="'weight' must be finite and at least 0: got"):
        settings(mode, weight=weight)


@pytest.mark.parametrize("mode", CLIMBING)
def test_steering_a_turned_field_climbs_the_critic(mode: str) -> None:
    """A field with noise at time 1 that depends on time, steered after it was turned round."""

    def reversed_swirl(noisy_chunk: Tensor, time: Tensor) -> Tensor:
        return -swirl(noisy_chunk, 1.0 - time)

    field = from_noise_at_one(reversed_swirl)
    torch.testing.assert_close(run(field), run(swirl))
    q = hill(0.5)
    gain = q(run(steer(field, q, settings(mode))))[0] - q(run(field))[0]
    assert (gain > 0).all()


@pytest.mark.parametrize("mode", CLIMBING)
def test_on_a_concave_critic_more_weight_is_more_value(mode: str) -> None:
    q = hill(0.5)
    values = torch.stack(
        [q(run(steer(swirl, q, settings(mode, weight=w))))[0] for w in (0.0, 0.05, 0.1, 0.2, 0.4)]
    )
    assert (values.diff(dim=0) > 0).all()


@pytest.mark.parametrize("mode", CLIMBING)
def test_a_negated_critic_pushes_away_from_the_top(mode: str) -> None:
    def distance(q_scale: float) -> Tensor:
        chunk = run(steer(swirl, hill(0.5, scale=q_scale), settings(mode, weight=0.2)))
        return (chunk - 0.5).flatten(1).norm(dim=1)

    frozen = (run(swirl) - 0.5).flatten(1).norm(dim=1)
    assert (distance(1.0) < frozen).all()
    assert (distance(-1.0) > frozen).all()


def test_a_random_direction_of_the_same_norm_does_not_climb_as_the_gradient_does() -> None:
    q, start = hill(0.5), noise(batch=256)
    frozen = q(run(swirl, start))[0].mean()
    gain = {
        mode: float(q(run(steer(swirl, q, settings(mode, weight=0.2), seed=1), start))[0].mean())
        - float(frozen)
        for mode in ("random_matched", "qgf")
    }
    assert gain["qgf"] > 0.3
    assert abs(gain["random_matched"]) < 0.1 * gain["qgf"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "qfg"}, "'mode' must be one of off, zero, random_matched, qgf"),
        ({"num_samples": 0}, "'num_samples' must be at least 1: got 0"),
        ({"reduction": "max"}, "'reduction' must be one of min, mean, pessimistic: got 'max'"),
        ({"rho": -1.0}, "'rho' must be finite and at least 0: got -1.0"),
        ({"max_ratio": 0.0}, "'max_ratio' must be positive: got 0.0"),
        ({"twin_rate": 1.5}, "'twin_rate' must be between 0 and 1: got 1.5"),
        ({"ratio": -0.1}, "'ratio' must be finite and at least 0: got -0.1"),
        ({"max_displacement": 0.0}, "'max_displacement' must be positive: got 0.0"),
        ({"max_ratio": math.nan}, "'max_ratio' must be positive: got nan"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SteeringSettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("max_ratio", [math.inf, 0.2])
def test_settings_survive_a_log(mode: str, max_ratio: float) -> None:
    original = settings(mode, max_ratio=max_ratio, reduction="pessimistic", twin_rate=1.0)
    plain = original.to_json()
    assert not any(isinstance(v, float) and math.isinf(v) for v in plain.values())
    assert SteeringSettings.from_json(plain) == original


def test_settings_of_a_log_of_version_0_1_are_read() -> None:
    assert SteeringSettings.from_json({"mode": "qgf", "twin": True}).twin_rate == 1.0
    assert SteeringSettings.from_json({"mode": "qgf", "twin": False}).twin_rate == 0.0


def test_the_twin_rate_is_the_share_of_chunks_that_are_compared() -> None:
    wanted = [settings("qgf", twin_rate=0.25).wants_twin(seed) for seed in range(4000)]
    assert abs(sum(wanted) / len(wanted) - 0.25) < 0.03
    assert not any(settings("qgf").wants_twin(seed) for seed in range(100))
    assert all(settings("qgf", twin_rate=1.0).wants_twin(seed) for seed in range(100))
    assert all(settings("qgf", max_displacement=0.1).wants_twin(seed) for seed in range(100))
    assert not settings("off", twin_rate=1.0).wants_twin(0)


@pytest.mark.parametrize("mode", ["qgf", "qpilots_u", "random_matched"])
def test_a_target_ratio_is_met_at_every_step_whatever_the_critics_scale(mode: str) -> None:
    trace = Trace()
    chosen = settings(mode, weight=0.0, ratio=0.3)
    run(steer(swirl, lambda chunk: 1e3 * wavy(chunk), chosen, seed=11, trace=trace))
    first = 1 if mode == "qpilots_u" else 0
    assert trace.arrays()["ratio"][first:] == pytest.approx(0.3, rel=1e-5)


def test_settings_with_an_unknown_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must have the names mode, weight, .*'gamma'"):
        SteeringSettings.from_json({"gamma": 1.0})


def test_seed_and_limit_reach_the_random_control() -> None:
    flow_time = torch.full((4,), 0.5, dtype=torch.float64)

    def push(seed: int, **others: object) -> Tensor:
        field = steer(swirl, wavy, settings("random_matched", **others), seed=seed)
        return (field(noise(), flow_time) - swirl(noise(), flow_time)).flatten(1)

    assert not torch.allclose(push(1), push(2))
    cosine = torch.cosine_similarity(push(1), push(1, max_ratio=0.01))
    torch.testing.assert_close(cosine, torch.ones(4, dtype=torch.float64))
    assert (push(1, max_ratio=0.01).norm(dim=1) < push(1).norm(dim=1)).all()


def test_the_settings_reach_the_rule_they_choose() -> None:
    start = noise()[:1]
    assert start.shape == (1, HORIZON, ACTION_DIM)
    flow_time = next(iter(times(1, 1))) + 0.5
    pushes = {
        (mode, reduction): steered(mode, reduction=reduction)(start, flow_time)
        - swirl(start, flow_time)
        for mode in ("qgf", "qpilots_u")
        for reduction in ("min", "mean", "pessimistic")
    }
    distinct = {tuple(push.flatten().tolist()) for push in pushes.values()}
    assert len(distinct) == len(pushes)
    limited = steered("qgf", max_ratio=0.01)(start, flow_time)
    assert not torch.allclose(limited, steered("qgf")(start, flow_time))
    dropped = steered("qpilots_u", keep_jacobian=False)(start, flow_time)
    assert not torch.allclose(dropped, steered("qpilots_u")(start, flow_time))


@pytest.mark.parametrize("mode", ASKING)
@pytest.mark.parametrize("wrong", [lambda q: q[0], lambda q: q.T, lambda q: q.unsqueeze(0)])
def test_a_critic_that_answers_in_another_shape_is_refused(mode: str, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="one value per member and chunk"):
        run(steer(swirl, lambda chunk: wrong(wavy(chunk)), settings(mode)))


@pytest.mark.parametrize("mode", ASKING)
def test_a_field_that_answers_in_another_shape_is_refused(mode: str) -> None:
    def narrow(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        return swirl(noisy_chunk, flow_time)[:, :1]

    with pytest.raises(ConfigError, match="a velocity of the same shape"):
        run(steer(narrow, wavy, settings(mode)))


@pytest.mark.parametrize("mode", ["qpilots_u", "qpilots_m", "noisy_gradient"])
def test_the_first_step_is_skipped_wherever_a_schedule_begins(mode: str) -> None:
    sampler, trace = Sampler(3, times=(0.01, 0.3, 0.6, 1.0)), Trace()
    field = steer(swirl, wavy, settings(mode), sampler=sampler, trace=trace)
    sampler.denoise(field, noise())
    assert (trace.arrays()["guidance_norm"][0] == 0.0).all()
    assert (trace.arrays()["guidance_norm"][1:] > 0.0).all()


@pytest.mark.parametrize("mode", ["qpilots_u", "qpilots_m", "noisy_gradient"])
def test_a_skipped_step_leaves_no_graph_either(mode: str) -> None:
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    field = steer(lambda x, tau: scale * swirl(x, tau), wavy, settings(mode))
    assert not run(field).requires_grad
