"""Success rates of several steering arms on the same initial states, in process."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qsteer_ros import resources
from qsteer_ros.errors import ConfigError
from qsteer_ros.evaluation.assignments import steering_values
from qsteer_ros.evaluation.rollout import EpisodeResult, Links, Rollout
from qsteer_ros.evaluation.statistics import wilson_interval
from qsteer_ros.flow import Sampler
from qsteer_ros.replay.arms import arm_parameters
from qsteer_ros.steering.settings import SteeringSettings

FROM_LABELS = ("mode", "weight")
"""Steering settings that an arm's label gives."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated.

    Attributes:
        arms: Labels of steering arms, see :mod:`qsteer_ros.replay.arms`.
        goals: Numbers of the goals.
        episodes: Per arm and goal; the same initial states for all arms.
        seed: Of the first initial state.
        max_steps: Control steps of 50 ms after which an episode has failed.
        robot: Robot file.
        encoder: Checkpoint folder.
        policy: Checkpoint folder.
        critic: Checkpoint folder; ``{goal}`` in it becomes the goal's number.
        denoising_steps: Steps from noise to chunk.
        integrator: How one is taken, see `flow.Sampler`.
        time_power: Of the schedule of flow times.
        steering: Further fields of `SteeringSettings`, for all arms.
        calibrated: Arms without a number take the weight of the critic's calibration.
        rtc: Continue the running chunk by real-time chunking.
        backend: How the path of a chunk is computed, see `policies.engines`.
        execute_steps: Actions of a chunk executed before the next one is decided.
        latency_ms: From the stamp of an observation to the moment its path takes effect.
        true_pose: Take the cube's pose from the simulator instead of the encoder.
        native: Execute chunks by OGBench's own control instead of decoder and follower.
        camera_shift_m: Sideways displacement of the front camera.
        workers: Processes.

    Raises:
        ConfigError: A number is out of range or an arm is unknown.
    """

    arms: tuple[str, ...] = ("off", "best_of_n", "qgf", "qpilots_u")
    goals: tuple[int, ...] = (1,)
    episodes: int = 25
    seed: int = 0
    max_steps: int = 200
    robot: str = "robot_ur5e_sim.yaml"
    encoder: str = "checkpoints/encoder"
    policy: str = "checkpoints/policy"
    critic: str = "checkpoints/critic_goal{goal}"
    denoising_steps: int = 10
    integrator: str = "euler"
    time_power: float = 1.0
    steering: Mapping[str, Any] = field(default_factory=dict)
    calibrated: bool = False
    rtc: bool = False
    backend: str = "auto"
    execute_steps: int = 5
    latency_ms: float = 60.0
    true_pose: bool = False
    native: bool = False
    camera_shift_m: float = 0.0
    workers: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be run before anything is loaded."""
        for name in ("episodes", "max_steps", "execute_steps", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' must be at least 1: got {getattr(self, name)}.")
        if self.seed < 0 or self.latency_ms < 0.0:
            raise ConfigError(
                f"'seed' and 'latency_ms' must not be negative: got {self.seed} and "
                f"{self.latency_ms}."
            )
        if not self.arms or not self.goals:
            raise ConfigError("an evaluation needs at least one arm and one goal: got none.")
        _ = self.sampler
        for arm in self.arms:
            parse_arm(arm, self.steering)

    @property
    def sampler(self) -> Sampler:
        """How the field is integrated."""
        return Sampler(
            self.denoising_steps, integrator=self.integrator, time_power=self.time_power
        )


def parse_arm(arm: str, others: Mapping[str, Any] | None = None) -> SteeringSettings:
    """The steering settings that an arm's label stands for.

    Args:
        arm: The label.
        others: Further fields; the number in a label of ``best_of_n`` goes before
            ``num_samples``.

    Raises:
        ConfigError: The mode is unknown, its number is none, or a value is out of range.
    """
    others = dict(others or {})
    candidates = int(others.pop("num_samples", SteeringSettings.num_samples))
    values = arm_parameters(arm, num_samples=candidates)
    return SteeringSettings(
        mode=str(values["steering"]),
        weight=float(values["guidance_weight"]),
        num_samples=int(values["num_samples"]),
        **others,
    )


def evaluate(settings: EvaluationSettings, out: Path | None = None) -> dict[str, Any]:
    """Run every arm on every goal and initial state.

    Args:
        settings: What.
        out: Where the report is written as JSON; None writes nothing.

    Returns:
        ``settings``, one ``summary`` per arm and goal (successes, rate, its 95 % interval after
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
    return "\n".join(lines)


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
        from qsteer_ros.policies.encoder import Encoder
        from qsteer_ros.policies.flow_policy import FlowPolicy
        from qsteer_ros.policies.running import check_overlap
        from qsteer_ros.sim.world import World

        torch.set_num_threads(1)
        robot = RobotFile.load(settings.robot)
        kinematics = Kinematics(robot)
        self._settings = settings
        self._encoder = (
            None if settings.true_pose else Encoder.load(resources.find(settings.encoder), robot)
        )
        self._policy = FlowPolicy.load(resources.find(settings.policy))
        self._policy.interface.check_robot(robot, mine="the policy")
        self._critics: dict[int, Any] = {}
        for goal in settings.goals:
            self._critic(goal)
            for arm in settings.arms:
                self._steering(arm, goal)
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
        from qsteer_ros.policies.steered import SteeredPolicy

        arm, goal, seed = job
        settings = self._settings
        policy = SteeredPolicy(
            self._encoder,
            self._policy,
            self._critic(goal),
            self._steering(arm, goal),
            sampler=settings.sampler,
            backend=settings.backend,
        )
        return self._rollout.episode(
            policy, goal=goal, seed=seed, max_steps=settings.max_steps, rtc=settings.rtc
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


_runners: list[_Runner] = []
"""The one runner of a worker process."""


def _start_worker(settings: EvaluationSettings) -> None:
    _runners.append(_Runner(settings))


def _episode_of_worker(job: Job) -> EpisodeResult:
    return _runners[0].episode(job)


def from_options(options: Mapping[str, Any]) -> EvaluationSettings:
    """Settings from the command line's options; lists are separated by commas.

    Raises:
        ConfigError: A goal is no number, a value is out of range, or an assignment of ``--set``
            is none.
    """
    values = {e.name: options[e.name] for e in fields(EvaluationSettings) if e.name in options}
    try:
        values["goals"] = tuple(int(goal) for goal in options["goals"].split(","))
    except ValueError as error:
        raise ConfigError(
            f"'goals' must be numbers separated by commas: got '{options['goals']}'."
        ) from error
    values["arms"] = tuple(arm.strip() for arm in options["arms"].split(","))
    values["steering"] = steering_values(options.get("set", ()), elsewhere=FROM_LABELS)
    if options.get("no_latency"):
        values["latency_ms"] = 0.0
    return EvaluationSettings(**values)
