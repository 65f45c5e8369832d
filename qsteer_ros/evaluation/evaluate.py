"""Success rates of several steering arms on the same initial states, in process."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qsteer_ros import resources
from qsteer_ros.evaluation.evaluation_settings import EvaluationSettings, parse_arm
from qsteer_ros.evaluation.rollout import EpisodeResult, Links, Rollout
from qsteer_ros.evaluation.statistics import wilson_interval
from qsteer_ros.steering.settings import SteeringSettings


def evaluate(settings: EvaluationSettings, out: Path | None = None) -> dict[str, Any]:
    """Run every arm on every goal and initial state.

    Args:
        settings: What.
        out: Where the report is written as JSON; None writes nothing.

    Returns:
        ``settings``, ``ungated`` (goal -> why its critic has not passed the gate; an evaluation
        refuses none), one ``summary`` per arm and goal (successes, rate, its 95 % interval after
        Wilson, mean steps, mean guidance ratio, mean seam jump, median cube error) and every
        episode.

    Raises:
        ConfigError: A checkpoint is missing or does not fit the robot.
        DataError: A checkpoint is damaged.
    """
    jobs = [
        (arm, goal, seed)
        for goal in settings.goals
        for arm in settings.arms
        for seed in range(settings.seed, settings.seed + settings.episodes)
    ]
    results: dict[tuple[str, int], list[EpisodeResult]] = {}
    with tqdm(total=len(jobs), desc="evaluate", unit="episode") as bar:
        for (arm, goal, _), result in zip(jobs, _run(jobs, settings), strict=True):
            group = results.setdefault((arm, goal), [])
            group.append(result)
            bar.set_postfix_str(
                f"{arm}, goal {goal}: {sum(r.success for r in group)}/{len(group)}"
            )
            bar.update()
    report = {
        "settings": asdict(settings),
        "ungated": _ungated(settings),
        "summary": [_summary(arm, goal, rows) for (arm, goal), rows in results.items()],
        "episodes": [
            {"arm": arm, **asdict(row)} for (arm, _), rows in results.items() for row in rows
        ],
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    return report


def table(report: dict[str, Any]) -> str:
    """The summary as text, one line per arm and goal."""
    head = f"{'goal':4}  {'arm':20}  {'success':>9}  {'95 % interval':>15}  {'steps':>5}  ratio"
    jumps = any(row["seam_jump"] is not None for row in report["summary"])
    lines = [f"{head}  seam" if jumps else head]
    for row in report["summary"]:
        low, high = row["interval"]
        lines.append(
            f"{row['goal']:4}  {row['arm']:20}  {row['successes']:4}/{row['episodes']:<4}  "
            f"{low:6.0%} to {high:5.0%}  {row['mean_steps']:5.0f}  {row['mean_ratio']:.3f}"
            + (f"  {row['seam_jump']:.3f}" if row["seam_jump"] is not None else "")
        )
    lines += [f"goal {goal}: not gated: {why}" for goal, why in report["ungated"].items()]
    return "\n".join(lines)


def _ungated(settings: EvaluationSettings) -> dict[str, str]:
    """Goal -> why its critic could not steer on an arm; nothing is refused here."""
    from qsteer_ros.policies.gated import why_ungated

    if not any(parse_arm(arm).needs_critic for arm in settings.arms):
        return {}
    encoder = None if settings.true_pose else settings.encoder
    found = {
        str(goal): why_ungated(
            settings.critic.replace("{goal}", str(goal)),
            policy=settings.policy,
            robot=settings.robot,
            encoder=encoder,
        )
        for goal in settings.goals
    }
    return {goal: why for goal, why in found.items() if why}


def _summary(arm: str, goal: int, rows: Sequence[EpisodeResult]) -> dict[str, Any]:
    successes = sum(row.success for row in rows)
    low, high = wilson_interval(successes, len(rows))
    jumps = [row.seam_jump for row in rows if row.seam_jump is not None]
    return {
        "arm": arm,
        "goal": goal,
        "episodes": len(rows),
        "successes": successes,
        "rate": successes / len(rows),
        "interval": [low, high],
        "mean_steps": float(np.mean([row.steps for row in rows])),
        "mean_ratio": float(np.mean([row.ratio for row in rows])),
        "refused_chunks": sum(row.refused for row in rows),
        "seam_jump": float(np.mean(jumps)) if jumps else None,
        "median_cube_error_mm": float(np.median([row.cube_error_mm for row in rows])),
    }


Job = tuple[str, int, int]


def _run(jobs: list[Job], settings: EvaluationSettings) -> Iterator[EpisodeResult]:
    """Results in the order of the jobs, as they come."""
    if settings.workers == 1:
        runner = _Runner(settings)
        yield from map(runner.episode, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        settings.workers, mp_context=context, initializer=_start_worker, initargs=(settings,)
    ) as pool:
        yield from pool.map(_episode_of_worker, jobs)


class _Runner:
    """Everything loaded once per process."""

    def __init__(self, settings: EvaluationSettings) -> None:
        import torch

        from qsteer_ros.motion.controller import ChunkController
        from qsteer_ros.motion.decoder import make_decoder
        from qsteer_ros.motion.kinematics import Kinematics
        from qsteer_ros.motion.robot import RobotFile
        from qsteer_ros.policies.extractors import load_camera_extractor
        from qsteer_ros.policies.flow_policy import FlowPolicy
        from qsteer_ros.policies.posterior_map import MetaFlowMap
        from qsteer_ros.policies.running import check_overlap
        from qsteer_ros.sim.world import World

        torch.set_num_threads(1)
        robot = RobotFile.load(settings.robot)
        kinematics = Kinematics(robot)
        self._settings = settings
        self._encoder = (
            None
            if settings.true_pose
            else load_camera_extractor(resources.find(settings.encoder), robot)
        )
        self._policy = FlowPolicy.load(resources.find(settings.policy))
        self._policy.interface.check_robot(robot, mine="the policy")
        self._critics: dict[int, Any] = {}
        self._choosers: dict[int, Any] = {}
        self._posterior_map = (
            MetaFlowMap.load(resources.find(settings.posterior_map))
            if settings.posterior_map
            else None
        )
        for goal in settings.goals:
            self._critic(goal)
            for arm in settings.arms:
                self._policy_of(arm, goal)
        if settings.rtc:
            check_overlap(execute_steps=settings.execute_steps, horizon=self._policy.horizon)
        links = Links(
            true_pose=settings.true_pose,
            latency_ns=round(settings.latency_ms * 1e6),
            native=settings.native,
            camera_shift_m=(0.0, settings.camera_shift_m, 0.0),
        )
        controller = ChunkController(
            robot, make_decoder(robot, kinematics), settings.execute_steps
        )
        world = World(goal=settings.goals[0], seed=settings.seed)
        self._rollout = Rollout(world, controller, kinematics, links)

    def episode(self, job: Job) -> EpisodeResult:
        arm, goal, seed = job
        return self._rollout.episode(
            self._policy_of(arm, goal),
            goal=goal,
            seed=seed,
            max_steps=self._settings.max_steps,
            rtc=self._settings.rtc,
        )

    def _policy_of(self, arm: str, goal: int) -> Any:
        from qsteer_ros.policies.steered import SteeredPolicy

        settings = self._settings
        return SteeredPolicy(
            self._encoder,
            self._policy,
            self._critic(goal),
            self._steering(arm, goal),
            sampler=settings.sampler,
            backend=settings.backend,
            noise_policy=self._chooser(goal),
            posterior_map=self._posterior_map,
        )

    def _steering(self, arm: str, goal: int) -> SteeringSettings:
        from qsteer_ros.policies.calibrated import calibrated

        return calibrated(
            parse_arm(arm, self._settings.steering),
            self._critic_folder(goal),
            self._critic(goal),
            self._policy,
            sampler=self._settings.sampler,
            weight=self._settings.calibrated and ":" not in arm,
        )

    def _critic_folder(self, goal: int) -> str:
        return self._settings.critic.replace("{goal}", str(goal))

    def _critic(self, goal: int) -> Any:
        from qsteer_ros.critics.critic import Critic

        if all(not parse_arm(arm).needs_critic for arm in self._settings.arms):
            return None
        if goal not in self._critics:
            self._critics[goal] = Critic.load(resources.find(self._critic_folder(goal)))
        return self._critics[goal]

    def _chooser(self, goal: int) -> Any:
        """The noise policy of a goal, if one is named."""
        from qsteer_ros.policies.noise_policy import NoisePolicy

        if not self._settings.noise_policy:
            return None
        if goal not in self._choosers:
            folder = self._settings.noise_policy.replace("{goal}", str(goal))
            self._choosers[goal] = NoisePolicy.load(resources.find(folder))
        return self._choosers[goal]


_runners: list[_Runner] = []
"""The one runner of a worker process."""


def _start_worker(settings: EvaluationSettings) -> None:
    _runners.append(_Runner(settings))


def _episode_of_worker(job: Job) -> EpisodeResult:
    return _runners[0].episode(job)
