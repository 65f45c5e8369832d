from __future__ import annotations

import pytest
import torch
from fields import (
    STEPS,
    Counting,
    hill,
    noise,
    numerical_gradient,
    swirl,
    times,
    towards,
    wavy,
)
from torch import Tensor

from qsteer_ros import ensemble
from qsteer_ros.errors import DataError
from qsteer_ros.flow import denoise, predict_clean
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qpilots_u import qpilots_u
from qsteer_ros.steering.trace import Trace


def small() -> Tensor:
    """Noise whose clean predictions stay inside the bounds."""
    return 0.3 * noise()


def guidance(flow_time: Tensor, *, start: Tensor | None = None, **options: object) -> Tensor:
    point = small() if start is None else start
    field = guide(swirl, qpilots_u(wavy, weight=0.5, **options))  # type: ignore[arg-type]
    return (field(point, flow_time) - swirl(point, flow_time)).flatten(1)


def test_each_step_moves_the_chunk_by_alpha_times_the_drift() -> None:
    for alpha in (0.1, 2.0):
        field = guide(swirl, qpilots_u(wavy, weight=alpha))
        chunk = noise()
        for step, flow_time in enumerate(times(4)):
            velocity = swirl(chunk, flow_time)
            frozen, moved = chunk + velocity / STEPS, chunk + field(chunk, flow_time) / STEPS
            displacement = (moved - frozen).flatten(1).norm(dim=1)
            expected = (
                alpha * velocity.flatten(1).norm(dim=1) / STEPS if step else 0 * displacement
            )
            torch.testing.assert_close(displacement, expected)
            chunk = moved


def test_the_first_step_is_the_frozen_policys_and_asks_no_critic() -> None:
    critic = Counting(wavy)
    start = torch.zeros(4, dtype=torch.float64)
    assert torch.equal(
        guide(swirl, qpilots_u(critic, weight=0.5))(noise(), start), swirl(noise(), start)
    )
    assert critic.asked == []


def test_rows_of_different_flow_times_are_refused() -> None:
    flow_time = torch.tensor([0.0, 0.3, 0.0, 0.6], dtype=torch.float64)
    with pytest.raises(DataError, match=r"must have the same flow time: got 0.0 to 0.6"):
        guidance(flow_time)


def test_the_gradient_goes_back_through_the_velocity() -> None:
    """Against differences of Q at the prediction with respect to the noisy chunk."""
    reduce = ensemble.pessimistic(0.5)
    for flow_time in list(times(4))[1:]:

        def value(point: Tensor, time: Tensor = flow_time) -> Tensor:
            return reduce(wavy(predict_clean(point, time, swirl(point, time))))

        clean = predict_clean(small(), flow_time, swirl(small(), flow_time))
        assert clean.abs().max() < 1.0  # else the differences would see the clip
        numerical = numerical_gradient(value, small()).flatten(1)
        cosine = torch.cosine_similarity(guidance(flow_time), numerical)
        torch.testing.assert_close(cosine, torch.ones(4, dtype=torch.float64))


def test_without_the_jacobian_the_direction_is_that_of_qgf() -> None:
    flow_time = torch.full((4,), 0.3, dtype=torch.float64)
    dropped = guidance(flow_time, keep_jacobian=False, aggregate=ensemble.minimum)
    of_qgf = guide(swirl, qgf(wavy, weight=1.0))(small(), flow_time) - swirl(small(), flow_time)
    cosine = torch.cosine_similarity(dropped, of_qgf.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(4, dtype=torch.float64))
    kept = guidance(flow_time, aggregate=ensemble.minimum)
    assert (torch.cosine_similarity(kept, dropped) < 0.999).all()


@pytest.mark.parametrize("keep_jacobian", [True, False])
def test_the_clip_is_straight_through(keep_jacobian: bool) -> None:
    """The judged point is clipped; its gradient passes as if it were not."""
    start = torch.full((1, 3, 2), 4.0, dtype=torch.float64)
    flow_time = torch.full((1,), 0.5, dtype=torch.float64)
    critic = Counting(hill(0.2))
    field = guide(
        lambda x, tau: -0.1 * x, qpilots_u(critic, weight=1.0, keep_jacobian=keep_jacobian)
    )
    push = field(start, flow_time) + 0.1 * start
    assert torch.equal(critic.asked[0], torch.ones_like(start))
    torch.testing.assert_close(push, torch.full_like(push, -0.4))  # alpha |v|, downhill


def test_scaling_the_critic_changes_nothing() -> None:
    def chunk(scale: float) -> Tensor:
        field = guide(swirl, qpilots_u(lambda c: scale * wavy(c), weight=0.5))
        return denoise(field, noise(), denoising_steps=STEPS)

    torch.testing.assert_close(chunk(1e4), chunk(1.0), atol=1e-5, rtol=1e-5)


def test_a_field_that_knows_the_answer_hears_no_critic() -> None:
    """Its prediction does not depend on the noisy chunk: the pulled-back gradient is zero."""
    chunk = denoise(
        guide(towards(0.3), qpilots_u(hill(0.8), weight=0.5)), noise(), denoising_steps=10
    )
    torch.testing.assert_close(chunk, torch.full_like(chunk, 0.3), atol=1e-6, rtol=0)


def test_a_flat_critic_adds_nothing() -> None:
    flow_time = torch.full((4,), 0.3, dtype=torch.float64)
    field = guide(swirl, qpilots_u(lambda chunk: 0.0 * wavy(chunk), weight=0.5))
    assert torch.equal(field(noise(), flow_time), swirl(noise(), flow_time))


def test_the_default_aggregate_is_the_mean_less_half_the_spread() -> None:
    flow_time = torch.full((4,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(
        guidance(flow_time), guidance(flow_time, aggregate=ensemble.pessimistic(0.5))
    )
    assert not torch.allclose(guidance(flow_time), guidance(flow_time, aggregate=ensemble.mean))


def test_members_that_agree_give_a_finite_push() -> None:
    flow_time = torch.full((4,), 0.3, dtype=torch.float64)
    q = hill(0.4, members=1)
    field = guide(swirl, qpilots_u(lambda chunk: q(chunk).expand(5, -1), weight=0.5))
    push = field(noise(), flow_time) - swirl(noise(), flow_time)
    ratio = push.flatten(1).norm(dim=1) / swirl(noise(), flow_time).flatten(1).norm(dim=1)
    torch.testing.assert_close(ratio, torch.full((4,), 0.5, dtype=torch.float64))


def test_chunks_made_under_inference_mode_can_still_be_differentiated() -> None:
    with torch.inference_mode():
        start, flow_time = noise(), torch.full((4,), 0.3, dtype=torch.float64)
        found = guide(swirl, qpilots_u(wavy, weight=0.5))(start, flow_time)
    torch.testing.assert_close(
        found.clone(),
        guide(swirl, qpilots_u(wavy, weight=0.5))(noise(), torch.full_like(flow_time, 0.3)),
    )


def test_the_trace_reports_alpha_as_the_ratio_and_the_skipped_step_as_unasked() -> None:
    trace = Trace()
    denoise(guide(swirl, qpilots_u(wavy, weight=0.2), trace=trace), noise(), denoising_steps=STEPS)
    arrays = trace.arrays()
    assert (arrays["ratio"][0] == 0).all()
    assert arrays["ratio"][1:] == pytest.approx(0.2, rel=1e-6)
    unasked = ~torch.isfinite(torch.from_numpy(arrays["q"]))
    assert unasked[0].all()
    assert not unasked[1:].any()
