"""Where one chunk takes over from another: what real-time chunking does to the jump."""

from __future__ import annotations

import itertools
import math

import pytest
from torch import Tensor
from two_ways import chunk_noise, prefers, running, two_ways

from qsteer_ros.flow import denoise
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.limits import Limits
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qpilots_u import qpilots_u
from qsteer_ros.steering.rtc import rtc


def seam(chunk: Tensor, committed: int) -> Tensor:
    """Jump from the last committed action to the first new one, (B,)."""
    return (chunk[:, committed] - running()[committed - 1]).norm(dim=1)


def off(chunk: Tensor, committed: int, overlap: int) -> Tensor:
    """Distance of overlapping rows from the running chunk, root mean square, (B,)."""
    difference = chunk[:, committed:overlap] - running()[committed:overlap]
    return difference.square().mean(dim=(1, 2)).sqrt()


@pytest.mark.parametrize(("committed", "overlap"), [(1, 4), (2, 6), (1, 7)])
def test_a_new_chunk_continues_the_running_one_where_independent_chunks_jump(
    committed: int, overlap: int
) -> None:
    start = chunk_noise(256)
    alone = denoise(two_ways, start, denoising_steps=10)
    rule = rtc(running(), committed=committed, overlap=overlap)
    chained = denoise(guide(two_ways, rule), start, denoising_steps=10)
    assert 1.3 < seam(alone, committed).median() < 1.7  # half of them take the other way
    assert seam(chained, committed).median() < 0.3
    before, after = off(alone, committed, overlap), off(chained, committed, overlap)
    assert after.mean() < 0.4 * before.mean()
    jumped = before > 1.0
    assert (after[jumped] < before[jumped]).all()


def test_a_wide_limit_leaves_the_seam_alone_and_a_tight_one_lets_chunks_jump() -> None:
    def jumping(max_ratio: float) -> float:
        rule, limits = rtc(running(), committed=2, overlap=6), Limits(max_ratio=max_ratio)
        chunk = denoise(guide(two_ways, rule, limits=limits), chunk_noise(256), denoising_steps=10)
        return float((off(chunk, 2, 6) > 1.0).double().mean())

    assert jumping(math.inf) == pytest.approx(jumping(2.0), abs=0.01)
    assert jumping(2.0) < 0.03
    assert jumping(0.25) > 0.2


@pytest.mark.parametrize("rule", [qgf, qpilots_u])
def test_a_critic_that_wants_the_other_way_meets_resistance(rule: object) -> None:
    critic = rule(prefers(1), weight=0.3)  # type: ignore[operator]
    chain = rtc(running(), committed=2, overlap=6)
    start = chunk_noise(256)
    alone = denoise(guide(two_ways, critic), start, denoising_steps=10)
    both = denoise(guide(two_ways, critic, chain), start, denoising_steps=10)
    assert seam(alone, 2).median() > 1.4
    assert seam(both, 2).median() < 0.5


def test_more_weight_is_a_smaller_distance() -> None:
    """On data of one Gaussian, where nothing but the weight decides."""

    def gaussian(x: Tensor, flow_time: Tensor) -> Tensor:
        t = flow_time.view(-1, 1, 1)
        return (t * 0.25 - (1 - t)) / (t**2 * 0.25 + (1 - t) ** 2) * x

    distances = []
    for beta in (0.0, 0.5, 1.0, 2.0, 5.0):
        field = guide(gaussian, rtc(running(), committed=0, overlap=6, max_weight=beta))
        distances.append(off(denoise(field, chunk_noise(64), denoising_steps=10), 0, 6).mean())
    assert all(low < high for high, low in itertools.pairwise(distances))
