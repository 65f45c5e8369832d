"""The engine ``cuda_graph`` against the readable loop on the same GPU. Skipped without one.

A graph replays the kernels of the readable loop, so every comparison is to the bit.
"""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from parts import INTERFACE, MEAN, STD, make_noise_policy
from torch import Tensor

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.networks import EnsembleMLP
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, sample_noise
from qsteer_ros.policies.cuda_graph import CudaGraph
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.settings import MODES, SteeringSettings
from qsteer_ros.steering.trace import Trace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = torch.device("cuda")
FEATURES = torch.tensor([[0.3, -0.2, 0.1, 0.6]])
OPTIONS: dict[str, dict[str, Any]] = {
    **{mode: {"mode": mode} for mode in MODES},
    "chain": {"mode": "qgf", "estimate": "chain"},
    "noisy": {"mode": "qgf", "estimate": "noisy"},
    "no jacobian": {"mode": "qpilots_u", "keep_jacobian": False, "reduction": "pessimistic"},
    "limited": {"mode": "qgf", "max_ratio": 0.5, "project": True},
    "near": {"mode": "qpilots_u", "max_displacement": 0.05},
    "ratio": {"mode": "qpilots_m", "ratio": 0.2},
    "weightless": {"mode": "qgf", "weight": 0.0},
}


def make_policy(width: int = 16, seed: int = 0) -> FlowPolicy:
    torch.manual_seed(seed)
    network = FlowMLP(INTERFACE.feature_dim, INTERFACE.chunk_dim, (width,) * 4)
    network.cuda().requires_grad_(False)
    return FlowPolicy(network, MEAN.cuda(), STD.cuda(), INTERFACE)


def make_critic(width: int = 16, seed: int = 1) -> Critic:
    torch.manual_seed(seed)
    network = EnsembleMLP(3, INTERFACE.feature_dim + INTERFACE.chunk_dim, (width,) * 4)
    network.cuda().requires_grad_(False)
    return Critic(network, MEAN.cuda(), STD.cuda(), INTERFACE)


def settings_of(name: str, **options: Any) -> SteeringSettings:
    plain: dict[str, Any] = {"weight": 0.3, "tilt_mean": 0.0, "tilt_std": 1.0, "num_samples": 4}
    return SteeringSettings(**{**plain, **OPTIONS[name], **options})


def engine_of(name: str, *, width: int = 16, critic_seed: int = 1, **options: Any) -> CudaGraph:
    critic = make_critic(width, critic_seed)
    return CudaGraph(make_policy(width), critic, settings_of(name, **options), Sampler(), CUDA)


def readable(
    name: str, noise: Tensor, *, seed: int, width: int = 16, critic_seed: int = 1, scale: float = 1
) -> Tensor:
    features = scale * FEATURES.cuda()
    field = make_policy(width).condition(features)
    q = make_critic(width, critic_seed).condition(features)
    with torch.no_grad():
        return Sampler().denoise(steer(field, q, settings_of(name), seed=seed), noise)


def start(rows: int = 1, seed: int = 0) -> Tensor:
    return sample_noise((rows, 3, 2), seed=seed, device=CUDA)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Fail where the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(5, "heun", time_power=2.0)])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_decision_is_the_eager_one_to_the_bit_with_everything_in_its_record(
    name: str, sampler: Sampler
) -> None:
    policy, critic = make_policy(), make_critic()
    settings = settings_of(name, twin_rate=1.0)
    graph, eager = (
        SteeredPolicy(
            None,
            policy,
            critic,
            settings,
            sampler=sampler,
            device="cuda",
            backend=backend,
            noise_policy=make_noise_policy(policy),
        )
        for backend in ("auto", "eager")
    )
    for seed, scale in ((3, 1.0), (4, 1.0), (4, -1.0), (3, 1.0)):
        found = graph.act(scale * FEATURES, seed=seed).record
        expected = eager.act(scale * FEATURES, seed=seed).record
        assert (found.meta["backend"], expected.meta["backend"]) == ("cuda_graph", "eager")
        assert found.tensors.keys() == expected.tensors.keys()
        for tensor, values in expected.tensors.items():
            np.testing.assert_array_equal(found.tensors[tensor], values, err_msg=tensor)


@pytest.mark.parametrize("rows", [1, 7, 256])
@pytest.mark.parametrize("name", ["off", "qgf", "qpilots_u", "qpilots_m", "random_matched"])
def test_wide_networks_and_any_batch_give_the_eager_chunks_to_the_bit(
    name: str, rows: int
) -> None:
    engine = engine_of(name, width=512)
    for seed in (1, 2):
        noise = start(rows, seed)
        found = engine.denoise(FEATURES.cuda(), noise, seed=seed)
        assert torch.equal(found, readable(name, noise, seed=seed, width=512))
        assert torch.equal(noise, start(rows, seed))


def test_features_noise_and_seed_all_count() -> None:
    engine = engine_of("random_matched")
    features = FEATURES.cuda()
    first = engine.denoise(features, start(), seed=1)
    assert not torch.equal(engine.denoise(features + 0.1, start(), seed=1), first)
    assert not torch.equal(engine.denoise(features, start(seed=9), seed=1), first)
    assert not torch.equal(engine.denoise(features, start(), seed=2), first)
    assert torch.equal(engine.denoise(features, start(), seed=1), first)


@pytest.mark.parametrize("name", ["qgf", "zero", "random_matched"])
def test_the_unguided_chunk_is_that_of_an_engine_that_does_not_steer(name: str) -> None:
    features = FEATURES.cuda()
    unguided = engine_of(name).denoise(features, start(3), seed=1, guided=False)
    assert torch.equal(unguided, engine_of("off").denoise(features, start(3), seed=1))


def test_two_engines_at_once_do_not_disturb_each_other() -> None:
    features, noise = FEATURES.cuda(), start()
    engines = {seed: engine_of("qgf", critic_seed=seed, width=512) for seed in (1, 2)}
    expected = {
        seed: readable("qgf", noise, seed=0, critic_seed=seed, width=512) for seed in engines
    }
    assert not torch.equal(expected[1], expected[2])
    for _ in range(10):
        found = {seed: one.denoise(features, noise, seed=0) for seed, one in engines.items()}
        for seed, chunk in found.items():
            assert torch.equal(chunk, expected[seed])


@pytest.mark.parametrize("backend", ["cuda_graph", "eager"])
def test_a_new_engine_is_made_in_the_background_while_the_old_one_serves(backend: str) -> None:
    serving = SteeredPolicy(
        None,
        make_policy(512),
        make_critic(512),
        settings_of("qpilots_u", twin_rate=1.0),
        device="cuda",
        backend=backend,
    )
    expected = serving.act(FEATURES, seed=1).chunk
    made, done = list[CudaGraph](), threading.Event()

    def swap() -> None:
        try:
            for critic_seed in range(2, 8):
                made.append(engine_of("qpilots_u", critic_seed=critic_seed, width=512))
        finally:
            done.set()

    thread, served = threading.Thread(target=swap), 0
    thread.start()
    while not done.is_set():
        np.testing.assert_array_equal(serving.act(FEATURES, seed=1).chunk, expected)
        served += 1
    thread.join()
    assert len(made) == 6
    assert served > 6
    for critic_seed, engine in enumerate(made, start=2):
        found = engine.denoise(FEATURES.cuda(), start(), seed=1)
        wanted = readable("qpilots_u", start(), seed=1, critic_seed=critic_seed, width=512)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_host_never_waits_for_a_replay(name: str) -> None:
    engine, features = engine_of(name), FEATURES.cuda()
    rows = 4 if name == "best_of_n" else 1
    noise = start(rows)
    engine.denoise(features, noise, seed=1, trace=Trace())
    with no_waiting():
        engine.denoise(features, noise, seed=2, trace=Trace())


def test_it_works_in_and_out_of_inference_mode() -> None:
    policy, critic = make_policy(), make_critic()
    with torch.inference_mode():
        engine = CudaGraph(policy, critic, settings_of("qpilots_u"), Sampler(), CUDA)
        inside = engine.denoise(FEATURES.cuda(), start(), seed=1, trace=Trace())
    outside = engine.denoise(FEATURES.cuda(), start(), seed=1)
    assert torch.equal(inside, outside)
    assert torch.equal(outside, readable("qpilots_u", start(), seed=1))


def test_memory_is_freed_with_the_engine() -> None:
    def reserved() -> int:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    def hold() -> int:
        engine = engine_of("qpilots_m", width=512, posterior_samples=64)
        engine.denoise(FEATURES.cuda(), start(256), seed=1, trace=Trace())
        return torch.cuda.memory_reserved()

    hold()  # libraries and workspaces that stay
    before = reserved()
    assert hold() > before
    assert reserved() == before


@pytest.mark.parametrize(
    ("features", "noise", "message"),
    [
        ((4,), (1, 3, 2), r"features must have shape \(1, 4\).*: got \(4,\)"),
        ((1, 1), (1, 3, 2), r"features must have shape \(1, 4\).*: got \(1, 1\)"),
        ((1, 4), (1, 1, 2), r"noise must have shape \(B, 3, 2\).*: got \(1, 1, 2\)"),
        ((1, 4), (3, 2), r"noise must have shape \(B, 3, 2\).*: got \(3, 2\)"),
    ],
)
def test_shapes_that_would_be_broadcast_are_refused(
    features: tuple[int, ...], noise: tuple[int, ...], message: str
) -> None:
    engine = engine_of("off")
    with pytest.raises(ConfigError, match=message):
        engine.denoise(torch.zeros(features).cuda(), torch.zeros(noise).cuda(), seed=1)
    with pytest.raises(ConfigError, match="float32"):
        engine.denoise(FEATURES.double().cuda(), start(), seed=1)
    with pytest.raises(ConfigError, match="on cpu"):
        engine.denoise(FEATURES, start(), seed=1)


class Looking(FlowMLP):
    """A network whose host looks at a value."""

    def forward(self, features: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        if bool(noisy_chunk.sum() > 1e9):
            raise AssertionError
        return super().forward(features, noisy_chunk, flow_time)


def test_a_network_that_waits_is_refused_by_name_and_auto_leaves_it_to_the_readable_loop() -> None:
    network = Looking(INTERFACE.feature_dim, INTERFACE.chunk_dim, (16, 16)).cuda()
    policy = dataclasses.replace(make_policy(), network=network.requires_grad_(False))
    parts = (None, policy, make_critic(), settings_of("qgf"))
    with pytest.raises(ConfigError, match="must be able to capture mode 'qgf' with 1 chunks"):
        SteeredPolicy(*parts, device="cuda", backend="cuda_graph")
    decision = SteeredPolicy(*parts, device="cuda").act(FEATURES, seed=1)
    assert decision.record.meta["backend"] == "eager"
    found = engine_of("qgf").denoise(FEATURES.cuda(), start(), seed=1)  # the GPU is as it was
    assert torch.equal(found, readable("qgf", start(), seed=1))


def test_products_are_computed_in_full_float32() -> None:
    """TF32, which a GPU could use instead, has 10 bits: errors of 1e-3."""
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    torch.manual_seed(0)
    left, right = torch.randn(2, 1024, 1024, dtype=torch.float64)
    found = (left.float().cuda() @ right.float().cuda()).double().cpu()
    exact = left.float().double() @ right.float().double()
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-5
