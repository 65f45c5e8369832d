"""The flow network, the value networks and the loss of behaviour cloning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qsteer_ros.critics.networks import EnsembleMLP, ValueMLP, critic_input
from qsteer_ros.errors import ConfigError
from qsteer_ros.policies.networks import (
    FlowMLP,
    flow_matching_loss,
    log16,
    sample_flow_time,
    sinusoidal16,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(network: nn.Module) -> nn.Module:
    source = generator(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5, generator=source)
    return network.double().requires_grad_(False)


def test_a_member_of_the_ensemble_is_a_network_of_its_own() -> None:
    """Against torch's own layers, one member at a time."""
    ensemble = randomised(EnsembleMLP(3, 5, (7, 6)))
    inputs = torch.randn(4, 5, generator=generator(), dtype=torch.float64)
    together = ensemble(inputs)
    assert together.shape == (3, 4)
    for member in range(3):
        signal = inputs
        for layer, width in enumerate((7, 6)):
            signal = signal @ ensemble.kernels[layer][member] + ensemble.biases[layer][member]
            norm = nn.LayerNorm(width, eps=1e-6).double()
            norm.weight.data = ensemble.scales[layer][member, 0]
            norm.bias.data = ensemble.shifts[layer][member, 0]
            signal = nn.GELU(approximate="tanh")(norm(signal))
        alone = (signal @ ensemble.kernels[2][member] + ensemble.biases[2][member]).squeeze(1)
        torch.testing.assert_close(together[member], alone)


def test_changing_one_member_changes_only_its_values() -> None:
    ensemble = randomised(EnsembleMLP(2, 5, (7,)))
    inputs = torch.randn(4, 5, generator=generator(), dtype=torch.float64)
    before = ensemble(inputs)
    ensemble.kernels[0][1] += 1.0
    after = ensemble(inputs)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_members_start_different_and_within_glorots_bound() -> None:
    torch.manual_seed(0)
    ensemble = EnsembleMLP(2, 5, (64,))
    kernel = ensemble.kernels[0]
    assert not torch.equal(kernel[0], kernel[1])
    bound = math.sqrt(6 / (5 + 64))
    assert 0.9 * bound < kernel.abs().max() <= bound


def test_the_value_network_gives_one_number_per_row() -> None:
    assert ValueMLP(5, (8, 8))(torch.zeros(4, 5)).shape == (4,)


def test_features_of_one_observation_serve_every_chunk() -> None:
    chunk = torch.arange(12.0).view(2, 3, 2)
    joined = critic_input(torch.tensor([[7.0, 8.0]]), chunk)
    assert joined[1].tolist() == [7, 8, 6, 7, 8, 9, 10, 11]  # row-major: h * A + a


@pytest.mark.parametrize("embedding", ["log16", "sinusoidal16"])
def test_the_velocity_depends_on_features_chunk_and_time(embedding: str) -> None:
    network = randomised(FlowMLP(3, 4, (8, 8), time_embedding=embedding))
    features, chunk = torch.ones(1, 3).double(), torch.ones(1, 4).double()
    time = torch.full((1,), 0.3).double()
    base = network(features, chunk, time)
    assert base.shape == (1, 4)
    assert base.dtype == torch.float64
    for other in (
        network(2 * features, chunk, time),
        network(features, 2 * chunk, time),
        network(features, chunk, 2 * time),
    ):
        assert not torch.allclose(base, other)


@pytest.mark.parametrize("embed", [log16, sinusoidal16])
def test_a_time_embedding_is_cosines_then_sines_in_float32(embed) -> None:  # type: ignore[no-untyped-def]
    found = embed(torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert found.dtype == torch.float32
    assert found[0].tolist() == [1.0] * 8 + [0.0] * 8
    torch.testing.assert_close(found[1, :8].square() + found[1, 8:].square(), torch.ones(8))


def test_log16_turns_at_one_to_thirty_radians_per_unit_of_time() -> None:
    found = log16(torch.tensor([0.1]))[0]
    angle = torch.atan2(found[8:], found[:8])
    torch.testing.assert_close(angle, 0.1 * torch.logspace(0, math.log10(30), 8))


def test_an_unknown_embedding_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of log16, sinusoidal16: got 'fourier'"):
        FlowMLP(3, 4, time_embedding="fourier")


def test_networks_without_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="EnsembleMLP needs at least one member"):
        EnsembleMLP(2, 5, ())
    with pytest.raises(ConfigError, match="EnsembleMLP needs at least one member"):
        EnsembleMLP(0, 5)
    with pytest.raises(ConfigError, match="FlowMLP needs at least one feature"):
        FlowMLP(3, 4, (8, 0))


def test_the_last_hidden_layer_of_the_flow_network_has_no_norm() -> None:
    network = FlowMLP(3, 4, (8, 8, 8))
    assert (len(network.layers), len(network.norms)) == (3, 2)


def test_cloning_a_field_that_is_exact_costs_nothing() -> None:
    """One action in the data: the velocity is (a - x) / (1 - tau)."""
    action = torch.tensor([[0.3, -0.2]])

    class Exact(nn.Module):
        def forward(
            self, features: torch.Tensor, noisy: torch.Tensor, time: torch.Tensor
        ) -> torch.Tensor:
            return (action - noisy) / (1 - time).unsqueeze(1)

    loss = flow_matching_loss(
        Exact(),  # type: ignore[arg-type]
        torch.zeros(6, 3),
        action.expand(6, -1),
        noise=torch.randn(6, 2, generator=generator()),
        flow_time=torch.linspace(0, 0.9, 6),
    )
    assert float(loss) < 1e-10


def test_uniform_times_fill_the_interval_and_grid_times_are_elevenths() -> None:
    uniform = sample_flow_time(5000, generator=generator())
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    grid = sample_flow_time(5000, sampling="grid11", generator=generator())
    torch.testing.assert_close(grid.unique(), torch.arange(11) / 10)
    assert torch.equal(uniform, sample_flow_time(5000, generator=generator()))


def test_an_unknown_time_sampling_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of uniform, grid11: got 'beta'"):
        sample_flow_time(3, sampling="beta")
