"""Value-gradient matching: what the critic asks of the velocity, and the loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fields import hill, noise, swirl, towards, wavy
from mixtures import Mixture
from torch import Tensor

from qsteer_ros import ensemble
from qsteer_ros.ensemble import QFunction
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import VelocityField, denoise, predict_clean
from qsteer_ros.learning.qvgm_variants import VARIANTS, adjusted, find_variant
from qsteer_ros.learning.value_gradient import (
    EVERYWHERE,
    Correction,
    bounds_of,
    climb_of,
    correct,
    last_steps,
    matching_loss,
    power_gate,
    roll,
    step_weights,
)

V1, V2, V5 = (VARIANTS[n] for n in ("v1_calql_chunk", "v2_iql_stepwise", "v5_iql_chunk10"))
ALL = (V1, V2, V5)
REACH = 3 * 0.05
"""How far v5 moves a look-forward when every step is accepted."""


def one(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.full((1, 1, 1), value, dtype=dtype)


def time(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slope(*shape: int) -> QFunction:
    """A critic that rises for ever in one direction, the same for all."""
    direction = torch.ones(shape, dtype=torch.float64)
    return lambda chunk: (direction * chunk).sum(dim=(1, 2)).unsqueeze(0)


def asked(field: VelocityField, noisy_chunk: Tensor, tau: float, q: QFunction) -> Correction:
    """v5's correction of a field at a state."""
    rows = noisy_chunk.new_full((len(noisy_chunk),), tau)
    reference = field(noisy_chunk, rows)
    return correct(reference, noisy_chunk, rows, climb_of(V5, q), bounds=EVERYWHERE)


# Numbers known from elsewhere


def test_the_hand_example_has_target_two_and_a_quarter_and_loss_nine_sixteenths() -> None:
    state, reference, trained = one(1.0), one(2.0), one(3.0).requires_grad_(True)
    for frozen in (state, reference):
        frozen.requires_grad_(True)
    found = correct(reference, state, time(0.8), climb_of(V5, hill(1.45)), bounds=EVERYWHERE)
    assert float((reference + found.velocity).detach()) == pytest.approx(2.25)
    assert found.ascent.accepted.tolist() == [1]
    loss = matching_loss(trained[None], reference[None], found.velocity[None], time(1.0))
    assert float(loss.detach()) == pytest.approx(0.5625)
    loss.backward()
    assert float(trained.grad) == pytest.approx(1.5)
    assert state.grad is None
    assert reference.grad is None


@pytest.mark.parametrize(
    ("step_size", "loss", "norm"),
    [(0.05, 3.2931, 0.6850), (0.005, 0.03293, 0.0685), (0.001, 0.001317, 0.0137)],
)
def test_with_every_step_accepted_the_loss_of_the_untrained_policy_is_known(
    step_size: float, loss: float, norm: float
) -> None:
    variant = replace(V5, step_size=step_size)
    states = roll(swirl, noise(), denoising_steps=10)
    corrections, weights = [], step_weights(variant)
    for step in range(5, 10):
        rows = torch.full((4,), step / 10, dtype=torch.float64)
        climb = climb_of(variant, slope(3, 2))
        found = correct(swirl(states[step], rows), states[step], rows, climb, bounds=EVERYWHERE)
        assert found.ascent.accepted.tolist() == [3] * 4
        corrections.append(found.velocity)
    asked_for = torch.stack(corrections)
    still = torch.zeros_like(asked_for)
    assert float(matching_loss(still, still, asked_for, time(*weights[5:]))) == pytest.approx(
        loss, rel=2e-4
    )
    assert float(asked_for.flatten(2).norm(dim=2).mean()) == pytest.approx(norm, rel=2e-4)


def test_two_thirds_of_the_unweighted_loss_sit_on_the_last_step() -> None:
    asked_for = torch.stack([asked(swirl, noise(), step / 10, slope(3, 2)).velocity
                             for step in range(5, 10)])  # fmt: skip
    still = torch.zeros_like(asked_for)
    shares = [
        float(matching_loss(still, still, asked_for, torch.eye(5, dtype=torch.float64)[step]))
        for step in range(5)
    ]
    assert shares[-1] / sum(shares) == pytest.approx(0.683, abs=5e-4)
    assert [round(share / REACH**2, 2) for share in shares] == [4.0, 6.25, 11.11, 25.0, 100.0]


def moved_by(field: VelocityField, starts: Tensor) -> Tensor:
    """How far chunks end from where they would, in units of one climb, if all is learned."""
    q = slope(*starts.shape[1:])

    def trained(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        velocity = field(noisy_chunk, flow_time)
        if float(flow_time[0]) < 0.49:
            return velocity
        return velocity + asked(field, noisy_chunk, float(flow_time[0]), q).velocity

    ends = denoise(trained, starts, denoising_steps=10) - denoise(
        field, starts, denoising_steps=10
    )
    return ends.flatten(1).norm(dim=1) / REACH


def test_a_policy_that_always_ends_in_one_point_moves_by_one_climb() -> None:
    torch.testing.assert_close(moved_by(towards(0.2), noise()), torch.ones(4).double())


def test_a_policy_of_constant_velocity_moves_by_the_harmonic_number_of_the_steps() -> None:
    found = moved_by(lambda noisy_chunk, _: torch.full_like(noisy_chunk, 0.3), noise())
    torch.testing.assert_close(found, torch.full((4,), 137 / 60).double())


@pytest.mark.parametrize(("std", "expected"), [(0.05, 1.15), (0.1, 1.43), (0.3, 2.06)])
def test_the_wider_the_policy_the_further_it_moves(std: float, expected: float) -> None:
    wide = Mixture(
        torch.ones(1).double(), torch.zeros(1, 6).double(), (std**2 * torch.eye(6).double())[None]
    )
    torch.testing.assert_close(
        moved_by(wide.field(), noise()), torch.full((4,), expected).double(), atol=0.005, rtol=0
    )


# What each version does


def staircase(*heights: float) -> QFunction:
    """Values by how many hundredths a chunk of one number has been raised; uphill is +."""
    table = torch.tensor(heights, dtype=torch.float64)

    def q(chunk: Tensor) -> Tensor:
        height = chunk.flatten()
        return (table[(100 * height.detach()).round().long()] + height - height.detach())[None]

    return q


@pytest.mark.parametrize(("variant", "kept"), [(V1, 3), (V2, 3), (V5, 1)])
def test_v1_and_v2_walk_through_a_dip_and_v5_stops_at_it(variant, kept: int) -> None:
    small = replace(variant, step_size=0.01)
    found = climb_of(small, staircase(1.0, 2.0, 1.5, 2.5))(one(0.0))
    assert found.accepted.tolist() == [kept]
    assert float(found.chunk) == pytest.approx(0.01 * kept)


def test_v1_and_v2_shorten_a_long_gradient_and_v5_makes_each_a_unit_long() -> None:
    pull = time(3.0, 4.0).view(1, 1, 2)

    def q(chunk: Tensor) -> Tensor:
        return (pull * chunk).sum(dim=(1, 2)).unsqueeze(0)

    start = torch.zeros(1, 1, 2, dtype=torch.float64)
    for variant in (replace(V1, max_norm=2.0), replace(V2, max_norm=2.0)):
        once = replace(variant, step_size=1e-2, ascent_steps=1)
        found = climb_of(once, q)(start).chunk
        torch.testing.assert_close(found, 1e-2 * time(1.2, 1.6).view(1, 1, 2))
    found = climb_of(replace(V5, ascent_steps=1), q)(start).chunk
    torch.testing.assert_close(found, 0.05 * time(0.6, 0.8).view(1, 1, 2))


def test_only_v1_stays_inside_the_box() -> None:
    start = one(0.99)
    reached = {v.name: float(climb_of(v, hill(3.0))(start).chunk) for v in ALL}
    assert reached["v1_calql_chunk"] == 1.0
    assert reached["v2_iql_stepwise"] == pytest.approx(0.99 + 3 * 0.02)
    assert reached["v5_iql_chunk10"] == pytest.approx(0.99 + 3 * 0.05)


@pytest.mark.parametrize("variant", ALL, ids=lambda v: v.name)
def test_a_climb_that_finds_nothing_better_asks_for_nothing_at_all(variant) -> None:
    """Also where the look-forward lies outside the box."""
    states, rows = 3.0 * noise(), torch.full((4,), 0.7, dtype=torch.float64)
    reference = swirl(states, rows)
    assert (predict_clean(states, rows, reference).abs() > 1.0).any()
    for changed, q in (
        (replace(variant, step_size=0.0), wavy),
        (replace(variant, ascent_steps=0), wavy),
        (variant, lambda chunk: 0.0 * wavy(chunk)),
    ):
        found = correct(reference, states, rows, climb_of(changed, q), bounds=bounds_of(changed))
        assert torch.equal(found.velocity, torch.zeros_like(states))
        assert found.ascent.accepted.tolist() == [0] * 4


def test_members_of_an_ensemble_are_averaged() -> None:
    """One head wants -0.2, two want 0.4; their mean has its top at 0.2, their minimum at 0.1."""

    def q(chunk: Tensor) -> Tensor:
        return torch.stack([-(chunk - top).square().sum((1, 2)) for top in (-0.2, 0.4, 0.4)])

    found = climb_of(replace(V5, step_size=0.02, ascent_steps=50), q)(one(0.5))
    assert float(found.chunk) == pytest.approx(0.2, abs=0.011)
    assert float(ensemble.mean(q(found.chunk))) == pytest.approx(float(found.values[-1]))


def test_weights_are_a_mask_or_a_power_of_flow_time() -> None:
    assert step_weights(V5) == step_weights(V2) == (0.0,) * 5 + (1.0,) * 5
    assert step_weights(V1) == pytest.approx([step / 10 for step in range(10)])
    assert power_gate(4, 2.0) == pytest.approx([0.0, 1 / 16, 1 / 4, 9 / 16])
    assert power_gate(3, 0.0) == (1.0, 1.0, 1.0)
    assert last_steps(3, 3) == (1.0, 1.0, 1.0)


# The path, the loss, the precision


def test_the_states_are_those_of_the_denoising_path() -> None:
    states = roll(swirl, noise(), denoising_steps=10)
    assert torch.equal(states[0], noise())
    assert len(states) == 10
    rows = torch.full((4,), 0.9, dtype=torch.float64)
    end = states[-1] + swirl(states[-1], rows) / 10
    assert torch.equal(end, denoise(swirl, noise(), denoising_steps=10))


def test_no_gradient_reaches_the_path() -> None:
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    states = roll(lambda x, tau: weight * swirl(x, tau), noise(), denoising_steps=3)
    assert not states.requires_grad


def test_the_loss_is_summed_over_chunk_and_steps_and_averaged_over_the_batch() -> None:
    velocity, reference, wanted = (torch.randn(2, 4, 3, 2) for _ in range(3))
    by_hand = 0.0
    for step, weight in enumerate((0.5, 2.0)):
        for row in range(4):
            error = velocity[step, row] - reference[step, row] - wanted[step, row]
            by_hand += weight * float((error**2).sum()) / 4
    found = matching_loss(velocity, reference, wanted, torch.tensor([0.5, 2.0]))
    assert float(found) == pytest.approx(by_hand, rel=1e-5)


def test_a_small_correction_of_a_large_bfloat16_velocity_survives() -> None:
    coarse = torch.full((1, 1, 1), 32.0, dtype=torch.bfloat16)
    assert float(coarse + 0.1) == 32.0
    climb = climb_of(replace(V5, step_size=0.01, ascent_steps=1), slope(1, 1))
    found = correct(coarse, one(0.0).bfloat16(), time(0.9).bfloat16(), climb, bounds=EVERYWHERE)
    assert found.velocity.dtype == torch.float32
    assert float(found.velocity) == pytest.approx(
        0.01 / (1 - float(time(0.9).bfloat16())), rel=1e-3
    )
    loss = matching_loss(coarse[None], coarse[None], found.velocity[None], torch.ones(1))
    assert float(loss) == pytest.approx(float(found.velocity) ** 2)


def test_the_difference_of_two_coarse_velocities_is_not_coarse() -> None:
    shape = (1, 1, 1, 1)
    now, reference = (torch.full(shape, value).bfloat16() for value in (32.0, 0.0625))
    assert float(now - reference) == 32.0
    loss = matching_loss(now, reference, torch.zeros(shape), torch.ones(1))
    assert float(loss) == 31.9375**2


def test_no_gradient_reaches_what_is_regressed_on() -> None:
    parts = [torch.randn(1, 2, 3, 2, requires_grad=True) for _ in range(3)]
    matching_loss(*parts, torch.ones(1)).backward()
    assert [part.grad is None for part in parts] == [False, True, True]


def test_a_critic_that_breaks_asks_for_nothing() -> None:
    found = asked(swirl, noise(), 0.5, lambda chunk: math.nan * wavy(chunk))
    assert torch.equal(found.velocity, torch.zeros_like(found.velocity))


# Versions are not mixed silently


def fitting(variant) -> dict[str, object]:
    return {"objective": variant.objective, "members": variant.members or 4, "custom": False}


@pytest.mark.parametrize("variant", ALL, ids=lambda v: v.name)
def test_a_version_with_its_own_critic_keeps_its_name(variant) -> None:
    assert adjusted(variant, {}, **fitting(variant)) == variant


@pytest.mark.parametrize("variant", ALL, ids=lambda v: v.name)
@pytest.mark.parametrize("objective", ["sarsa", None])
def test_another_critic_is_refused_or_named(variant, objective: str | None) -> None:
    options = fitting(variant) | {"objective": objective}
    found = "none stated" if objective is None else "'sarsa'"
    with pytest.raises(ConfigError, match=f"wants a critic of objective '{variant.objective}'"):
        adjusted(variant, {}, **options)
    with pytest.raises(ConfigError, match=f"got {found}.*custom=true, which names the result"):
        adjusted(variant, {}, **options)
    assert adjusted(variant, {}, **options | {"custom": True}).name == variant.name + "+custom"


def test_a_wrong_number_of_heads_is_refused_or_named() -> None:
    options = fitting(V5) | {"members": 2}
    with pytest.raises(ConfigError, match=r"wants a critic of 10 members: got 2\. Train it with"):
        adjusted(V5, {}, **options)
    assert adjusted(V5, {}, **options | {"custom": True}).name == "v5_iql_chunk10+custom"


def test_a_stated_number_is_changed_by_name_only_and_an_open_one_freely() -> None:
    with pytest.raises(ConfigError, match=r"wants 'step_size' of 0\.05: got 0\.1"):
        adjusted(V5, {"step_size": 0.1}, **fitting(V5))
    changed = adjusted(V5, {"step_size": 0.1}, **fitting(V5) | {"custom": True})
    assert (changed.step_size, changed.name) == (0.1, "v5_iql_chunk10+custom")
    assert adjusted(V5, {"step_size": 0.05}, **fitting(V5)).name == V5.name
    opened = adjusted(V1, {"step_size": 0.1, "gate_power": 2.0}, **fitting(V1))
    assert (opened.step_size, opened.gate_power, opened.name) == (0.1, 2.0, V1.name)


@pytest.mark.parametrize(
    ("variant", "name"), [(V1, "last_steps"), (V2, "gate_power"), (V5, "max_norm")]
)
def test_a_number_that_a_version_has_no_use_for_is_refused(variant, name: str) -> None:
    options = fitting(variant) | {"custom": True}
    with pytest.raises(ConfigError, match=f"'{name}' must be left out with variant"):
        adjusted(variant, {name: 3}, **options)


def test_what_is_out_of_range_or_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match="'variant' must be one of v1_calql_chunk"):
        find_variant("v3")
    with pytest.raises(ConfigError, match="must be 1 to 10 of the path's: got 11"):
        last_steps(10, 11)
    with pytest.raises(ConfigError, match="'gate_power' must be finite and at least 0: got -1"):
        power_gate(10, -1.0)
