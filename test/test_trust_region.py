"""The limits of a step and of a chunk, over random guidance."""

from __future__ import annotations

import math

import pytest
import torch
from fields import noise, swirl, wavy
from torch import Tensor

from qsteer_ros.ensemble import QFunction
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import denoise
from qsteer_ros.steering.clips import clips
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.limits import FREE, Limits, project, shorten
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qpilots_u import qpilots_u
from qsteer_ros.steering.trust_region import displacement, keep_near

BOUNDS = (-1.0, 0.7)
DTYPES = [torch.float32, torch.float64]


def draw(seed: int, dtype: torch.dtype, scale: float = 1.0, batch: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(batch, 5, 3, dtype=torch.float64, generator=generator)
    return (scale * drawn).to(dtype)


def cases(dtype: torch.dtype) -> list[tuple[Tensor, Tensor, float]]:
    """Guidance, clean prediction, flow time: from far inside the bounds to far outside."""
    found = []
    for seed in range(8):
        tau = (0.0, 0.1, 0.5, 0.95)[seed % 4]
        clean = draw(seed, dtype, scale=(0.3, 1.5)[seed % 2])
        clean[:, 0, 0], clean[:, 0, 1] = BOUNDS  # components exactly on a bound
        for size in (1e-7, 0.3, 30.0):
            found.append((draw(100 + seed, dtype, scale=size), clean, tau))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_projected_guidance_is_never_longer_and_never_of_the_other_sign(
    dtype: torch.dtype,
) -> None:
    for guidance, clean, tau in cases(dtype):
        cut = project(guidance, clean, tau, BOUNDS)
        assert (cut.abs() <= guidance.abs()).all()
        assert (cut * guidance >= 0.0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_projected_guidance_leads_nothing_out_of_the_box_nor_further_out(
    dtype: torch.dtype,
) -> None:
    for guidance, clean, tau in cases(dtype):
        reached = clean + (1 - tau) * project(guidance, clean, tau, BOUNDS)
        rounding = 4 * torch.finfo(dtype).eps * clean.abs().clamp(min=1.0)
        assert (reached <= clean.clamp(min=BOUNDS[1]) + rounding).all()
        assert (reached >= clean.clamp(max=BOUNDS[0]) - rounding).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_guidance_that_stays_in_the_box_or_comes_back_is_untouched(dtype: torch.dtype) -> None:
    untouched = 0
    for guidance, clean, tau in cases(dtype):
        target = clean + (1 - tau) * guidance
        margin = 1e-6 * (1 + clean.abs())
        inside = (target < clean.clamp(min=BOUNDS[1]) - margin) & (
            target > clean.clamp(max=BOUNDS[0]) + margin
        )
        untouched += int(inside.sum())
        cut = project(guidance, clean, tau, BOUNDS)
        assert torch.equal(cut[inside], guidance[inside])
    assert untouched > 1000


def test_projection_has_the_closed_form_by_hand() -> None:
    clean = torch.tensor([[[0.5, -0.9, 1.4, 1.4, -3.0, 0.7]]], dtype=torch.float64)
    guidance = torch.tensor([[[1.0, -1.0, 2.0, -9.0, -1.0, 0.1]]], dtype=torch.float64)
    expected = torch.tensor([[[0.4, -0.2, 0.0, -4.8, 0.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(project(guidance, clean, 0.5, BOUNDS), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shortened_guidance_is_inside_the_limit_and_keeps_its_direction(
    dtype: torch.dtype,
) -> None:
    for seed in range(8):
        guidance = draw(seed, dtype)
        limit = draw(50 + seed, dtype, scale=4.0).abs()[:, :1, :1]
        short = shorten(guidance, limit)
        norm, before = short.flatten(1).norm(dim=1), guidance.flatten(1).norm(dim=1)
        assert (norm <= limit.flatten() * (1 + 8 * torch.finfo(dtype).eps)).all()
        assert (short.abs() <= guidance.abs()).all()
        assert (short * guidance >= 0.0).all()
        inside = before <= limit.flatten()
        assert 0 < inside.sum() < len(inside)
        assert torch.equal(short[inside], guidance[inside])


def test_projected_and_shortened_guidance_is_inside_both_limits() -> None:
    limits = Limits(max_ratio=0.3, project=True)
    for guidance, clean, tau in cases(torch.float64):
        velocity = draw(7, torch.float64)
        found = limits.apply(guidance, velocity, clean, tau, BOUNDS)
        ratio = found.flatten(1).norm(dim=1) / velocity.flatten(1).norm(dim=1)
        assert ratio.max() <= 0.3 * (1 + 1e-12)
        reached = clean + (1 - tau) * found
        assert (reached <= clean.clamp(min=BOUNDS[1]) + 1e-12).all()
        assert (reached >= clean.clamp(max=BOUNDS[0]) - 1e-12).all()


def test_no_limits_hand_back_the_same_tensor() -> None:
    guidance = draw(0, torch.float64)
    assert FREE.apply(guidance, guidance, guidance, 0.5, BOUNDS) is guidance


def test_a_velocity_of_zero_allows_no_guidance() -> None:
    guidance = draw(0, torch.float64)
    found = Limits(max_ratio=0.3).apply(guidance, 0 * guidance, guidance, 0.5, BOUNDS)
    assert torch.equal(found, torch.zeros_like(guidance))


def test_the_sum_of_two_rules_is_limited_not_each_of_them() -> None:
    """Two rules that cancel are not cut before they meet; two that agree are, together."""
    flow_time = torch.full((4,), 0.4, dtype=torch.float64)
    velocity, limits = swirl(noise(), flow_time), Limits(max_ratio=0.2)

    def push(*scales: float) -> Tensor:
        def scaled(scale: float) -> QFunction:
            return lambda chunk: scale * wavy(chunk).mean(dim=0, keepdim=True)

        rules = [qgf(scaled(scale), weight=1.0) for scale in scales]
        return guide(swirl, *rules, limits=limits)(noise(), flow_time) - velocity

    limit = 0.2 * velocity.flatten(1).norm(dim=1)
    torch.testing.assert_close(push(5.0, 5.0).flatten(1).norm(dim=1), limit)
    torch.testing.assert_close(push(5.0, -4.99), push(0.01), atol=1e-12, rtol=1e-8)
    assert (push(0.01).flatten(1).norm(dim=1) < limit).all()


@pytest.mark.parametrize("rule", [qgf, qpilots_u])
def test_with_projection_fewer_components_are_clipped_because_of_steering(rule: object) -> None:
    """A critic that always wants more of every component."""

    def more(chunk: Tensor) -> Tensor:
        return chunk.sum(dim=(1, 2)).expand(2, -1)

    start = noise(batch=128)
    twin = denoise(swirl, start, denoising_steps=10)
    shares = []
    for cut in (False, True):
        steering = rule(more, weight=2.0)  # type: ignore[operator]
        field = guide(swirl, steering, limits=Limits(project=cut))
        chunk = denoise(field, start, denoising_steps=10)
        shares.append(float(clips(chunk, twin).steering.double().mean()))
    assert shares[0] > 0.2
    assert shares[1] < 0.01


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chunk_is_kept_within_the_distance_from_its_twin(dtype: torch.dtype) -> None:
    for seed in range(8):
        chunk, twin = draw(seed, dtype), draw(20 + seed, dtype, scale=0.9)
        near, share = keep_near(chunk, twin, max_displacement=1.35)
        before = (chunk - twin).square().mean(dim=(1, 2)).sqrt()
        after = (near - twin).square().mean(dim=(1, 2)).sqrt()
        torch.testing.assert_close(displacement(chunk, twin), before)
        outside = before > 1.35
        assert 0 < outside.sum() < len(outside)
        assert (after <= 1.35 * (1 + 8 * torch.finfo(dtype).eps)).all()
        torch.testing.assert_close(after[outside], torch.full_like(after[outside], 1.35))
        torch.testing.assert_close(share, (1.35 / before).clamp(max=1.0))
        torch.testing.assert_close(
            near - twin, share.view(-1, 1, 1) * (chunk - twin), atol=1e-6, rtol=1e-5
        )
        assert torch.equal(near[~outside], chunk[~outside])
        assert (share[~outside] == 1.0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_between_two_chunks_in_the_box_nothing_leaves_it(dtype: torch.dtype) -> None:
    for seed in range(20):
        chunk = draw(seed, dtype, scale=2.0).clamp(*BOUNDS)
        twin = draw(40 + seed, dtype, scale=2.0).clamp(*BOUNDS)
        near, _ = keep_near(chunk, twin, max_displacement=0.1 + 0.05 * seed)
        assert (near <= torch.maximum(chunk, twin)).all()
        assert (near >= torch.minimum(chunk, twin)).all()
        same = chunk == twin
        assert same.any()
        assert torch.equal(near[same], twin[same])


def test_samples_do_not_share_their_allowance() -> None:
    chunk, twin = draw(0, torch.float64), draw(1, torch.float64)
    together, _ = keep_near(chunk, twin, max_displacement=0.5)
    for row in (0, 17, 63):
        pair = (chunk[row : row + 1], twin[row : row + 1])
        alone, _ = keep_near(*pair, max_displacement=0.5)
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("limit", [0.01, math.inf])
def test_a_chunk_that_is_its_twin_is_untouched(limit: float) -> None:
    chunk = draw(0, torch.float64)
    near, share = keep_near(chunk, chunk.clone(), max_displacement=limit)
    assert torch.equal(near, chunk)
    assert (share == 1.0).all()


def test_no_limit_leaves_every_chunk_alone() -> None:
    chunk = draw(0, torch.float64, scale=1e6)
    near, share = keep_near(chunk, 0 * chunk, max_displacement=math.inf)
    assert torch.equal(near, chunk)
    assert (share == 1.0).all()


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_distance_that_means_nothing_is_refused(limit: float) -> None:
    with pytest.raises(ConfigError, match="'max_displacement' must be positive: got"):
        keep_near(noise(), noise(), max_displacement=limit)


def test_chunks_of_different_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"same shape: got \(4, 3, 2\) and \(1, 3, 2\)"):
        keep_near(noise(), noise()[:1], max_displacement=1.0)
