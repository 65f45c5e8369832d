"""The gradient rules on a GPU. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from fields import STEPS, noise, swirl
from golden_loader import Golden, field_of, path, q_of
from test_golden_methods import METHODS
from test_gradient_rules import RULES
from torch import Tensor

from qsteer_ros.flow import Sampler
from qsteer_ros.steering.gradient_step import KEEPS, gradient_step
from qsteer_ros.steering.guide import guide

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def rippled(chunk: Tensor) -> Tensor:
    """Like `fields.wavy`, without a product over components: its derivative waits for the GPU."""
    first = torch.sin(2.0 * chunk).sum(dim=(1, 2)) + (chunk[..., 0] * chunk[..., 1]).sum(dim=1)
    second = 0.8 * torch.cos(chunk - 0.3).sum(dim=(1, 2))
    return torch.stack([first, second])


@contextmanager
def no_waiting() -> Iterator[None]:
    """Fail where the host waits for the GPU, as any look at a value or move to it does."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", RULES)
def test_a_gpu_and_a_cpu_reach_the_same_chunk(name: str) -> None:
    field = guide(swirl, RULES[name](rippled, 0.05))
    found = Sampler(STEPS).denoise(field, noise().cuda())
    torch.testing.assert_close(found.cpu(), Sampler(STEPS).denoise(field, noise()))


@pytest.mark.parametrize("name", sorted(set(RULES) - {"orthogonal_jacobian"}))
def test_the_host_never_waits_inside_the_loop(name: str) -> None:
    """Once warm. The singular value decomposition of the orthogonal Jacobian does wait."""
    start, field = noise().cuda(), guide(swirl, RULES[name](rippled, 0.05))
    expected = Sampler(STEPS).denoise(field, start)
    with no_waiting():
        found = Sampler(STEPS).denoise(field, start)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"orthogonal_jacobian"}))
def test_the_loop_can_be_captured_and_replayed_on_other_noise(name: str) -> None:
    start, field = noise().cuda(), guide(swirl, RULES[name](rippled, 0.05))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            Sampler(STEPS).denoise(field, start)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = Sampler(STEPS).denoise(field, start)
    start.copy_(noise(seed=7))
    graph.replay()
    torch.testing.assert_close(found.cpu(), Sampler(STEPS).denoise(field, noise(seed=7)))


@pytest.mark.parametrize("keep", KEEPS)
def test_an_ascent_is_the_same_on_a_gpu_and_waits_for_nothing(keep: str) -> None:
    def climb(start: Tensor) -> Tensor:
        return gradient_step(start, rippled, step_size=0.1, steps=4, keep=keep).chunk

    start = noise().cuda()
    climb(start)
    with no_waiting():
        found = climb(start)
    torch.testing.assert_close(found.cpu(), climb(noise()))


@pytest.mark.parametrize("core", ["core_chunk5", "core_h1"])
@pytest.mark.parametrize("case", METHODS)
def test_a_gpu_follows_the_official_path_in_float32(case: str, core: str) -> None:
    file = Golden(core, torch.float32)
    observation = file.tensor("in/obs").cuda()
    field = field_of(file.flow("w/policy").cuda(), observation)
    q = q_of(file.ensemble("w/target_critic").cuda(), observation)
    found = path(guide(field, METHODS[case](q)), file.chunk("in/noise").cuda())
    file.agrees(found.cpu(), f"steps/{case}/traj0")
