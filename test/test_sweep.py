"""Weights against closed forms: ratio, gain, clips, and the search for a ratio."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from fields import HORIZON, hill, noise, swirl, wavy
from parts import FEATURES, make_critic, make_policy
from torch import Tensor

from qsteer_ros.ensemble import QFunction
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.evaluation.sweep import FACTORS, Bench, curve, each_row, find_weight
from qsteer_ros.flow import Sampler, VelocityField
from qsteer_ros.steering.bptt import bptt
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.settings import FIELD_MODES, SteeringSettings

SIZE = HORIZON * 2
STILL = torch.zeros(3, HORIZON, 2, dtype=torch.float64)


def steady(speed: float | Tensor) -> VelocityField:
    """The same velocity everywhere: a number, or one per row."""
    rows = torch.as_tensor(speed, dtype=torch.float64).view(-1, 1, 1)
    return lambda noisy_chunk, flow_time: rows + 0.0 * noisy_chunk


def ramp(slope: float | Tensor) -> QFunction:
    """Linear critic: ``slope`` (a number, or one per row) times the sum of the chunk."""
    rows = torch.as_tensor(slope, dtype=torch.float64)
    return lambda chunk: torch.stack([rows * chunk.sum(dim=(1, 2))] * 2)


def bench(
    field: VelocityField = swirl,
    q: QFunction = wavy,
    start: Tensor | None = None,
    *,
    steps: int = 10,
    **settings: object,
) -> Bench:
    chosen = SteeringSettings(**{"mode": "qgf", **settings})  # type: ignore[arg-type]
    begin = noise(32) if start is None else start
    return Bench(field, q, begin, settings=chosen, sampler=Sampler(steps))


def ratio_of(made: Bench) -> Callable[[float], float]:
    return lambda weight: made.at(weight).ratio


def test_numbers_of_a_linear_critic_on_a_steady_field() -> None:
    """Guidance w s everywhere: ratio w s / v, the chunk moves by w s, Q gains w s^2 D."""
    point = bench(steady(0.25), ramp(0.5), STILL).at(0.2)
    assert point.weight == 0.2
    assert point.ratio == pytest.approx(0.2 * 0.5 / 0.25)
    assert point.displacement == pytest.approx(0.1)
    assert point.delta_q == pytest.approx(0.2 * 0.25 * SIZE)
    assert point.delta_q_error == pytest.approx(0.0, abs=1e-12)
    assert (point.improved, point.clipped) == (1.0, 0.0)


def test_the_ratio_is_the_median_and_the_gain_the_mean_with_its_error() -> None:
    slopes = torch.tensor([0.1, -0.2, 0.9], dtype=torch.float64)
    point = bench(steady(torch.tensor([0.1, 0.2, 0.3])), ramp(slopes), STILL).at(0.1)
    assert point.ratio == pytest.approx(0.1)  # of 0.1, 0.1 and 0.3
    gains = 0.1 * slopes.square() * SIZE
    assert point.delta_q == pytest.approx(float(gains.mean()))
    assert point.delta_q_error == pytest.approx(float(gains.std()) / math.sqrt(3))


def test_only_chunks_that_gained_count_as_improved() -> None:
    """Step by step a weight of 1.2 / 2 overshoots a narrow hill and climbs a wide one."""
    widths = torch.tensor([8.0, 1.0, 0.5], dtype=torch.float64)

    def q(chunk: Tensor) -> Tensor:
        return torch.stack([-widths * (chunk - 0.3).square().sum(dim=(1, 2))] * 2)

    point = bench(steady(1e-3), q, STILL, steps=1).at(0.6)
    assert point.improved == pytest.approx(2 / 3)
    assert point.delta_q < 0.0


def test_clips_that_the_policy_makes_itself_are_not_those_of_steering() -> None:
    start = STILL.clone()
    start[:, 0] = 2.0  # a third of the components end outside anyway
    start[0, 1:] = 0.9  # and two thirds of one row are pushed out
    point = bench(steady(0.01), ramp(1.0), start).at(0.2)
    assert point.clipped == pytest.approx(2 / 9)


def test_a_gain_is_that_of_the_clipped_chunk() -> None:
    point = bench(steady(0.5), ramp(1.0), STILL).at(3.0)
    assert point.delta_q == pytest.approx(0.5 * SIZE)
    assert point.displacement == pytest.approx(0.5)


def test_steps_at_which_the_critic_is_not_asked_do_not_dilute_the_ratio() -> None:
    point = bench(mode="qpilots_u").at(0.3)  # never asks at flow time 0
    assert point.ratio == pytest.approx(0.3, rel=1e-5)


def test_a_mode_that_never_asks_is_refused() -> None:
    with pytest.raises(ConfigError, match="'qpilots_u' must ask the critic at one step at least"):
        bench(mode="qpilots_u", steps=1).at(0.3)


def test_weights_act_against_the_chunks_from_the_same_noise() -> None:
    made = bench()
    torch.testing.assert_close(made.twin, Sampler(10).denoise(swirl, noise(32)).clamp(-1, 1))
    assert made.at(1e-9).displacement < 1e-8


def test_the_ratio_doubles_with_a_small_weight() -> None:
    made = bench()
    assert made.at(2e-4).ratio / made.at(1e-4).ratio == pytest.approx(2.0, rel=1e-3)


def test_a_small_weight_improves_almost_every_chunk_of_a_concave_critic() -> None:
    point = bench(q=hill(0.5)).at(0.02)
    assert point.delta_q > 5 * point.delta_q_error > 0.0
    assert point.improved == 1.0


def test_withheld_guidance_has_a_ratio_and_improves_nothing() -> None:
    point = bench(mode="zero").at(0.1)
    assert point.ratio == pytest.approx(bench().at(0.1).ratio, rel=0.2)
    assert (point.delta_q, point.improved, point.displacement) == (0.0, 0.0, 0.0)


def test_a_native_weight_is_measured_whatever_ratio_the_settings_ask_for() -> None:
    assert bench(ratio=0.7).at(0.01) == bench().at(0.01)


def test_modes_that_look_ahead_know_how_the_field_is_integrated() -> None:
    field = guide(swirl, bptt(wavy, weight=0.2, sampler=Sampler(3)))
    chunk = Sampler(3).denoise(field, noise(32)).clamp(-1, 1)
    made = bench(mode="bptt", steps=3)
    moved = float((chunk - made.twin).square().mean().sqrt())
    assert made.at(0.2).displacement == pytest.approx(moved, rel=1e-6)


def test_the_seed_is_that_of_everything_random_in_a_mode() -> None:
    settings = SteeringSettings(mode="random_matched")
    gains = [
        Bench(swirl, wavy, noise(8), settings=settings, sampler=Sampler(4), seed=seed)
        .at(0.1)
        .delta_q
        for seed in (0, 0, 1)
    ]
    assert gains[0] == gains[1] != gains[2]


def test_guidance_into_random_directions_improves_about_half() -> None:
    point = bench(q=hill(0.5), start=noise(400), mode="random_matched").at(0.02)
    assert 0.4 < point.improved < 0.6


@pytest.mark.parametrize("slope", [3e-4, 0.5, 2e5])
def test_the_weight_of_a_known_gradient_is_found(slope: float) -> None:
    made = bench(steady(0.25), ramp(slope), STILL)
    assert find_weight(ratio_of(made), 0.1) == pytest.approx(0.1 * 0.25 / slope, rel=0.01)


@pytest.mark.parametrize("target", [0.05, 0.15, 0.6])
def test_a_critic_ten_times_as_large_needs_a_tenth_of_the_weight(target: float) -> None:
    weight = find_weight(ratio_of(bench(q=hill(scale=2.0))), target)
    tenth = find_weight(ratio_of(bench(q=hill(scale=20.0))), target)
    assert tenth == pytest.approx(weight / 10, rel=0.01)
    assert ratio_of(bench(q=hill(scale=2.0)))(weight) == pytest.approx(target, rel=0.01)


def test_a_mode_whose_weight_is_the_ratio_gets_that_weight() -> None:
    assert find_weight(ratio_of(bench(mode="qpilots_u")), 0.15) == pytest.approx(0.15, rel=0.003)


@pytest.mark.parametrize("mode", FIELD_MODES)
def test_a_flat_critic_is_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match=r"slope at the policy's chunks: .* 0 at 32 of 32"):
        bench(q=lambda chunk: 0.0 * wavy(chunk), mode=mode)


def test_a_critic_that_is_flat_at_most_observations_is_refused() -> None:
    slopes = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    with pytest.raises(ConfigError, match="gradient is 0 at 2 of 3 observations"):
        bench(steady(0.3), ramp(slopes), STILL)


def test_guidance_that_settings_silence_is_refused() -> None:
    settings = {"mode": "qpilots_m", "tilt_mean": 1e6, "tilt_std": 1.0}
    with pytest.raises(ConfigError, match="guidance must have a length"):
        find_weight(ratio_of(bench(**settings)), 0.1)


def test_values_are_normalised_by_their_spread_over_the_twins() -> None:
    made = bench(mode="qpilots_m")
    values = wavy(made.twin).amin(dim=0)
    assert made.settings.tilt_mean == pytest.approx(float(values.mean()))
    assert made.settings.tilt_std == pytest.approx(float(values.std(unbiased=False)))
    told = bench(mode="qpilots_m", tilt_mean=0.5, tilt_std=2.0).settings
    assert (told.tilt_mean, told.tilt_std) == (0.5, 2.0)


def test_a_ratio_that_limits_forbid_is_refused_with_the_largest_there_is() -> None:
    made = bench(max_ratio=0.1)
    with pytest.raises(ConfigError, match=r"0\.2 cannot, the largest found is 0\.1 "):
        find_weight(ratio_of(made), 0.2)
    found = find_weight(ratio_of(made), 0.08)
    assert made.at(found).ratio == pytest.approx(0.08, rel=0.01)


@pytest.mark.parametrize(
    ("ratio_at", "target", "weight"),
    [
        (lambda w: w / (1.0 + w), 0.9, 9.0),
        (lambda w: w * (1.0 + 9.0 * w), 10.0, 1.0),
        (lambda w: 1e6 * w, 0.5, 5e-7),
        (lambda w: w if w < 3.0 else math.inf, 2.0, 2.0),
        (lambda w: math.sin(w) if w < 1.5 else 0.0, 0.5, math.asin(0.5)),
    ],
)
def test_weights_of_known_curves(
    ratio_at: Callable[[float], float], target: float, weight: float
) -> None:
    assert find_weight(ratio_at, target) == pytest.approx(weight, rel=0.01)


def test_where_the_ratio_jumps_over_the_target_the_nearer_end_is_taken() -> None:
    found = find_weight(lambda w: w if w < 2.0 else w + 50.0, 3.0)
    assert found == pytest.approx(2.0, rel=1e-3)
    assert find_weight(lambda w: w if w < 2.0 else math.inf, 3.0) < 2.0 + 1e-3


def test_guidance_that_never_becomes_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="must become small with the weight"):
        find_weight(lambda w: 5.0, 0.1)


def test_a_curve_holds_the_weight_itself_among_its_multiples() -> None:
    points = curve(bench(), 0.123)
    assert [point.weight for point in points] == pytest.approx([0.123 * f for f in FACTORS], 1e-3)
    assert points[4].weight == 0.123
    assert points[4] == bench().at(0.123)


def test_a_curve_ends_where_chunks_are_not_finite() -> None:
    def steep(chunk: Tensor) -> Tensor:
        return torch.where(chunk.sum(dim=(1, 2)) > 2.0, math.inf, 1.0) * ramp(1.0)(chunk)

    made = bench(steady(0.05), steep, STILL)
    assert [point.weight for point in curve(made, 0.05)] == pytest.approx(
        [0.05 * f for f in FACTORS[:7]], rel=1e-3
    )
    with pytest.raises(DataError, match=r"steered with weight 0\.4 must be finite"):
        made.at(0.4)


def conditioned(features: Tensor) -> Callable[..., Tensor]:
    """Adds to each row its own feature."""
    return lambda chunk, *flow_time: chunk + features.view(-1, 1, 1)


def test_several_chunks_of_an_observation_stand_next_to_each_other() -> None:
    rows = each_row(conditioned, torch.tensor([[0.0], [10.0], [20.0]]))
    assert rows(torch.zeros(3, 1, 1)).flatten().tolist() == [0.0, 10.0, 20.0]
    twice = rows(torch.zeros(6, 1, 1), torch.zeros(6)).flatten().tolist()
    assert twice == [0.0, 0.0, 10.0, 10.0, 20.0, 20.0]
    with pytest.raises(DataError, match="3 observations must share the rows evenly: got 4"):
        rows(torch.zeros(4, 1, 1))


@pytest.mark.parametrize("mode", FIELD_MODES)
def test_no_mode_lets_one_observation_see_another(mode: str) -> None:
    policy, critic = make_policy(), make_critic()
    start = noise(3).float()

    def steered(features: Tensor) -> Tensor:
        field = each_row(policy.condition, features)
        q = each_row(critic.condition, features)
        settings = SteeringSettings(mode=mode, weight=0.3, tilt_mean=0.0, tilt_std=5.0)
        return Sampler(4).denoise(steer(field, q, settings, sampler=Sampler(4)), start)

    features = FEATURES + torch.tensor([[0.0], [0.2], [0.4]])
    changed = features.clone()
    changed[1] -= 1.0
    before, after = steered(features), steered(changed)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]])
    assert (after[1] - before[1]).abs().max() > 1e-2
