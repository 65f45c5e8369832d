"""Every guidance gradient of the QGF paper is the official one, at one noisy chunk and four times.

float64 with the recorded time embedding, to 1e-9; float32 with our own, to 1e-5. The Jacobian
variants follow the paper's formulas: orthogonal and smoothed of the unclipped prediction.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_loader import DTYPES, Golden, field_of, q_of
from torch import Tensor

from qsteer_ros.ensemble import QFunction, minimum
from qsteer_ros.flow import Sampler, field_at
from qsteer_ros.steering import jacobian
from qsteer_ros.steering.bptt import bptt
from qsteer_ros.steering.clean import finish
from qsteer_ros.steering.gradient import slope_at
from qsteer_ros.steering.guide import Look, Push, Rule, guide
from qsteer_ros.steering.noisy_gradient import noisy_gradient
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qgf_jacobian import qgf_jacobian

BOTH = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in DTYPES]
TENTHS = (0, 3, 7, 9)
SAMPLER = Sampler(10)

ESTIMATORS: dict[str, Callable[[QFunction], Rule]] = {
    "ood": lambda q: noisy_gradient(q, weight=1.0, form="qfql"),
    "qgf": lambda q: qgf(q, weight=1.0),
    "qgf_jacobian": lambda q: qgf_jacobian(q, weight=1.0),
    "chain": lambda q: qgf(q, weight=1.0, estimate="chain", sampler=SAMPLER),
    "bptt": lambda q: bptt(q, weight=1.0, sampler=SAMPLER),
    "reg_eps0.1": lambda q: qgf_jacobian(q, weight=1.0, jacobian="regularised"),
    "ortho_unclippedJ": lambda q: qgf_jacobian(q, weight=1.0, jacobian="orthogonal"),
}
PERTURBED = ("ood", "qgf", "qgf_jacobian", "chain", "bptt")


def look_and_critic(
    dtype: torch.dtype, tenth: int, *, perturbed: bool = False
) -> tuple[Golden, Look, QFunction]:
    """What a rule sees at the recorded noisy chunk."""
    file = Golden("estimators", dtype)
    observation = file.tensor("in/obs")
    policy = file.flow("w/policy", official_time=dtype == torch.float64)
    chunk = file.chunk("in/a_t")
    if perturbed:
        chunk = chunk + file.chunk("in/eps")
    seen = list[Look]()

    def watch(look: Look) -> Push:
        seen.append(look)
        return Push(torch.zeros_like(look.velocity))

    field = guide(field_of(policy, observation), Rule(watch, needs_pull=True))
    flow_time = torch.full((len(chunk),), tenth / 10, dtype=dtype)
    field_at(field, tenth / 10)(chunk, flow_time)
    return file, seen[0], q_of(file.ensemble("w/target_critic"), observation)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("tenth", TENTHS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_gradient_is_the_official_one(name: str, tenth: int, dtype: torch.dtype) -> None:
    file, look, q = look_and_critic(dtype, tenth)
    file.agrees(ESTIMATORS[name](q).push(look).guidance, f"out/t{tenth}/{name}")


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("tenth", TENTHS)
def test_velocity_and_clean_estimates_are_the_official_ones(
    tenth: int, dtype: torch.dtype
) -> None:
    file, look, _ = look_and_critic(dtype, tenth)
    file.agrees(look.velocity, f"out/t{tenth}/v_bc")
    file.agrees(look.clean.clamp(-1, 1), f"out/t{tenth}/a1_hat")
    end = finish(look.whole, look.noisy_chunk, look.tau, SAMPLER)
    file.agrees(end.clamp(-1, 1), f"out/t{tenth}/a1_chain")


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("tenth", TENTHS)
def test_the_jacobian_is_the_official_matrix_and_the_product_is_the_matrix_times_the_gradient(
    tenth: int, dtype: torch.dtype
) -> None:
    file, look, q = look_and_critic(dtype, tenth)
    matrix = jacobian.matrix(look)
    file.agrees(matrix, f"out/t{tenth}/jac_unclipped_matrix")
    slope = slope_at(q, look.clean, aggregate=minimum, bounds=look.bounds)
    clipped = matrix * ~slope.clipped.flatten(1).unsqueeze(2)
    file.agrees(clipped, f"out/t{tenth}/jac_matrix")
    product = torch.einsum("bij,bi->bj", clipped, slope.gradient.flatten(1))
    torch.testing.assert_close(jacobian.plain(look, slope).flatten(1), product)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("tenth", TENTHS)
def test_the_smoothed_gradient_is_the_official_one(tenth: int, dtype: torch.dtype) -> None:
    file, look, q = look_and_critic(dtype, tenth)
    slope = slope_at(q, look.clean, aggregate=minimum, bounds=look.bounds)
    found = jacobian.smoothed(look, slope, file.chunk("in/eps_smooth"))
    file.agrees(found, f"out/t{tenth}/smooth_unclippedJ")


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("tenth", TENTHS)
@pytest.mark.parametrize("name", PERTURBED)
def test_a_perturbed_chunk_turns_the_gradient_as_officially(
    name: str, tenth: int, dtype: torch.dtype
) -> None:
    def gradient(perturbed: bool) -> Tensor:
        _, look, q = look_and_critic(dtype, tenth, perturbed=perturbed)
        return ESTIMATORS[name](q).push(look).guidance.flatten(1)

    cosine = torch.cosine_similarity(gradient(False), gradient(True))
    Golden("estimators", dtype).agrees(cosine, f"out/t{tenth}/cos_{name}")


def test_the_estimators_differ_by_more_than_the_tolerance() -> None:
    """Else agreement would say nothing. At the last step chain and Euler are one."""
    file = Golden("estimators", torch.float64)
    names = [*ESTIMATORS, "smooth_unclippedJ"]
    for tenth in TENTHS[:-1]:
        found = [file.tensor(f"out/t{tenth}/{name}") for name in names]
        for index, one in enumerate(found):
            for other in found[index + 1 :]:
                assert (one - other).abs().max() > 1e-3
