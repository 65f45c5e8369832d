"""Training arithmetic against PyTorch's own: same networks, same numbers, another way."""

from __future__ import annotations

import ctypes
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from played import random_transitions
from torch import Tensor, nn

from qsteer_ros import dense
from qsteer_ros.critics.networks import EnsembleMLP, ValueMLP
from qsteer_ros.learning import states
from qsteer_ros.learning.learner import Learner
from qsteer_ros.learning.memory import keep_freed_memory
from qsteer_ros.learning.settings_bc import PolicySettings
from qsteer_ros.learning.settings_critic import CriticSettings
from qsteer_ros.learning.train_bc import PolicyLearner
from qsteer_ros.learning.train_critic import CriticLearner
from qsteer_ros.learning.trainer import Trainer
from qsteer_ros.policies.networks import FlowMLP

ROWS = 50
TOLERANCE = 3e-6
"""Of the largest number in a tensor; float32 has 1.2e-7, products add up to 64 terms."""


def ensemble(members: int, outputs: int = 1) -> nn.Module:
    return EnsembleMLP(members, 20, (64, 48), outputs=outputs)


NETWORKS = {
    "one member": lambda: (ensemble(1), [torch.randn(ROWS, 20)]),
    "three members": lambda: (ensemble(3), [torch.randn(ROWS, 20)]),
    "a value per position": lambda: (ensemble(2, outputs=5), [torch.randn(ROWS, 20)]),
    "a state value": lambda: (ValueMLP(20, (64,)), [torch.randn(ROWS, 20)]),
    "a flow": lambda: (
        FlowMLP(10, 6, (64, 64, 32)),
        [torch.randn(ROWS, 10), torch.randn(ROWS, 6), torch.rand(ROWS)],
    ),
}


def made(name: str) -> tuple[nn.Module, list[Tensor]]:
    """A network none of whose weights is 0 or 1, and inputs."""
    torch.manual_seed(0)
    network, inputs = NETWORKS[name]()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return network, inputs


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_every_gradient_are_those_of_the_layers_one_by_one(name: str) -> None:
    network, inputs = made(name)
    inputs[0].requires_grad_(True)
    sources = [*network.parameters(), inputs[0]]
    plain = network(*inputs)
    weights = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weights).sum(), sources)
    with dense.fast():
        found = network(*inputs)
    gradients = torch.autograd.grad((found * weights).sum(), sources)
    assert not torch.equal(found, plain)  # else nothing was compared
    assert apart(found, plain) < TOLERANCE
    for source, one, other in zip(sources, gradients, expected, strict=True):
        assert one.shape == source.shape
        assert apart(one, other) < TOLERANCE


def test_gradients_have_the_memory_layout_of_their_parameters() -> None:
    for name in NETWORKS:
        network, inputs = made(name)
        with dense.fast():
            network(*inputs).sum().backward()
        for weight in network.parameters():
            assert weight.grad is not None
            assert weight.grad.stride() == weight.stride()


def test_going_back_twice_gives_the_same_gradients_twice() -> None:
    network, inputs = made("three members")
    with dense.fast():
        total = network(*inputs).square().sum()
    first = torch.autograd.grad(total, list(network.parameters()), retain_graph=True)
    second = torch.autograd.grad(total, list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_second_derivatives_are_refused_and_not_wrong() -> None:
    network, inputs = made("a flow")
    inputs[1].requires_grad_(True)
    with dense.fast():
        total = network(*inputs).square().sum()
    (slope,) = torch.autograd.grad(total, inputs[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("name", NETWORKS)
def test_outside_of_training_the_arithmetic_is_to_the_bit_what_it_was(name: str) -> None:
    network, inputs = made(name)
    before = network(*inputs)
    with dense.fast():
        network(*inputs)
    assert torch.equal(network(*inputs), before)


def test_only_the_thread_that_trains_is_concerned() -> None:
    network, inputs = made("three members")
    plain, seen = network(*inputs), list[Tensor]()
    with dense.fast():
        other = threading.Thread(target=lambda: seen.append(network(*inputs)))
        other.start()
        other.join()
    assert torch.equal(seen[0], plain)


def test_few_rows_and_other_types_are_left_alone() -> None:
    network, inputs = made("three members")
    few = inputs[0][: dense.FEWEST_ROWS - 1]
    exact, numbers = network(few), inputs[0].double()
    with dense.fast():
        assert torch.equal(network(few), exact)
        found = network.double()(numbers)
    assert found.dtype == torch.float64


def test_what_is_not_finite_stays_so() -> None:
    for value in (float("nan"), float("inf")):
        network, inputs = made("three members")
        inputs[0][7, 3] = value
        with dense.fast():
            found = network(*inputs)
        broken = ~torch.isfinite(found)
        assert bool(broken[:, 7].all())
        assert int(broken.sum()) == 3


@pytest.mark.parametrize("name", NETWORKS)
def test_where_there_is_no_way_back_the_values_are_the_same(name: str) -> None:
    network, inputs = made(name)
    with dense.fast():
        expected = network(*inputs)
        with torch.no_grad():
            found = network(*inputs)
    assert apart(found, expected) < TOLERANCE


# ---- in the trainer

SMALL = {"hidden": "24,24", "batch": 48, "steps": 6, "warmup": 0, "log_every": 0}
LEARNERS = {
    "critic": (CriticLearner, CriticSettings(**SMALL)),
    "policy": (PolicyLearner, PolicySettings(**SMALL)),
}


def trained(name: str, first: int = 0, folder: Path | None = None) -> tuple[Learner, list[float]]:
    """A learner after the steps from ``first`` on, of the state in a folder, and the losses."""
    kind, settings = LEARNERS[name]
    learner: Learner = kind(random_transitions(), settings)
    trainer = Trainer(learner, settings)
    if folder is not None:
        assert states.restore(learner, folder, {}) == first
    return learner, [float(trainer.step(n)["loss"]) for n in range(first, settings.steps)]


@pytest.mark.parametrize("name", LEARNERS)
def test_the_trainer_computes_this_way_and_arrives_where_pytorch_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, losses = trained(name)
    monkeypatch.setattr(dense, "fast", nullcontext)
    plain, expected = trained(name)
    assert losses == pytest.approx(expected, rel=1e-5)
    pairs = [(a, b) for a, b in zip(fast.parameters(), plain.parameters(), strict=True)]
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert all(apart(a, b) < 1e-3 for a, b in pairs)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole, losses = trained(name)
    kind, settings = LEARNERS[name]
    begun = kind(random_transitions(), settings)
    trainer = Trainer(begun, settings)
    for number in range(3):
        trainer.step(number)
    states.save(begun, tmp_path / "out", {}, 3)
    resumed, rest = trained(name, 3, tmp_path / "out")
    assert rest == losses[3:]
    for key, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[key]), key


def test_the_c_library_of_a_common_linux_keeps_freed_memory() -> None:
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("another C library")
    assert keep_freed_memory()
