"""Value-gradient matching of small policies, with critics that are known."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from parts import FEATURES, INTERFACE, make_critic, make_policy, other
from torch import Tensor

from qsteer_ros.ensemble import QFunction
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import denoise
from qsteer_ros.learning.qvgm_variants import VARIANTS
from qsteer_ros.learning.settings_bc import PolicySettings
from qsteer_ros.learning.settings_qvgm import QvgmSettings
from qsteer_ros.learning.train_bc import PolicyLearner
from qsteer_ros.learning.train_qvgm import QvgmLearner, train_qvgm
from qsteer_ros.learning.trainer import Trainer, generator
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.policies.flow_policy import FlowPolicy

V1, V2, V5 = (VARIANTS[n] for n in ("v1_calql_chunk", "v2_iql_stepwise", "v5_iql_chunk10"))
DIRECTION = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) / 6**0.5
STEPS = 150


def side(features: Tensor) -> Tensor:
    """Which way is better, from the state: +1 or -1, (B, 1, 1)."""
    return features[:, 0].sign().view(-1, 1, 1)


def habit(features: Tensor) -> Tensor:
    """What the data's policy does on average, (B, 3, 2)."""
    return 0.3 * torch.tanh(features[:, 1]).view(-1, 1, 1) * DIRECTION.flip(0)


def reward(features: Tensor, chunk: Tensor) -> Tensor:
    """The true reward: best 0.3 away from the habit, on the side that the state says."""
    best = habit(features) + 0.3 * side(features) * DIRECTION
    return -(chunk - best).square().sum(dim=(1, 2))


class Truth:
    """A critic that knows the reward."""

    def condition(self, features: Tensor) -> QFunction:
        return lambda chunk: reward(features, chunk).unsqueeze(0)


class OneDirection:
    """A critic that wants the same in every state."""

    def condition(self, features: Tensor) -> QFunction:
        return lambda chunk: (DIRECTION * chunk).sum(dim=(1, 2)).unsqueeze(0)


class Nothing:
    """A critic to which all chunks are alike."""

    def condition(self, features: Tensor) -> QFunction:
        return lambda chunk: (0.0 * chunk).sum(dim=(1, 2)).unsqueeze(0)


def data(count: int = 2000, seed: int = 0) -> Transitions:
    source = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 4, generator=source)
    chunk = habit(features) + 0.1 * torch.randn(count, 3, 2, generator=source)
    return Transitions(
        features=features.numpy(),
        chunk=chunk.clamp(-1, 1).numpy().astype(np.float32),
        interface=INTERFACE,
        data_hash=f"toy{seed}",
    )


@pytest.fixture(scope="module")
def cloned() -> FlowPolicy:
    """A policy that has the habit."""
    settings = PolicySettings(hidden="48,48", steps=400, batch=128, learning_rate=3e-3, warmup=20)
    learner = PolicyLearner(data(), settings)
    trainer = Trainer(learner, settings)
    for step in range(settings.steps):
        trainer.step(step)
    network = learner.policy_network.requires_grad_(False)
    network.zero_grad()
    return FlowPolicy(network, learner.mean, learner.std, INTERFACE, {}, "cloned")


def learner_of(policy: FlowPolicy, critic, variant=V5, **options) -> tuple[QvgmLearner, Trainer]:
    settings = QvgmSettings(
        **{"batch": 64, "steps": STEPS, "learning_rate": 1e-3, "seed": 3, **options}
    )
    learner = QvgmLearner(data(500, seed=1), settings, policy, critic, variant)
    return learner, Trainer(learner, settings)


def true_reward(policy: FlowPolicy, *, negative_only: bool | None = None) -> float:
    """Of plain samples in states that were not trained on; no critic anywhere."""
    source = torch.Generator().manual_seed(99)
    features = torch.randn(1000, 4, generator=source)
    noise = torch.randn(1000, 3, 2, generator=source)
    with torch.no_grad():
        chunk = denoise(policy.condition(features), noise, denoising_steps=10)
    rewards = reward(features, chunk)
    if negative_only is not None:
        rewards = rewards[(features[:, 0] < 0) == negative_only]
    return float(rewards.mean())


def weights(policy: FlowPolicy) -> list[Tensor]:
    return [weight.detach().clone() for weight in policy.network.parameters()]


# What comes of training


@pytest.mark.parametrize(
    ("variant", "share"),
    [(V5, 0.8), (replace(V2, step_size=0.2), 0.8), (replace(V1, step_size=0.2), 0.5)],
    ids=lambda value: getattr(value, "name", None),
)
def test_after_training_plain_samples_earn_more_with_the_critic_removed(
    cloned: FlowPolicy, variant, share: float
) -> None:
    """Of the 0.09 that the best chunk is worth more than the habit, most is gained."""
    learner, trainer = learner_of(cloned, Truth(), variant)
    first = trainer.step(0)
    for step in range(1, STEPS):
        last = trainer.step(step)
    gained = true_reward(learner.policy) - true_reward(cloned)
    assert gained > share * 0.09
    assert float(last["loss"]) < 0.5 * float(first["loss"])
    assert float(last["change"]) > 10 * float(first["change"])


def test_a_critic_that_wants_the_same_everywhere_gains_nothing(cloned: FlowPolicy) -> None:
    """What one half of the states gains the other loses, though the loss is learned as well."""
    learner, trainer = learner_of(cloned, OneDirection())
    first = trainer.step(0)
    for step in range(1, STEPS):
        last = trainer.step(step)
    assert float(last["loss"]) < 0.1 * float(first["loss"])
    assert true_reward(learner.policy) < true_reward(cloned)
    for negative in (False, True):
        change = true_reward(learner.policy, negative_only=negative) - true_reward(
            cloned, negative_only=negative
        )
        assert change < -0.03 if negative else change > 0.03


@pytest.mark.parametrize("variant", [V1, V2, V5], ids=lambda v: v.name)
@pytest.mark.parametrize("critic", [Truth(), Nothing()], ids=["no step", "nothing to climb"])
def test_without_a_correction_the_loss_is_zero_and_the_policy_stays_as_it_is(
    cloned: FlowPolicy, variant, critic
) -> None:
    if isinstance(critic, Truth):
        variant = replace(variant, step_size=0.0)
    learner, trainer = learner_of(cloned, critic, variant, steps=5)
    for step in range(5):
        shown = trainer.step(step)
        assert float(shown["loss"]) == float(shown["correction"]) == float(shown["accepted"]) == 0
    for before, after in zip(weights(cloned), weights(learner.policy), strict=True):
        assert torch.equal(before, after)


def test_the_first_loss_is_known_where_every_step_is_accepted(cloned: FlowPolicy) -> None:
    learner, _ = learner_of(cloned, OneDirection())
    shown = learner(learner.draw(generator(0, 0)))
    assert float(shown["loss"].detach()) == pytest.approx(3.2931, abs=1e-3)
    assert float(shown["correction"]) == pytest.approx(0.6850, abs=1e-4)
    assert float(shown["accepted"]) == 1.0
    assert float(shown["chosen"]) == 3.0
    assert float(shown["delta_q"]) == pytest.approx(0.15, abs=1e-4)
    assert float(shown["change"]) == float(shown["early_change"]) == 0.0


# What learns, and from what


def test_gradients_reach_the_trained_part_and_nothing_else(cloned: FlowPolicy) -> None:
    before = weights(cloned)
    willing = replace(cloned, network=copy.deepcopy(cloned.network).requires_grad_(True))
    learner, trainer = learner_of(willing, Truth(), trainable="head, layers.1")
    shown = learner(learner.draw(generator(0, 0)))
    shown["loss"].backward()
    reached = {n for n, w in learner.network.named_parameters() if w.grad is not None}
    assert reached == {"head.weight", "head.bias", "layers.1.weight", "layers.1.bias"}
    assert all(weight.grad is None for weight in willing.network.parameters())
    trainer.step(0)
    for old, new in zip(before, weights(willing), strict=True):
        assert torch.equal(old, new)
    moved = {
        name
        for (name, old), new in zip(
            cloned.network.named_parameters(), weights(learner.policy), strict=True
        )
        if not torch.equal(old, new)
    }
    assert moved == reached


def test_the_critics_weights_get_no_gradient() -> None:
    critic = make_critic()
    critic.network.requires_grad_(True)
    learner, _ = learner_of(make_policy(), critic)
    learner(learner.draw(generator(0, 0)))["loss"].backward()
    assert all(weight.grad is None for weight in critic.network.parameters())


def test_the_loss_is_that_of_a_plain_loop_over_the_path() -> None:
    """The pseudo-code of v1, step by step, with its gate, its box and its clipped gradient."""
    policy, critic = make_policy(), make_critic()
    variant = replace(V1, step_size=0.3, max_norm=0.5, gate_power=2.0, denoising_steps=6)
    learner, trainer = learner_of(policy, critic, variant, learning_rate=0.02)
    for step in range(3):
        trainer.step(step)  # now the path of what is trained is not that of the reference
    batch = learner.draw(generator(5, 0))
    shown = learner(batch)
    features, x, total = batch["features"], batch["noise"], 0.0
    q = critic.condition(features)
    for step in range(6):
        tau = torch.full((64,), step / 6)
        frozen = policy.condition(features)(x, tau)
        now = learner.policy.condition(features)(x, tau).detach()
        start = (x + (1 - step / 6) * frozen).clamp(-1, 1)
        best, walk = start, start
        for _ in range(3):
            walk = walk.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(q(walk).mean(dim=0).sum(), walk)
            norm = slope.flatten(1).norm(dim=1).view(-1, 1, 1)
            walk = (walk + 0.3 * slope * (0.5 / norm).clamp_max(1.0)).clamp(-1, 1).detach()
            better = q(walk).mean(dim=0) > q(best).mean(dim=0)
            best = torch.where(better.view(-1, 1, 1), walk, best)
        wanted = frozen + (best - start) / (1 - step / 6)
        total += (step / 6) ** 2 * float((now - wanted).square().sum(dim=(1, 2)).mean())
        x = x + now / 6
    assert float(shown["loss"].detach()) == pytest.approx(total, rel=1e-4)
    assert float(shown["loss"].detach()) > 0.01


def test_all_that_is_random_is_drawn_before_the_loss(cloned: FlowPolicy) -> None:
    learner, _ = learner_of(cloned, Truth())
    batch = learner.draw(generator(7, 2))
    assert torch.equal(batch["noise"], learner.draw(generator(7, 2))["noise"])
    torch.manual_seed(1)
    one = learner(batch)["loss"]
    torch.manual_seed(2)
    assert torch.equal(one, learner(batch)["loss"])
    halves = [{k: v[rank::2] for k, v in batch.items()} for rank in range(2)]
    mean = sum(float(learner(half)["loss"].detach()) for half in halves) / 2
    assert mean == pytest.approx(float(one.detach()), rel=1e-5)


# The program


@pytest.fixture
def folders(tmp_path):
    """Checkpoints of a policy and a ten-headed IQL critic."""
    make_policy().save(tmp_path / "policy")
    critic = make_critic(members=10)
    replace(critic, training={"settings": {"objective": "iql"}}).save(tmp_path / "critic")
    return tmp_path


def settings_in(folder, **options) -> QvgmSettings:
    base = {"steps": 10, "batch": 8, "horizon": 3, "log_every": 0}
    paths = {name: str(folder / name) for name in ("policy", "critic", "out")}
    return QvgmSettings(**{**base, **paths, **options})


def test_the_checkpoint_is_a_policy_that_acts_and_says_how_it_was_made(folders) -> None:
    metrics = train_qvgm(settings_in(folders), command="typed", transitions=data(100))
    policy, reference = FlowPolicy.load(folders / "out"), FlowPolicy.load(folders / "policy")
    assert policy.interface == reference.interface
    assert policy.condition(FEATURES)(torch.zeros(2, 3, 2), torch.zeros(2)).shape == (2, 3, 2)
    assert policy.training["command"] == "typed"
    assert policy.training["variant"] == "v5_iql_chunk10"
    assert policy.training["reference_hash"] == reference.hash
    assert len(policy.training["critic_hash"]) == 64
    assert policy.training["numbers"]["step_size"] == 0.05
    assert policy.training["metrics"] == metrics
    assert {"loss", "accepted", "chosen", "delta_q", "change", "early_change"} <= set(metrics)
    assert not all(map(torch.equal, weights(policy), weights(reference)))


def test_a_critic_of_another_objective_is_refused_or_named(folders) -> None:
    options = {"variant": "v1_calql_chunk"}
    with pytest.raises(ConfigError, match="wants a critic of objective 'calql': got 'iql'"):
        train_qvgm(settings_in(folders, **options), transitions=data(100))
    assert not (folders / "out").exists()
    train_qvgm(settings_in(folders, custom=True, **options), transitions=data(100))
    assert FlowPolicy.load(folders / "out").training["variant"] == "v1_calql_chunk+custom"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critic": ""}, "must be told its critic"),
        ({"variant": "v9"}, "'variant' must be one of v1_calql_chunk, v2_iql_stepwise"),
        ({"step_size": 0.1}, r"wants 'step_size' of 0\.05: got 0\.1"),
        ({"gradient_clip": 1.0}, r"wants 'gradient_clip' of 3\.5: got 1"),
        ({"last_steps": 11, "custom": True}, "must be 1 to 10 of the path's: got 11"),
        ({"trainable": "heads"}, "'trainable' must be 'all' or beginnings of names.*got 'heads'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(folders, options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_qvgm(settings_in(folders, **options), transitions=data(100))


def test_a_critic_of_another_space_is_refused(folders) -> None:
    make_critic(interface=other(encoder_hash="f" * 64)).save(folders / "critic")
    with pytest.raises(ConfigError, match="the policy and the critic must be trained on"):
        train_qvgm(settings_in(folders), transitions=data(100))
