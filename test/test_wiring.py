"""Every setting reaches what it is meant for, and a late decision is the one that was promised."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from parts import FEATURES, FixedEncoder, make_critic, make_policy, observation

from qsteer_ros.deadline import Deadline
from qsteer_ros.flow import Sampler
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.settings import SteeringSettings
from qsteer_ros.step_costs import StepCosts

REACH = [
    ("qgf", "estimate", ("euler", "noisy", "chain")),
    ("qpilots_u", "keep_jacobian", (True, False)),
    ("qpilots_m", "posterior_samples", (2, 3)),
    ("qpilots_m", "posterior_steps", (1, 2, 3)),
    ("qpilots_m", "tilt_mean", (0.0, 1.0)),
    ("qpilots_m", "tilt_clip", (0.1, 3.0)),
    ("noisy_gradient", "inverse_temperature", (1.0, 10.0)),
    ("best_of_n", "num_samples", (1, 16)),
    ("gradient_step", "ascent_steps", (1, 3)),
    *(
        (mode, "reduction", ("min", "mean", "pessimistic"))
        for mode in ("qgf", "qgf_jacobian", "qpilots_u", "qpilots_m", "noisy_gradient", "bptt",
                     "random_matched", "gradient_step")
    ),
]  # fmt: skip


def chunks(mode: str, seeds: range, **o: Any) -> bytes:
    weight = 0.02 if mode == "noisy_gradient" else 0.1
    settings = SteeringSettings(
        mode=mode, **{"weight": weight, "tilt_mean": 0.0, "tilt_std": 1.0, "rho": 2.0, **o}
    )
    policy = SteeredPolicy(None, make_policy(), make_critic(), settings)
    return b"".join(policy.act(FEATURES, seed=seed).chunk.tobytes() for seed in seeds)


@pytest.mark.parametrize(("mode", "name", "values"), REACH)
def test_every_setting_reaches_the_mode_it_is_for(mode: str, name: str, values: Any) -> None:
    assert len({chunks(mode, range(8), **{name: value}) for value in values}) == len(values)


def test_the_aggregate_decides_among_candidates() -> None:
    found = {r: chunks("best_of_n", range(40), reduction=r) for r in ("min", "mean")}
    assert found["min"] != found["mean"]


@pytest.mark.parametrize("options", [{"mode": "bptt"}, {"mode": "qgf", "estimate": "chain"}])
def test_modes_that_look_ahead_look_along_the_samplers_path(options: dict[str, Any]) -> None:
    sampler = Sampler(3, "midpoint")
    settings = SteeringSettings(weight=0.1, **options)
    policy = SteeredPolicy(None, make_policy(), make_critic(), settings, sampler=sampler)
    found = policy.act(FEATURES, seed=0).record.tensors
    field = steer(make_policy().condition(FEATURES), make_critic().condition(FEATURES), settings,
                  sampler=sampler)  # fmt: skip
    expected = sampler.denoise(field, torch.from_numpy(found["noise"])[None])[0]
    np.testing.assert_allclose(found["chunk_unclipped"], expected.numpy(), atol=1e-6)


def late(mode: str, when: str, **o: Any) -> Any:
    settings = SteeringSettings(
        mode=mode, weight=0.1, twin_rate=1.0, num_samples=8, tilt_mean=0.0, tilt_std=1.0, **o
    )
    policy = SteeredPolicy(FixedEncoder(), make_policy(), make_critic(), settings)
    now, second = time.monotonic_ns(), 10**9
    deadline = {
        "past": Deadline(now - 1, StepCosts([1] * 10, [1] * 10)),
        "midway": Deadline(now + 100 * second, StepCosts([1] + [10**15] * 9, [1] * 10)),
        "tight": Deadline(now + 100 * second, StepCosts([10**15] * 10, [30 * second] * 10)),
    }[when]
    return policy.decide(observation(), seed=3, deadline=deadline).record


@pytest.mark.parametrize("mode", ["best_of_n", "gradient_step"])
def test_a_chunk_that_is_late_is_not_judged_further(mode: str) -> None:
    record = late(mode, "past")
    assert not record.meta["deadline"]["met"]
    assert "candidate" not in record.meta
    assert "ascent_steps_taken" not in record.meta


def test_steps_that_were_thrown_away_are_not_reported() -> None:
    record = late("qgf", "midway")
    assert record.meta["deadline"]["dropped_at"] == 1
    assert not any(name.startswith("step_") for name in record.tensors)
    assert record.meta["ratio"] is None


def test_the_twin_of_a_chunk_that_lost_guidance_and_steps_is_that_chunk() -> None:
    record = late("qgf", "tight")
    assert len(record.meta["deadline"]["path"]) < 11
    assert record.meta["delta_q"] == record.meta["displacement"] == 0.0


def test_a_late_chunk_is_not_compared_unless_it_must_stay_near() -> None:
    assert "delta_q" not in late("best_of_n", "past").meta
    assert "delta_q" in late("best_of_n", "past", max_displacement=0.1).meta
