"""Rules whose random numbers are drawn anew in place: what captured loops are made of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fields import STEPS, noise, swirl, wavy
from torch import Tensor

from qsteer_ros.flow import denoise
from qsteer_ros.posterior import glass_posterior
from qsteer_ros.steering.guide import Rule, guide
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qgf_jacobian import qgf_jacobian
from qsteer_ros.steering.qpilots_m import Tilt, qpilots_m
from qsteer_ros.steering.qpilots_u import qpilots_u
from qsteer_ros.steering.random_matched import random_matched
from qsteer_ros.steering.ratio import at_ratio
from qsteer_ros.steering.step_noise import StepNoise
from qsteer_ros.steering.zero import zero


def samples(seed: int) -> Rule:
    posterior = glass_posterior(swirl, steps=2)
    return qpilots_m(wavy, posterior, weight=0.3, tilt=Tilt(0.0, 1.0, 3.0), seed=seed)


def smoothed(seed: int) -> Rule:
    return qgf_jacobian(wavy, weight=0.3, jacobian="smoothed", seed=seed)


RANDOM: dict[str, Callable[[int], Rule]] = {
    "random_matched": lambda seed: random_matched(qgf(wavy, weight=0.3), seed=seed),
    "qpilots_m": samples,
    "smoothed": smoothed,
    "at_ratio": lambda seed: at_ratio(samples(seed), 0.2),
    "random_matched of a random rule": lambda seed: random_matched(smoothed(seed), seed=seed),
}


def chunk(rule: Rule) -> Tensor:
    return denoise(guide(swirl, rule), noise(), denoising_steps=STEPS)


@pytest.mark.parametrize("name", RANDOM)
def test_a_rule_with_another_seed_is_the_rule_made_with_that_seed(name: str) -> None:
    rule = RANDOM[name](1)
    first = chunk(rule)
    assert rule.reseed is not None
    rule.reseed(2)
    assert torch.equal(chunk(rule), chunk(RANDOM[name](2)))
    assert not torch.equal(chunk(rule), first)


def test_a_rule_that_draws_nothing_has_nothing_to_draw_anew() -> None:
    for rule in (qgf(wavy, weight=0.3), qpilots_u(wavy, weight=0.3), qgf_jacobian(wavy, weight=1)):
        assert rule.reseed is None
        assert zero(rule).reseed is None


def test_noise_drawn_anew_is_in_the_tensor_it_was_in() -> None:
    like = torch.zeros(1)
    drawn, expected = StepNoise(1), StepNoise(2)
    kept = [drawn(tau, torch.Size((3, 2)), like=like) for tau in (0.1, 0.2)]
    before = [tensor.clone() for tensor in kept]
    drawn.reseed(2)
    for tau, tensor, old in zip((0.1, 0.2), kept, before, strict=True):
        assert drawn(tau, torch.Size((3, 2)), like=like) is tensor
        assert torch.equal(tensor, expected(tau, torch.Size((3, 2)), like=like))
        assert not torch.equal(tensor, old)


def test_noise_asked_for_the_first_time_later_is_of_the_later_seed() -> None:
    like, shape = torch.zeros(1), torch.Size((3, 2))
    drawn = StepNoise(1)
    drawn.reseed(2)
    assert torch.equal(drawn(0.5, shape, like=like), StepNoise(2)(0.5, shape, like=like))
