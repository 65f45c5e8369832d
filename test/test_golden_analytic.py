"""Closed-form fields in one dimension: the official loops and ours end at the same points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from fields import hill
from golden_loader import DTYPES, Golden, path
from torch import Tensor

from qsteer_ros.ensemble import QFunction
from qsteer_ros.flow import Sampler, VelocityField
from qsteer_ros.steering.bptt import bptt
from qsteer_ros.steering.guide import Rule, guide
from qsteer_ros.steering.noisy_gradient import noisy_gradient
from qsteer_ros.steering.qgf import qgf
from qsteer_ros.steering.qgf_jacobian import qgf_jacobian

BOTH = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in DTYPES]

RULES: dict[str, Callable[[QFunction, float], Rule]] = {
    "qgf": lambda q, weight: qgf(q, weight=weight),
    "qgfjac": lambda q, weight: qgf_jacobian(q, weight=weight),
    "ood": lambda q, weight: noisy_gradient(q, weight=weight, form="qfql"),
    "bptt": lambda q, weight: bptt(q, weight=weight, sampler=Sampler(10)),
}


def mixture(means: Sequence[float], std: float) -> VelocityField:
    """Exact velocity of noise flowing to an equal mixture of Gaussians.

    The means are rounded to float32, as all recorded inputs are.
    """
    centres = torch.tensor(means)

    def field(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        tau = flow_time.view(-1, 1, 1, 1)
        mean = centres.to(noisy_chunk.dtype)
        variance = (1 - tau) ** 2 + tau**2 * std**2
        offset = noisy_chunk.unsqueeze(3) - tau * mean  # (B, H, A, components)
        share = torch.softmax(-offset.square() / (2 * variance), dim=3)
        towards = mean + tau * std**2 / variance * offset - (1 - tau) / variance * offset
        return (share * towards).sum(dim=3)

    return field


FIELDS = {
    "tri": mixture((-0.8, 0.0, 0.8), 0.05),
    "uni": mixture((0.3,), 0.2),
    "delta": mixture((0.3,), 0.0),
}

CASES = sorted(
    key.removeprefix("out/")
    for key in Golden("analytic", torch.float64).arrays
    if key.startswith("out/")
)
AMPLIFIED = ("tri/T10/bptt_w1.0", "tri/T10/bptt_w3.0", "tri/T10/qgfjac_w1.0")
"""Between narrow modes these multiply a change of the noise by 100 to 12000."""


def run(case: str, file: Golden, shift: float = 0.0) -> Tensor:
    """Our path from the recorded noise, moved by ``shift``, (T + 1, 41, 1, 1)."""
    name, grid, method = case.split("/")
    kind, weight = method.split("_w")
    rule = RULES[kind](hill(0.8), float(weight))
    noise = file.tensor("in/noise").unsqueeze(2) + shift
    return path(guide(FIELDS[name], rule), noise, steps=int(grid.removeprefix("T")))


def amplification(case: str) -> float:
    """How many times larger a small change of the noise is somewhere on the path."""
    file = Golden("analytic", torch.float64)
    return float((run(case, file, 1e-7) - run(case, file)).abs().max() / 1e-7)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("case", CASES)
def test_every_path_on_a_closed_form_field_is_the_official_one(
    case: str, dtype: torch.dtype
) -> None:
    """To 1e-9 in float64 throughout; in float32 to 1e-5 except for the three amplified cases."""
    file = Golden("analytic", dtype)
    amplified = amplification(case) if case in AMPLIFIED else 1.0
    found = run(case, file)
    file.agrees(found[-1].clamp(-1, 1), f"out/{case}", amplification=amplified)
    if f"steps/{case}" in file.arrays:
        file.agrees(found, f"steps/{case}", amplification=amplified)


def test_only_cases_that_amplify_rounding_are_given_more_room() -> None:
    assert len(CASES) == 42
    for case in CASES:
        assert (amplification(case) > 100.0) == (case in AMPLIFIED), case
