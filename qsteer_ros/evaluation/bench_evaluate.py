"""Episodes of some methods on one task, with the checkpoints of one seed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.evaluation.bench_settings import METHODS
from qsteer_ros.evaluation.suite_actors import noise_actor, steered_actor
from qsteer_ros.evaluation.suite_rollout import Actor, play_episodes, state_seeds
from qsteer_ros.evaluation.sweep import Bench, find_weight
from qsteer_ros.flow import Sampler, sample_noise
from qsteer_ros.learning.generation import written_whole
from qsteer_ros.learning.suite import load_suite
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.noise_policy import NoisePolicy
from qsteer_ros.policies.posterior_map import MetaFlowMap
from qsteer_ros.sim import suite
from qsteer_ros.sim.suite_worlds import Worlds
from qsteer_ros.steering.settings import SteeringSettings

OBSERVATIONS = 256
"""Of held-out play, at which weights are measured."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: what `qsteer bench` asks for as JSON.

    Attributes:
        suite: Environment.
        task: Number of the task.
        seed: Of the training run.
        method: Key of ``bench_settings.METHODS``.
        settings: Of the method: fields of `SteeringSettings`, or ``target_ratio`` in place of
            ``weight``.
        execute: Actions of a chunk that are carried out.
        episodes: How many.
        block: Of initial states.
        places: Folders of checkpoints by program, ``data``, and the file ``out``.
    """

    suite: str
    task: int
    seed: int
    method: str
    settings: Mapping[str, Any]
    execute: int
    episodes: int
    block: int
    places: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Evaluation:
        """From JSON.

        Raises:
            ConfigError: It is not JSON, or has other keys.
        """
        try:
            found = cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"an evaluation must be JSON with {', '.join(cls.__annotations__)}: {error}."
            ) from error
        if found.method not in METHODS:
            raise ConfigError(
                f"'method' must be one of {', '.join(METHODS)}: got '{found.method}'."
            )
        return found

    def made(self) -> dict[str, Any]:
        """Everything but the places."""
        return {name: getattr(self, name) for name in self.__annotations__ if name != "places"}


def evaluate(evaluations: Sequence[Evaluation]) -> None:
    """Play the episodes of each evaluation and write its result.

    Args:
        evaluations: Of one task; the simulator's model is compiled once for all.

    Raises:
        ConfigError: A checkpoint is missing or does not fit, or evaluations are of several tasks.
        DataError: A checkpoint or the data are damaged.
    """
    first = evaluations[0]
    if any((e.suite, e.task) != (first.suite, first.task) for e in evaluations):
        raise ConfigError("evaluations of one process must be of one task: got several.")
    torch.set_num_threads(1)
    worlds = Worlds(first.suite, first.task, max(e.episodes for e in evaluations))
    for evaluation in evaluations:
        _evaluate(evaluation, worlds)


def _evaluate(evaluation: Evaluation, worlds: Worlds) -> None:
    actor, facts = _actor(evaluation)
    seeds = state_seeds(evaluation.seed, evaluation.episodes, block=evaluation.block)
    began = time.perf_counter()
    with tqdm(total=len(seeds), desc=evaluation.method, unit="episode") as bar:
        outcomes = play_episodes(
            actor,
            worlds,
            seeds,
            max_steps=suite.spec(evaluation.suite).max_steps,
            execute=evaluation.execute,
            on_episode=bar.update,
        )
    found = {
        "made": evaluation.made(),
        "solved": [outcome.solved for outcome in outcomes],
        "steps": [outcome.steps for outcome in outcomes],
        "seconds": round(time.perf_counter() - began, 1),
        **facts,
    }
    with written_whole(Path(evaluation.places["out"])) as path:
        path.write_text(json.dumps(found) + "\n")


def _actor(evaluation: Evaluation) -> tuple[Actor, dict[str, Any]]:
    """What decides, and what is worth keeping about it."""
    places = evaluation.places
    policy = FlowPolicy.load(places["bc"])
    facts: dict[str, Any] = {"hashes": {"bc": policy.hash}}
    if evaluation.method == "dsrl":
        chooser = NoisePolicy.load(places["dsrl"])
        facts["hashes"]["dsrl"] = chooser.hash
        return noise_actor(policy, chooser), facts
    if evaluation.method == "qvgm":
        tuned = FlowPolicy.load(places["qvgm"])
        facts["hashes"]["qvgm"] = tuned.hash
        return steered_actor(tuned, None, SteeringSettings()), facts
    critic = Critic.load(places["critic"])
    facts["hashes"]["critic"] = critic.hash
    posterior = None
    if "posterior-map" in METHODS[evaluation.method].needs:
        posterior = MetaFlowMap.load(places["posterior-map"])
        facts["hashes"]["posterior-map"] = posterior.hash
    settings = dict(evaluation.settings)
    target = settings.pop("target_ratio", None)
    steering = SteeringSettings(mode=evaluation.method, **settings)
    if target is not None:
        steering, facts["calibrated"] = _calibrated(
            evaluation, policy, critic, posterior, steering, float(target)
        )
    facts["steering"] = steering.to_json()
    return steered_actor(policy, critic, steering, posterior=posterior), facts


def _calibrated(
    evaluation: Evaluation,
    policy: FlowPolicy,
    critic: Critic,
    posterior: MetaFlowMap | None,
    steering: SteeringSettings,
    target: float,
) -> tuple[SteeringSettings, dict[str, float]]:
    """The weight at which guidance has the wanted length on held-out play."""
    observed = load_suite(Path(evaluation.places["data"]), split="held_out").observation
    rng = np.random.default_rng(evaluation.seed)
    rows = rng.choice(len(observed), min(OBSERVATIONS, len(observed)), replace=False)
    features = torch.from_numpy(observed[np.sort(rows)])
    shape = (len(features), policy.horizon, policy.action_dim)
    noise = sample_noise(shape, seed=evaluation.seed, device=features.device)
    bench = Bench(
        policy.condition(features),
        critic.condition(features),
        noise,
        settings=steering,
        sampler=Sampler(),
        bounds=policy.bounds,
        seed=evaluation.seed,
        posterior=None if posterior is None else posterior.condition(features),
    )
    weight = find_weight(lambda w: bench.at(w).ratio, target)
    point = bench.at(weight)
    found = {"ratio": point.ratio, "delta_q": point.delta_q, "improved": point.improved}
    values = {**bench.settings.to_json(), "weight": weight}
    return SteeringSettings.from_json(values), found
