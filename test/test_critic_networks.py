"""Critic networks: members stand alone, the injected one sees the chunk at every layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import INTERFACE, MEAN, STD
from torch import Tensor, nn

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.injected import InjectedMLP
from qsteer_ros.critics.kinds import make_network
from qsteer_ros.critics.networks import EnsembleMLP, QNetwork, ValueMLP
from qsteer_ros.ensemble import aggregate
from qsteer_ros.errors import ConfigError

MEMBERS, FEATURES, HORIZON, ACTION_DIM, BATCH = 3, 6, 4, 2, 5
CHUNK = HORIZON * ACTION_DIM
TORCH_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
}


class Alone(nn.Module):
    """One member, written with torch's own layers and one product per input."""

    def __init__(self, network: QNetwork, member: int) -> None:
        super().__init__()
        self.activate = TORCH_ACTIVATIONS[network.activation]()
        self.injected = isinstance(network, InjectedMLP)
        self.proprio = network.proprio if isinstance(network, InjectedMLP) else 0
        self.layers = nn.ModuleList()
        for kernel, bias in zip(network.kernels, network.biases, strict=True):
            layer = nn.Linear(kernel.shape[1], kernel.shape[2])
            layer.weight.data, layer.bias.data = (
                kernel.data[member].T.clone(),
                bias.data[member, 0],
            )
            self.layers.append(layer)
        self.norms = nn.ModuleList(
            filled(nn.LayerNorm(scale.shape[2], eps=1e-6), scale[member, 0], shift[member, 0])
            for scale, shift in zip(network.scales, network.shifts, strict=True)
        )
        if isinstance(network, InjectedMLP):
            scale, shift = network.state_scale[member, 0], network.state_shift[member, 0]
            self.norm = filled(nn.LayerNorm(len(scale), eps=1e-6), scale, shift)
            if self.proprio:
                self.project = nn.Linear(self.proprio, network.proprio_dim, bias=False)
                self.project.weight.data = network.projection.data[member].T.clone()

    def forward(self, features: Tensor, chunk: Tensor) -> Tensor:
        """(B, outputs)."""
        action = chunk.flatten(1)
        signal = torch.cat([features, action], 1)
        if self.injected:
            state = features
            if self.proprio:
                state = torch.cat(
                    [features[:, : -self.proprio], self.project(features[:, -self.proprio :])], 1
                )
            signal = self.norm(state)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            missing = layer.in_features - signal.shape[1]
            if missing:
                assert self.injected
                assert missing == action.shape[1]
                signal = torch.cat([signal, action], 1)
            signal = layer(signal)
            if index + 1 < len(self.layers):
                signal = self.norms[index](signal) if len(self.norms) else signal
                signal = self.activate(signal)
        return signal


def filled(norm: nn.LayerNorm, scale: Tensor, shift: Tensor) -> nn.LayerNorm:
    norm.weight.data, norm.bias.data = scale.data.clone(), shift.data.clone()
    return norm


def drawn(network: QNetwork, seed: int = 0) -> QNetwork:
    """Every parameter its own, biases and scales included."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return network


def flat(**options: Any) -> QNetwork:
    torch.manual_seed(0)
    return drawn(EnsembleMLP(MEMBERS, FEATURES + CHUNK, (8, 7), **options))


def injected(**options: Any) -> QNetwork:
    torch.manual_seed(0)
    return drawn(InjectedMLP(MEMBERS, FEATURES, CHUNK, (8, 8, 7), **options))


def asked(batch: int = BATCH) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    chunk = torch.rand(batch, HORIZON, ACTION_DIM, generator=source) * 2 - 1
    return torch.randn(batch, FEATURES, generator=source), chunk


NETWORKS: list[Any] = [
    pytest.param(lambda: flat(), id="flat"),
    pytest.param(lambda: flat(activation="silu", layer_norm=False), id="flat_silu_no_norm"),
    *(pytest.param(lambda a=a: flat(activation=a), id=f"flat_{a}") for a in TORCH_ACTIVATIONS),
    pytest.param(lambda: flat(outputs=HORIZON), id="flat_stepwise"),
    pytest.param(lambda: injected(), id="injected"),
    pytest.param(lambda: injected(layer_norm=True, activation="relu"), id="injected_norm"),
    pytest.param(lambda: injected(inject_head=True), id="injected_head"),
    pytest.param(lambda: injected(proprio=2, proprio_dim=3), id="injected_proprio"),
    pytest.param(lambda: injected(outputs=HORIZON), id="injected_stepwise"),
]


@pytest.mark.parametrize("make", NETWORKS)
def test_the_ensemble_equals_as_many_separate_networks(make: Callable[[], QNetwork]) -> None:
    """Values, gradients with respect to the chunk and to every weight, in float32."""
    network = make()
    features, chunk = asked()
    weight = torch.randn(
        MEMBERS, BATCH, network.outputs, generator=torch.Generator().manual_seed(2)
    )
    together = chunk.clone().requires_grad_(True)
    values = network.positions(features, together)
    assert values.shape == (MEMBERS, BATCH, network.outputs)
    (values * weight).sum().backward()  # type: ignore[no-untyped-call]
    slope = torch.zeros_like(chunk)
    for member in range(MEMBERS):
        alone, own = Alone(network, member), chunk.clone().requires_grad_(True)
        expected = alone(features, own)
        torch.testing.assert_close(values[member], expected, atol=1e-6, rtol=1e-6)
        (expected * weight[member]).sum().backward()
        assert own.grad is not None
        slope += own.grad
        for layer, kernel in zip(alone.layers, network.kernels, strict=True):
            assert kernel.grad is not None
            torch.testing.assert_close(
                kernel.grad[member].T, layer.weight.grad, atol=2e-6, rtol=1e-6
            )
    assert together.grad is not None
    torch.testing.assert_close(together.grad, slope, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("make", NETWORKS)
def test_an_architecture_makes_the_network_again(make: Callable[[], QNetwork]) -> None:
    network = make()
    again = make_network(network.architecture, feature_dim=FEATURES, chunk_dim=CHUNK)
    again.load_state_dict(network.state_dict())
    assert again.architecture == network.architecture
    assert torch.equal(again.q(*asked()), network.q(*asked()))


def test_a_checkpoint_without_the_newer_keys_is_a_flat_gelu_ensemble() -> None:
    network = make_network({"members": 2, "hidden": [8]}, feature_dim=3, chunk_dim=4)
    assert isinstance(network, EnsembleMLP)
    assert (network.activation, network.layer_norm, network.outputs) == ("gelu", True, 1)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"kind": "cone"}, "network must be one of flat, injected: got 'cone'"),
        ({"proprio": 2}, "of kind 'flat' has no 'proprio': it has activation"),
        ({"activation": "sine"}, "'activation' must be one of gelu, .*: got 'sine'"),
        ({"kind": "injected", "proprio": 7}, "'proprio' must be 0 to 6.*: got 7"),
    ],
)
def test_an_architecture_that_does_not_exist_is_refused(
    architecture: dict[str, Any], message: str
) -> None:
    whole = {"members": 2, "hidden": [8]} | architecture
    with pytest.raises(ConfigError, match=message):
        make_network(whole, feature_dim=FEATURES, chunk_dim=CHUNK)


@pytest.mark.parametrize("sizes", [(0, 6, 8), (2, 0, 8), (2, 6, 0)])
def test_an_injected_network_without_members_features_or_chunk_is_refused(
    sizes: tuple[int, int, int],
) -> None:
    with pytest.raises(ConfigError, match="InjectedMLP needs at least one member"):
        InjectedMLP(*sizes)


def test_the_published_sizes_give_the_published_number_of_weights() -> None:
    """2.94 M with 2048 + 256 of state, widths 1024, 512; 1.49 M with 2048 and 512, 512, 256."""

    def in_layers(network: QNetwork) -> int:
        return sum(p.numel() for p in [*network.kernels, *network.biases])

    first = InjectedMLP(1, 2048 + 8, 35, (1024, 512), proprio=8, proprio_dim=256)
    by_hand = (2304 + 35) * 1024 + 1024 + (1024 + 35) * 512 + 512 + 512 + 1
    assert in_layers(first) == by_hand == 2_939_393
    second = InjectedMLP(1, 2048, 35, (512, 512, 256))
    assert in_layers(second) == 1_488_129
    whole = sum(p.numel() for p in first.parameters())
    assert whole == by_hand + 2 * 2304 + 8 * 256  # LayerNorm of the state, projection


@pytest.mark.parametrize("head", [False, True])
def test_the_injected_network_sees_the_chunk_at_every_layer(head: bool) -> None:
    """Cut off the chunk everywhere but at one layer: the value still depends on it."""
    layers = 3 + head
    for kept in [None, *range(layers)]:
        network = injected(inject_head=head)
        with torch.no_grad():
            for index in range(layers):
                if index != kept:
                    network.kernels[index][:, -CHUNK:] = 0.0
        features, chunk = asked()
        chunk.requires_grad_(True)
        (slope,) = torch.autograd.grad(network.q(features, chunk).sum(), chunk)
        assert (slope.abs().amin() > 0.0) == (kept is not None), kept


def test_the_state_is_normalised_before_the_first_layer() -> None:
    """Moving and stretching all features of a row alike changes nothing."""
    network = injected()
    features, chunk = asked()
    torch.testing.assert_close(
        network.q(3.0 * features + 2.0, chunk), network.q(features, chunk), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("make", [flat, injected])
def test_steering_by_positions_is_the_sum_of_their_minima(make: Callable[..., QNetwork]) -> None:
    network = make(outputs=HORIZON)
    features, chunk = asked()
    values = network.positions(features, chunk).detach()
    by_hand = [
        sum(min(float(values[e, b, i]) for e in range(MEMBERS)) for i in range(HORIZON))
        for b in range(BATCH)
    ]
    found = network.q(features, chunk)
    assert found.shape == (1, BATCH)
    torch.testing.assert_close(found[0], torch.tensor(by_hand))
    for reduction in ("min", "mean"):
        assert torch.equal(aggregate(reduction)(found), found[0])
    assert not torch.allclose(found[0], values.sum(dim=2).amin(dim=0))  # not the least sum


def test_every_kind_survives_its_checkpoint(tmp_path: Path) -> None:
    chunk = torch.linspace(-1, 1, 12).view(2, 3, 2)
    features = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    for network in (
        InjectedMLP(2, 4, 6, (8, 8), proprio=2, proprio_dim=3, inject_head=True),
        EnsembleMLP(2, 10, (8,), outputs=3, activation="silu", layer_norm=False),
    ):
        critic = Critic(drawn(network).requires_grad_(False), MEAN, STD, INTERFACE)
        loaded = Critic.load(critic.save(tmp_path / "c"))
        assert type(loaded.network) is type(network)
        assert torch.equal(loaded.condition(features)(chunk), critic.condition(features)(chunk))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (InjectedMLP(2, 6, 4, (8,)), "its network has 10, 4 of them for the chunk"),
        (EnsembleMLP(2, 10, (8,), outputs=2), "1 output, or one per action: its network has 2"),
    ],
)
def test_a_network_for_other_chunks_is_refused(network: QNetwork, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Critic(network, MEAN, STD, INTERFACE)


def test_a_value_per_position_has_a_column_each() -> None:
    assert ValueMLP(5, (8,), outputs=4)(torch.zeros(3, 5)).shape == (3, 4)
