"""Decisions against a deadline: what is given up, and what the record says of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from parts import (
    FEATURES,
    FixedEncoder,
    make_critic,
    make_noise_policy,
    make_policy,
    observation,
)

from qsteer_ros.deadline import Deadline, DeadlineRecord
from qsteer_ros.errors import ConfigError
from qsteer_ros.policies.recording import Decision
from qsteer_ros.policies.running import RunningChunk
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.steering.settings import CHUNK_MODES, FIELD_MODES, MODES, SteeringSettings
from qsteer_ros.step_costs import StepCosts

NEVER = 10**18
TILT = {"tilt_mean": 0.0, "tilt_std": 1.0}
BENT = tuple(mode for mode in FIELD_MODES if mode != "zero")
RUNNING = RunningChunk(np.linspace(-0.9, 0.9, 6, dtype=np.float32).reshape(3, 2), 1, 1)


def steered(mode: str) -> SteeredPolicy:
    settings = SteeringSettings(mode=mode, weight=0.3, num_samples=4, twin_rate=1.0, **TILT)
    parts = FixedEncoder(), make_policy(), make_critic(), settings
    return SteeredPolicy(*parts, backend="eager", noise_policy=make_noise_policy())


def decided(mode: str, deadline: Deadline | None, **options) -> Decision:
    return steered(mode).decide(observation(), seed=3, deadline=deadline, **options)


def far() -> Deadline:
    """An hour away, and nothing costs anything."""
    return Deadline(time.monotonic_ns() + 3600 * 10**9, StepCosts([0] * 10, [0] * 10))


def unguided() -> Deadline:
    """An hour away, and guidance takes years."""
    return Deadline(time.monotonic_ns() + 3600 * 10**9, StepCosts([NEVER] * 10, [0] * 10))


def over() -> Deadline:
    """A second ago."""
    return Deadline(time.monotonic_ns() - 10**9, StepCosts([1] * 10, [1] * 10))


@pytest.mark.parametrize("mode", MODES)
def test_where_nothing_is_short_the_chunk_is_the_same_bit_for_bit(mode: str) -> None:
    free, timed = decided(mode, None).record, decided(mode, far()).record
    assert free.tensors.keys() == timed.tensors.keys()
    for name, tensor in free.tensors.items():
        np.testing.assert_array_equal(timed.tensors[name], tensor, err_msg=name)
    assert "deadline" not in free.meta
    told = timed.meta["deadline"]
    assert told["guidance"] == ("kept" if mode in FIELD_MODES else "none")
    assert told["met"]
    assert len(told["path"]) == 11


@pytest.mark.parametrize("running", [None, RUNNING], ids=["afresh", "continued"])
@pytest.mark.parametrize("mode", BENT)
def test_where_guidance_is_dropped_the_chunk_is_the_frozen_policys(
    mode: str, running: RunningChunk | None
) -> None:
    found = decided(mode, unguided(), running=running)
    frozen = decided("off", None, running=running)
    np.testing.assert_array_equal(found.chunk, frozen.chunk)
    meta = found.record.meta
    assert (meta["deadline"]["guidance"], meta["deadline"]["met"]) == ("dropped", True)
    assert (meta["delta_q"], meta["displacement"]) == (0.0, 0.0)
    assert meta["ratio"] is meta["cosine"] is meta["q_before"] is None
    assert not any(name.startswith("step_") for name in found.record.tensors)


@pytest.mark.parametrize("mode", CHUNK_MODES)
def test_modes_that_work_on_finished_chunks_lose_no_guidance(mode: str) -> None:
    found = decided(mode, unguided())
    np.testing.assert_array_equal(found.chunk, decided(mode, None).chunk)
    assert found.record.meta["deadline"]["guidance"] == "none"


@pytest.mark.parametrize("mode", MODES)
def test_a_deadline_that_is_over_still_gives_a_chunk_and_says_so(mode: str) -> None:
    found = decided(mode, over(), running=RUNNING)
    assert np.isfinite(found.chunk).all()
    np.testing.assert_array_equal(found.chunk[0], RUNNING.chunk[1])
    told = DecisionRecord.decode(found.record.extended(meta={"execute_steps": 3}).encode()).meta[
        "deadline"
    ]
    assert not told["met"]
    assert told["left_ns"] < 0
    assert len(told["path"]) == 2


@pytest.mark.parametrize("running", [None, RUNNING], ids=["afresh", "continued"])
@pytest.mark.parametrize("mode", ["off", "qgf", "best_of_n"])
def test_measured_costs_are_of_every_step(mode: str, running: RunningChunk | None) -> None:
    costs = steered(mode).step_costs(FEATURES, running=running)
    assert len(costs.guided) == len(costs.frozen) == 10
    assert min(*costs.guided, *costs.frozen) > 0
    assert (costs.guided == costs.frozen) == (mode not in FIELD_MODES)


def partly() -> Deadline:
    """An hour away, and so is the end of the frozen steps: only some of them fit."""
    hour = 3600 * 10**9
    return Deadline(time.monotonic_ns() + hour, StepCosts([NEVER] * 10, [hour // 4] * 10))


@pytest.mark.parametrize("running", [None, RUNNING])
@pytest.mark.parametrize("make", [far, unguided, partly, over])
@pytest.mark.parametrize("mode", MODES)
def test_a_chunk_that_was_short_of_time_is_made_again_from_its_record(
    mode: str, make: Callable[[], Deadline], running: RunningChunk | None
) -> None:
    first = decided(mode, make(), running=running)
    stored = first.record.extended(meta={"execute_steps": 3})
    record = DecisionRecord.decode(stored.encode())
    again = steered(mode).act(
        torch.from_numpy(record.tensors["features"].copy())[None],
        seed=record.meta["seed"],
        running=running,
        shortened=DeadlineRecord.from_json(record.meta["deadline"]),
    )
    for name, tensor in first.record.tensors.items():
        np.testing.assert_array_equal(again.record.tensors[name], tensor, err_msg=name)


def test_a_weight_of_zero_has_no_guidance_to_drop() -> None:
    settings = SteeringSettings(mode="qgf", weight=0.0, twin_rate=1.0)
    policy = SteeredPolicy(FixedEncoder(), make_policy(), make_critic(), settings)
    for running in (None, RUNNING):
        record = policy.decide(observation(), seed=3, deadline=partly(), running=running).record
        assert record.meta["deadline"]["guidance"] == "none"
        assert record.meta["displacement"] == 0.0


def test_steps_of_a_guidance_that_was_given_up_midway_are_not_in_the_trace() -> None:
    costs = StepCosts([0, 0, 0, NEVER, NEVER, NEVER, NEVER, NEVER, NEVER, NEVER], [0] * 10)
    deadline = Deadline(time.monotonic_ns() + 3600 * 10**9, costs)
    record = decided("qgf", deadline).record
    assert record.meta["deadline"]["guidance"] == "dropped"
    assert record.meta["deadline"]["dropped_at"] == 3
    assert not [name for name in record.tensors if name.startswith("step_")]


def test_a_running_chunk_of_another_shape_is_refused_before_anything_is_sampled() -> None:
    longer = RunningChunk(np.zeros((4, 2), dtype=np.float32), 1, 1)
    with pytest.raises(ConfigError, match=r"shape of the policy's, \(3, 2\): got \(4, 2\)"):
        decided("qgf", None, running=longer)
