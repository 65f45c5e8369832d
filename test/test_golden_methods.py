"""Every method of the official QGF code gives the official path.

float64 with the recorded time embedding, to 1e-9; float32 with our own, to 1e-5. How close they
come: ``pytest -rP test/test_golden_methods.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_loader import DTYPES, Golden, field_of, path, q_of

from qsteer_ros import ensemble
from qsteer_ros.ensemble import QFunction
from qsteer_ros.flow import Sampler, VelocityField, denoise
from qsteer_ros.steering.best_of_n import best_of_n
from qsteer_ros.steering.bptt import bptt
from qsteer_ros.steering.gradient_step import gradient_step
from qsteer_ros.steering.guide import Rule, guide
from qsteer_ros.steering.noisy_gradient import noisy_gradient
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qgf_jacobian import qgf_jacobian

CORES = ("core_chunk5", "core_h1")
BOTH = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in DTYPES]
SAMPLER = Sampler(10)

METHODS: dict[str, Callable[[QFunction], Rule]] = {
    "bc_w0": lambda q: qgf(q, weight=0.0),
    "qgf_w0.05": lambda q: qgf(q, weight=0.05),
    "qgf_w0.5": lambda q: qgf(q, weight=0.5),
    "qgf_w2.0": lambda q: qgf(q, weight=2.0),
    "qgf_mean_w0.5": lambda q: qgf(q, weight=0.5, aggregate=ensemble.mean),
    "qgfjac_w0.05": lambda q: qgf_jacobian(q, weight=0.05),
    "qgfjac_w0.5": lambda q: qgf_jacobian(q, weight=0.5),
    "qgfjac_w2.0": lambda q: qgf_jacobian(q, weight=2.0),
    "qfql_w0.05": lambda q: noisy_gradient(q, weight=0.05, form="qfql"),
    "qfql_w0.5": lambda q: qgf(q, weight=0.5, estimate="noisy"),
    "bptt_w0.05": lambda q: bptt(q, weight=0.05, sampler=SAMPLER),
    "bptt_w0.5": lambda q: bptt(q, weight=0.5, sampler=SAMPLER),
    "tv_w0.5": lambda q: qgf(q, weight=0.5, coefficient="tilt"),
    "tvjac_w0.5": lambda q: qgf_jacobian(q, weight=0.5, coefficient="tilt"),
}

ASCENTS: dict[str, tuple[float, int, str]] = {
    "gradstep_a0.01_L3": (0.01, 3, "gradient"),
    "gradstep_a0.1_L1": (0.1, 1, "gradient"),
    "gradstep_a0.05_L5": (0.05, 5, "gradient"),
    "gradstep_a0.05_L2_sign": (0.05, 2, "sign"),
}


def parts(file: Golden, rows: slice = slice(None)) -> tuple[VelocityField, QFunction]:
    """The frozen field and the target critic for some of the observations."""
    observation = file.tensor("in/obs")[rows]
    policy = file.flow("w/policy", official_time=file.dtype == torch.float64)
    return (
        field_of(policy, observation),
        q_of(file.ensemble("w/target_critic"), observation),
    )


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("case", METHODS)
def test_every_point_of_a_methods_path_is_the_official_one(
    case: str, dtype: torch.dtype, core: str
) -> None:
    file = Golden(core, dtype)
    field, q = parts(file)
    found = path(guide(field, METHODS[case](q)), file.chunk("in/noise"))
    file.agrees(found, f"steps/{case}/traj0")
    file.agrees(found[-1].clamp(-1, 1), f"out/{case}")


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", BOTH)
def test_five_steps_instead_of_ten_are_the_official_ones(dtype: torch.dtype, core: str) -> None:
    file = Golden(core, dtype)
    field, q = parts(file)
    found = path(guide(field, qgf(q, weight=0.5)), file.chunk("in/noise"), steps=5)
    file.agrees(found, "steps/qgf_T5_w0.5/traj0")
    file.agrees(found[-1].clamp(-1, 1), "out/qgf_T5_w0.5")


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("case", ASCENTS)
def test_every_iterate_of_a_gradient_step_is_the_official_one(
    case: str, dtype: torch.dtype, core: str
) -> None:
    file = Golden(core, dtype)
    field, q = parts(file)
    step_size, steps, direction = ASCENTS[case]
    start = denoise(field, file.chunk("in/noise"), denoising_steps=10)
    iterates = [
        gradient_step(start, q, step_size=step_size, steps=taken, direction=direction).chunk
        for taken in range(steps + 1)
    ]
    file.agrees(torch.stack(iterates), f"steps/{case}/traj1")
    file.agrees(iterates[-1], f"out/{case}")


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize(
    ("key", "weight", "steps"),
    [
        ("out/bfn4_w0", 0.0, 0),
        ("out/qgf_bfn4_w0.5", 0.5, 0),
        ("out/gradstep_bfn4_a0.05_L2", 0.0, 2),
    ],
)
def test_best_of_four_picks_the_official_chunk(
    key: str, weight: float, steps: int, dtype: torch.dtype, core: str
) -> None:
    file = Golden(core, dtype)
    noise = file.chunk("in/noise_bfn4").unflatten(0, (-1, 4))  # (B, 4, H, A)
    winners = []
    for row, start in enumerate(noise):
        field, q = parts(file, slice(row, row + 1))
        chunks = denoise(guide(field, qgf(q, weight=weight)), start, denoising_steps=10)
        climbed = gradient_step(chunks, q, step_size=0.05, steps=steps).chunk
        winners.append(best_of_n(climbed, q)[0])
    file.agrees(torch.cat(winners), key)


@pytest.mark.parametrize("core", CORES)
def test_methods_that_are_told_apart_differ_by_more_than_the_tolerance(core: str) -> None:
    """Else agreement would say nothing."""
    file = Golden(core, torch.float64)
    ends = {case: file.tensor(f"out/{case}") for case in METHODS if case.endswith("_w0.5")}
    names = sorted(ends)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            assert (ends[name] - ends[other]).abs().max() > 1e-3, (name, other)
