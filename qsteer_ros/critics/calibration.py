"""``calibration.json`` beside a critic: what its gradient weighs in a policy's velocity.

The native weight of most steering modes has the unit of one over return: the same number is
nothing for one critic and far too much for another. This file says, for one critic and one policy,
which weight gives which ratio of guidance to velocity, and how the critic's values are spread over
the policy's chunks. It names both by hash and is refused with any other.

Other releases may add names; what is needed here is checked. The checkpoint's own hash does not
cover this file, and a checkpoint that is written anew into the folder takes it away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.replay.durable import write_atomically

FILE = "calibration.json"
FORMAT = "qsteer_calibration"
VERSION = 1

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Point:
    """What one weight does to the policy's chunks, each compared with its unguided twin.

    Attributes:
        weight: Native weight of the mode.
        ratio: ||guidance|| / ||velocity||: mean over the steps at which the critic was asked,
            median over observations.
        delta_q: Mean gain in aggregated value, return units, in the critic's own opinion.
        delta_q_error: Standard error of that mean, observations taken as independent.
        improved: Share of chunks whose value rose.
        clipped: Share of action components that steering put out of bounds.
        displacement: Distance from the twin, root mean square per action component, after
            clipping.
    """

    weight: float
    ratio: float
    delta_q: float
    delta_q_error: float
    improved: float
    clipped: float
    displacement: float


@dataclass(frozen=True)
class Observations:
    """Where features came from.

    Attributes:
        source: Path, as the user gave it.
        episodes: Number of episodes they are from.
        count: Number of observations.
        hash: SHA-256 of the features, hexadecimal.
    """

    source: str
    episodes: int
    count: int
    hash: str


@dataclass(frozen=True)
class ModeCalibration:
    """The weight of one mode.

    Attributes:
        weight: Native weight whose ratio is ``target_ratio``.
        target_ratio: ||guidance|| / ||velocity|| that was asked for.
        settings: Steering settings of the measurement, without weight and ratio.
        sampler: How the field was integrated.
        seed: Of noise and of everything random in the mode.
        observations: At which it was measured.
        command: Which made it.
        curve: By increasing weight; the point at ``weight`` is among them.
    """

    weight: float
    target_ratio: float
    settings: Mapping[str, Any]
    sampler: Mapping[str, Any]
    seed: int
    observations: Observations
    command: str
    curve: tuple[Point, ...]

    @property
    def found(self) -> Point:
        """The point of the curve at ``weight``."""
        return next(point for point in self.curve if point.weight == self.weight)


@dataclass(frozen=True)
class ValueStatistics:
    """Aggregated values over the frozen policy's chunks, one per observation.

    Attributes:
        reduction: How members became one value.
        rho: Weight of the spread; 0 unless ``reduction`` is ``pessimistic``.
        q_mean: Mean, return units.
        q_std: Standard deviation of the population, return units.
        q_count: Number of chunks.
        observations: At which the chunks were sampled.
    """

    reduction: str
    rho: float
    q_mean: float
    q_std: float
    q_count: int
    observations: Observations


@dataclass(frozen=True)
class Calibration:
    """Contents of ``calibration.json``.

    Attributes:
        critic: Hash of the critic's checkpoint.
        policy: Hash of the policy's checkpoint.
        modes: Steering mode -> its calibration.
        values: One per reduction that was measured.

    Raises:
        ConfigError: A hash is empty: what was never saved cannot be named.
    """

    critic: str
    policy: str
    modes: Mapping[str, ModeCalibration] = field(default_factory=dict)
    values: tuple[ValueStatistics, ...] = ()

    def __post_init__(self) -> None:
        """Refuse parts without a name."""
        for name in ("critic", "policy"):
            if not getattr(self, name):
                raise ConfigError(
                    f"a calibration must name its {name} by hash: it has none. Save the {name} "
                    "and load it again."
                )

    def mode(self, name: str) -> ModeCalibration:
        """The calibration of one mode.

        Raises:
            ConfigError: This mode was not calibrated.
        """
        if name not in self.modes:
            raise ConfigError(
                f"mode '{name}' must be calibrated: the file knows "
                f"{', '.join(sorted(self.modes)) or 'none'}. Run: qsteer calibrate --modes {name}"
            )
        return self.modes[name]

    def statistics(self, reduction: str, *, rho: float = 0.0) -> ValueStatistics:
        """Values under one reduction; ``rho`` counts for ``pessimistic`` only.

        Raises:
            ConfigError: They were not measured under this reduction.
        """
        wanted = (reduction, rho if reduction == "pessimistic" else 0.0)
        for entry in self.values:
            if (entry.reduction, entry.rho) == wanted:
                return entry
        raise ConfigError(
            f"values must be known for reduction '{reduction}' with rho {wanted[1]:g}: they are "
            f"for {', '.join(f'{e.reduction} {e.rho:g}' for e in self.values) or 'none'}. "
            f"Run: qsteer calibrate --reduction {reduction} --rho {wanted[1]:g}"
        )

    def merged(self, newer: Calibration) -> Calibration:
        """Both together; where both speak of a mode or a reduction, the newer one holds.

        Raises:
            ConfigError: They are about different critics or policies.
        """
        self.check(critic=newer.critic, policy=newer.policy)
        renewed = {(e.reduction, e.rho) for e in newer.values}
        kept = tuple(e for e in self.values if (e.reduction, e.rho) not in renewed)
        return replace(self, modes={**self.modes, **newer.modes}, values=(*kept, *newer.values))

    def check(self, *, critic: str, policy: str) -> None:
        """Refuse a critic or a policy that this calibration is not about.

        Raises:
            ConfigError: A hash differs; the message says which and what to do.
        """
        for name, wanted in (("critic", critic), ("policy", policy)):
            mine = getattr(self, name)
            if mine != wanted:
                raise ConfigError(
                    f"a calibration must be made with the {name} it is used with: it was made "
                    f"with {mine[:12]}, this one is {wanted[:12]}. Make it anew: qsteer calibrate "
                    "--renew --critic DIR --policy DIR --episodes DIR"
                )

    def save(self, folder: str | Path) -> Path:
        """Replace ``calibration.json`` in a critic's folder atomically and wait for the disk.

        Raises:
            ConfigError: The folder cannot be written.
        """
        path = Path(folder) / FILE
        plain = {"format": FORMAT, "version": VERSION, **asdict(self)}
        try:
            write_atomically(path, json.dumps(plain, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise ConfigError(
                f"'{folder}' must be a folder that can be written: it is not ({error.strerror}). "
                "Copy the critic to a place of your own."
            ) from error
        return path

    @classmethod
    def load(cls, folder: str | Path, *, critic: str, policy: str) -> Calibration:
        """Read the calibration beside a critic.

        Args:
            folder: The critic's checkpoint.
            critic: Hash of the critic that is loaded.
            policy: Hash of the policy that is loaded.

        Raises:
            ConfigError: There is none, or it is about another critic or policy.
            DataError: It is damaged or of another version.
        """
        found = cls.find(folder)
        if found is None:
            raise ConfigError(
                f"critic '{folder}' must be calibrated: it has no {FILE}. Run: qsteer calibrate "
                f"--critic {folder} --policy DIR --episodes DIR"
            )
        found.check(critic=critic, policy=policy)
        return found

    @classmethod
    def find(cls, folder: str | Path) -> Calibration | None:
        """Read the file as it stands, whatever it is about; None where there is none.

        Raises:
            DataError: It is damaged or of another version.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            plain = json.loads(path.read_text())
            stated = (plain["format"], plain["version"])
            if stated != (FORMAT, VERSION):
                raise ValueError(f"it is {stated[0]} {stated[1]}")
            return cls(
                critic=str(plain["critic"]),
                policy=str(plain["policy"]),
                modes={name: _mode(entry) for name, entry in plain["modes"].items()},
                values=tuple(_entry(ValueStatistics, entry) for entry in plain["values"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"'{path}' must be {FORMAT} version {VERSION}: {type(error).__name__}: {error}. "
                "Delete it and run qsteer calibrate again."
            ) from error


def _mode(plain: Mapping[str, Any]) -> ModeCalibration:
    curve = tuple(_entry(Point, point) for point in plain["curve"])
    mode = replace(_entry(ModeCalibration, plain), curve=curve)
    if all(point.weight != mode.weight for point in curve):
        raise ValueError(f"the curve has no point at the weight {mode.weight}")
    return mode


def _entry(kind: type[Entry], plain: Mapping[str, Any]) -> Entry:
    """A dataclass from JSON; names it does not know are left out, missing ones are an error."""
    names = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    values = {name: plain[name] for name in names}
    if "observations" in values:
        values["observations"] = _entry(Observations, values["observations"])
    return kind(**values)
