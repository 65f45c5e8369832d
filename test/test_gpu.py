"""Decisions on a GPU. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parts import FEATURES, make_critic, make_noise_policy, make_policy

from qsteer_ros.critics.critic import Critic
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.steering.settings import MODES, SteeringSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def policy_on(device: str, mode: str, folder: Path, backend: str = "auto") -> SteeredPolicy:
    settings = SteeringSettings(
        mode=mode, weight=0.3, num_samples=4, twin_rate=1.0, tilt_mean=0.0, tilt_std=1.0
    )
    policy = FlowPolicy.load(make_policy().save(folder / "policy"), device=device)
    critic = Critic.load(make_critic().save(folder / "critic"), device=device)
    chooser = make_noise_policy(policy)
    return SteeredPolicy(
        None, policy, critic, settings, device=device, backend=backend, noise_policy=chooser
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_and_a_cpu_decide_alike_from_the_same_seed(mode: str, tmp_path: Path) -> None:
    on_gpu = policy_on("cuda", mode, tmp_path).act(FEATURES, seed=3)
    on_cpu = policy_on("cpu", mode, tmp_path, backend="eager").act(FEATURES, seed=3)
    np.testing.assert_allclose(on_gpu.chunk, on_cpu.chunk, atol=1e-4)
    start = "noise_alone" if mode == "dsrl" else "noise"
    np.testing.assert_array_equal(on_gpu.record.tensors[start], on_cpu.record.tensors[start])


@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_repeats_itself_bit_for_bit(mode: str, tmp_path: Path) -> None:
    policy = policy_on("cuda", mode, tmp_path)
    np.testing.assert_array_equal(
        policy.act(FEATURES, seed=3).chunk, policy.act(FEATURES, seed=3).chunk
    )
