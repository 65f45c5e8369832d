"""Ascent on a finished chunk."""

from __future__ import annotations

import math

import pytest
import torch
from fields import Counting, hill, noise, numerical_gradient, wavy
from torch import Tensor

from qsteer_ros.ensemble import QFunction
from qsteer_ros.errors import ConfigError
from qsteer_ros.steering.gradient_step import DIRECTIONS, KEEPS, Ascent, gradient_step


def staircase(*rows: tuple[float, ...]) -> QFunction:
    """A critic of single numbers: its value at 0.1 j is the row's j-th; uphill is always +."""
    table = torch.tensor(rows, dtype=torch.float64)

    def q(chunk: Tensor) -> Tensor:
        height = chunk.flatten()
        stair = table.gather(1, (10 * height.detach()).round().long().unsqueeze(1)).squeeze(1)
        return (stair + height - height.detach()).unsqueeze(0)

    return q


def climb(keep: str, *rows: tuple[float, ...]) -> Ascent:
    start = torch.zeros(len(rows), 1, 1, dtype=torch.float64)
    return gradient_step(
        start, staircase(*rows), step_size=0.1, steps=3, direction="unit", keep=keep
    )


@pytest.mark.parametrize(
    ("keep", "accepted", "values"),
    [
        ("last", 3, (1.0, 2.0, 1.5, 2.5)),
        ("best", 3, (1.0, 2.0, 1.5, 2.5)),
        ("ascending", 1, (1.0, 2.0, 2.0, 2.0)),
    ],
)
def test_what_is_kept_of_values_that_rise_fall_and_rise_higher(
    keep: str, accepted: int, values: tuple[float, ...]
) -> None:
    found = climb(keep, (1.0, 2.0, 1.5, 2.5))
    assert found.accepted.tolist() == [accepted]
    assert found.chunk.flatten().tolist() == pytest.approx([0.1 * accepted])
    assert found.values.flatten().tolist() == pytest.approx(values)


@pytest.mark.parametrize(
    ("keep", "accepted"),
    [("last", [3, 3, 3, 3]), ("best", [1, 3, 0, 0]), ("ascending", [1, 3, 0, 0])],
)
def test_samples_climb_on_their_own(keep: str, accepted: list[int]) -> None:
    """One that falls back below, one that always rises, one that only falls, one that is flat."""
    found = climb(
        keep,
        (1.0, 2.0, 1.5, 1.8),
        (1.0, 2.0, 3.0, 4.0),
        (1.0, 0.5, 0.4, 0.3),
        (1.0, 1.0, 1.0, 1.0),
    )
    assert found.accepted.tolist() == accepted


def test_the_best_of_equals_is_the_first() -> None:
    assert climb("best", (1.0, 2.0, 2.0, 2.0)).accepted.tolist() == [1]


@pytest.mark.parametrize("keep", ["best", "ascending"])
def test_a_value_that_is_no_number_is_never_better(keep: str) -> None:
    def broken_above(chunk: Tensor) -> Tensor:
        height = chunk.sum(dim=(1, 2)).unsqueeze(0)
        return torch.where(height > 0.15, torch.full_like(height, math.nan), height)

    start = torch.zeros(1, 1, 1, dtype=torch.float64)
    found = gradient_step(start, broken_above, step_size=0.1, steps=4, keep=keep)
    assert found.accepted.tolist() == [1]
    assert found.chunk.flatten().tolist() == pytest.approx([0.1])


def test_a_step_follows_the_gradient() -> None:
    start = noise().clamp(-0.9, 0.9)
    found = gradient_step(start, wavy, step_size=0.03, steps=1).chunk
    uphill = numerical_gradient(lambda chunk: wavy(chunk).amin(dim=0), start)
    torch.testing.assert_close(found, (start + 0.03 * uphill).clamp(-1, 1), atol=1e-8, rtol=1e-6)


def test_on_a_parabola_the_distance_to_the_top_shrinks_by_a_constant_factor() -> None:
    start = 0.4 * noise().clamp(-1, 1)
    found = gradient_step(start, hill(0.3), step_size=0.1, steps=7)
    torch.testing.assert_close(found.chunk, 0.3 + 0.8**7 * (start - 0.3))
    assert (found.values.diff(dim=0) > 0).all()


def test_a_long_gradient_is_shortened_and_a_short_one_is_not() -> None:
    slope = torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]]], dtype=torch.float64)
    start = torch.zeros(2, 1, 2, dtype=torch.float64)
    found = gradient_step(
        start,
        lambda chunk: (slope * chunk).sum(dim=(1, 2)).unsqueeze(0),
        step_size=0.1,
        steps=1,
        max_norm=2.0,
    ).chunk
    expected = torch.tensor([[[0.12, 0.16]], [[0.03, 0.04]]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_a_unit_step_is_as_long_as_the_step_size_whatever_the_critics_scale() -> None:
    start = 0.2 * noise()
    for scale in (1e-8, 1.0, 1e8):
        found = gradient_step(
            start,
            lambda chunk, s=scale: s * wavy(chunk),
            step_size=0.05,
            steps=1,
            direction="unit",
        ).chunk
        moved = (found - start).flatten(1).norm(dim=1)
        torch.testing.assert_close(moved, torch.full_like(moved, 0.05))


def test_a_sign_step_moves_every_component_by_the_step_size() -> None:
    start = 0.2 * noise()
    found = gradient_step(start, wavy, step_size=0.05, steps=1, direction="sign").chunk
    uphill = numerical_gradient(lambda chunk: wavy(chunk).amin(dim=0), start)
    torch.testing.assert_close(found, start + 0.05 * uphill.sign())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_on_a_flat_critic_nothing_moves(direction: str) -> None:
    start = 0.2 * noise()
    found = gradient_step(
        start, lambda chunk: 0.0 * wavy(chunk), step_size=0.05, steps=2, direction=direction
    )
    assert torch.equal(found.chunk, start)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_step_size_of_zero_or_no_step_gives_the_chunk_back(direction: str, keep: str) -> None:
    start = noise().clamp(-1, 1)
    for step_size, steps in ((0.0, 3), (0.5, 0)):
        found = gradient_step(
            start, wavy, step_size=step_size, steps=steps, direction=direction, keep=keep
        )
        assert torch.equal(found.chunk, start)
        assert found.values.shape == (steps + 1, 4)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_chunk_leaves_the_bounds_and_the_critic_is_asked_inside_them_only(
    direction: str, keep: str
) -> None:
    critic = Counting(wavy)
    start = 3.0 * noise()
    found = gradient_step(
        start, critic, step_size=0.5, steps=3, direction=direction, keep=keep, bounds=(-0.6, 0.4)
    )
    assert torch.equal(start, 3.0 * noise())
    assert found.chunk.min() >= -0.6
    assert found.chunk.max() <= 0.4
    assert len(critic.asked) == 4
    assert torch.stack(critic.asked).min() == -0.6
    assert torch.stack(critic.asked).max() == 0.4


def test_the_last_iterate_is_judged_without_a_gradient() -> None:
    wanted = list[bool]()

    def watched(chunk: Tensor) -> Tensor:
        wanted.append(chunk.requires_grad)
        return wavy(chunk)

    gradient_step(noise(), watched, step_size=0.1, steps=3)
    assert wanted == [True, True, True, False]


def test_clipping_happens_after_every_step_and_not_at_the_end_only() -> None:
    """Beyond the bound the slope turns round: an unclipped walk would come back."""
    start = torch.full((1, 1, 1), 0.9, dtype=torch.float64)
    critic = Counting(hill(1.5))
    gradient_step(start, critic, step_size=1.0, steps=2)
    assert torch.stack(critic.asked).flatten().tolist() == pytest.approx([0.9, 1.0, 1.0])


def test_what_is_kept_is_worth_what_is_said() -> None:
    start = noise().clamp(-1, 1)
    for keep in KEEPS:
        found = gradient_step(start, wavy, step_size=0.4, steps=5, keep=keep)
        rows = torch.arange(4)
        expected = wavy(found.chunk).amin(dim=0)
        step = torch.full_like(rows, 5) if keep == "last" else found.accepted
        torch.testing.assert_close(found.values[step, rows], expected)
        if keep != "last":
            assert (expected >= found.values[0]).all()
            torch.testing.assert_close(found.values.amax(dim=0), expected)


def test_the_step_of_a_hand_calculation_is_found() -> None:
    """Chunk 1, flow time 0.8, velocity 2: clean 1.4; the top at 1.45 asks for velocity 2.25."""
    start = torch.full((1, 1, 1), 1.4, dtype=torch.float64)
    found = gradient_step(
        start,
        hill(1.45),
        step_size=0.05,
        steps=3,
        direction="unit",
        keep="ascending",
        bounds=(-2.0, 2.0),
    )
    assert 2.0 + float(found.chunk - 1.4) / (1 - 0.8) == pytest.approx(2.25)
    assert found.accepted.tolist() == [1]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_inference_mode_and_float32_and_no_look_at_values(direction: str, keep: str) -> None:
    def run(start: Tensor) -> Tensor:
        return gradient_step(
            start, wavy, step_size=0.1, steps=3, direction=direction, keep=keep
        ).chunk

    expected = run(noise())
    with torch.inference_mode():
        assert torch.equal(run(noise()).clone(), expected)
    single = run(noise().float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, atol=1e-4, rtol=0)
    assert run(noise().to("meta")).shape == expected.shape  # a look at a value would fail there


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("step_size", -0.1, "'step_size' must be finite and at least 0: got -0.1"),
        ("step_size", math.inf, "'step_size' must be finite and at least 0: got inf"),
        ("steps", -1, "'steps' must be at least 0: got -1"),
        ("direction", "up", "'direction' must be one of gradient, unit, sign: got 'up'"),
        ("keep", "all", "'keep' must be one of last, best, ascending: got 'all'"),
        ("max_norm", 0.0, "'max_norm' must be positive: got 0.0"),
    ],
)
def test_an_option_that_means_nothing_is_refused(option: str, value: object, message: str) -> None:
    options = {"step_size": 0.1, "steps": 1, option: value}
    with pytest.raises(ConfigError, match=message):
        gradient_step(noise(), wavy, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["unit", "sign"])
def test_a_longest_gradient_is_refused_where_the_length_is_set_otherwise(direction: str) -> None:
    with pytest.raises(ConfigError, match=f"direction '{direction}' has a length of its own"):
        gradient_step(noise(), wavy, step_size=0.1, steps=1, direction=direction, max_norm=1.0)
