"""What an encoder, a policy, a critic and a robot must agree on before an arm may move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qsteer_ros.errors import ConfigError

TIME_CONVENTION = "noise_at_zero"


class ActionSpace(Protocol):
    """The part of a robot file that actions depend on."""

    @property
    def action_names(self) -> Sequence[str]:
        """Name of each action dimension."""
        ...

    @property
    def action_scale(self) -> Any:
        """Physical size of the normalised action 1, (A,)."""
        ...

    @property
    def control_dt_s(self) -> float:
        """Time between two actions of a chunk."""
        ...


@dataclass(frozen=True)
class Interface:
    """The space a checkpoint lives in, as its ``config.json`` states it.

    Attributes:
        horizon: H, actions in a chunk.
        action_names: Name of each action dimension, (A,).
        action_scale: Physical size of the normalised action 1, (A,), SI.
        feature_names: Name of each feature, (F,).
        control_dt_s: Time between two actions of a chunk.
        encoder_hash: Encoder whose features it was trained on. None: trained on true poses, so
            that any encoder of these features will do.

    Raises:
        ConfigError: A size is zero or names and scales differ in number.
    """

    horizon: int
    action_names: tuple[str, ...]
    action_scale: tuple[float, ...]
    feature_names: tuple[str, ...]
    control_dt_s: float
    encoder_hash: str | None = None

    def __post_init__(self) -> None:
        """Refuse an empty space."""
        if self.horizon < 1 or not self.action_names or not self.feature_names:
            raise ConfigError(
                "a checkpoint must have at least one action per chunk, one action dimension and "
                f"one feature: got horizon {self.horizon}, {len(self.action_names)} dimensions, "
                f"{len(self.feature_names)} features."
            )
        if len(self.action_names) != len(self.action_scale):
            raise ConfigError(
                "'action_names' and 'action_scale' must be equally long: got "
                f"{len(self.action_names)} and {len(self.action_scale)}."
            )

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_names)

    @property
    def feature_dim(self) -> int:
        """F."""
        return len(self.feature_names)

    @property
    def chunk_dim(self) -> int:
        """D = H A, length of a flattened chunk."""
        return self.horizon * self.action_dim

    def to_config(self) -> dict[str, Any]:
        """Keys of ``config.json``."""
        return {
            "horizon": self.horizon,
            "action_dim": self.action_dim,
            "action_names": list(self.action_names),
            "action_scale": list(self.action_scale),
            "feature_names": list(self.feature_names),
            "control_dt_s": self.control_dt_s,
            "encoder_hash": self.encoder_hash,
            "time_convention": TIME_CONVENTION,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, source: str) -> Interface:
        """Read it from ``config.json``.

        Args:
            config: Contents of the file.
            source: Name of the checkpoint, for messages.

        Raises:
            ConfigError: A key is missing or contradicts another, or flow time runs the other way.
        """
        try:
            interface = cls(
                horizon=int(config["horizon"]),
                action_names=tuple(config["action_names"]),
                action_scale=tuple(float(scale) for scale in config["action_scale"]),
                feature_names=tuple(config["feature_names"]),
                control_dt_s=float(config["control_dt_s"]),
                encoder_hash=config["encoder_hash"],
            )
            action_dim, convention = config["action_dim"], config["time_convention"]
        except KeyError as error:
            raise ConfigError(
                f"'{source}' must state {error} in its config.json. Train it again."
            ) from error
        if action_dim != interface.action_dim:
            raise ConfigError(
                f"'{source}' must name each of its {action_dim} action dimensions: it names "
                f"{interface.action_dim}. Train it again."
            )
        if convention != TIME_CONVENTION:
            raise ConfigError(
                f"'{source}' must have time_convention '{TIME_CONVENTION}': it has "
                f"'{convention}'. Convert it at the edge with flow.from_noise_at_one."
            )
        return interface

    def check_same(self, other: Interface, *, mine: str, theirs: str, remedy: str) -> None:
        """Refuse to combine two checkpoints that live in different spaces.

        Args:
            other: The other checkpoint's interface.
            mine: What this one is called in the message.
            theirs: What the other one is called.
            remedy: What to do.

        Raises:
            ConfigError: They differ; the message names the first difference. An ``encoder_hash``
                of None agrees with every other.
        """
        for name in ("horizon", "action_names", "action_scale", "control_dt_s", "feature_names"):
            own, their = getattr(self, name), getattr(other, name)
            if own != their:
                raise ConfigError(
                    f"{mine} and {theirs} must have the same {name}: got {_short(own, their)}. "
                    f"{remedy}"
                )
        hashes = (self.encoder_hash, other.encoder_hash)
        if None not in hashes and hashes[0] != hashes[1]:
            raise ConfigError(
                f"{mine} and {theirs} must be trained on the features of one encoder: got "
                f"encoders {str(hashes[0])[:12]} and {str(hashes[1])[:12]}. {remedy}"
            )

    def check_robot(self, robot: ActionSpace, *, mine: str) -> None:
        """Refuse a robot whose actions mean something else.

        Args:
            robot: The robot file, or its part about actions.
            mine: What this checkpoint is called in the message.

        Raises:
            ConfigError: Names, scales or the control period differ.
        """
        scale = tuple(float(value) for value in robot.action_scale)
        same_scale = len(scale) == self.action_dim and all(
            math.isclose(a, b, rel_tol=1e-6) for a, b in zip(scale, self.action_scale, strict=True)
        )
        for name, own, their, same in (
            (
                "action_names",
                self.action_names,
                tuple(robot.action_names),
                tuple(robot.action_names) == self.action_names,
            ),
            ("action_scale", self.action_scale, scale, same_scale),
            (
                "control_dt_s",
                self.control_dt_s,
                robot.control_dt_s,
                math.isclose(self.control_dt_s, robot.control_dt_s, rel_tol=1e-6),
            ),
        ):
            if not same:
                raise ConfigError(
                    f"{mine} and the robot file must have the same {name}: got {own} and {their}. "
                    "Train for this robot, or give the robot file it was trained with."
                )


def _short(own: Any, their: Any) -> str:
    """Both values; of long lists, their lengths and the first entry that differs."""
    if not isinstance(own, tuple) or max(len(own), len(their)) <= 6:
        return f"{own} and {their}"
    if len(own) != len(their):
        return f"{len(own)} and {len(their)} of them"
    index = next(i for i, pair in enumerate(zip(own, their, strict=True)) if pair[0] != pair[1])
    return f"'{own[index]}' and '{their[index]}' at index {index}"
