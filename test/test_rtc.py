"""Real-time chunking: its weights, its guidance, and that the robot does not jump."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fields import hill, numerical_gradient, swirl
from numpy.typing import NDArray
from torch import Tensor
from two_ways import ACTION_DIM, HORIZON, chunk_noise, running

from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import VelocityField, denoise, from_noise_at_one, predict_clean
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.limits import Limits
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qpilots_u import qpilots_u
from qsteer_ros.steering.rtc import SCHEDULES, guidance_weight, row_weights, rtc, shifted

SHAPES = [(8, 2, 6), (8, 0, 8), (8, 3, 3), (5, 0, 0), (5, 5, 5), (50, 7, 25), (1, 0, 1)]


def published_row_weights(h: int, d: int, overlap: int, schedule: str) -> NDArray[np.float64]:
    """arXiv:2506.07339 eq. 5, case by case, with overlap = H - s.

    The linear, hard and unweighted variants follow the code that was published with the paper
    (Physical-Intelligence/real-time-chunking-kinetix, src/model.py, Apache-2.0), re-written.
    """
    weights = np.zeros(h)
    for i in range(h):
        c = (overlap - i) / (overlap - d + 1)
        if i < d:
            weights[i] = 1.0
        elif i < overlap:
            weights[i] = {
                "exponential": c * (np.exp(c) - 1.0) / (np.exp(1.0) - 1.0),
                "linear": c,
                "ones": 1.0,
                "zeros": 0.0,
            }[schedule]
    return weights


def published_velocity(
    field: VelocityField, x: Tensor, tau: float, y: Tensor, w: Tensor, beta: float
) -> Tensor:
    """arXiv:2506.07339 eqs. 2 to 4 with the Jacobian written out, sample by sample."""
    time = torch.full((1,), tau, dtype=x.dtype)
    rows = []
    for sample in x:

        def denoised(flat: Tensor, like: Tensor = sample) -> Tensor:
            start = flat.view(1, *like.shape)
            return (start + (1.0 - tau) * field(start, time)).flatten()

        flat = sample.flatten()
        jacobian = torch.autograd.functional.jacobian(denoised, flat)
        error = ((y - denoised(flat).view_as(y)) * w.unsqueeze(-1)).flatten()
        r_squared = (1.0 - tau) ** 2 / (tau**2 + (1.0 - tau) ** 2)
        factor = beta if tau == 0.0 else min(beta, (1.0 - tau) / (tau * r_squared))
        velocity = field(sample.unsqueeze(0), time)[0]
        rows.append(velocity + factor * (error @ jacobian).view_as(y))
    return torch.stack(rows)


def lerobot_velocity(
    backward_field: VelocityField, x: Tensor, time: Tensor, y: Tensor, w: Tensor, beta: float
) -> Tensor:
    """What LeRobot's ``RTCProcessor.denoise_step`` computes, in its time: noise at 1.

    huggingface/lerobot, src/lerobot/policies/rtc/modeling_rtc.py (Apache-2.0), re-written. The
    velocity is a constant when its correction is differentiated, so the Jacobian is the identity.
    """
    t = float(time[0])
    velocity = backward_field(x, time)
    clean = x - t * velocity
    tau = 1.0 - t
    odds = beta if tau == 0.0 else (1.0 - tau) / tau
    factor = min(beta, odds * ((1.0 - tau) ** 2 + tau**2) / (1.0 - tau) ** 2)
    return velocity - factor * (y - clean) * w.unsqueeze(-1)


def at(tau: float, batch: int = 4) -> Tensor:
    return torch.full((batch,), tau, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("h", "d", "overlap"), SHAPES)
def test_row_weights_are_the_published_ones(h: int, d: int, overlap: int, schedule: str) -> None:
    found = row_weights(h, committed=d, overlap=overlap, schedule=schedule)
    np.testing.assert_allclose(found, published_row_weights(h, d, overlap, schedule), atol=1e-15)


def test_the_example_in_the_published_code_comes_out() -> None:
    found = row_weights(10, committed=2, overlap=6, schedule="linear")
    np.testing.assert_allclose(found, [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0], atol=1e-15)


def test_the_guidance_weight_is_the_published_one_and_finite_at_both_ends() -> None:
    for tau in np.linspace(0.01, 0.99, 99):
        r_squared = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        expected = min(5.0, (1 - tau) / (tau * r_squared))
        assert guidance_weight(float(tau), max_weight=5.0) == pytest.approx(expected, rel=1e-12)
    assert guidance_weight(0.0, max_weight=5.0) == guidance_weight(1.0, max_weight=5.0) == 5.0
    assert guidance_weight(5e-324, max_weight=5.0) == 5.0
    assert guidance_weight(0.5, max_weight=5.0) == 2.0  # its smallest value


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("beta", [1.0, 5.0, 10.0])
def test_without_committed_rows_the_chunk_is_the_published_methods(
    schedule: str, beta: float
) -> None:
    """Ten Euler steps from noise, flow time 0 included."""
    w = torch.from_numpy(published_row_weights(HORIZON, 0, 6, schedule))
    rule = rtc(running(), committed=0, overlap=6, schedule=schedule, max_weight=beta)
    ours, theirs = chunk_noise(3), chunk_noise(3)
    steered = guide(swirl, rule)
    for step in range(10):
        theirs = theirs + published_velocity(swirl, theirs, step / 10, running(), w, beta) / 10
        ours = ours + steered(ours, at(step / 10, 3)) / 10
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.5, 0.9])
def test_rows_after_the_committed_ones_get_the_published_velocity(tau: float) -> None:
    """The error of committed rows reaches them through the Jacobian."""
    w = torch.from_numpy(published_row_weights(HORIZON, 2, 6, "exponential"))
    found = guide(swirl, rtc(running(), committed=2, overlap=6))(chunk_noise(4), at(tau))
    expected = published_velocity(swirl, chunk_noise(4), tau, running(), w, 5.0)
    torch.testing.assert_close(found[:, 2:], expected[:, 2:], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_the_jacobian_it_is_what_lerobot_computes(schedule: str) -> None:
    def backward(x: Tensor, time: Tensor) -> Tensor:
        return -swirl(x, 1.0 - time)

    w = torch.from_numpy(published_row_weights(HORIZON, 2, 6, schedule))
    theirs = from_noise_at_one(
        lambda x, time: lerobot_velocity(backward, x, time, running(), w, 10.0)
    )
    rule = rtc(
        running(), committed=2, overlap=6, schedule=schedule, max_weight=10.0, keep_jacobian=False
    )
    ours = guide(from_noise_at_one(backward), rule)
    for step in range(10):
        found, expected = (f(chunk_noise(4), at(step / 10)) for f in (ours, theirs))
        torch.testing.assert_close(found[:, 2:], expected[:, 2:], atol=1e-12, rtol=1e-12)


def test_the_guidance_descends_the_weighted_distance_to_the_running_chunk() -> None:
    """Against differences of it, with respect to the noisy chunk, on a field that knows time."""
    w = torch.tensor(row_weights(HORIZON, committed=0, overlap=6, schedule="exponential"))
    rule = rtc(running(), committed=0, overlap=6, max_weight=5.0)
    for tau in (0.05, 0.4, 0.8):

        def half_square(x: Tensor, tau: float = tau) -> Tensor:
            off = running() - predict_clean(x, at(tau), swirl(x, at(tau)))
            return 0.5 * (w.double().unsqueeze(-1) * off.square()).sum(dim=(1, 2))

        found = guide(swirl, rule)(chunk_noise(4), at(tau)) - swirl(chunk_noise(4), at(tau))
        expected = -guidance_weight(tau, max_weight=5.0) * numerical_gradient(
            half_square, chunk_noise(4)
        )
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_rows_that_do_not_exist_are_not_read() -> None:
    field = guide(swirl, rtc(shifted(running(), 3), committed=1, overlap=5))
    same = torch.cat([running()[3:], torch.full((3, ACTION_DIM), 9.0, dtype=torch.float64)])
    other = guide(swirl, rtc(same, committed=1, overlap=5))
    assert torch.equal(field(chunk_noise(4), at(0.4)), other(chunk_noise(4), at(0.4)))
    assert torch.isfinite(field(chunk_noise(4), at(0.0))).all()


def test_every_sample_may_have_its_own_running_chunk() -> None:
    each = torch.stack([running(1), running(2)])
    together = guide(swirl, rtc(each, committed=2, overlap=6))(chunk_noise(2), at(0.4, 2))
    for row in range(2):
        alone = guide(swirl, rtc(each[row], committed=2, overlap=6))
        found = alone(chunk_noise(2)[row : row + 1], at(0.4, 1))
        torch.testing.assert_close(together[row : row + 1], found)


def test_nothing_to_hold_and_nothing_to_guide_is_the_frozen_policy_itself() -> None:
    for options in (
        {"overlap": 0},
        {"overlap": 6, "max_weight": 0.0},
        {"overlap": 6, "schedule": "zeros"},
    ):
        assert guide(swirl, rtc(running(), committed=0, **options)) is swirl  # type: ignore[arg-type]


def test_without_guidance_no_backward_pass_is_asked_for() -> None:
    assert rtc(running(), committed=2, overlap=6).needs_pull
    assert not rtc(running(), committed=2, overlap=6, max_weight=0.0).needs_pull
    assert not rtc(running(), committed=2, overlap=6, keep_jacobian=False).needs_pull
    assert rtc(running(), committed=2, overlap=2).needs_pull  # through the Jacobian


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"committed": -1}, "'committed' must be between 0 and 'overlap' 6: got -1"),
        ({"committed": 7}, "'committed' must be between 0 and 'overlap' 6: got 7"),
        ({"overlap": 9}, "'overlap' must be between 0 and the chunk's 8 rows: got 9"),
        ({"overlap": -1, "committed": 0}, "'overlap' must be between 0 and the chunk's 8 rows"),
        ({"max_weight": -1.0}, "'max_weight' must be finite and at least 0: got -1.0"),
        ({"max_weight": math.inf}, "'max_weight' must be finite and at least 0: got inf"),
        ({"schedule": "cosine"}, "'schedule' must be one of exponential, linear, .*'cosine'"),
        ({"schedule": "cosine", "committed": 6}, "'schedule' must be one of exponential"),
        ({"previous": torch.zeros(8)}, r"must be a chunk .* \(H, A\) or \(B, H, A\): got \(8,\)"),
        ({"previous": torch.zeros(8, 2, dtype=torch.int64)}, "of floating point numbers"),
        ({"previous": shifted(running(), 3)}, "the 6 rows of 'previous' .* row 5 is not"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"previous": running(), "committed": 2, "overlap": 6, **changes}
    with pytest.raises(ConfigError, match=message):
        rtc(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("elapsed", [-1, 9])
def test_a_chunk_is_not_shifted_beyond_itself(elapsed: int) -> None:
    with pytest.raises(ConfigError, match=f"between 0 and the chunk's 8 rows: got {elapsed}"):
        shifted(running(), elapsed)


def test_limits_hold_for_real_time_chunking_too() -> None:
    field = guide(swirl, rtc(running(), committed=0, overlap=6), limits=Limits(max_ratio=0.1))
    velocity = swirl(chunk_noise(4), at(0.4))
    push = field(chunk_noise(4), at(0.4)) - velocity
    torch.testing.assert_close(push.flatten(1).norm(dim=1), 0.1 * velocity.flatten(1).norm(dim=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("critic", [qgf, qpilots_u])
def test_on_a_gpu_a_chunk_is_made_without_waiting_for_it(critic: object) -> None:
    """Nothing is read back or moved inside the loop; the chunk is the CPU's."""

    def make(device: str) -> VelocityField:
        rule = critic(hill(0.5), weight=0.3)  # type: ignore[operator]
        chain = rtc(running().to(device), committed=2, overlap=6)
        return guide(swirl, rule, chain, limits=Limits(max_ratio=2.0, project=True))

    field, start = make("cuda"), chunk_noise(4).cuda()
    denoise(field, start, denoising_steps=10)  # what is prepared once, is prepared
    torch.cuda.set_sync_debug_mode("error")
    try:
        chunk = denoise(field, start, denoising_steps=10)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = denoise(make("cpu"), chunk_noise(4), denoising_steps=10)
    torch.testing.assert_close(chunk.cpu(), expected, atol=1e-9, rtol=1e-9)
