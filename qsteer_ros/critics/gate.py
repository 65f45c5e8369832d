"""``gate.json`` beside a critic: that it has been examined, on what, and what was found.

A critic's gradient moves an arm. A critic that learned well by its loss can still say nothing
about actions, or say the same in every state; steering by it does harm that no diagnostic of a
chunk shows. So it is examined on held-out episodes before it may steer. This file holds the
verdicts. It names the critic, the policy, the encoder, the robot file and the episodes by hash and
is refused with any other. The checkpoint's own hash does not cover it, and a checkpoint that is
written anew into the folder takes it away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from qsteer_ros.critics.gate_settings import GateSettings
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.replay.durable import write_atomically

FILE = "gate.json"
FORMAT = "qsteer_gate"
VERSION = 1

Verdict = Literal["pass", "fail", "cannot be judged"]
PASS: Verdict = "pass"
FAIL: Verdict = "fail"
UNKNOWN: Verdict = "cannot be judged"

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        name: Of the question, one word.
        verdict: ``pass``, ``fail`` or ``cannot be judged``.
        rule: What must hold, with the threshold.
        reason: What was found and, unless it passed, what to do. One sentence each.
        figures: Name -> number; None where there is none.
    """

    name: str
    verdict: Verdict
    rule: str
    reason: str
    figures: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a verdict that is none."""
        if self.verdict not in (PASS, FAIL, UNKNOWN):
            raise ValueError(f"'{self.verdict}' is no verdict")


@dataclass(frozen=True)
class HeldOutEpisode:
    """One episode of the examination.

    Attributes:
        name: Of its folder.
        sha256: Of its bag; empty for data that has none.
        success: Whether it reached the goal.
        windows: Number of windows it gave.
        steered: Whether this critic chose its chunks.
    """

    name: str
    sha256: str
    success: bool
    windows: int
    steered: bool = False


@dataclass(frozen=True)
class Gate:
    """Contents of ``gate.json``.

    Attributes:
        critic: Hash of the critic's checkpoint.
        policy: Hash of the policy's checkpoint.
        robot: Hash of the robot file and its URDF.
        encoder: Hash of the encoder that saw the episodes; None for features from elsewhere.
        episodes: On which it was examined.
        data: Hash of the windows.
        settings: How.
        checks: The verdicts.
        command: Which made it.
        package_version: Of this package.

    Raises:
        ConfigError: A hash is empty: what was never saved cannot be named.
    """

    critic: str
    policy: str
    robot: str
    encoder: str | None
    episodes: tuple[HeldOutEpisode, ...]
    data: str
    settings: GateSettings
    checks: tuple[Check, ...]
    command: str = ""
    package_version: str = ""

    def __post_init__(self) -> None:
        """Refuse parts without a name."""
        for name in ("critic", "policy", "robot"):
            if not getattr(self, name):
                raise ConfigError(
                    f"a gate must name its {name} by hash: it has none. Save the {name} and load "
                    "it again."
                )

    @property
    def missing(self) -> tuple[Check, ...]:
        """Checks that did not pass and are not exempt; a check without a verdict is among them."""
        return tuple(
            check
            for check in self.checks
            if check.verdict != PASS and check.name not in self.settings.exempted
        )

    @property
    def passed(self) -> bool:
        """Whether the critic may steer."""
        return bool(self.checks) and not self.missing

    def check(self, *, critic: str, policy: str, robot: str, encoder: str | None = None) -> None:
        """Refuse parts that this examination is not about.

        Args:
            critic: Hash of the critic.
            policy: Hash of the policy.
            robot: Hash of the robot file.
            encoder: Hash of the encoder; None does not ask.

        Raises:
            ConfigError: A hash differs; the message says which and what to do.
        """
        wanted = {"critic": critic, "policy": policy, "robot": robot}
        if encoder is not None:
            wanted["encoder"] = encoder
        for name, hashed in wanted.items():
            mine = getattr(self, name)
            if mine != hashed:
                raise ConfigError(
                    f"a critic must be examined with the {name} it is used with: its {FILE} was "
                    f"made with {str(mine)[:12]}, this one is {hashed[:12]}. Run: qsteer gate "
                    "--critic DIR --policy DIR --episodes DIR --robot FILE"
                )

    def check_passed(self, folder: str | Path) -> None:
        """Refuse a critic that did not pass.

        Args:
            folder: The critic's, for the message.

        Raises:
            ConfigError: A check failed or could not be judged; the message has the first.
        """
        if not self.passed:
            first = self.missing[0] if self.missing else None
            found = "none was made" if first is None else f"{first.name}: {first.reason}"
            more = f" and {len(self.missing) - 1} more" if len(self.missing) > 1 else ""
            raise ConfigError(
                f"critic '{folder}' must pass every check of the gate: {found}{more}. Read its "
                f"{FILE}, or write the page: qsteer gate --page FILE.html"
            )

    def save(self, folder: str | Path) -> Path:
        """Replace ``gate.json`` in a critic's folder atomically and wait for the disk.

        Raises:
            ConfigError: The folder cannot be written.
        """
        path = Path(folder) / FILE
        plain: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "passed": self.passed,
            **json.loads(json.dumps(asdict(self), allow_nan=False)),
        }
        try:
            write_atomically(path, json.dumps(plain | {"digest": _digest(plain)}, indent=1) + "\n")
        except OSError as error:
            raise ConfigError(
                f"'{folder}' must be a folder that can be written: it is not ({error.strerror}). "
                "Copy the critic to a place of your own."
            ) from error
        return path

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        critic: str,
        policy: str,
        robot: str,
        encoder: str | None = None,
    ) -> Gate:
        """Read the examination of a critic, whatever its verdicts are.

        Args:
            folder: The critic's checkpoint.
            critic: Hash of the critic that is loaded.
            policy: Hash of the policy that is loaded.
            robot: Hash of the robot file that is loaded.
            encoder: Hash of the encoder that is loaded; None does not ask.

        Raises:
            ConfigError: There is none, or it is about another part.
            DataError: It is damaged, was changed by hand, or is of another version.
        """
        found = cls.find(folder)
        if found is None:
            raise ConfigError(
                f"critic '{folder}' must be examined before it may steer: it has no {FILE}. Run: "
                f"qsteer gate --critic {folder} --policy DIR --episodes DIR --robot FILE"
            )
        found.check(critic=critic, policy=policy, robot=robot, encoder=encoder)
        return found

    @classmethod
    def find(cls, folder: str | Path) -> Gate | None:
        """Read the file as it stands, whatever it is about; None where there is none.

        Raises:
            DataError: It is damaged, was changed by hand, or is of another version.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            plain = json.loads(path.read_text())
            stated = (plain["format"], plain["version"])
            if stated != (FORMAT, VERSION):
                raise ValueError(f"it is {stated[0]} {stated[1]}")
            if plain.pop("digest") != _digest(plain):
                raise ValueError("its contents are not those that were written")
            names = [entry.name for entry in fields(cls)]
            values = {name: plain[name] for name in names}
            values["episodes"] = tuple(_entry(HeldOutEpisode, e) for e in plain["episodes"])
            values["checks"] = tuple(_entry(Check, check) for check in plain["checks"])
            values["settings"] = _entry(GateSettings, plain["settings"])
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            raise DataError(
                f"'{path}' must be {FORMAT} version {VERSION}: {type(error).__name__}: {error}. "
                "Delete it and run qsteer gate again."
            ) from error


def _digest(plain: Mapping[str, Any]) -> str:
    """SHA-256 of the contents in one spelling."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _entry(kind: type[Entry], plain: Mapping[str, Any]) -> Entry:
    """A dataclass from JSON; names it does not know are left out, missing ones are an error."""
    names = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: plain[name] for name in names})
