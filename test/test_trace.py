from __future__ import annotations

import numpy as np
import pytest
import torch
from fields import ACTION_DIM, HORIZON, STEPS, noise, swirl, times, wavy

from qsteer_ros.ensemble import minimum
from qsteer_ros.flow import denoise, predict_clean
from qsteer_ros.steering.gradient import slope_at
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.rtc import rtc
from qsteer_ros.steering.trace import Trace


def traced(weight: float = 0.3) -> dict[str, np.ndarray]:
    trace = Trace()
    denoise(guide(swirl, qgf(wavy, weight=weight), trace=trace), noise(), denoising_steps=STEPS)
    return trace.arrays()


def test_an_empty_trace_has_no_arrays() -> None:
    assert Trace().arrays() == {}
    assert len(Trace()) == 0


def test_every_column_is_its_definition() -> None:
    trace = Trace()
    flow_time = torch.full((4,), 0.4, dtype=torch.float64)
    start = 1.5 * noise()
    guided = guide(swirl, qgf(wavy, weight=0.3), trace=trace)(start, flow_time)
    velocity = swirl(start, flow_time)
    push = (guided - velocity).flatten(1)
    along = velocity.flatten(1)
    prediction = predict_clean(start, flow_time, velocity)
    values = wavy(prediction.clamp(-1, 1))
    expected = {
        "flow_time": flow_time,
        "velocity_norm": along.norm(dim=1),
        "guidance_norm": push.norm(dim=1),
        "ratio": push.norm(dim=1) / along.norm(dim=1),
        "cosine": torch.cosine_similarity(along, push),
        "critic_ratio": push.norm(dim=1) / along.norm(dim=1),
        "q": values.amin(dim=0),
        "q_min": values.amin(dim=0),
        "q_mean": values.mean(dim=0),
        "q_spread": (values[0] - values[1]).abs() / 2,
        "clipped_share": (prediction.abs() > 1).double().flatten(1).mean(dim=1),
    }
    assert float(expected["clipped_share"].max()) > 0
    for name, rows in trace.arrays().items():
        np.testing.assert_allclose(rows[0], expected[name].numpy(), rtol=1e-5, err_msg=name)


def test_rows_follow_the_denoising_steps() -> None:
    found = traced()["flow_time"][:, 0]
    np.testing.assert_allclose(found, [float(time[0]) for time in times(1)], atol=1e-7)


def test_the_ratio_grows_with_the_weight() -> None:
    assert traced(0.2)["ratio"][0] == pytest.approx(2 * traced(0.1)["ratio"][0], rel=1e-5)


def test_a_trace_holds_no_graph() -> None:
    trace = Trace()
    weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    field = guide(lambda x, tau: weight * swirl(x, tau), qgf(wavy, weight=0.3), trace=trace)
    field(noise(), torch.full((4,), 0.4, dtype=torch.float64))
    assert all(isinstance(rows, np.ndarray) for rows in trace.arrays().values())


def test_a_cosine_without_a_direction_is_not_a_number() -> None:
    trace = Trace()
    trace.record(torch.zeros(1), torch.ones(1, 3, 2), None, None)
    row = {name: float(rows[0, 0]) for name, rows in trace.arrays().items()}
    assert row["guidance_norm"] == row["ratio"] == 0.0
    assert np.isnan([row["cosine"], row["q"], row["clipped_share"]]).all()


def test_steps_at_which_the_critic_was_not_asked_are_empty_rows_in_their_place() -> None:
    trace, alone = Trace(), Trace()
    slope = slope_at(wavy, noise(), aggregate=minimum, bounds=None)
    asked = [False, True, False, True]
    for step, was_asked in enumerate(asked):
        velocity = (1.0 + step) * torch.ones(4, 3, 2, dtype=torch.float64)
        other = slope._replace(value=slope.value + step)
        trace.record(torch.full((4,), 0.1 * step), velocity, None, other if was_asked else None)
        if was_asked:
            alone.record(torch.full((4,), 0.1 * step), velocity, None, other)
    found, expected = trace.arrays(), alone.arrays()
    for name in ("q", "q_min", "q_mean", "q_spread", "clipped_share"):
        np.testing.assert_array_equal(found[name][asked], expected[name])
        assert np.isnan(found[name][[0, 2]]).all()
    assert found["velocity_norm"].shape == (4, 4)


def test_a_trace_filled_at_once_is_the_one_it_was_filled_from() -> None:
    recorded, filled = Trace(), Trace()
    denoise(guide(swirl, qgf(wavy, weight=1), trace=recorded), noise(), denoising_steps=STEPS)
    filled.fill(recorded.columns().clone())
    assert len(filled) == len(recorded) == STEPS
    for name, rows in recorded.arrays().items():
        np.testing.assert_array_equal(filled.arrays()[name], rows)
    filled.clear()
    assert len(filled) == 0
    assert filled.arrays() == {}


def test_the_critics_share_is_told_apart_from_that_of_real_time_chunking() -> None:
    trace, flow_time = Trace(), torch.full((4,), 0.4, dtype=torch.float64)
    running = torch.zeros(HORIZON, ACTION_DIM, dtype=torch.float64)
    chunking = rtc(running, committed=0, overlap=HORIZON)
    guide(swirl, qgf(wavy, weight=1e-9), chunking, trace=trace)(noise(), flow_time)
    found = trace.arrays()
    assert (found["ratio"] > 1e-2).all()
    assert (found["critic_ratio"] < 1e-6).all()
    assert (found["critic_ratio"] > 0.0).all()
