"""What an evaluation runs, and what the command line's options make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from qsteer_ros.errors import ConfigError
from qsteer_ros.evaluation.assignments import steering_values
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
        noise_policy: Checkpoint folder for arm ``dsrl``, with ``{goal}`` as in ``critic``; empty
            for none.
        posterior_map: Checkpoint folder for arm ``qpilots_m``; empty: the policy itself draws its
            samples.
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
    noise_policy: str = ""
    posterior_map: str = ""
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
            if parse_arm(arm, self.steering).needs_noise_policy and not self.noise_policy:
                raise ConfigError(
                    f"arm {arm} needs a noise policy: none is named. Give --noise-policy what "
                    "'qsteer train dsrl' wrote."
                )

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
