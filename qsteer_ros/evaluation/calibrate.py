"""Which weight gives a wanted ratio of guidance to velocity, for one critic and one policy."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qsteer_ros import ensemble, resources
from qsteer_ros.critics.calibration import (
    Calibration,
    ModeCalibration,
    Observations,
    Point,
    ValueStatistics,
)
from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.statistics import RunningStatistics
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.evaluation.assignments import steering_values
from qsteer_ros.evaluation.calibration_figure import FIGURE, calibration_figure
from qsteer_ros.evaluation.calibration_text import table
from qsteer_ros.evaluation.observed import Observed, from_episodes, from_play
from qsteer_ros.evaluation.sweep import Bench, curve, each_row, find_weight
from qsteer_ros.flow import Sampler, sample_noise
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.steering.settings import FIELD_MODES, SteeringSettings

DEFAULT_RATIO = 0.05
"""Median ratio of the weight with which ``qgf`` succeeds most often with the shipped checkpoints:
weight 0.04 (20 of 20 episodes) has 0.049, 0.050 and 0.039 for the critics of the three goals."""

DRIFT_MATCHED_RATIO = 0.15
"""The same for modes whose guidance has the same ratio at every step, rather than being long where
the critic is steep: ``qpilots_u`` succeeds most often at 0.15 (14 of 20 episodes)."""

DEFAULT_RATIOS = {"qpilots_u": DRIFT_MATCHED_RATIO, "qpilots_m": DRIFT_MATCHED_RATIO}
"""Default of each mode; `DEFAULT_RATIO` for all others."""


@dataclass(frozen=True)
class CalibrationSettings:
    """What is calibrated.

    Attributes:
        critic: Checkpoint folder; the result is written into it.
        policy: Checkpoint folder.
        episodes: Store of logged episodes whose decisions hold features.
        play: Data of ``qsteer data``, instead of episodes.
        modes: Of `FIELD_MODES`.
        ratio: Wanted ||guidance|| / ||velocity||; None: the default of each mode.
        observations: Largest number of observations.
        goal: Use only episodes of this goal.
        seed: Of the choice of observations, of the noise and of everything random in a mode.
        steering: Further fields of `SteeringSettings`, such as ``reduction``.
        sampler: How the field is integrated.
        renew: Replace a calibration of another critic or policy instead of refusing.

    Raises:
        ConfigError: A value is out of range.
    """

    critic: str
    policy: str = "checkpoints/policy"
    episodes: Path | None = None
    play: Path | None = None
    modes: tuple[str, ...] = ("qgf", "qpilots_u")
    ratio: float | None = None
    observations: int = 256
    goal: int | None = None
    seed: int = 0
    steering: Mapping[str, Any] = field(default_factory=dict)
    sampler: Sampler = field(default_factory=Sampler)
    renew: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be run before anything is loaded."""
        if (self.episodes is None) == (self.play is None):
            got = "neither" if self.play is None else "both"
            raise ConfigError(
                "a calibration needs observations from one place, --episodes DIR (a store of "
                f"logged episodes) or --play DIR: got {got}. Give one of them."
            )
        if self.ratio is not None and not (math.isfinite(self.ratio) and self.ratio > 0.0):
            raise ConfigError(
                f"'ratio' must be finite and above 0: got {self.ratio}. Length of the guidance "
                "relative to the velocity."
            )
        if self.seed < 0:
            raise ConfigError(f"'seed' must be at least 0: got {self.seed}.")
        for mode in self.modes or ("",):
            if mode not in FIELD_MODES:
                raise ConfigError(
                    f"a calibrated mode must bend the field, one of {', '.join(FIELD_MODES)}: got "
                    f"'{mode}'."
                )
            self.of(mode)

    def target(self, mode: str) -> float:
        """The ratio that is wanted of one mode."""
        return DEFAULT_RATIOS.get(mode, DEFAULT_RATIO) if self.ratio is None else self.ratio

    def of(self, mode: str) -> SteeringSettings:
        """Steering settings of one mode, with weight 0."""
        return SteeringSettings.from_json({**self.steering, "mode": mode})


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What was found.

    Attributes:
        settings: What was asked.
        observed: Where it was measured.
        made: What was found in this run.
        saved: The file.
        figure: The picture of everything in it.
    """

    settings: CalibrationSettings
    observed: Observed
    made: Calibration
    saved: Path
    figure: Path


def calibrate(settings: CalibrationSettings, *, command: str = "") -> Calibrated:
    """Find the weight of each mode and write it beside the critic.

    Args:
        settings: What.
        command: What the user typed, for the record.

    Raises:
        ConfigError: A checkpoint or a store is missing, they do not fit one another, the critic
            is flat, the ratio cannot be reached, or the file there is about another critic.
        DataError: A checkpoint is damaged, or no observation was found.
    """
    folder = resources.find(settings.critic)
    critic = Critic.load(folder)
    policy = FlowPolicy.load(resources.find(settings.policy))
    critic.interface.check_same(
        policy.interface,
        mine="the critic",
        theirs="the policy",
        remedy="Train a critic for this policy: qsteer train critic.",
    )
    before = None if settings.renew else Calibration.find(folder)
    if before is not None:
        before.check(critic=critic.hash, policy=policy.hash)
    observed = _observed(settings, critic, policy)
    made = measure(settings, critic, policy, observed, command=command)
    whole = made if before is None else before.merged(made)
    saved = whole.save(folder)
    figure = folder / FIGURE
    figure.write_text(calibration_figure(whole.modes))
    return Calibrated(settings, observed, made, saved, figure)


def measure(
    settings: CalibrationSettings,
    critic: Critic,
    policy: FlowPolicy,
    observed: Observed,
    *,
    command: str = "",
) -> Calibration:
    """Find the weight of each mode; nothing is written.

    Raises:
        ConfigError: The critic is flat, or the ratio cannot be reached.
    """
    features = observed.features
    shape = (len(features), policy.horizon, policy.action_dim)
    field_of_rows = each_row(policy.condition, features)
    q = each_row(critic.condition, features)
    noise = sample_noise(shape, seed=settings.seed, device=features.device)
    modes: dict[str, ModeCalibration] = {}
    for mode in tqdm(settings.modes, desc="calibrate", unit="mode"):
        bench = Bench(
            field_of_rows,
            q,
            noise,
            settings=settings.of(mode),
            sampler=settings.sampler,
            bounds=policy.bounds,
            seed=settings.seed,
        )
        modes[mode] = _mode(settings, mode, bench, observed.source, command)
    with torch.no_grad():
        values = q(settings.sampler.denoise(field_of_rows, noise).clamp(*policy.bounds))
    rho = settings.of(settings.modes[0]).rho
    return Calibration(critic.hash, policy.hash, modes, _statistics(values, rho, observed.source))


def _observed(settings: CalibrationSettings, critic: Critic, policy: FlowPolicy) -> Observed:
    """Observations that fit both; the encoder is that of whichever names one."""
    encoder = policy.interface.encoder_hash or critic.interface.encoder_hash
    interface = replace(policy.interface, encoder_hash=encoder)
    count, seed = settings.observations, settings.seed
    if settings.play is not None:
        return from_play(settings.play, interface, count=count, seed=seed)
    assert settings.episodes is not None
    return from_episodes(settings.episodes, interface, count=count, seed=seed, goal=settings.goal)


def _mode(
    settings: CalibrationSettings,
    mode: str,
    bench: Bench,
    source: Observations,
    command: str,
) -> ModeCalibration:
    @functools.cache
    def ratio_at(weight: float) -> float:
        try:
            return bench.at(weight).ratio
        except DataError:  # not finite any more
            return math.inf

    try:
        weight = find_weight(ratio_at, settings.target(mode))
    except ConfigError as error:
        raise ConfigError(f"mode '{mode}': {error}") from error
    steering = bench.settings.to_json()
    return ModeCalibration(
        weight=weight,
        target_ratio=settings.target(mode),
        settings={k: v for k, v in steering.items() if k not in ("mode", "weight", "ratio")},
        sampler=asdict(settings.sampler),
        seed=settings.seed,
        observations=source,
        command=command,
        curve=tuple(_short(point) for point in curve(bench, weight)),
    )


def _short(point: Point) -> Point:
    """Six digits are more than 256 observations can tell; the file stays readable."""
    return Point(**{name: float(f"{value:.6g}") for name, value in vars(point).items()})


def _statistics(values: Tensor, rho: float, source: Observations) -> tuple[ValueStatistics, ...]:
    """Mean and spread of (E, B) values under each reduction."""
    found = []
    for reduction in ensemble.REDUCTIONS:
        used = rho if reduction == "pessimistic" else 0.0
        seen = RunningStatistics()
        seen.update(ensemble.aggregate(reduction, rho=used)(values))
        found.append(
            ValueStatistics(
                reduction=reduction,
                rho=used,
                q_mean=float(f"{seen.mean:.8g}"),
                q_std=float(f"{seen.std:.8g}"),
                q_count=seen.count,
                observations=source,
            )
        )
    return tuple(found)


def from_options(options: Mapping[str, Any]) -> CalibrationSettings:
    """Settings from the command line's options; modes are separated by commas.

    Raises:
        ConfigError: A value is out of range, or an assignment of ``--set`` is none.
    """
    steering = {"reduction": options["reduction"], "rho": options["rho"]}
    steering |= steering_values(options["set"], elsewhere=("mode", "weight", "ratio", *steering))
    values = {e.name: options[e.name] for e in fields(CalibrationSettings) if e.name in options}
    values["modes"] = tuple(mode.strip() for mode in options["modes"].split(","))
    sampler = {e.name: options[e.name] for e in fields(Sampler) if e.name in options}
    return CalibrationSettings(**values, steering=steering, sampler=Sampler(**sampler))


def calibrate_from_options(options: Mapping[str, Any]) -> str:
    """Calibrate as the command line's options say; what to tell the user.

    Raises:
        ConfigError: As `from_options` and `calibrate`.
        DataError: As `calibrate`.
    """
    found = calibrate(from_options(options), command=" ".join(["qsteer", *sys.argv[1:]]))
    written = f"written: {found.saved} and {found.figure.name}"
    return f"{table(found.made, found.observed)}\n{written}"
