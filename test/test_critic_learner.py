"""How critics are trained: what each objective asks its networks and policy, and the settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import make_policy
from played import random_transitions
from torch import Tensor, nn

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.injected import InjectedMLP
from qsteer_ros.critics.losses import chunk_target, critic_loss, expectile_loss
from qsteer_ros.critics.networks import critic_input
from qsteer_ros.ensemble import pessimistic
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler
from qsteer_ros.learning.critic_objectives import Networks, Sarsa
from qsteer_ros.learning.policy_objectives import CalQl, Td
from qsteer_ros.learning.settings_critic import OBJECTIVES, CriticSettings
from qsteer_ros.learning.train_critic import CriticLearner, train_critic
from qsteer_ros.learning.trainer import Trainer, generator
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP
from qsteer_ros.steering.settings import SteeringSettings

SMALL = CriticSettings(steps=3, batch=16, hidden="8,8", num_candidates=2, denoising_steps=2)
ROWS, SHAPE = 5, (3, 2)


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A policy in the space of the random transitions."""
    space = random_transitions(10).interface
    torch.manual_seed(0)
    network = FlowMLP(space.feature_dim, space.chunk_dim, (8,)).requires_grad_(False)
    zeros, ones = torch.zeros(space.feature_dim), torch.ones(space.feature_dim)
    folder = tmp_path_factory.mktemp("policies") / "policy"
    return str(FlowPolicy(network, zeros, ones, space).save(folder))


def learner_of(**changes: Any) -> CriticLearner:
    return CriticLearner(random_transitions(40), replace(SMALL, **changes))


class Linear(nn.Module):
    """Two members: k and 2 k times the sum of the chunk, and k times the first feature."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = slope

    def q(self, features: Tensor, chunk: Tensor) -> Tensor:
        rows = features.repeat_interleave(len(chunk) // len(features), dim=0)
        one = self.slope * (chunk.sum(dim=(1, 2)) + rows[:, 0])
        return torch.stack([one, 2.0 * one])


def linear_networks(slope: float = 1.0) -> Networks:
    """The trained copy differs from the target, which alone may be asked in a bootstrap."""
    trained, target = Linear(100.0), Linear(slope)
    return Networks(trained, target, None, torch.zeros(4), torch.ones(4))  # type: ignore[arg-type]


def batch_of(policy: FlowPolicy) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(3)
    shape = (ROWS, *SHAPE)
    return {
        "features": torch.randn(ROWS, 4, generator=source),
        "next_features": torch.randn(ROWS, 4, generator=source),
        "chunk": torch.rand(shape, generator=source) * 2 - 1,
        "next_chunk": torch.full(shape, 77.0),
        "reward": -torch.rand(ROWS, generator=source),
        "bootstrap": torch.tensor([0.9, 0.0, 0.9, 0.9, 0.5]),
        "noise": torch.randn(shape, generator=source),
    }


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_td_bootstraps_with_the_steered_policys_own_chunk(weight: float) -> None:
    """Against the loop by hand: of a linear critic the guidance is constant, k (1.5 - 0.5 rho)."""
    policy, rho = make_policy(), 0.5
    steering = SteeringSettings("qgf", weight=weight, reduction="pessimistic", rho=rho)
    objective, networks = Td(policy, steering, Sampler(4)), linear_networks()
    batch = batch_of(policy)
    target = objective.target(networks, batch)
    x = batch["noise"]
    for step in range(4):
        velocity = policy.condition(batch["next_features"])(x, torch.full((ROWS,), step / 4))
        clean = (x + (1 - step / 4) * velocity).clamp(-1, 1).requires_grad_(True)
        one = clean.sum(dim=(1, 2)) + batch["next_features"][:, 0]
        (gradient,) = torch.autograd.grad((1.5 * one - rho * 0.5 * one.abs()).sum(), clean)
        x = x + (velocity + weight * gradient) / 4
    a = x.clamp(-1, 1)
    one = a.sum(dim=(1, 2)) + batch["next_features"][:, 0]
    expected = batch["reward"] + batch["bootstrap"] * (1.5 * one - rho * 0.5 * one.abs())
    torch.testing.assert_close(target, expected, atol=2e-3, rtol=1e-3)
    assert target[1] == batch["reward"][1]  # terminated
    assert not target.requires_grad


def test_steering_changes_the_bootstrap_and_raises_it() -> None:
    policy = make_policy()
    targets = [
        Td(policy, SteeringSettings("qpilots_u", weight=w), Sampler(4)).target(
            linear_networks(), batch_of(policy)
        )
        for w in (0.0, 0.5)
    ]
    gain = targets[1] - targets[0]
    assert gain[1] == 0.0  # terminated
    assert float(gain.sum()) > 0.1


def test_sarsa_bootstraps_with_the_datas_next_chunk_and_the_target_networks() -> None:
    objective, networks, batch = (
        Sarsa(pessimistic(0.0)),
        linear_networks(),
        batch_of(make_policy()),
    )
    batch["next_valid"] = torch.tensor([True, False, True, True, False])
    values = torch.zeros(2, ROWS)
    loss = objective.regression(networks, batch, values, warm=False)
    one = batch["next_chunk"].sum(dim=(1, 2)) + batch["next_features"][:, 0]
    target = batch["reward"] + batch["bootstrap"] * 1.5 * one
    counted = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(loss, (counted * target.square()).mean())


def calql(policy: FlowPolicy | None, **changes: Any) -> CalQl:
    options: dict[str, Any] = {"alpha": 0.1, "number": 2, "local_std": 0.05, "densities": False}
    regression = Sarsa(pessimistic(0.0))
    return CalQl(regression, policy=policy, sampler=Sampler(3), **(options | changes))


def test_calqls_policy_candidates_are_its_chunks_here_and_after_in_that_order() -> None:
    policy = make_policy()
    objective, batch = calql(policy), batch_of(policy)
    batch |= objective.draw(batch, generator(0, 0), warm=False)
    assert batch["uniform"].shape == (ROWS, 2, *SHAPE)
    assert -1.0 <= float(batch["uniform"].min()) < -0.8
    assert 0.8 < float(batch["uniform"].max()) <= 1.0
    found = objective.others(batch)
    assert found.shape == (ROWS, 4, *SHAPE)
    for row in range(ROWS):
        for column in range(4):
            features = batch["features" if column < 2 else "next_features"][row : row + 1]
            noise = batch["noise"][row, column].unsqueeze(0)
            alone = Sampler(3).denoise(policy.condition(features), noise).clamp(-1, 1)
            torch.testing.assert_close(found[row, column], alone[0])


def test_calqls_local_candidates_are_the_datas_chunk_and_noise() -> None:
    objective, batch = calql(None, number=200), batch_of(make_policy())
    batch |= objective.draw(batch, generator(0, 0), warm=False)
    offset = objective.others(batch) - batch["chunk"].unsqueeze(1)
    assert offset.shape == (ROWS, 200, *SHAPE)
    assert float(offset.std()) == pytest.approx(0.05, rel=0.05)
    assert abs(float(offset.mean())) < 0.002


@pytest.mark.parametrize("densities", [False, True])
def test_calqls_loss_is_put_together_by_hand(densities: bool) -> None:
    """Regression, and alpha times a sum over uniform and lifted local candidates."""
    objective, networks = calql(None, densities=densities), linear_networks()
    batch = batch_of(make_policy()) | {
        "next_valid": torch.ones(ROWS, dtype=torch.bool),
        "mc_return": torch.full((ROWS,), 50.0),
    }
    batch |= objective.draw(batch, generator(0, 0), warm=False)
    found = objective.losses(networks, batch, warm=False)
    gaps = []
    local = objective.others(batch)
    for row in range(ROWS):
        first = batch["features"][row, 0]
        for member in (1.0, 2.0):
            terms = []
            for j in range(2):
                value = member * 100.0 * (batch["uniform"][row, j].sum() + first)
                terms.append(value + (6 * torch.tensor(2.0).log() if densities else 0.0))
            for j in range(2):
                value = (member * 100.0 * (local[row, j].sum() + first)).clamp_min(50.0)
                normal = torch.distributions.Normal(batch["chunk"][row], 0.05)
                density = normal.log_prob(local[row, j]).sum() if densities else 0.0
                terms.append(value - density)
            own = member * 100.0 * (batch["chunk"][row].sum() + first)
            gaps.append(torch.stack(terms).logsumexp(0) - own)
    expected = torch.stack(gaps).mean()
    torch.testing.assert_close(found["conservative"], expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["loss"], found["q"] + 0.1 * expected, rtol=1e-4, atol=1e-3)


def test_a_default_critic_takes_the_steps_of_the_code_it_follows_bit_for_bit() -> None:
    """IQL by hand: losses of the weights before the step, the target follows those, then Adam."""
    learner = learner_of(steps=4)
    theirs = learner_of(steps=4)
    assert theirs.value is not None
    adams = [
        torch.optim.Adam(network.parameters(), lr=SMALL.learning_rate, fused=True)
        for network in (theirs.q, theirs.value)
    ]
    trainer = Trainer(learner, replace(SMALL, steps=4, warmup=0, lr_floor=1.0))
    for step in range(4):
        trainer.step(step)
        rows = torch.randint(40, (SMALL.batch,), generator=generator(SMALL.seed, step))
        data = theirs.buffer.take(rows)
        now, after = (
            (data[name] - theirs.mean) / theirs.std for name in ("features", "next_features")
        )
        inputs = critic_input(now, data["chunk"])
        target = chunk_target(data["reward"], data["bootstrap"], theirs.value(after).detach())
        slow = theirs.target(inputs).amin(dim=0)
        loss = critic_loss(theirs.q(inputs), target)
        loss = loss + expectile_loss(slow, theirs.value(now), expectile=SMALL.expectile)
        for adam in adams:
            adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            for old, new in zip(theirs.target.parameters(), theirs.q.parameters(), strict=True):
                old.lerp_(new, SMALL.ema)
        for adam in adams:
            adam.step()
    for name, weight in theirs.state_dict().items():
        if name != "taken":
            assert torch.equal(learner.state_dict()[name], weight), name


@pytest.mark.parametrize("network", ["flat", "injected"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_every_kind_of_network(
    objective: str, network: str, policy_folder: str, tmp_path: Path
) -> None:
    settings = replace(
        SMALL,
        out=str(tmp_path / "critic"),
        objective=objective,
        network=network,
        policy=policy_folder,
        steering_weight=0.1,
        candidates="policy",
        warm_start=1,
        proprio=2 if network == "injected" else 0,
        proprio_dim=3,
        log_every=0,
    )
    metrics = train_critic(settings, transitions=random_transitions(40))
    assert {"loss", "q", "value"} <= set(metrics)
    critic = Critic.load(tmp_path / "critic")
    assert critic.training["settings"]["objective"] == objective
    assert isinstance(critic.network, InjectedMLP) == (network == "injected")
    assert critic.network.activation == ("silu" if network == "injected" else "gelu")
    assert critic.network.layer_norm == (network == "flat")
    values = critic.condition(torch.zeros(1, 27))(torch.zeros(2, 5, 5))
    assert values.shape == ((1 if objective == "stepwise_iql" else 2), 2)
    fresh = CriticLearner(random_transitions(40), settings)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(critic.network.parameters(), fresh.q.parameters(), strict=True)
    ]
    assert all(moved), "every weight of the critic is trained"


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o != "monte_carlo"])
def test_a_warm_start_regresses_the_returns_and_then_bootstraps(
    objective: str, policy_folder: str
) -> None:
    learner = learner_of(objective=objective, warm_start=2, policy=policy_folder)
    trainer = Trainer(learner, replace(SMALL, warmup=0))
    for step in range(3):
        assert learner.warm == (step < 2)
        batch = learner.draw(generator(0, step))
        far = {name: t for name, t in batch.items()} | {
            "next_features": batch["next_features"] + 5.0
        }
        same = torch.equal(learner(batch)["q"], learner(far)["q"])
        assert same == (step < 2)  # a return does not ask what the next state is worth
        if learner.warm and objective != "stepwise_iql":
            values = learner.q.q((batch["features"] - learner.mean) / learner.std, batch["chunk"])
            by_hand = (values - batch["mc_return"]).square().mean()
            torch.testing.assert_close(learner(batch)["q"], by_hand)
        trainer.step(step)


def test_a_resumed_warm_start_knows_how_far_it_is() -> None:
    learner, again = learner_of(warm_start=2), learner_of(warm_start=2)
    trainer = Trainer(learner, SMALL)
    trainer.step(0)
    trainer.step(1)
    assert again.warm
    again.load_state_dict(learner.state_dict())
    assert not again.warm


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"objective": "fql"}, "'objective' must be one of iql, sarsa, .*: got 'fql'"),
    ({"network": "cone"}, "'network' must be one of flat, injected: got 'cone'"),
    ({"layer_norm": "maybe"}, "'layer_norm' must be one of auto, yes, no: got 'maybe'"),
    ({"activation": "sine"}, "'activation' must be one of gelu, .*: got 'sine'"),
    ({"reduction": "median"}, "'reduction' must be one of auto, min, .*: got 'median'"),
    (
        {"objective": "stepwise_iql", "reduction": "mean"},
        "'reduction' must be min or auto for stepwise_iql",
    ),
    ({"objective": "td"}, "'policy' must name a flow policy's checkpoint for objective=td"),
    ({"objective": "td", "steering": "bptt"}, "'steering' must be one of off, .*: got 'bptt'"),
    ({"objective": "calql", "candidates": "policy"}, "'policy' must name .* candidates=policy"),
    ({"objective": "calql", "candidates": "all"}, "'candidates' must be one of local, policy"),
    (
        {"objective": "calql", "candidates": "policy", "densities": True},
        "'densities' must be false with candidates=policy",
    ),
    ({"proprio": 3}, "'inject_head' and 'proprio' must be left out with network=flat"),
    (
        {"objective": "stepwise_iql", "warm_start": 1, "discount": 0.0},
        "'discount' must be above 0 for a warm start of stepwise_iql",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_settings_that_cannot_be_followed_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        learner_of(**changes)


def test_a_policy_of_another_space_is_refused(tmp_path: Path) -> None:
    folder = make_policy().save(tmp_path / "policy")
    with pytest.raises(ConfigError, match=r"policy .* and the data must have the same horizon"):
        learner_of(objective="td", policy=str(folder))


def test_data_that_lack_what_an_objective_needs_are_refused() -> None:
    data = replace(random_transitions(40), next_chunk=None, mc_return=None)
    for changes, missing in (
        ({"objective": "sarsa"}, "next_chunk"),
        ({"warm_start": 1}, "mc_return"),
    ):
        with pytest.raises(ConfigError, match=f"this training needs {missing}"):
            CriticLearner(data, replace(SMALL, **changes))
