"""DSRL: losses by hand and against the official formulas, and noise that finds the right mode."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import make_critic, make_policy, other
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.networks import EnsembleMLP
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import denoise
from qsteer_ros.interface import Interface
from qsteer_ros.learning.dsrl import actor_loss, distillation_loss, temperature_loss
from qsteer_ros.learning.dsrl_learner import DsrlLearner
from qsteer_ros.learning.settings_dsrl import DsrlSettings
from qsteer_ros.learning.train_dsrl import train_dsrl
from qsteer_ros.learning.trainer import Trainer, generator
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.noise_policy import NoisePolicy

SMALL = DsrlSettings(hidden="16,16", batch=8, steps=4, denoising_steps=3, rho=0.7)


def transitions(interface: Interface, *, rewards: bool = True, count: int = 40) -> Transitions:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(count, interface.feature_dim)).astype(np.float32)
    shape = (count, interface.horizon, interface.action_dim)
    known = {
        "reward": -rng.random(count).astype(np.float32),
        "bootstrap": np.where(rng.random(count) < 0.2, 0.0, 0.9).astype(np.float32),
        "next_features": rng.normal(size=features.shape).astype(np.float32),
    }
    return Transitions(
        features=features,
        chunk=rng.uniform(-1, 1, shape).astype(np.float32),
        interface=interface,
        data_hash="random",
        **(known if rewards else {}),
    )


def learner_of(critic: Critic | None, settings: DsrlSettings = SMALL) -> DsrlLearner:
    policy = make_policy()
    learner = DsrlLearner(transitions(policy.interface), policy, critic, settings)
    for network in (learner.actor, learner.noise_critic, learner.q, learner.target):
        if network is not None:  # far from the start, where entropy and spread say little
            _shaken(network)
    return learner


def _shaken(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)


def official(learner: DsrlLearner, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official losses, written again from ``agents/dsrl.py`` with torch's distributions."""
    policy, settings = learner._policy, learner._settings

    def drawn(rows: Tensor, gaussian: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and the logarithm of their density."""
        location, log_std = learner.actor(rows)
        squash = TanhTransform(cache_size=1)  # remembers what it squashed: no loss by rounding
        normal = Normal(location, log_std.exp())
        chosen = Independent(TransformedDistribution(normal, [squash]), 1)
        actions = squash(location + log_std.exp() * gaussian.flatten(1))
        return actions, chosen.log_prob(actions)

    def chunk_of(features: Tensor, noise: Tensor) -> Tensor:
        chunk = noise
        field = policy.condition(features)
        for step in range(settings.denoising_steps):
            time = torch.full((len(noise),), step / settings.denoising_steps)
            chunk = chunk + field(chunk, time) / settings.denoising_steps
        return chunk.clip(-1, 1).detach()

    def q_of(network: nn.Module, rows: Tensor, chunk: Tensor) -> Tensor:
        return network(torch.cat([rows, chunk.reshape(len(chunk), -1)], dim=1))

    losses = {}
    rows = (batch["features"] - policy.feature_mean) / policy.feature_std
    with torch.no_grad():
        chunk = chunk_of(batch["features"], batch["noise"])
        if learner.q is not None:
            judged = q_of(learner.q, rows, chunk)
        else:
            judged = learner._critic.condition(batch["features"])(chunk)
    values = q_of(learner.noise_critic, rows, batch["noise"])
    losses["distillation"] = ((values - judged) ** 2).mean()

    if learner.q is not None:
        after = (batch["next_features"] - policy.feature_mean) / policy.feature_std
        with torch.no_grad():
            next_actions, _ = drawn(after, batch["next_gaussian"])
            noise = (next_actions.clip(-1, 1) * settings.noise_scale).view_as(batch["noise"])
            next_qs = q_of(learner.target, after, chunk_of(batch["next_features"], noise))
            spread = next_qs.std(dim=0, unbiased=False)
            next_q = next_qs.mean(dim=0) - settings.rho * spread
            y = batch["reward"] + batch["bootstrap"] * next_q
        losses["critic"] = ((q_of(learner.q, rows, batch["chunk"]) - y) ** 2).mean()

    actions, log_probs = drawn(rows, batch["gaussian"])
    frozen = make_frozen_copy(learner.noise_critic)
    q = q_of(frozen, rows, actions * settings.noise_scale).mean(dim=0)
    alpha = learner.log_temperature.exp()
    losses["actor"] = (log_probs * alpha.detach() - q).mean()
    entropy = -log_probs.detach().mean()
    dimension = batch["noise"][0].numel()
    losses["temperature_loss"] = alpha * (entropy - settings.entropy_per_component * dimension)
    return losses


def make_frozen_copy(network: EnsembleMLP) -> EnsembleMLP:
    copied = EnsembleMLP(network.members, network.in_dim, network.hidden)
    copied.load_state_dict(network.state_dict())
    return copied.requires_grad_(False)


@pytest.mark.parametrize("joint", [True, False], ids=["own critic", "trained critic"])
def test_the_losses_and_their_gradients_are_the_official_formulas(joint: bool) -> None:
    learner = learner_of(None if joint else make_critic())
    batch = learner.draw(generator(0, 3))
    found, expected = learner(batch), official(learner, batch)
    names = {"distillation", "actor", "temperature_loss"} | ({"critic"} if joint else set())
    assert set(expected) == names
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["loss"], sum(expected.values()), rtol=1e-5, atol=1e-6)
    weights = [w for w in learner.parameters() if w.requires_grad]
    ours = torch.autograd.grad(found["loss"], weights, retain_graph=True)
    theirs = torch.autograd.grad(sum(expected.values()), weights)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "moves"),
    [
        ("distillation", {"noise_critic"}),
        ("critic", {"q"}),
        ("actor", {"actor"}),
        ("temperature_loss", {"log_temperature"}),
    ],
)
def test_every_loss_reaches_its_own_weights_and_no_others(loss: str, moves: set[str]) -> None:
    learner = learner_of(None)
    learner(learner.draw(generator(0, 0)))[loss].backward()
    reached = {
        name.split(".")[0]
        for name, weight in learner.named_parameters()
        if weight.grad is not None and bool(weight.grad.any())
    }
    assert reached == moves


def test_a_step_moves_the_target_towards_the_weights_from_before_it() -> None:
    learner = learner_of(None, replace(SMALL, ema=0.5, warmup=0))
    before = [w.detach().clone() for w in learner.q.parameters()]
    slow = [w.clone() for w in learner.target.parameters()]
    Trainer(learner, learner._settings).step(0)
    rate = learner._settings.ema
    for found, old, fast in zip(learner.target.parameters(), slow, before, strict=True):
        torch.testing.assert_close(found, old + rate * (fast - old))
    assert not torch.equal(next(learner.q.parameters()), before[0])


def test_distillation_and_actor_loss_of_a_hand_computed_case() -> None:
    noise_values = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    chunk_values = torch.tensor([[0.0, 4.0], [0.0, 1.0]])
    assert float(distillation_loss(noise_values, chunk_values)) == (1 + 4 + 0 + 4) / 4
    density, temperature = torch.tensor([2.0, -4.0]), torch.tensor(0.5)
    # values of the two rows: 0.5 and 0.5; densities weighed: 1 and -2
    assert float(actor_loss(density, noise_values, temperature=temperature)) == -1.0


def test_the_temperature_rises_when_the_entropy_is_too_low_and_falls_when_it_is_too_high() -> None:
    log_temperature = torch.tensor(math.log(0.2), requires_grad=True)
    density = torch.tensor([3.0, 5.0])  # entropy -4
    for target, slope in ((-3.0, -0.2), (-6.0, 0.4)):
        loss = temperature_loss(log_temperature, density, target_entropy=target)
        (found,) = torch.autograd.grad(loss, log_temperature)
        assert float(found) == pytest.approx(slope)
        assert float(loss.detach()) == pytest.approx(slope)


def test_the_entropy_that_is_asked_for_counts_every_component() -> None:
    learner = learner_of(None, replace(SMALL, entropy_per_component=-0.25))
    assert learner.target_entropy == -0.25 * 6


def test_the_noise_critic_starts_at_the_mean_of_what_a_trained_critic_says() -> None:
    critic = make_critic()
    with torch.no_grad():
        critic.network.biases[-1] += torch.tensor([-50.0, 20.0]).view(2, 1, 1)
    learner = DsrlLearner(
        transitions(make_policy().interface), make_policy(), critic, replace(SMALL, batch=512)
    )
    batch = learner.draw(generator(5, 5))
    judged = critic.condition(batch["features"])(learner.chunk(batch["features"], batch["noise"]))
    found = learner.noise_critic.biases[-1].flatten()
    torch.testing.assert_close(found, judged.mean(dim=1), atol=0.5, rtol=0)


def test_the_temperature_has_its_own_learning_rate() -> None:
    learner = learner_of(None, replace(SMALL, warmup=0, lr_floor=1.0, temperature_rate=0.05))
    Trainer(learner, learner._settings).step(0)
    assert abs(float(learner.log_temperature.detach())) == pytest.approx(0.05, rel=1e-3)


class TwoModes(nn.Module):
    """Velocity of a policy whose chunks are all near +0.6 or all near -0.6, each half the time."""

    feature_dim, chunk_dim = 2, 2

    def __init__(self) -> None:
        super().__init__()
        self.mode = nn.Parameter(torch.tensor(0.6), requires_grad=False)

    def forward(self, features: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        tau = flow_time.unsqueeze(1)
        spread = 0.05**2 * tau**2 + (1.0 - tau) ** 2
        side = torch.tanh((noisy_chunk.sum(dim=1, keepdim=True)) * tau * self.mode / spread)
        centre = tau * side * self.mode
        slope = 0.05**2 * tau - (1.0 - tau)
        return side * self.mode + slope / spread * (noisy_chunk - centre)


class Preference(nn.Module):
    """A critic of two members that wants every action to have the sign of the first feature."""

    in_dim, members, outputs = 4, 2, 1

    def q(self, features: Tensor, chunk: Tensor) -> Tensor:
        value = 4.0 * torch.sign(features[:, 0]) * chunk.flatten(1).mean(dim=1)
        return torch.stack([value, value + 0.1])


TOY = Interface(1, ("dx", "dy"), (0.05, 0.05), ("side", "other"), 0.05)
STATISTICS = (torch.zeros(2), torch.ones(2))


def toy_policy() -> FlowPolicy:
    return FlowPolicy(TwoModes(), *STATISTICS, TOY, hash="two modes")  # type: ignore[arg-type]


def test_the_toy_policy_has_two_modes() -> None:
    noise = torch.randn(400, 1, 2, generator=torch.Generator().manual_seed(0))
    chunk = denoise(toy_policy().condition(torch.zeros(1, 2)), noise, denoising_steps=10)
    torch.testing.assert_close(chunk.abs().mean(), torch.tensor(0.6), atol=0.05, rtol=0)
    assert 0.4 < float((chunk[:, 0, 0] > 0).float().mean()) < 0.6


def test_noise_lands_in_the_mode_that_the_critic_prefers_and_the_policy_is_left_alone() -> None:
    policy = toy_policy()
    critic = Critic(Preference(), *STATISTICS, TOY)  # type: ignore[arg-type]
    settings = DsrlSettings(
        hidden="32,32", batch=128, steps=400, warmup=0, learning_rate=3e-3, temperature=0.1
    )
    before = {name: value.clone() for name, value in policy.network.state_dict().items()}
    learner = DsrlLearner(transitions(TOY, rewards=False, count=500), policy, critic, settings)
    trainer = Trainer(learner, settings)
    for step in range(settings.steps):
        trainer.step(step)
    made = NoisePolicy(learner.actor, *STATISTICS, TOY, {"policy_hash": policy.hash})
    for side in (1.0, -1.0):
        features = torch.tensor([[side, 0.3]]).expand(200, -1)
        noise = made.condition(features).draw(seed=0).detach()
        chunk = denoise(policy.condition(features), noise, denoising_steps=10)
        right = (torch.sign(chunk[:, 0, 0]) == side).float().mean()
        assert float(right) > 0.97
        torch.testing.assert_close(chunk.abs().mean(), torch.tensor(0.6), atol=0.08, rtol=0)
    found = learner.comparison()
    assert found["value_steered"] > found["value_unsteered"] + 1.5
    for name, value in policy.network.state_dict().items():
        assert torch.equal(value, before[name])


def saved_parts(folder: Path) -> tuple[str, str]:
    policy = make_policy().save(folder / "policy")
    return str(policy), str(make_critic().save(folder / "critic"))


def test_training_writes_a_noise_policy_for_this_flow_policy(tmp_path: Path) -> None:
    policy, critic = saved_parts(tmp_path)
    settings = replace(SMALL, out=str(tmp_path / "noise"), policy=policy, critic=critic)
    data = transitions(make_policy().interface, rewards=False)
    metrics = train_dsrl(replace(settings, noise_scale=0.7), transitions=data, command="typed")
    made = NoisePolicy.load(tmp_path / "noise")
    assert made.policy_hash == FlowPolicy.load(policy).hash
    assert made.training["critic_hash"] == Critic.load(critic).hash
    assert made.noise_scale == 0.7
    assert made.training["command"] == "typed"
    assert made.training["metrics"] == metrics
    assert not (tmp_path / "noise" / "critic").exists()


def test_a_critic_that_was_trained_along_is_kept_beside_the_noise_policy(tmp_path: Path) -> None:
    policy, _ = saved_parts(tmp_path)
    settings = replace(SMALL, out=str(tmp_path / "noise"), policy=policy)
    train_dsrl(settings, transitions=transitions(make_policy().interface))
    critic = Critic.load(tmp_path / "noise" / "critic")
    assert len(critic.condition(torch.zeros(1, 4))(torch.zeros(1, 3, 2))) == settings.ensemble
    assert NoisePolicy.load(tmp_path / "noise").training["critic_hash"] is None


def test_data_of_another_horizon_are_refused() -> None:
    with pytest.raises(ConfigError, match="the policy and the data must have the same horizon"):
        DsrlLearner(transitions(other(horizon=4)), make_policy(), None, SMALL)


def test_a_critic_of_another_space_is_refused() -> None:
    critic = make_critic(interface=other(horizon=4))
    with pytest.raises(ConfigError, match="the critic and the policy must have the same horizon"):
        DsrlLearner(transitions(make_policy().interface), make_policy(), critic, SMALL)


def test_a_critic_cannot_be_trained_along_without_rewards() -> None:
    data = transitions(make_policy().interface, rewards=False)
    with pytest.raises(ConfigError, match="needs reward, bootstrap, next_features"):
        DsrlLearner(data, make_policy(), None, SMALL)


def test_a_policy_that_was_never_saved_is_refused() -> None:
    policy = replace(make_policy(), hash="")
    with pytest.raises(ConfigError, match="a flow policy that was saved"):
        DsrlLearner(transitions(policy.interface), policy, None, SMALL)
