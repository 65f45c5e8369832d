"""What holds for every rule that adds a critic's gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fields import STEPS, Counting, never, noise, swirl, wavy
from torch import Tensor

from qsteer_ros import ensemble
from qsteer_ros.ensemble import QFunction
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, Scheduled, VelocityField, field_at
from qsteer_ros.steering.bptt import bptt
from qsteer_ros.steering.guide import Rule, guide
from qsteer_ros.steering.noisy_gradient import noisy_gradient
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qgf_jacobian import JACOBIANS, qgf_jacobian

SAMPLER = Sampler(STEPS)
Making = Callable[[QFunction, float], Rule]

RULES: dict[str, Making] = {
    "qgf": lambda q, w: qgf(q, weight=w, aggregate=ensemble.mean),
    "noisy": lambda q, w: qgf(q, weight=w, aggregate=ensemble.mean, estimate="noisy"),
    "chain": lambda q, w: qgf(
        q, weight=w, aggregate=ensemble.mean, estimate="chain", sampler=SAMPLER
    ),
    "tilt": lambda q, w: qgf(q, weight=w, aggregate=ensemble.mean, coefficient="tilt"),
    "qfql": lambda q, w: noisy_gradient(q, weight=w, aggregate=ensemble.mean, form="qfql"),
    "cgql": lambda q, w: noisy_gradient(q, weight=w, aggregate=ensemble.mean),
    "bptt": lambda q, w: bptt(q, weight=w, aggregate=ensemble.mean, sampler=SAMPLER),
    "tilted_jacobian": lambda q, w: qgf_jacobian(
        q, weight=w, aggregate=ensemble.mean, coefficient="tilt"
    ),
    **{
        f"{name}_jacobian": lambda q, w, name=name: qgf_jacobian(
            q, weight=w, aggregate=ensemble.mean, jacobian=name
        )
        for name in JACOBIANS
    },
}
SKIP_FIRST = ("tilt", "tilted_jacobian", "cgql")


def ask(field: VelocityField, chunk: Tensor, tau: float) -> Tensor:
    return field_at(field, tau)(chunk, chunk.new_full((len(chunk),), tau))


def push(rule: Rule, chunk: Tensor, tau: float = 0.4, field: VelocityField = swirl) -> Tensor:
    return ask(guide(field, rule), chunk, tau) - ask(swirl, chunk, tau)


@pytest.mark.parametrize("name", RULES)
def test_weight_zero_is_the_same_field_and_never_asks(name: str) -> None:
    assert guide(swirl, RULES[name](never, 0.0)) is swirl


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", RULES)
def test_a_weight_out_of_range_is_refused(name: str, weight: float) -> None:
    with pytest.raises(ConfigError, match=f"'weight' must be finite and at least 0: got {weight}"):
        RULES[name](never, weight)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"cgql"}))
def test_negating_the_critic_reverses_the_push(name: str) -> None:
    forth = push(RULES[name](wavy, 0.3), noise())
    back = push(RULES[name](lambda chunk: -wavy(chunk), 0.3), noise())
    assert forth.abs().max() > 1e-2
    torch.testing.assert_close(back, -forth)


@pytest.mark.parametrize("name", RULES)
def test_the_push_doubles_with_the_weight(name: str) -> None:
    once, twice = push(RULES[name](wavy, 0.2), noise()), push(RULES[name](wavy, 0.4), noise())
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_pushes_at_every_flow_time_but_a_skipped_first(name: str) -> None:
    for step in range(STEPS):
        critic = Counting(wavy)
        found = push(RULES[name](critic, 0.3), noise(), step / STEPS)
        pushes = step > 0 or name not in SKIP_FIRST
        assert bool(found.abs().max() > 1e-4) == pushes
        assert len(critic.asked) == pushes


@pytest.mark.parametrize("name", RULES)
def test_a_chunk_alone_is_the_chunk_it_is_in_a_batch(name: str) -> None:
    field = guide(swirl, RULES[name](wavy, 0.3))
    together = SAMPLER.denoise(field, noise())
    for row in range(len(together)):
        alone = SAMPLER.denoise(field, noise()[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize("name", RULES)
def test_inference_mode_changes_nothing_and_no_graph_is_left(name: str) -> None:
    start = noise().requires_grad_(True)
    free = SAMPLER.denoise(guide(swirl, RULES[name](wavy, 0.3)), start.detach())
    assert not free.requires_grad
    with torch.inference_mode():
        inside = SAMPLER.denoise(guide(swirl, RULES[name](wavy, 0.3)), noise())
    assert torch.equal(inside.clone(), free)
    assert not push(RULES[name](wavy, 0.3), start).detach().requires_grad
    assert start.grad is None


@pytest.mark.parametrize("name", RULES)
def test_float32_stays_float32_and_agrees(name: str) -> None:
    field = guide(swirl, RULES[name](wavy, 0.1))
    found = SAMPLER.denoise(field, noise().float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), SAMPLER.denoise(field, noise()), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", RULES)
def test_no_rule_looks_at_the_value_of_a_tensor(name: str) -> None:
    """Tensors on the meta device have none: any look at one would fail."""
    start = noise().to("meta")
    found = SAMPLER.denoise(guide(swirl, RULES[name](wavy, 0.3)), start)
    assert found.shape == start.shape


@pytest.mark.parametrize("name", RULES)
def test_a_frozen_field_that_wants_plain_flow_times_gives_the_same(name: str) -> None:
    def timed(tau: float) -> VelocityField:
        return lambda noisy_chunk, flow_time: swirl(
            noisy_chunk, noisy_chunk.new_full((len(noisy_chunk),), tau)
        )

    plain = SAMPLER.denoise(guide(swirl, RULES[name](wavy, 0.3)), noise())
    assert torch.equal(
        SAMPLER.denoise(guide(Scheduled(timed), RULES[name](wavy, 0.3)), noise()), plain
    )


@pytest.mark.parametrize("integrator", ["midpoint", "heun"])
@pytest.mark.parametrize("name", RULES)
def test_every_integrator_denoises_with_every_rule(name: str, integrator: str) -> None:
    """Heun and midpoint ask between the grid points, too; what they reach is near Euler's."""
    rule = RULES[name](wavy, 0.02)
    fine = Sampler(40).denoise(guide(swirl, rule), noise())
    coarse = Sampler(20, integrator, time_power=1.2).denoise(guide(swirl, rule), noise())
    torch.testing.assert_close(coarse, fine, atol=0.3, rtol=0.0)
