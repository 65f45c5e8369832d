"""Diffusion policies as velocity fields, against DDIM on a mixture whose score is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from fields import hill, noise
from golden_loader import golden
from mixture import CENTRES, clean_mean, draw, exact_model, mean_and_covariance, mode_shares
from torch import Tensor

from qsteer_ros.diffusion import (
    PREDICTIONS,
    DiffusionSchedule,
    diffusion_field,
    enter,
)
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, field_at, predict_clean
from qsteer_ros.steering.gradient import differentiate
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qpilots_u import qpilots_u

SCHEDULES = {
    "linear": DiffusionSchedule.linear(1000),
    "scaled_linear": DiffusionSchedule.scaled_linear(1000, start=0.00085, end=0.012),
    "cosine": DiffusionSchedule.cosine(100),
    "vp": DiffusionSchedule.vp(10),
}
COSINE = SCHEDULES["cosine"]
Model = Callable[[Tensor, Tensor], Tensor]


def ddim(
    model: Model, signal: Sequence[float], timesteps: Sequence[int], noise: Tensor, predicts: str
) -> Tensor:
    """Eq. 12 of DDIM with eta 0, in its own variables."""
    x = noise
    for step, timestep in enumerate(timesteps):
        now = signal[timestep]
        after = signal[timesteps[step + 1]] if step + 1 < len(timesteps) else 1.0
        answer = model(x, torch.full((len(x),), timestep))
        if predicts == "epsilon":
            epsilon = answer
            clean = (x - math.sqrt(1 - now) * epsilon) / math.sqrt(now)
        elif predicts == "sample":
            clean = answer
            epsilon = (x - math.sqrt(now) * clean) / math.sqrt(1 - now)
        else:
            clean = math.sqrt(now) * x - math.sqrt(1 - now) * answer
            epsilon = math.sqrt(now) * answer + math.sqrt(1 - now) * x
        x = math.sqrt(after) * clean + math.sqrt(1 - after) * epsilon
    return x


def wild(noisy: Tensor, timestep: Tensor) -> Tensor:
    """A model of nothing in particular, large enough to need clipping."""
    return 1.5 * torch.sin(3.0 * noisy.roll(1, dims=2) + 0.05 * timestep.view(-1, 1, 1)) + noisy


def sample(
    field_model: Model, schedule: DiffusionSchedule, sampler: Sampler, **how: str
) -> Tensor:
    field = diffusion_field(field_model, schedule, **how)
    return sampler.denoise(field, enter(draw(64), sampler.flow_times[0]))


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_euler_on_the_timesteps_of_a_schedule_is_ddim(name: str, predicts: str) -> None:
    schedule = SCHEDULES[name]
    for model in (exact_model(schedule.signal, predicts), wild):
        for spacing in ("leading", "trailing"):
            timesteps = schedule.timesteps(10, spacing=spacing)
            expected = ddim(model, schedule.signal, timesteps, draw(64), predicts)
            sampler = schedule.sampler(10, spacing=spacing)
            found = sample(model, schedule, sampler, predicts=predicts)
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_any_subset_of_timesteps_is_ddim_too() -> None:
    timesteps = (97, 90, 41, 40, 3)
    model = exact_model(COSINE.signal, "epsilon")
    sampler = Sampler(5, times=COSINE.flow_times(timesteps))
    expected = ddim(model, COSINE.signal, timesteps, draw(64), "epsilon")
    found = sample(model, COSINE, sampler)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


DIFFUSERS = {"linear": {}, "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}}


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    ("name", "beta_schedule"),
    [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")],
)
def test_the_result_is_that_of_the_diffusers_package(
    name: str, beta_schedule: str, clip: bool, predicts: str
) -> None:
    diffusers = pytest.importorskip("diffusers")
    schedule = SCHEDULES[name]
    reference = diffusers.DDIMScheduler(
        num_train_timesteps=len(schedule.signal),
        beta_schedule=beta_schedule,
        prediction_type=predicts,
        clip_sample=clip,
        **DIFFUSERS.get(name, {}),
    )
    np.testing.assert_allclose(schedule.signal, reference.alphas_cumprod, rtol=2e-4, atol=1e-9)
    reference.set_timesteps(10)
    assert tuple(reference.timesteps.tolist()) == schedule.timesteps(10)
    own = DiffusionSchedule(tuple(reference.alphas_cumprod.double().tolist()))
    reference.alphas_cumprod = reference.alphas_cumprod.double()
    reference.final_alpha_cumprod = reference.final_alpha_cumprod.double()
    x = draw(64)
    for timestep in reference.timesteps:
        answer = wild(x, timestep.expand(len(x)))
        x = reference.step(answer, timestep, x, use_clipped_model_output=True).prev_sample
    sampler = own.sampler(10)
    field = diffusion_field(wild, own, predicts=predicts, clip=(-1.0, 1.0) if clip else None)
    found = sampler.denoise(field, enter(draw(64), sampler.flow_times[0]))
    torch.testing.assert_close(found, x, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_with_many_steps_the_samples_are_the_mixture(name: str) -> None:
    schedule, count = SCHEDULES[name], 20_000
    model = exact_model(schedule.signal, "epsilon")
    sampler = schedule.sampler(100, spacing="trailing")
    start = enter(draw(count, seed=5), sampler.flow_times[0])
    found = sampler.denoise(diffusion_field(model, schedule), start).flatten(1)
    mean, covariance = mean_and_covariance()
    torch.testing.assert_close(found.mean(dim=0), mean, atol=0.015, rtol=0)
    torch.testing.assert_close(found.T.cov(), covariance, atol=0.015, rtol=0)
    shares = mode_shares(found)
    assert shares.tolist() == pytest.approx([0.5, 0.2, 0.3], abs=0.015)


@pytest.mark.parametrize("asked", ["nearest", "fractional"])
def test_the_three_predictions_give_the_same_velocity(asked: str) -> None:
    for name, schedule in SCHEDULES.items():
        on_grid = schedule.taus[len(schedule.taus) // 3]
        for tau in (on_grid, 0.4, 0.7):
            rows = torch.full((64,), tau, dtype=torch.float64)
            if asked == "nearest" and tau != on_grid:
                continue  # the model is then asked about other weights than those of x
            found = [
                diffusion_field(
                    exact_model(schedule.signal, kind), schedule, predicts=kind, asked=asked
                )(draw(64), rows)
                for kind in PREDICTIONS
            ]
            for other in found[1:]:
                torch.testing.assert_close(other, found[0], atol=1e-9, rtol=1e-9, msg=name)


def test_the_velocity_is_the_clean_prediction_less_the_noise_prediction() -> None:
    """E[a - eps | x] of the mixture at the flow's own weights."""
    tau = COSINE.taus[40]
    rows = torch.full((64,), tau, dtype=torch.float64)
    field = diffusion_field(exact_model(COSINE.signal, "epsilon"), COSINE)
    velocity = field(draw(64), rows)
    clean = predict_clean(draw(64), rows, velocity)
    weights = torch.full((64, 1), tau, dtype=torch.float64), 1.0 - rows.unsqueeze(1)
    expected = clean_mean(draw(64), *weights)
    torch.testing.assert_close(clean, expected)
    torch.testing.assert_close(velocity, expected - (draw(64) - tau * expected) / (1 - tau))


@pytest.mark.parametrize(("integrator", "share"), [("midpoint", 0.5), ("heun", 0.9)])
def test_a_second_order_step_between_timesteps_beats_ddim_of_as_many_evaluations(
    integrator: str, share: float
) -> None:
    model = exact_model(COSINE.signal, "epsilon")
    field = diffusion_field(model, COSINE, asked="fractional")
    start = enter(draw(256), COSINE.taus[90])

    def run(steps: int, by: str) -> Tensor:
        times = COSINE.flow_times([round(90 * (1 - k / steps)) for k in range(steps)])
        return Sampler(steps, integrator=by, times=times).denoise(field, start)

    exact = run(90, "midpoint")
    assert (run(15, integrator) - exact).norm() < share * (run(30, "euler") - exact).norm()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_is_that_of_its_formula(name: str) -> None:
    steps = np.arange(len(SCHEDULES[name].signal))
    count = len(steps)
    betas = {
        "linear": np.linspace(1e-4, 0.02, 1000),
        "scaled_linear": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
        "cosine": golden_like_cosine(count),
        "vp": 1 - np.exp(-0.1 / count - 0.5 * 9.9 * (2 * (steps + 1) - 1) / count**2),
    }[name]
    np.testing.assert_allclose(SCHEDULES[name].signal, np.cumprod(1 - betas), rtol=1e-10)


def golden_like_cosine(count: int) -> np.ndarray:
    left = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - left[1:] / left[:-1], 0.999)


@pytest.mark.parametrize("count", [5, 10])
@pytest.mark.parametrize("name", ["vp", "cosine"])
def test_the_short_schedules_are_those_of_the_official_code(name: str, count: int) -> None:
    betas = golden("nets")[f"out/beta_{name}_{count}"]
    schedule = getattr(DiffusionSchedule, name)(count)
    np.testing.assert_allclose(schedule.signal, np.cumprod(1 - betas), rtol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_timestep_has_the_signal_to_noise_ratio_of_its_flow_time(name: str) -> None:
    schedule = SCHEDULES[name]
    for timestep, (tau, signal) in enumerate(zip(schedule.taus, schedule.signal, strict=True)):
        assert (tau / (1 - tau)) ** 2 == pytest.approx(signal / (1 - signal), rel=1e-9)
        assert schedule.timestep(tau) == timestep
        assert schedule.timestep(float(np.float32(tau))) == timestep


@pytest.mark.parametrize("name", SCHEDULES)
def test_between_timesteps_the_timestep_falls_with_flow_time(name: str) -> None:
    schedule = SCHEDULES[name]
    taus = np.linspace(schedule.taus[-1], 0.9999, 2000)
    steps = [schedule.timestep(float(tau)) for tau in taus]
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[-1]) == (len(schedule.signal) - 1, 0.0)
    for low, high in ((3, 4), (7, 8)):
        middle = math.tan((schedule.angles[low] + schedule.angles[high]) / 2)
        assert schedule.timestep(1 / (1 + middle)) == pytest.approx((low + high) / 2)


def test_of_a_cosine_schedule_the_fractional_timestep_is_exact() -> None:
    """Its angle is linear in the timestep wherever no beta is capped."""
    for timestep in (3.25, 40.5, 80.75):
        angle = ((timestep + 1) / 100 + 0.008) / 1.008 * math.pi / 2
        start = 0.008 / 1.008 * math.pi / 2
        signal = (math.cos(angle) / math.cos(start)) ** 2
        tau = math.sqrt(signal) / (math.sqrt(signal) + math.sqrt(1 - signal))
        assert COSINE.timestep(tau) == pytest.approx(timestep, abs=2e-3)


@pytest.mark.parametrize(
    ("asked", "dtype", "timestep"),
    [("nearest", torch.int64, 41), ("fractional", torch.float32, 40.7)],
)
def test_between_timesteps_the_model_is_asked_as_chosen(
    asked: str, dtype: torch.dtype, timestep: float
) -> None:
    seen = list[Tensor]()

    def model(noisy: Tensor, timestep: Tensor) -> Tensor:
        seen.append(timestep)
        return noisy

    ratio = math.tan(0.3 * COSINE.angles[40] + 0.7 * COSINE.angles[41])
    field = diffusion_field(model, COSINE, asked=asked)
    tau = 1 / (1 + ratio)
    field_at(field, tau)(noise().float(), torch.full((4,), tau))
    assert seen[0].dtype == dtype
    torch.testing.assert_close(seen[0], torch.full((4,), timestep, dtype=dtype))


def test_the_model_sees_chunks_of_unit_variance() -> None:
    seen = list[Tensor]()

    def model(noisy: Tensor, timestep: Tensor) -> Tensor:
        seen.append(noisy)
        return noisy

    sampler = SCHEDULES["vp"].sampler(10)
    sampler.step(diffusion_field(model, SCHEDULES["vp"]), enter(noise(), sampler.flow_times[0]), 0)
    torch.testing.assert_close(seen[0], noise())


def test_noise_enters_scaled_to_the_first_flow_time() -> None:
    start = noise()
    assert enter(start, 0.0) is start
    torch.testing.assert_close(enter(start, 0.5), start * math.sqrt(0.5))
    torch.testing.assert_close(enter(start, 0.1), start * math.sqrt(0.01 + 0.81))


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_a_clip_is_where_the_velocity_leads(predicts: str) -> None:
    for tau in (COSINE.taus[70], COSINE.taus[5]):
        rows = torch.full((4,), tau, dtype=torch.float64)
        free = diffusion_field(wild, COSINE, predicts=predicts)(noise(), rows)
        held = diffusion_field(wild, COSINE, predicts=predicts, clip=(-0.2, 0.3))(noise(), rows)
        clean = predict_clean(noise(), rows, free)
        assert (clean.max() > 0.3) & (clean.min() < -0.2)
        torch.testing.assert_close(predict_clean(noise(), rows, held), clean.clamp(-0.2, 0.3))


@pytest.mark.parametrize("predicts", ["sample", "v_prediction"])
def test_a_schedule_may_reach_pure_noise_and_then_begins_with_it(predicts: str) -> None:
    signal = (*SCHEDULES["vp"].signal, 0.0)
    schedule = DiffusionSchedule(signal)
    timesteps = (10, 7, 4, 1)
    model = exact_model(signal, predicts)
    times = schedule.flow_times(timesteps)
    assert times[0] == 0.0
    field = diffusion_field(model, schedule, predicts=predicts)
    found = Sampler(4, times=times).denoise(field, draw(64))
    expected = ddim(model, signal, timesteps, draw(64), predicts)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_an_epsilon_prediction_at_pure_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="an epsilon-prediction needs some signal"):
        diffusion_field(wild, DiffusionSchedule((0.9, 0.5, 0.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_nothing_overflows_between_the_ends(predicts: str, dtype: torch.dtype) -> None:
    for schedule in SCHEDULES.values():
        model = exact_model(schedule.signal, predicts)
        field = diffusion_field(lambda x, t, m=model: m(x.double(), t).to(dtype), schedule,
                                predicts=predicts)  # fmt: skip
        for integrator in ("euler", "midpoint", "heun"):
            sampler = schedule.sampler(10, spacing="trailing", integrator=integrator)
            start = enter(draw(64), sampler.flow_times[0]).to(dtype)
            end = sampler.denoise(field, start)
            assert end.dtype == dtype
            assert end.isfinite().all()


@pytest.mark.parametrize("tau", [0.0, 0.001, 1.0, math.nan])
def test_a_flow_time_that_the_model_does_not_know_is_refused_by_name(tau: float) -> None:
    field = diffusion_field(wild, SCHEDULES["linear"])
    with pytest.raises(ConfigError, match=r"knows flow times from 0\.00631\d* to below 1: asked"):
        field_at(field, tau)
    with pytest.raises(ConfigError, match=r"schedule\.sampler"):
        Sampler(10).denoise(field, noise())


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_the_way_back_through_the_policy_is_right(predicts: str, inference: bool) -> None:
    """Finite differences of u . clean(x), at an early, a middle and a late timestep."""
    with torch.inference_mode(inference):
        for timestep in (90, 50, 4):
            tau = COSINE.taus[timestep]
            rows = torch.full((4,), tau, dtype=torch.float64)
            model = exact_model(COSINE.signal, predicts)
            field = field_at(diffusion_field(model, COSINE, predicts=predicts), tau)
            x = enter(draw(4), tau)
            cotangent = draw(4, seed=1)
            velocity, pull = differentiate(field, x, rows)
            torch.testing.assert_close(velocity, field(x, rows))
            for component in range(2):
                bump = torch.zeros_like(x)
                bump[..., component] = 1e-6
                rise = [
                    (cotangent * predict_clean(at, rows, field(at, rows))).sum(dim=(1, 2))
                    for at in (x + bump, x - bump)
                ]
                torch.testing.assert_close(
                    pull(cotangent)[:, 0, component],
                    (rise[0] - rise[1]) / 2e-6,
                    atol=1e-6,
                    rtol=1e-5,
                )


def test_a_steered_diffusion_policy_climbs_the_critic() -> None:
    model = exact_model(COSINE.signal, "epsilon")
    field = diffusion_field(model, COSINE, clip=(-1.0, 1.0))
    critic = hill(CENTRES[1].view(1, 1, 2))
    sampler = COSINE.sampler(10, spacing="trailing")
    start = enter(draw(500), sampler.flow_times[0])

    def value(of: Tensor) -> float:
        return float(critic(of)[0].mean())

    frozen = sampler.denoise(field, start)
    for rules in (lambda w: qgf(critic, weight=w), lambda w: qpilots_u(critic, weight=w)):
        chunks = [sampler.denoise(guide(field, rules(w)), start) for w in (0.0, 0.1, 0.3)]
        values = [value(chunk) for chunk in chunks]
        assert values == sorted(values)
        assert values[2] > value(frozen) + 0.1
        assert torch.equal(chunks[0], frozen)


def test_guidance_moves_the_mass_of_a_multimodal_policy_to_the_better_mode() -> None:
    field = diffusion_field(exact_model(COSINE.signal, "epsilon"), COSINE)
    critic = hill(CENTRES[1].view(1, 1, 2), scale=2.0)
    sampler = COSINE.sampler(20, spacing="trailing")
    start = enter(draw(500), sampler.flow_times[0])
    frozen = mode_shares(sampler.denoise(field, start))
    steered = mode_shares(sampler.denoise(guide(field, qgf(critic, weight=0.5)), start))
    assert frozen[1] < 0.25
    assert steered[1] > 2 * frozen[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: DiffusionSchedule(()), "'signal' must fall from below 1 to at least 0: got 0"),
        (lambda: DiffusionSchedule((1.0, 0.5)), "'signal' must fall"),
        (lambda: DiffusionSchedule((0.5, 0.5)), "'signal' must fall"),
        (lambda: DiffusionSchedule((0.5, -0.1)), "'signal' must fall"),
        (lambda: DiffusionSchedule((0.5, math.nan)), "'signal' must fall"),
        (lambda: diffusion_field(wild, COSINE, predicts="score"), "'predicts' must be one of eps"),
        (lambda: diffusion_field(wild, COSINE, asked="never"), "'asked' must be one of nearest"),
        (lambda: diffusion_field(wild, COSINE, clip=(1.0, -1.0)), "'clip' must be two rising"),
        (lambda: COSINE.flow_times([]), "timesteps must fall within 99 to 0: got "),
        (lambda: COSINE.flow_times([100, 3]), "timesteps must fall within 99 to 0: got "),
        (lambda: COSINE.flow_times([3, -1]), "timesteps must fall within 99 to 0: got "),
        (lambda: COSINE.flow_times([3, 30]), "timesteps must fall within 99 to 0: got "),
        (lambda: COSINE.timesteps(0), "steps must be 1 to 100, the trained timesteps: got 0"),
        (lambda: COSINE.timesteps(101), "steps must be 1 to 100, the trained timesteps: got 101"),
        (lambda: COSINE.timesteps(5, spacing="odd"), "'spacing' must be one of leading, trailing"),
    ],
)
def test_what_is_no_diffusion_is_refused(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()
