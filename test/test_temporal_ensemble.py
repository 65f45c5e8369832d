"""Temporal ensembling against a loop over due times, and its limits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.steering.temporal_ensemble import temporal_ensemble

HORIZON = 6


def chunks(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, HORIZON, 2, dtype=torch.float64, generator=generator)


def act_loop(given: Sequence[Tensor], offsets: Sequence[int], decay: float) -> Tensor:
    """One due time after another, as ACT executes them: table, column, weights, sum.

    tonyzhaozh/act, imitate_episodes.py (MIT), ``temporal_agg``, re-written: rows of the table are
    in the order in which the chunks were decided, so index 0 is the oldest. (The original takes
    an action with a component of exactly 0 for one that does not exist; this loop does not.)
    """
    order = np.argsort([-offset for offset in offsets])
    actions = []
    for due in range(HORIZON - min(offsets)):
        populated = [
            given[j][:, due + offsets[j]].numpy()
            for j in order
            if due + offsets[j] < given[j].shape[1]
        ]
        weights = np.exp(-decay * np.arange(len(populated)))
        weights /= weights.sum()
        actions.append(sum(w * a for w, a in zip(weights, populated, strict=True)))
    return torch.from_numpy(np.stack(actions, axis=1))


def online(given: Sequence[Tensor], decay: float) -> Tensor:
    """What each step executes, one chunk per control step, oldest first: running averages.

    LeRobot's ``ACTTemporalEnsembler`` (Apache-2.0), re-written.
    """
    weight = torch.exp(-decay * torch.arange(HORIZON, dtype=torch.float64))
    total = weight.cumsum(0)
    average, count = torch.empty(0), torch.empty(0)
    executed = []
    for chunk in given:
        if executed:
            old = average * total[count - 1].view(1, -1, 1)
            new = chunk[:, :-1] * weight[count].view(1, -1, 1)
            average = torch.cat([(old + new) / total[count].view(1, -1, 1), chunk[:, -1:]], dim=1)
            count = torch.cat([(count + 1).clamp(max=HORIZON), torch.ones(1, dtype=torch.long)])
        else:
            average, count = chunk, torch.ones(HORIZON, dtype=torch.long)
        executed.append(average[:, 0])
        average, count = average[:, 1:], count[1:]
    return torch.stack(executed, dim=1)


@pytest.mark.parametrize("decay", [-0.5, 0.0, 0.01, 1.0, 30.0])
@pytest.mark.parametrize("offsets", [(0,), (4,), (3, 0), (5, 4, 2, 1), (1, 5, 0, 2), (5, 3, 1)])
def test_it_is_acts_average_per_due_time(offsets: tuple[int, ...], decay: float) -> None:
    given = chunks(len(offsets))
    found = temporal_ensemble(given, offsets, decay=decay)
    assert found.shape == (3, HORIZON - min(offsets), 2)
    torch.testing.assert_close(found, act_loop(given, offsets, decay))


@pytest.mark.parametrize("decay", [-0.2, 0.0, 0.01])
def test_deciding_at_every_step_executes_what_lerobot_executes(decay: float) -> None:
    given = chunks(10)
    executed = []
    for now in range(10):
        first = max(0, now - HORIZON + 1)
        offsets = [now - made for made in range(first, now + 1)]
        executed.append(temporal_ensemble(given[first : now + 1], offsets, decay=decay)[:, 0])
    torch.testing.assert_close(torch.stack(executed, dim=1), online(given, decay))


def test_the_oldest_counts_most_above_zero_and_the_newest_below() -> None:
    old, new = torch.zeros(1, HORIZON, 2), torch.ones(1, HORIZON, 2)
    share_of_new = [
        float(temporal_ensemble([old, new], [2, 0], decay=m)[0, 0, 0]) for m in (1.0, 0.0, -1.0)
    ]
    expected = [math.exp(-m) / (1 + math.exp(-m)) for m in (1.0, 0.0, -1.0)]
    assert share_of_new == pytest.approx(expected, rel=1e-6)
    assert share_of_new[0] < 0.5 == share_of_new[1] < share_of_new[2]


def test_beyond_the_older_chunks_the_newest_is_untouched() -> None:
    given = chunks(2)
    found = temporal_ensemble(given, [4, 0], decay=0.01)
    assert torch.equal(found[:, 2:], given[1][:, 2:])
    assert not torch.isclose(found[:, :2], given[1][:, :2]).any()


def test_between_two_ways_round_an_obstacle_the_average_may_be_neither() -> None:
    left, right = torch.full((1, HORIZON, 2), 0.8), torch.full((1, HORIZON, 2), -0.8)
    found = temporal_ensemble([left, right], [1, 0], decay=0.01)
    assert found[:, : HORIZON - 1].abs().max() < 0.01
    assert torch.equal(found[:, -1:], right[:, -1:])


@pytest.mark.parametrize("decay", [0.0, 0.01, -700.0, 700.0])
def test_one_chunk_alone_comes_back_to_the_bit(decay: float) -> None:
    given = chunks(1).float()
    assert torch.equal(temporal_ensemble(given, [2], decay=decay), given[0][:, 2:])


def test_actions_stay_between_what_the_chunks_want_to_the_bit() -> None:
    """Chunks that sit on the action bounds together do not leave them by a rounding."""
    for seed in range(50):
        given = (3 * chunks(5, seed)).clamp(-1, 1).float()
        found = temporal_ensemble(given, [5, 3, 2, 1, 0], decay=0.01)
        assert found.dtype == torch.float32
        assert found.abs().max() <= 1.0
    same = given[0].expand(5, -1, -1, -1)[..., :1, :].expand(-1, -1, HORIZON, -1)
    assert torch.equal(temporal_ensemble(same, [4, 3, 2, 1, 0], decay=0.3), same[0])


def test_the_order_in_which_chunks_are_given_does_not_matter() -> None:
    given, offsets = chunks(4), [5, 3, 1, 0]
    shuffled = [2, 0, 3, 1]
    found = temporal_ensemble(
        [given[j] for j in shuffled], [offsets[j] for j in shuffled], decay=1
    )
    assert torch.equal(found, temporal_ensemble(given, offsets, decay=1))


@pytest.mark.parametrize(
    ("given", "offsets", "decay", "message"),
    [
        ([], [], 0.0, "as many, and at least one: got 0 and 0"),
        (chunks(2), [0], 0.0, "as many, and at least one: got 2 and 1"),
        (chunks(2), [0, 6], 0.0, r"different numbers from 0 to 5: got \[0, 6\]"),
        (chunks(2), [-1, 0], 0.0, r"different numbers from 0 to 5: got \[-1, 0\]"),
        (chunks(2), [1, 1], 0.0, r"different numbers from 0 to 5: got \[1, 1\]"),
        (chunks(2), [1, 0], math.nan, "'decay' must be finite: got nan"),
        ([torch.zeros(1, 6, 2), torch.zeros(1, 5, 2)], [1, 0], 0.0, "one shape .* got"),
        ([torch.zeros(6, 2)], [0], 0.0, r"one shape \(B, H, A\): got \[\(6, 2\)\]"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    given: Sequence[Tensor], offsets: list[int], decay: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        temporal_ensemble(given, offsets, decay=decay)
