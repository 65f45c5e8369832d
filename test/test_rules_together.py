"""Several rules in one pass: what adds up, what is limited, what is reported."""

from __future__ import annotations

import pytest
import torch
from committed import COMMITTED, CRITICS, at, chain, free_norm, only_held, push
from fields import swirl
from torch import Tensor
from two_ways import chunk_noise

from qsteer_ros.flow import Sampler
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.limits import Limits
from qsteer_ros.steering.random_matched import random_matched
from qsteer_ros.steering.ratio import at_ratio
from qsteer_ros.steering.trace import Trace
from qsteer_ros.steering.zero import zero


@pytest.mark.parametrize("critic", ["qpilots_u", "qpilots_u without Jacobian", "at_ratio"])
def test_a_target_ratio_is_that_of_the_free_rows(critic: str) -> None:
    found = push(guide(swirl, CRITICS[critic](), only_held()))
    velocity = swirl(chunk_noise(4), at(0.4))
    torch.testing.assert_close(free_norm(found), 0.4 * free_norm(velocity))


def test_the_random_control_is_as_long_as_its_rule_in_the_free_rows() -> None:
    one = push(guide(swirl, CRITICS["qgf"](), only_held()))
    other = push(guide(swirl, CRITICS["random_matched"](), only_held()))
    torch.testing.assert_close(free_norm(one), free_norm(other))


def test_the_random_control_may_stand_in_for_real_time_chunking_itself() -> None:
    one = push(guide(swirl, chain()))
    other = push(guide(swirl, random_matched(chain(), seed=1)))
    assert torch.equal(one[:, :COMMITTED], other[:, :COMMITTED])
    torch.testing.assert_close(free_norm(one), free_norm(other))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("critic", ["qgf", "qpilots_u", "zero"])
def test_the_limit_is_on_the_sum_and_counts_free_rows_only(critic: str) -> None:
    rules = (CRITICS[critic](), chain())
    limited = push(guide(swirl, *rules, limits=Limits(max_ratio=0.1)))
    velocity = swirl(chunk_noise(4), at(0.4))
    torch.testing.assert_close(free_norm(limited), 0.1 * free_norm(velocity))
    free = push(guide(swirl, *rules))
    cosine = torch.cosine_similarity(
        free[:, COMMITTED:].flatten(1), limited[:, COMMITTED:].flatten(1)
    )
    torch.testing.assert_close(cosine, torch.ones(4, dtype=torch.float64))


def test_guidance_of_two_rules_adds_up() -> None:
    both = push(guide(swirl, CRITICS["qgf"](), chain()))[:, COMMITTED:]
    one = push(guide(swirl, CRITICS["qgf"](), only_held()))[:, COMMITTED:]
    torch.testing.assert_close(both, one + push(guide(swirl, chain()))[:, COMMITTED:])


@pytest.mark.parametrize("critic", CRITICS)
def test_the_order_of_rules_does_not_matter(critic: str) -> None:
    limits = Limits(max_ratio=0.7, project=True)
    one = guide(swirl, CRITICS[critic](), chain(), limits=limits)
    other = guide(swirl, chain(), CRITICS[critic](), limits=limits)
    assert torch.equal(
        Sampler().denoise(one, chunk_noise(4)), Sampler().denoise(other, chunk_noise(4))
    )


@pytest.mark.parametrize("critic", CRITICS)
def test_a_trace_changes_no_bit_and_reports_the_free_rows(critic: str) -> None:
    trace = Trace()
    traced = guide(swirl, CRITICS[critic](), chain(), trace=trace)
    plain = guide(swirl, CRITICS[critic](), chain())
    assert torch.equal(
        Sampler().denoise(traced, chunk_noise(4)), Sampler().denoise(plain, chunk_noise(4))
    )
    arrays = trace.arrays()
    assert arrays["ratio"].shape == (10, 4)
    first = swirl(chunk_noise(4), at(0.0))
    torch.testing.assert_close(
        torch.from_numpy(arrays["velocity_norm"][0]).double(), free_norm(first), rtol=1e-6, atol=0
    )


def test_the_cost_control_leaves_real_time_chunking_as_it_is() -> None:
    limits = Limits(max_ratio=0.2)
    one = guide(swirl, CRITICS["zero"](), chain(), limits=limits)
    other = guide(swirl, chain(), limits=limits)
    assert torch.equal(one(chunk_noise(4), at(0.4)), other(chunk_noise(4), at(0.4)))


def test_real_time_chunking_that_is_withheld_leaves_the_policy_as_it_is() -> None:
    field = guide(swirl, zero(chain()))
    assert torch.equal(field(chunk_noise(4), at(0.4)), swirl(chunk_noise(4), at(0.4)))
    with_critic = guide(swirl, zero(chain()), CRITICS["qgf"]())
    alone = guide(swirl, CRITICS["qgf"]())
    assert torch.equal(with_critic(chunk_noise(4), at(0.4)), alone(chunk_noise(4), at(0.4)))


def test_a_ratio_of_zero_still_holds() -> None:
    field = guide(swirl, at_ratio(chain(), 0.0))
    assert torch.equal(
        field(chunk_noise(4), at(0.4)), guide(swirl, only_held())(chunk_noise(4), at(0.4))
    )


def test_everything_together_asks_the_frozen_field_once_per_step() -> None:
    asked = []

    def counted(x: Tensor, flow_time: Tensor) -> Tensor:
        asked.append(float(flow_time[0]))
        return swirl(x, flow_time)

    rules = (CRITICS["qgf"](), CRITICS["qpilots_u"](), chain())
    Sampler().denoise(guide(counted, *rules), chunk_noise(4))
    assert asked == [step / 10 for step in range(10)]
