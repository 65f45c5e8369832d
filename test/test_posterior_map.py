"""A posterior map's checkpoint, its samples' rows, and its place in QPILOTS-M."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fields import hill
from posteriors import space
from safetensors.numpy import load_file, save_file
from torch import Tensor

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.flow import Sampler
from qsteer_ros.policies.average_velocity import AverageVelocity
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP
from qsteer_ros.policies.posterior_map import MetaFlowMap
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.settings import SteeringSettings

HORIZON, FEATURES, CHUNK = 3, 4, 6


def policy(seed: int = 0) -> FlowPolicy:
    torch.manual_seed(seed)
    return FlowPolicy(
        FlowMLP(FEATURES, CHUNK, (16, 16)).requires_grad_(False),
        torch.randn(FEATURES),
        torch.rand(FEATURES) + 0.5,
        space(HORIZON, FEATURES),
    )


def trained(policy_hash: str = "abc", seed: int = 0) -> MetaFlowMap:
    torch.manual_seed(seed)
    network = AverageVelocity(
        FEATURES, 0.3 * torch.randn(CHUNK), torch.rand(CHUNK) + 0.3, (16, 12)
    )
    return MetaFlowMap(
        network.requires_grad_(False),
        torch.randn(FEATURES),
        torch.rand(FEATURES) + 0.5,
        space(HORIZON, FEATURES),
        {"policy_hash": policy_hash},
    )


def asked(batch: int = 4, count: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, noise, noisy chunks and flow times; every row has its own."""
    source = torch.Generator().manual_seed(1)
    features = torch.randn(batch, FEATURES, generator=source)
    noise = torch.randn(batch, count, HORIZON, 2, generator=source)
    noisy_chunk = torch.randn(batch, HORIZON, 2, generator=source)
    return features, noise, noisy_chunk, torch.linspace(0.0, 0.9, batch)


def test_a_checkpoint_gives_the_same_samples(tmp_path: Path) -> None:
    made = trained()
    made.save(tmp_path / "map")
    loaded = MetaFlowMap.load(tmp_path / "map")
    assert loaded.policy_hash == "abc"
    assert loaded.hash
    assert loaded.interface == made.interface
    assert not any(weight.requires_grad for weight in loaded.network.parameters())
    features, *rest = asked()
    assert torch.equal(loaded.condition(features)(*rest), made.condition(features)(*rest))


def test_a_sample_is_its_noise_moved_by_the_average_velocity_of_the_whole_way() -> None:
    made = trained()
    features, noise, noisy_chunk, flow_time = asked()
    found = made.condition(features)(noise, noisy_chunk, flow_time)
    standardised = (features - made.feature_mean) / made.feature_std
    for row in range(4):
        for sample in range(3):
            start = noise[row, sample].flatten().unsqueeze(0)
            velocity = made.network(
                standardised[row : row + 1],
                noisy_chunk[row : row + 1].flatten(1),
                flow_time[row : row + 1],
                start,
                torch.zeros(1),
                torch.ones(1),
            )
            torch.testing.assert_close(
                found[row, sample].flatten(), (start + velocity)[0], atol=1e-5, rtol=1e-5
            )


def test_all_samples_are_rows_of_one_evaluation() -> None:
    made, counts = trained(), list[int]()
    made.network.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    features, *rest = asked()
    made.condition(features)(*rest)
    assert counts == [12]


def test_a_row_of_features_serves_a_run_of_noisy_chunks() -> None:
    made = trained()
    features, *rest = asked()
    shared = made.condition(features[:2])(*rest)
    repeated = made.condition(features[[0, 0, 1, 1]])(*rest)
    torch.testing.assert_close(shared, repeated)
    alone = made.condition(features[:1])(*rest)
    torch.testing.assert_close(alone, made.condition(features[[0, 0, 0, 0]])(*rest))
    _, noise, noisy_chunk, flow_time = asked(batch=2)
    with pytest.raises(ConfigError, match="must serve equally many chunks: got 4 rows for 2"):
        made.condition(features)(noise, noisy_chunk, flow_time)


def test_samples_are_differentiable_in_the_noisy_chunk() -> None:
    """Against central differences, in float64."""
    made = trained()
    made.network.double()
    features, noise, noisy_chunk, flow_time = (values.double() for values in asked())
    posterior = replace(
        made, feature_mean=made.feature_mean.double(), feature_std=made.feature_std.double()
    ).condition(features)
    start = noisy_chunk.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(posterior(noise, start, flow_time).sum(), start)
    bump = torch.zeros_like(noisy_chunk)
    bump[2, 1, 0] = 1e-6
    rise = posterior(noise, noisy_chunk + bump, flow_time)
    fall = posterior(noise, noisy_chunk - bump, flow_time)
    assert found[2, 1, 0] == pytest.approx(float((rise - fall).sum()) / 2e-6, rel=1e-5)
    assert found[2, 1, 0].abs() > 1e-3


def test_a_map_is_refused_for_another_policy(tmp_path: Path) -> None:
    policy(0).save(tmp_path / "mine")
    policy(1).save(tmp_path / "other")
    mine, other = FlowPolicy.load(tmp_path / "mine"), FlowPolicy.load(tmp_path / "other")
    made = trained(mine.hash)
    made.check_policy(mine)
    with pytest.raises(ConfigError, match=r"the policy it was distilled from: it is of policy"):
        made.check_policy(other)
    with pytest.raises(ConfigError, match="the policy is unsaved"):
        made.check_policy(policy(0))


def test_a_map_that_names_no_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="its training has no 'policy_hash'"):
        replace(trained(), training={})


def test_a_network_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="its network has 4 and 6"):
        replace(trained(), interface=space(HORIZON, FEATURES + 1))


def test_statistics_that_cannot_be_are_refused(tmp_path: Path) -> None:
    trained().save(tmp_path / "map")
    tensors = load_file(tmp_path / "map" / "model.safetensors")
    tensors["average_velocity.chunk_std"] = 0.0 * tensors["average_velocity.chunk_std"]
    save_file(tensors, tmp_path / "map" / "model.safetensors")
    with pytest.raises(DataError, match="'chunk_std' of a posterior map must be positive: got 0"):
        MetaFlowMap.load(tmp_path / "map")


def test_a_policy_is_not_a_posterior_map(tmp_path: Path) -> None:
    policy().save(tmp_path / "policy")
    with pytest.raises(ConfigError, match="must be a posterior_map checkpoint"):
        MetaFlowMap.load(tmp_path / "policy")


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    features, noise, noisy_chunk, flow_time = asked()
    posterior = trained().condition(features)
    with pytest.raises(DataError, match=r"noise must have shape \(B, N, H, A\)"):
        posterior(noise[:, 0], noisy_chunk, flow_time)
    with pytest.raises(DataError, match=r"noise must have shape \(B, N, H, A\)"):
        posterior(noise[:3], noisy_chunk, flow_time)
    with pytest.raises(ConfigError, match=r"knows chunks of shape \(B, 3, 2\): got \(4, 2, 2\)"):
        posterior(noise[:, :, :2], noisy_chunk[:, :2], flow_time)
    with pytest.raises(ConfigError, match=r"expects features of shape \(B, 4\)"):
        trained().condition(features[:, :3])


@pytest.mark.parametrize("inference", [False, True])
def test_qpilots_m_asks_the_map_it_is_given_and_else_the_frozen_field(inference: bool) -> None:
    made, counts = trained(), list[int]()
    made.network.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    field = policy().condition(torch.zeros(1, FEATURES))
    settings = SteeringSettings(
        mode="qpilots_m", weight=0.5, tilt_mean=0.0, tilt_std=1.0, posterior_samples=4
    )
    start = asked()[2]

    def chunk(**given: object) -> Tensor:
        with torch.inference_mode(inference):
            steered = steer(field, hill(), settings, **given)  # type: ignore[arg-type]
            return Sampler(5).denoise(steered, start)

    frozen = chunk()
    assert counts == []
    with_map = chunk(posterior=made.condition(torch.zeros(1, FEATURES)))
    assert counts == [16] * 4  # 4 chunks of 4 samples, at every step but the first
    assert (with_map - frozen).abs().max() > 1e-4
    assert torch.isfinite(with_map).all()
