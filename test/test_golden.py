"""Networks, sampling, QGF and best-of-N agree with the official QGF code."""

from __future__ import annotations

import pytest
import torch
from golden_loader import DTYPES, Golden, field_of, q_of
from torch import Tensor
from torch.nn import functional

from qsteer_ros import ensemble
from qsteer_ros.flow import Sampler, denoise, predict_clean
from qsteer_ros.policies.networks import sinusoidal16
from qsteer_ros.steering.best_of_n import best_of_n
from qsteer_ros.steering.gradient import slope_at
from qsteer_ros.steering.guide import guide
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.settings import SteeringSettings

CORES = ("core_chunk5", "core_h1")
BOTH = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in DTYPES]


def sample(file: Golden, *, weight: float, steps: int = 10, reduction: str = "min") -> Tensor:
    """All points of the path for every observation of a core file, (T + 1, B, H, A)."""
    observation = file.tensor("in/obs")
    field = guide(
        field_of(file.flow("w/policy"), observation),
        qgf(
            q_of(file.ensemble("w/target_critic"), observation),
            weight=weight,
            aggregate=ensemble.aggregate(reduction),
        ),
    )
    points = [file.chunk("in/noise")]
    for step in range(steps):
        points.append(Sampler(steps).step(field, points[-1], step))
    torch.testing.assert_close(
        points[-1], denoise(field, points[0], denoising_steps=steps), rtol=0, atol=0
    )
    return torch.stack(points)


@pytest.mark.parametrize("dtype", BOTH)
def test_the_flow_network_is_the_official_one(dtype: torch.dtype) -> None:
    file = Golden("nets", dtype)
    velocity = file.flow("w/flow_sin_ln")(
        file.tensor("in/obs"), file.tensor("in/act20"), file.tensor("in/t")
    )
    file.close(velocity, "out/flow_sin_ln")


@pytest.mark.parametrize("dtype", BOTH)
def test_the_critic_ensemble_is_the_official_one(dtype: torch.dtype) -> None:
    file = Golden("nets", dtype)
    q = q_of(file.ensemble("w/critic_ens2"), file.tensor("in/obs"))
    file.close(q(file.chunk("in/act20")), "out/critic_ens2")


@pytest.mark.parametrize("dtype", BOTH)
def test_the_value_network_is_the_official_one(dtype: torch.dtype) -> None:
    file = Golden("nets", dtype)
    file.close(file.value("w/value")(file.tensor("in/obs")), "out/value")


def test_the_time_embedding_is_the_official_one_up_to_float32_rounding_of_its_frequencies() -> (
    None
):
    file = Golden("nets", torch.float32)
    found = sinusoidal16(file.tensor("in/emb_t"))
    expected = file.tensor("out/timestep_embedding_16")
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    assert (found - expected).abs().median() < 1e-6


def test_the_activation_is_the_official_one() -> None:
    file = Golden("nets", torch.float64)
    file.close(functional.gelu(file.tensor("in/act_x"), approximate="tanh"), "out/gelu")


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", BOTH)
def test_the_target_critic_gives_the_official_values(core: str, dtype: torch.dtype) -> None:
    file = Golden(core, dtype)
    q = q_of(file.ensemble("w/target_critic"), file.tensor("in/obs"))
    file.close(q(file.chunk("in/noise")), "out/q_target_at_noise")


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("weight", [0.0, 0.05, 0.5, 2.0])
def test_every_step_of_sampling_is_the_official_one(
    core: str, dtype: torch.dtype, weight: float
) -> None:
    file = Golden(core, dtype)
    case = f"qgf_w{weight}" if weight else "bc_w0"
    path = sample(file, weight=weight)
    file.close(path, f"steps/{case}/traj0")
    file.close(path[-1].clamp(-1, 1), f"out/{case}")


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", BOTH)
def test_guidance_by_the_ensemble_mean_is_the_official_one(core: str, dtype: torch.dtype) -> None:
    file = Golden(core, dtype)
    file.close(sample(file, weight=0.5, reduction="mean")[-1].clamp(-1, 1), "out/qgf_mean_w0.5")


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", BOTH)
def test_five_steps_instead_of_ten_are_the_official_ones(core: str, dtype: torch.dtype) -> None:
    file = Golden(core, dtype)
    file.close(sample(file, weight=0.5, steps=5), "steps/qgf_T5_w0.5/traj0")


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize(("weight", "key"), [(0.0, "out/bfn4_w0"), (0.5, "out/qgf_bfn4_w0.5")])
def test_best_of_four_picks_the_official_chunk(
    core: str, dtype: torch.dtype, weight: float, key: str
) -> None:
    file = Golden(core, dtype)
    noise = file.chunk("in/noise_bfn4").unflatten(0, (-1, 4))  # (B, 4, H, A)
    policy, critic = file.flow("w/policy"), file.ensemble("w/target_critic")
    winners = []
    for row, observation in enumerate(file.tensor("in/obs")):
        field = field_of(policy, observation[None])
        q = q_of(critic, observation[None])
        chunks = denoise(guide(field, qgf(q, weight=weight)), noise[row], denoising_steps=10)
        winners.append(best_of_n(chunks.clamp(-1, 1), q)[0])
    file.close(torch.cat(winners), key)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", BOTH)
def test_one_observation_through_the_settings_gives_the_official_chunk(
    core: str, dtype: torch.dtype
) -> None:
    file = Golden(core, dtype)
    observation = file.tensor("in/obs")[:1]
    field = field_of(file.flow("w/policy"), observation)
    q = q_of(file.ensemble("w/target_critic"), observation)
    steered = steer(field, q, SteeringSettings(mode="qgf", weight=0.5))
    with torch.inference_mode():
        chunk = denoise(steered, file.chunk("in/noise_1"), denoising_steps=10).clamp(-1, 1)
    file.close(chunk, "out/qgf_single_obs_w0.5")


def test_the_golden_cases_clip_some_query_points_and_use_both_members() -> None:
    """Else they could not tell a missing clip or a wrong aggregate."""
    file = Golden("core_chunk5", torch.float64)
    observation, noise = file.tensor("in/obs"), file.chunk("in/noise")
    field = field_of(file.flow("w/policy"), observation)
    flow_time = torch.zeros(len(noise), dtype=torch.float64)
    slope = slope_at(
        q_of(file.ensemble("w/target_critic"), observation),
        predict_clean(noise, flow_time, field(noise, flow_time)),
        aggregate=ensemble.minimum,
        bounds=(-1.0, 1.0),
    )
    assert 0.1 < slope.clipped.double().mean() < 0.5
    assert set(slope.values.argmin(dim=0).tolist()) == {0, 1}
