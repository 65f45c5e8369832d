"""How critics are trained: the order of a step, every objective, warm starts, settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import make_policy
from played import random_transitions

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.injected import InjectedMLP
from qsteer_ros.critics.losses import chunk_target, critic_loss, expectile_loss
from qsteer_ros.critics.networks import critic_input
from qsteer_ros.errors import ConfigError
from qsteer_ros.learning.critic_plans import READ_BY
from qsteer_ros.learning.settings_critic import OBJECTIVES, CriticSettings
from qsteer_ros.learning.train_critic import CriticLearner, train_critic
from qsteer_ros.learning.trainer import Trainer, generator
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP

SMALL = CriticSettings(steps=3, batch=16, hidden="8,8", denoising_steps=2)


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
    return CriticLearner(random_transitions(40), replace(SMALL, **read_by_it(changes)))


def read_by_it(changes: dict[str, Any]) -> dict[str, Any]:
    """Without the settings that the objective does not read."""
    objective = changes.get("objective", "iql")
    wanted = {"num_candidates": 2, **changes}
    return {k: v for k, v in wanted.items() if objective in READ_BY.get(k, (objective,))}


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


def test_a_stepwise_critic_bootstraps_with_the_first_position_of_what_follows() -> None:
    """Position by position: V of the next one here, V of the first one after the chunk."""
    learner = learner_of(objective="stepwise_iql", discount=0.9, expectile=0.8)
    assert learner.value is not None
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in [*learner.target.parameters(), *learner.value.parameters()]:
            weight.add_(0.3 * torch.randn_like(weight))
    batch = learner.draw(generator(0, 0))
    batch["ended"][:4, 3:] = True
    now, after = (
        (batch[name] - learner.mean) / learner.std for name in ("features", "next_features")
    )
    shown = learner(batch)
    with torch.no_grad():
        live, slow = (n.positions(now, batch["chunk"]) for n in (learner.q, learner.target))
        here, there = learner.value(now), learner.value(after)
    q_loss = v_loss = 0.0
    for row in range(SMALL.batch):
        for i in range(5):
            follows = here[row, i + 1] if i < 4 else there[row, 0]
            left = 0.0 if batch["ended"][row, i] else 0.9
            target = batch["rewards"][row, i] + left * follows
            q_loss += float((live[:, row, i] - target).square().mean()) / (5 * SMALL.batch)
            gap = float(slow[:, row, i].min() - here[row, i])
            v_loss += (0.8 if gap > 0 else 0.2) * gap**2 / (5 * SMALL.batch)
    assert float(shown["q"].detach()) == pytest.approx(q_loss, rel=1e-4)
    assert float(shown["v"].detach()) == pytest.approx(v_loss, rel=1e-4)


@pytest.mark.parametrize("network", ["flat", "injected"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_every_kind_of_network(
    objective: str, network: str, policy_folder: str, tmp_path: Path
) -> None:
    changes = dict(
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
    settings = replace(SMALL, **read_by_it(changes))
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


@pytest.mark.parametrize(
    ("objective", "setting"),
    [
        ("iql", {"alpha": 0.1}),
        ("iql", {"steering": "qgf"}),
        ("sarsa", {"expectile": 0.8}),
        ("monte_carlo", {"policy": "somewhere"}),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(objective: str, setting: dict) -> None:
    name = next(iter(setting))
    with pytest.raises(ConfigError, match=f"'{name}' must be left out with objective={objective}"):
        CriticLearner(random_transitions(), CriticSettings(objective=objective, **setting))
