"""What an evaluation plays with: states, checkpoints and data of its own and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from parts import FEATURES, make_critic, make_noise_policy, make_policy, make_posterior_map

from qsteer_ros.critics.critic import Critic
from qsteer_ros.evaluation import bench_evaluate
from qsteer_ros.evaluation.bench_evaluate import Evaluation, evaluate
from qsteer_ros.evaluation.suite_actors import noise_actor, steered_actor
from qsteer_ros.evaluation.suite_rollout import Actor, Outcome, state_seeds
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.noise_policy import NoisePolicy
from qsteer_ros.policies.posterior_map import MetaFlowMap
from qsteer_ros.steering.settings import SteeringSettings

SEEDS = (11,)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """One checkpoint of each kind and play that was held out; there is no other play."""
    policy = FlowPolicy.load(make_policy().save(tmp_path / "bc"))
    make_critic().save(tmp_path / "critic")
    make_policy(5).save(tmp_path / "qvgm")
    make_noise_policy(policy).save(tmp_path / "dsrl")
    make_posterior_map(policy).save(tmp_path / "posterior-map")
    folder = tmp_path / "data" / "held_out"
    folder.mkdir(parents=True)
    (folder.parent / "dataset.json").write_text('{"settings": {"suite": "cube-single"}}')
    rng = np.random.default_rng(0)
    np.savez(
        folder / "episode_00000.npz",
        observation=rng.normal(size=(40, 4)).astype(np.float32),
        action=np.zeros((40, 5), np.float32),
        qpos=np.zeros((40, 21), np.float32),
        buttons=np.zeros((40, 0), np.int8),
    )
    names = ("bc", "critic", "qvgm", "dsrl", "posterior-map", "data")
    return {name: str(tmp_path / name) for name in names} | {"out": str(tmp_path / "o.json")}


def asked(places: dict[str, str], method: str, **settings: Any) -> Evaluation:
    return Evaluation("cube-single", 2, 7, method, settings, 3, 4, 1, places)


def chunk(actor: Actor) -> torch.Tensor:
    with torch.no_grad():
        return actor(FEATURES, SEEDS)


def test_every_method_acts_with_its_own_checkpoint(places: dict[str, str]) -> None:
    policy, critic = FlowPolicy.load(places["bc"]), Critic.load(places["critic"])
    tuned, chooser = FlowPolicy.load(places["qvgm"]), NoisePolicy.load(places["dsrl"])
    drawn = MetaFlowMap.load(places["posterior-map"])
    tilted = {"weight": 0.3, "tilt_mean": 0.0, "tilt_std": 1.0}
    off, qgf = SteeringSettings(), SteeringSettings("qgf", weight=0.3)
    many = SteeringSettings("qpilots_m", **tilted)
    expected: dict[str, tuple[Actor, dict[str, float]]] = {
        "off": (steered_actor(policy, None, off), {}),
        "qvgm": (steered_actor(tuned, None, off), {}),
        "dsrl": (noise_actor(policy, chooser), {}),
        "qgf": (steered_actor(policy, critic, qgf), {"weight": 0.3}),
        "qpilots_m": (steered_actor(policy, critic, many, posterior=drawn), tilted),
    }
    chunks = []
    for method, (actor, settings) in expected.items():
        found, facts = bench_evaluate._actor(asked(places, method, **settings))
        assert torch.equal(chunk(found), chunk(actor)), method
        assert facts["hashes"]["bc"] == policy.hash
        chunks.append(chunk(found))
    assert len(torch.unique(torch.cat(chunks), dim=0)) == len(expected)


def test_a_weight_is_found_on_play_that_was_held_out(places: dict[str, str]) -> None:
    actor, facts = bench_evaluate._actor(asked(places, "qgf", target_ratio=0.1))
    assert facts["calibrated"]["ratio"] == pytest.approx(0.1, rel=0.01)
    assert facts["steering"]["weight"] > 0.0
    policy, critic = FlowPolicy.load(places["bc"]), Critic.load(places["critic"])
    steered = steered_actor(policy, critic, SteeringSettings.from_json(facts["steering"]))
    assert torch.equal(chunk(actor), chunk(steered))
    again, _ = bench_evaluate._actor(asked(places, "qgf", target_ratio=0.1))
    assert torch.equal(chunk(again), chunk(actor))


def test_episodes_begin_in_the_states_of_their_seed_and_block(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def played(actor: Actor, worlds: Any, seeds: list[int], **rest: Any) -> list[Outcome]:
        told.update(rest, seeds=seeds, worlds=worlds)
        return [Outcome(seed % 2 == 0, 9) for seed in seeds]

    monkeypatch.setattr(bench_evaluate, "play_episodes", played)
    monkeypatch.setattr(bench_evaluate, "Worlds", lambda *of: of)
    monkeypatch.setattr(bench_evaluate.suite, "spec", lambda name: SimpleNamespace(max_steps=77))
    evaluate([asked(places, "off")])
    wanted = state_seeds(7, 4, block=1)
    assert told["seeds"] == wanted
    assert told["worlds"] == ("cube-single", 2, 4)
    assert (told["execute"], told["max_steps"]) == (3, 77)
    found = json.loads(Path(places["out"]).read_text())
    assert found["solved"] == [seed % 2 == 0 for seed in wanted]
    assert found["made"]["block"] == 1
