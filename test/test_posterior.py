"""GLASS: the posterior flow of a frozen field, and samples from it."""

from __future__ import annotations

import math

import pytest
import torch
from fields import noise, swirl, times
from mixtures import Mixture, mixture, spread_normals
from torch import Tensor

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.flow import Sampler, Scheduled, VelocityField, predict_clean
from qsteer_ros.posterior import (
    glass_posterior,
    glass_velocity,
    glass_velocity_per_row,
    posterior_at,
)

OUTER = (0.0, 1e-9, 1e-3, 0.1, 0.5, 0.9, 0.999)
INNER = (0.0, 1e-9, 1e-3, 0.3, 0.7, 0.999, 1.0 - 1e-9, 1.0)


def rows(batch: int, t: float) -> Tensor:
    return torch.full((batch,), t, dtype=torch.float64)


def case(t: float, r: float, *, batch: int = 3, count: int = 5) -> tuple[Mixture, Tensor, Tensor]:
    """A mixture, noisy chunks (B, 2, 2) and inner states (B, N, 2, 2) that belong to them."""
    data = mixture(4)
    clean = 0.5 * torch.randn(batch, 2, 2, dtype=torch.float64, generator=seeded(1))
    x = t * clean + (1.0 - t) * torch.randn(clean.shape, dtype=clean.dtype, generator=seeded(2))
    y = torch.randn(batch, count, 2, 2, dtype=clean.dtype, generator=seeded(3))
    return data, x, r * clean.unsqueeze(1) + (1.0 - r) * y


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Asked:
    """A field that remembers how many rows it was asked for, and when."""

    def __init__(self, field: VelocityField) -> None:
        self._field, self.rows, self.times = field, list[int](), list[float]()

    def __call__(self, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        assert flow_time.shape == (noisy_chunk.shape[0],)
        self.rows.append(noisy_chunk.shape[0])
        self.times.append(float(flow_time[0]))
        return self._field(noisy_chunk, flow_time)


@pytest.mark.parametrize("t", OUTER)
@pytest.mark.parametrize("r", INNER)
def test_the_glass_velocity_is_that_of_the_exact_posterior(t: float, r: float) -> None:
    """Against the flow of the posterior mixture, which never merges two views."""
    data, x, y = case(t, r)
    found = glass_velocity(data.field(), y, r, x, t)
    posterior = data.posterior(x.flatten(1), t)
    for sample in range(y.shape[1]):
        exact = posterior.velocity_at(y[:, sample].flatten(1), r).view_as(x)
        torch.testing.assert_close(found[:, sample], exact, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("t", "r"), [(0.1, 0.3), (0.5, 0.5), (0.9, 0.2), (0.4, 0.9)])
def test_two_views_merge_into_one_at_the_precision_of_both(t: float, r: float) -> None:
    """The textbook form: precisions add up, and so do the views weighed by them."""
    data, x, y = case(t, r)
    precision = (t / (1 - t)) ** 2 + (r / (1 - r)) ** 2
    statistic = t / (1 - t) ** 2 * x.unsqueeze(1) + r / (1 - r) ** 2 * y
    merged_time = math.sqrt(precision) / (1 + math.sqrt(precision))
    merged = (merged_time * statistic / precision).flatten(0, 1)
    time = rows(15, merged_time)
    clean = predict_clean(merged, time, data.field()(merged, time)).view_as(y)
    field = Asked(data.field())
    torch.testing.assert_close(
        glass_velocity(field, y, r, x, t), (clean - y) / (1 - r), atol=1e-12, rtol=1e-12
    )
    assert field.times == pytest.approx([merged_time], abs=1e-15)
    assert merged_time > max(t, r)


def test_in_single_precision_no_pair_of_times_loses_digits() -> None:
    for t in OUTER:
        for r in INNER:
            _, x, y = case(t, r)
            found = glass_velocity(swirl, y.float(), r, x.float(), t)
            exact = glass_velocity(swirl, y, r, x, t)
            scale = 1e-6 * float(exact.abs().max()) / max(1.0 - t, 1e-2)
            torch.testing.assert_close(found.double(), exact, atol=scale, rtol=0)


def test_at_flow_time_zero_the_posterior_is_the_policy() -> None:
    x, y = noise(), noise(seed=1)
    for r in (0.0, 0.2, 0.7, 1.0):
        torch.testing.assert_close(
            glass_velocity(swirl, y, r, x, 0.0), swirl(y, rows(4, r)), atol=1e-14, rtol=0
        )


def test_at_inner_time_zero_the_samples_head_for_the_clean_prediction() -> None:
    data, x, y = case(0.4, 0.0)
    field = Asked(data.field())
    clean = predict_clean(x, rows(3, 0.4), data.field()(x, rows(3, 0.4)))
    torch.testing.assert_close(glass_velocity(field, y, 0.0, x, 0.4), clean.unsqueeze(1) - y)
    assert field.rows == [3]  # not 15: all samples share it


def test_samples_are_rows_of_one_evaluation_and_do_not_mix() -> None:
    data, x, y = case(0.4, 0.3)
    field = Asked(data.field())
    together = glass_velocity(field, y, 0.3, x, 0.4)
    assert field.rows == [15]
    for row in range(3):
        for sample in range(5):
            alone = glass_velocity(
                data.field(), y[row : row + 1, sample], 0.3, x[row : row + 1], 0.4
            )
            torch.testing.assert_close(together[row, sample], alone[0], atol=1e-12, rtol=1e-12)


def every_pair() -> tuple[Tensor, Tensor]:
    """Outer and inner times of all combinations, (B,) each."""
    pairs = torch.cartesian_prod(
        torch.tensor(OUTER, dtype=torch.float64), torch.tensor(INNER, dtype=torch.float64)
    )
    return pairs[:, 0], pairs[:, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_with_times_of_their_own_get_what_each_would_get_alone(dtype: torch.dtype) -> None:
    t, r = every_pair()
    x, y = noise(len(t)).to(dtype), noise(len(t), seed=1).to(dtype)
    found = glass_velocity_per_row(swirl, y, r.to(dtype), x, t.to(dtype))
    assert found.dtype == dtype
    for i, (outer, inner) in enumerate(zip(t.tolist(), r.tolist(), strict=True)):
        alone = glass_velocity(swirl, y[i : i + 1].double(), inner, x[i : i + 1].double(), outer)
        near = 1e-12 if dtype == torch.float64 else 2e-6 * float(alone.abs().max()) / (1.0 - outer)
        torch.testing.assert_close(found[i : i + 1].double(), alone, atol=near, rtol=0)


def test_rows_with_times_of_their_own_get_the_velocity_of_their_exact_posteriors() -> None:
    data, (t, r) = mixture(4), every_pair()
    x, y = noise(len(t))[:, :2], noise(len(t), seed=1)[:, :2]

    def field(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        rows = [
            data.velocity_at(noisy_chunk[i : i + 1].flatten(1), float(flow_time[i]))
            for i in range(len(noisy_chunk))
        ]
        return torch.cat(rows).view_as(noisy_chunk)

    found = glass_velocity_per_row(field, y, r, x, t)
    for i in range(len(t)):
        posterior = data.posterior(x[i : i + 1].flatten(1), float(t[i]))
        exact = posterior.velocity_at(y[i : i + 1].flatten(1), float(r[i])).view_as(x[i])
        torch.testing.assert_close(found[i], exact, atol=1e-8, rtol=1e-8)


def test_rows_of_other_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"must have shape \(B, N, H, A\) for noisy chunks"):
        glass_velocity_per_row(swirl, noise(3), torch.zeros(3), noise(4), torch.zeros(4))


def test_a_field_that_is_scheduled_is_asked_with_a_plain_number() -> None:
    asked = []

    def at(tau: float) -> VelocityField:
        assert isinstance(tau, float)
        asked.append(tau)

        def field(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
            assert (flow_time == tau).all()
            return swirl(noisy_chunk, flow_time)

        return field

    x = noise()
    timed = posterior_at(glass_posterior(Scheduled(at), steps=4), 0.3)
    plain = posterior_at(glass_posterior(swirl, steps=4), 0.3)
    y = noise(8, seed=1).view(4, 2, 3, 2)
    assert torch.equal(timed(y, x, rows(4, 0.3)), plain(y, x, rows(4, 0.3)))
    assert asked[0] == pytest.approx(0.3)
    assert sorted(asked) == asked
    assert asked[-1] < 1.0


def test_one_euler_step_collapses_to_the_clean_prediction() -> None:
    x = noise()
    clean = predict_clean(x, rows(4, 0.3), swirl(x, rows(4, 0.3)))
    samples = glass_posterior(swirl, steps=1, integrator="euler")(
        noise(8, seed=1).view(4, 2, 3, 2), x, rows(4, 0.3)
    )
    torch.testing.assert_close(samples, clean.unsqueeze(1).expand_as(samples))


def test_n_samples_cost_one_row_and_n_for_each_further_step() -> None:
    field = Asked(swirl)
    normals = noise(8).view(4, 2, 3, 2)
    glass_posterior(field, steps=5, integrator="euler")(normals, noise(), rows(4, 0.5))
    assert field.rows == [4, 8, 8, 8, 8]
    glass_posterior(field, steps=2)(normals, noise(), rows(4, 0.5))
    assert field.rows[5:] == [4, 8, 8, 8]


def drawn(steps: int, integrator: str) -> tuple[Tensor, Mixture]:
    """Evenly spread samples (8192, 2) at one noisy chunk, and the exact posterior there."""
    data = mixture(2, 2, seed=3)
    x = torch.tensor([[[0.1, -0.2]]], dtype=torch.float64)
    exact = data.posterior(x.flatten(1), 0.4)
    normals = spread_normals(8192, 2).view(1, 8192, 1, 2)
    sample = glass_posterior(data.field(), steps=steps, integrator=integrator)
    one = Mixture(exact.weights[0], exact.means[0], exact.covariances)
    return sample(normals, x, rows(1, 0.4)).flatten(0, 2), one


def errors(steps: int, *, integrator: str = "euler") -> tuple[Tensor, Tensor]:
    """Distance of the samples' mean and covariance from those of the exact posterior."""
    samples, exact = drawn(steps, integrator)
    mean = (samples.mean(dim=0) - exact.mean).norm() / exact.mean.norm()
    covariance = (torch.cov(samples.T) - exact.covariance).norm() / exact.covariance.norm()
    return mean, covariance


@pytest.mark.parametrize(
    ("integrator", "shares"),
    [("euler", (0.0, 0.14, 0.32, 0.43, 0.67)), ("midpoint", (0.56, 0.94, 0.97, 0.98, 1.0))],
)
def test_the_documented_share_of_the_variance_is_what_few_steps_give(
    integrator: str, shares: tuple[float, ...]
) -> None:
    for steps, share in zip((1, 2, 3, 4, 8), shares, strict=True):
        samples, exact = drawn(steps, integrator)
        found = torch.cov(samples.T).trace() / exact.covariance.trace()
        assert float(found) == pytest.approx(share, abs=0.01)


def test_many_steps_give_the_mean_and_covariance_of_the_exact_posterior() -> None:
    mean, covariance = errors(40, integrator="midpoint")
    assert mean < 0.01
    assert covariance < 0.01


def test_the_error_falls_with_the_steps_at_the_order_of_the_integrator() -> None:
    euler = [errors(steps)[1] for steps in (1, 8, 16, 32)]
    assert euler[0] == pytest.approx(1.0)  # one step has no spread at all
    assert euler[1] / euler[2] > 1.6
    assert euler[2] / euler[3] > 1.7
    middle = [errors(steps, integrator="midpoint")[1] for steps in (4, 8, 16)]
    assert middle[0] < 0.2 * euler[1]  # as many evaluations
    assert middle[0] / middle[1] > 3.0
    assert middle[2] < euler[3]


def test_at_flow_time_zero_the_samples_are_the_policys_chunks() -> None:
    normals = noise(8).view(4, 2, 3, 2)
    samples = glass_posterior(swirl, steps=6, integrator="euler")(
        normals, noise(seed=1), rows(4, 0.0)
    )
    chunks = Sampler(6).denoise(swirl, normals.flatten(0, 1)).view_as(normals)
    torch.testing.assert_close(samples, chunks)


def test_the_samples_are_differentiable_in_the_noisy_chunk() -> None:
    """Against central differences, with the noise held, through a field that knows the time."""
    x, normals = noise(2), noise(4, seed=1).view(2, 2, 3, 2)
    cotangent = noise(4, seed=2).view(2, 2, 3, 2)
    for time in list(times(2))[1::3]:
        for integrator in ("euler", "heun"):
            sample = posterior_at(
                glass_posterior(swirl, steps=3, integrator=integrator), float(time[0])
            )
            start = x.clone().requires_grad_(True)
            (found,) = torch.autograd.grad(
                sample(normals, start, time), start, grad_outputs=cotangent
            )
            bump = torch.zeros_like(x)
            bump[1, 2, 0] = 1e-6
            change = sample(normals, x + bump, time) - sample(normals, x - bump, time)
            assert found[1, 2, 0] == pytest.approx(
                float((change * cotangent).sum()) / 2e-6, rel=1e-6
            )


def test_a_map_without_a_schedule_is_its_own_map_at_every_time() -> None:
    def plain(normals: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        return normals + noisy_chunk.unsqueeze(1)

    assert posterior_at(plain, 0.3) is plain


def test_rows_of_different_flow_times_are_refused() -> None:
    time = torch.tensor([0.1, 0.2], dtype=torch.float64)
    with pytest.raises(DataError, match=r"must have the same flow time: got 0.1 to 0.2"):
        glass_posterior(swirl, steps=2)(noise(4).view(2, 2, 3, 2), noise(2), time)


@pytest.mark.parametrize(
    ("t", "r", "message"),
    [
        (1.0, 0.5, r"'flow_time' must be in \[0, 1\): got 1.0"),
        (-0.1, 0.5, r"'flow_time' must be in \[0, 1\): got -0.1"),
        (math.nan, 0.5, r"'flow_time' must be in \[0, 1\): got nan"),
        (0.5, 1.1, r"'inner_time' must be in \[0, 1\]: got 1.1"),
        (0.5, -0.1, r"'inner_time' must be in \[0, 1\]: got -0.1"),
    ],
)
def test_times_outside_the_flow_are_refused(t: float, r: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        glass_velocity(swirl, noise(), r, noise(), t)


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (3, 2, 3, 2), (4, 3), (4, 2, 2, 3, 2)])
def test_samples_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"must have shape \(B, N, H, A\) for noisy chunks"):
        glass_velocity(swirl, torch.zeros(shape), 0.5, noise(), 0.5)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="'steps' must be at least 1: got 0"):
        glass_posterior(swirl, steps=0)
