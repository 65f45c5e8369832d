"""Integrators, schedules, and how a field is asked at a plain flow time."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from fields import HORIZON, noise, swirl, towards
from torch import Tensor

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.flow import INTEGRATORS, Sampler, Scheduled, VelocityField, denoise, field_at

ORDER = {"euler": 1, "midpoint": 2, "heun": 2}


def forced(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
    """With v = -x + tau a path ends at (x_0 + 1) / e exactly."""
    return flow_time.view(-1, 1, 1) - noisy_chunk


class Asked:
    """A field that remembers the flow times at which it was asked."""

    def __init__(self, field: VelocityField = swirl) -> None:
        self._field, self.times = field, list[float]()

    def __call__(self, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        assert flow_time.shape == noisy_chunk.shape[:1]
        self.times.append(float(flow_time[0]))
        return self._field(noisy_chunk, flow_time)


def geometric(steps: int) -> tuple[float, ...]:
    """Explicit times, three quarters of them in the second half."""
    return (*(math.log1p(step / steps * (math.e**2 - 1)) / 2 for step in range(steps)), 1.0)


def samplers(steps: int, integrator: str) -> dict[str, Sampler]:
    return {
        "uniform": Sampler(steps, integrator=integrator),
        "short steps near the action": Sampler(steps, integrator=integrator, time_power=2.0),
        "short steps near the noise": Sampler(steps, integrator=integrator, time_power=0.7),
        "explicit": Sampler(steps, integrator=integrator, times=geometric(steps)),
    }


@pytest.mark.parametrize("schedule", samplers(4, "euler"))
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_error_falls_with_the_order_of_the_integrator(integrator: str, schedule: str) -> None:
    exact = (noise() + 1.0) / math.e

    def error(steps: int) -> float:
        sampler = samplers(steps, integrator)[schedule]
        return float((sampler.denoise(forced, noise()) - exact).abs().max())

    assert error(1024) < 2e-3
    long_end = (integrator, schedule) == ("heun", "short steps near the noise")
    expected = 2 * 0.7 if long_end else ORDER[integrator]  # Heun's last step is Euler's
    orders = [math.log2(error(steps) / error(2 * steps)) for steps in (256, 512)]
    assert orders == pytest.approx([expected] * 2, abs=0.1)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_field_that_mixes_components_shows_the_same_order(integrator: str) -> None:
    exact = Sampler(2048, integrator="midpoint").denoise(swirl, noise())

    def error(steps: int) -> float:
        return float(
            (Sampler(steps, integrator=integrator).denoise(swirl, noise()) - exact).norm()
        )

    assert math.log2(error(64) / error(128)) == pytest.approx(ORDER[integrator], abs=0.1)


def test_each_integrator_is_its_formula() -> None:
    x, start, width = noise(), 0.25, 0.25

    def v(at: Tensor, tau: float) -> Tensor:
        return swirl(at, torch.full((4,), tau, dtype=torch.float64))

    first = v(x, start)
    expected = {
        "euler": x + width * first,
        "midpoint": x + width * v(x + width / 2 * first, start + width / 2),
        "heun": x + width / 2 * (first + v(x + width * first, start + width)),
    }
    for integrator, moved in expected.items():
        found = Sampler(4, integrator=integrator).step(swirl, x, 1)
        torch.testing.assert_close(found, moved, atol=1e-15, rtol=1e-15)


def test_euler_on_a_uniform_schedule_is_denoise_bit_for_bit() -> None:
    x = noise()
    for step in range(7):
        x = x + swirl(x, torch.full((4,), step / 7, dtype=torch.float64)) / 7
    assert torch.equal(Sampler(7).denoise(swirl, noise()), x)
    assert torch.equal(denoise(swirl, noise(), denoising_steps=7), x)


@pytest.mark.parametrize(
    ("integrator", "times"),
    [
        ("euler", [0.0, 0.25, 0.5, 0.75]),
        ("midpoint", [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]),
        ("heun", [0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]),
    ],
)
def test_each_integrator_asks_when_it_says_and_never_at_one(
    integrator: str, times: list[float]
) -> None:
    field = Asked()
    Sampler(4, integrator=integrator).denoise(field, noise())
    assert field.times == times


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_pole_at_the_end_is_never_touched(integrator: str, dtype: torch.dtype) -> None:
    for sampler in samplers(64, integrator).values():
        field = Asked(towards(0.3))
        end = sampler.denoise(field, noise().to(dtype))
        torch.testing.assert_close(end, torch.full_like(end, 0.3))
        assert max(field.times) < 1.0


def test_the_steepest_schedule_allowed_is_still_apart_from_one_in_float32() -> None:
    field = Asked(towards(0.3))
    end = Sampler(100, integrator="midpoint", time_power=3.0).denoise(field, noise().float())
    torch.testing.assert_close(end, torch.full_like(end, 0.3))
    assert max(field.times) < 1.0


def test_the_power_puts_short_steps_where_it_says() -> None:
    assert Sampler(4, time_power=2.0).flow_times == (0.0, 0.4375, 0.75, 0.9375, 1.0)
    widths = {
        power: [b - a for a, b in pairwise(Sampler(9, time_power=power).flow_times)]
        for power in (0.5, 1.0, 3.0)
    }
    assert widths[0.5] == sorted(widths[0.5])
    assert widths[3.0] == sorted(widths[3.0], reverse=True)
    assert widths[1.0] == pytest.approx([1 / 9] * 9)
    for power in widths:
        assert Sampler(9, time_power=power).flow_times[::9] == (0.0, 1.0)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_explicit_times_override_the_power_and_are_the_ones_asked(integrator: str) -> None:
    times = (0.0, 0.1, 0.6, 1.0)
    field = Asked()
    Sampler(3, integrator=integrator, time_power=5.0, times=times).denoise(field, noise())
    assert set(times[:3]) <= set(field.times)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_times_may_begin_above_zero(integrator: str) -> None:
    """The path from tau 0.3 of v = -x + tau in closed form."""

    def path(x: Tensor, tau: float) -> Tensor:
        return tau - 1.0 + (x + 1.0) * math.exp(-tau)

    times = (*(0.3 + 0.7 * step / 2000 for step in range(2000)), 1.0)
    found = Sampler(2000, integrator=integrator, times=times).denoise(forced, path(noise(), 0.3))
    torch.testing.assert_close(found, path(noise(), 1.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_run_can_be_taken_up_at_any_step(integrator: str, power: float) -> None:
    sampler = Sampler(5, integrator=integrator, time_power=power)
    whole, x = sampler.denoise(swirl, noise()), noise()
    for step in range(5):
        assert torch.equal(sampler.denoise(swirl, x, first_step=step), whole)
        x = sampler.step(swirl, x, step)
    assert torch.equal(x, whole)
    assert torch.equal(sampler.denoise(swirl, x, first_step=5), whole)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_noise_is_left_alone_and_its_type_is_kept(integrator: str) -> None:
    for sampler in samplers(3, integrator).values():
        start = noise().float()
        before = start.clone()
        end = sampler.denoise(swirl, start)
        assert torch.equal(start, before)
        assert (end.dtype, end.shape) == (torch.float32, start.shape)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_constant_field_is_exact_in_one_step_of_any_integrator(integrator: str) -> None:
    found = Sampler(1, integrator=integrator).denoise(lambda x, tau: torch.ones_like(x), noise())
    torch.testing.assert_close(found, noise() + 1.0)


class Timed:
    """v = -x + tau, which knows tau from nowhere but `at`."""

    def __init__(self) -> None:
        self.times = list[float]()

    def __call__(self, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        raise AssertionError("the flow time would be read from a tensor")

    def at(self, flow_time: float) -> VelocityField:
        self.times.append(flow_time)
        return lambda x, tau: flow_time - x


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_timed_field_is_asked_by_plain_flow_times(integrator: str) -> None:
    timed, plain = Timed(), Asked(forced)
    sampler = Sampler(4, integrator=integrator)
    torch.testing.assert_close(sampler.denoise(timed, noise()), sampler.denoise(plain, noise()))
    assert timed.times == plain.times
    assert all(type(time) is float for time in timed.times)


def test_a_scheduled_field_called_directly_reads_the_flow_time_that_all_rows_share() -> None:
    field = Scheduled(lambda tau: lambda x, time: tau * torch.ones_like(x))
    flow_time = torch.full((4,), 0.25, dtype=torch.float64)
    assert torch.equal(field(noise(), flow_time), torch.full_like(noise(), 0.25))
    flow_time[2] = 0.5
    with pytest.raises(DataError, match=r"must have the same flow time: got 0\.25 to 0\.5"):
        field(noise(), flow_time)


def test_a_plain_field_is_itself_at_every_flow_time() -> None:
    assert field_at(swirl, 0.3) is swirl
    network = torch.nn.Linear(HORIZON, HORIZON)
    assert field_at(network, 0.3) is network


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"denoising_steps": 0}, "'denoising_steps' must be at least 1: got 0"),
        ({"integrator": "rk4"}, "'integrator' must be one of euler, midpoint, heun: got 'rk4'"),
        ({"time_power": 0.0}, "'time_power' must be finite and positive: got 0.0"),
        ({"time_power": math.nan}, "'time_power' must be finite and positive: got nan"),
        ({"time_power": math.inf}, "'time_power' must be finite and positive: got inf"),
        ({"time_power": 9.0}, "'time_power' must give steps of at least 3e-07 of flow time"),
        ({"time_power": 1e-9}, "'time_power' must give steps of at least 3e-07 .* from 0.0"),
        ({"times": (0.0, 1.0)}, "'times' must be 11 numbers that rise from at least 0 to 1"),
        ({"denoising_steps": 2, "times": (-0.1, 0.5, 1.0)}, "'times' must be 3 numbers"),
        ({"denoising_steps": 2, "times": (0.0, 0.5, 0.9)}, "'times' must be 3 numbers"),
        ({"denoising_steps": 2, "times": (math.nan, 0.5, 1.0)}, "'times' must be 3 numbers"),
        ({"denoising_steps": 2, "times": (0.0, math.nan, 1.0)}, "'times' must give steps"),
        ({"denoising_steps": 2, "times": (0.0, 0.0, 1.0)}, "'times' must give steps"),
        ({"denoising_steps": 3, "times": (0.0, 0.6, 0.5, 1.0)}, "'times' must give steps"),
        ({"denoising_steps": 2, "times": (0.0, 1.0 - 1e-9, 1.0)}, "'times' must give steps"),
    ],
)
def test_what_cannot_be_integrated_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampler(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [-1, 4])
def test_a_step_that_does_not_exist_is_refused(step: int) -> None:
    with pytest.raises(ConfigError, match=f"a step must be 0 to 3: got {step}"):
        Sampler(4).step(swirl, noise(), step)


@pytest.mark.parametrize("first_step", [-1, 5])
def test_a_first_step_that_does_not_exist_is_refused(first_step: int) -> None:
    with pytest.raises(ConfigError, match=f"'first_step' must be 0 to 4: got {first_step}"):
        Sampler(4).denoise(swirl, noise(), first_step=first_step)
