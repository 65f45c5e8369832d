"""Committed rows: they come out as they are, no critic pushes them, and critics know them."""

from __future__ import annotations

import pytest
import torch
from committed import COMMITTED, CRITICS, OVERLAP, at, chain, free_norm, only_held, push
from fields import Counting, numerical_gradient, swirl, wavy
from torch import Tensor
from two_ways import HORIZON, chunk_noise, prefers, running, two_ways

from qsteer_ros.ensemble import minimum
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import INTEGRATORS, Sampler, predict_clean
from qsteer_ros.steering.bptt import bptt
from qsteer_ros.steering.gradient import differentiate
from qsteer_ros.steering.guide import Look, Push, Rule, guide
from qsteer_ros.steering.limits import Limits
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qpilots_u import qpilots_u
from qsteer_ros.steering.rtc import hold_rows, rtc
from qsteer_ros.steering.trace import Trace
from qsteer_ros.steering.zero import zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("time_power", [1.0, 1.7])
def test_committed_rows_come_out_to_the_bit(
    critic: str, integrator: str, dtype: torch.dtype, time_power: float
) -> None:
    rule = chain(running().to(dtype))
    limits = Limits(max_ratio=0.5, project=True)
    field = guide(swirl, CRITICS[critic](), rule, limits=limits)
    sampler = Sampler(7, integrator, time_power)
    chunk = sampler.denoise(field, chunk_noise(4).to(dtype))
    rounding = 20 * torch.finfo(dtype).eps
    wanted = running().to(dtype)[:COMMITTED].expand(4, -1, -1)
    torch.testing.assert_close(chunk[:, :COMMITTED], wanted, atol=rounding, rtol=0)
    final = hold_rows(chunk, rule.held)
    assert final.dtype == dtype
    assert torch.equal(final[:, :COMMITTED], wanted)
    assert torch.equal(final[:, COMMITTED:], chunk[:, COMMITTED:])


def test_without_held_rows_a_chunk_is_left_alone() -> None:
    chunk = chunk_noise(2)
    assert rtc(running(), committed=0, overlap=6).held is None
    assert hold_rows(chunk, None) is chunk


def test_held_rows_stay_on_the_line_from_noise_to_action() -> None:
    """So the policy sees them as it was trained to: (1 - tau) noise + tau action."""
    field, chunk = guide(swirl, chain()), chunk_noise(4)
    for step in range(10):
        on_line = (1 - step / 10) * chunk_noise(4) + step / 10 * running()
        torch.testing.assert_close(chunk[:, :COMMITTED], on_line[:, :COMMITTED])
        chunk = Sampler(10).step(field, chunk, step)


@pytest.mark.parametrize("critic", CRITICS)
def test_no_critic_pushes_a_committed_row(critic: str) -> None:
    alone = guide(swirl, only_held())(chunk_noise(4), at(0.4))
    both = guide(swirl, CRITICS[critic](), only_held())(chunk_noise(4), at(0.4))
    assert torch.equal(both[:, :COMMITTED], alone[:, :COMMITTED])
    assert torch.equal(both, alone) == (critic == "zero")


def test_the_guidance_of_real_time_chunking_is_zero_in_committed_rows() -> None:
    trace = Trace()
    guide(swirl, zero(chain()), trace=trace)(chunk_noise(4), at(0.4))
    withheld = torch.from_numpy(trace.arrays()["guidance_norm"][0]).double()
    torch.testing.assert_close(withheld, free_norm(push(guide(swirl, chain()))), rtol=1e-6, atol=0)


def decided(x: Tensor, tau: float = 0.4) -> Tensor:
    """Clean prediction with the committed actions in place."""
    clean = predict_clean(x, at(tau), swirl(x, at(tau)))
    return torch.cat([running()[:COMMITTED].expand(4, -1, -1), clean[:, COMMITTED:]], dim=1)


def test_critics_judge_what_will_be_executed() -> None:
    critic = Counting(wavy)
    guide(swirl, qgf(critic, weight=1.0), chain())(chunk_noise(4), at(0.4))
    torch.testing.assert_close(critic.asked[0], decided(chunk_noise(4)).clamp(-1, 1))


def test_a_critics_rule_sees_one_field_throughout() -> None:
    """Velocity, clean prediction, way back and both fields of a look belong together."""
    seen: list[Look] = []

    def watch(look: Look) -> Push:
        seen.append(look)
        return Push(torch.zeros_like(look.velocity))

    guide(swirl, Rule(watch, needs_pull=True), chain())(chunk_noise(4), at(0.4))
    (look,) = seen
    velocity, pull = differentiate(look.field, look.noisy_chunk, look.flow_time)
    whole, _ = differentiate(look.whole, look.noisy_chunk, look.flow_time)
    assert torch.equal(velocity, look.velocity)
    assert torch.equal(whole, look.velocity)
    clean = predict_clean(look.noisy_chunk, look.flow_time, velocity)
    torch.testing.assert_close(look.clean, clean)
    torch.testing.assert_close(
        look.free(look.pulled(chunk_noise(4, 1))), look.free(pull(chunk_noise(4, 1)))
    )


def test_rules_that_integrate_further_do_so_with_the_committed_actions() -> None:
    sampler, critic = Sampler(10), Counting(wavy)
    chained = qgf(critic, weight=1.0, estimate="chain", sampler=sampler)
    for rule in (chained, bptt(critic, weight=1.0, sampler=sampler)):
        guide(swirl, rule, only_held())(chunk_noise(4), at(0.4))
    end = sampler.denoise(guide(swirl, only_held()), chunk_noise(4), first_step=4)
    assert len(critic.asked) == 2
    for asked in critic.asked:
        torch.testing.assert_close(asked, end.clamp(-1, 1))


def test_the_gradient_in_free_rows_is_that_of_the_chunk_with_the_committed_actions() -> None:
    found = push(guide(swirl, qgf(wavy, weight=1.0, clip=False), only_held()))
    expected = numerical_gradient(lambda c: minimum(wavy(c)), decided(chunk_noise(4)))
    torch.testing.assert_close(found[:, COMMITTED:], expected[:, COMMITTED:], atol=1e-7, rtol=1e-6)


def test_a_gradient_through_the_field_is_that_of_the_free_rows_given_the_committed_ones() -> None:
    small = 0.2 * chunk_noise(4)  # predictions inside the bounds: differences see no clip
    assert decided(small).abs().max() < 1.0
    field = guide(swirl, qpilots_u(wavy, weight=0.5, aggregate=minimum), only_held())
    found = (field(small, at(0.4)) - swirl(small, at(0.4)))[:, COMMITTED:].flatten(1)
    expected = numerical_gradient(lambda x: minimum(wavy(decided(x))), small)
    expected = expected[:, COMMITTED:].flatten(1)
    torch.testing.assert_close(
        torch.cosine_similarity(found, expected), torch.ones(4, dtype=torch.float64)
    )


def test_a_chunk_that_is_committed_altogether_is_the_running_one() -> None:
    rule = rtc(running(), committed=HORIZON, overlap=HORIZON)
    field = guide(two_ways, *(make() for make in CRITICS.values()), rule, limits=Limits(0.5))
    chunk = hold_rows(Sampler().denoise(field, chunk_noise(4)), rule.held)
    assert torch.equal(chunk, running().expand(4, -1, -1))


def test_it_works_under_inference_mode_and_keeps_no_graph() -> None:
    expected = Sampler().denoise(guide(swirl, CRITICS["qpilots_u"](), chain()), chunk_noise(4))
    assert not expected.requires_grad
    with torch.inference_mode():
        field = guide(swirl, CRITICS["qpilots_u"](), chain(running().clone()))
        found = Sampler().denoise(field, chunk_noise(4).clone())
    torch.testing.assert_close(found.clone(), expected)


def test_two_rules_that_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most one rule may hold actions: got 2"):
        guide(swirl, chain(), chain())


@pytest.mark.parametrize(
    ("previous", "message"),
    [
        (running()[:7], r"the field's chunk \(8, 2\), or .*: got \(7, 2\)"),
        (running()[:, :1], r"the field's chunk \(8, 2\), or .*: got \(8, 1\)"),
        (torch.stack([running()] * 3), r"the field's chunk \(8, 2\), or .*: got \(3, 8, 2\)"),
        (running().float(), "torch.float64 on cpu: got torch.float32 on cpu"),
    ],
)
@pytest.mark.parametrize("committed", [0, COMMITTED])
def test_a_running_chunk_that_does_not_fit_the_field_is_refused(
    previous: Tensor, message: str, committed: int
) -> None:
    rule = rtc(previous, committed=committed, overlap=OVERLAP)
    for rules in ((rule,), (CRITICS["qgf"](), rule)):
        with pytest.raises(ConfigError, match=message):
            guide(swirl, *rules)(chunk_noise(4), at(0.4))


def test_a_rule_that_sleeps_does_not_let_go_of_held_rows() -> None:
    """Nor does a step at which nothing guides."""
    late = Rule(only_held().push, after=0.5, held=only_held().held)
    field = guide(two_ways, late, qgf(prefers(1), weight=0.1))
    alone = guide(two_ways, late)
    for tau in (0.1, 0.6):
        for steered in (field, alone):
            velocity = steered(chunk_noise(4), at(tau))
            straight = (running() - chunk_noise(4)) / (1 - tau)
            torch.testing.assert_close(velocity[:, :COMMITTED], straight[:, :COMMITTED])
