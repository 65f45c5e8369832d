"""A session: a schedule of episodes, and ``session.json`` that says how each of them ended.

The folder of a session holds ``session.json``, the episode store ``episodes/`` and the logs of
the nodes. The file is replaced atomically after every episode, so a killed session can be resumed:
what is in the file is done, and the rest of the schedule is still the same.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.replay.durable import write_atomically

SESSION = "session.json"
STORE = "episodes"
FORMAT = "qsteer_session"
VERSION = 1


@dataclass(frozen=True)
class Trial:
    """One planned episode.

    Attributes:
        index: Place in the schedule, from 0.
        arm: Label of the steering arm.
        goal: Number of the goal.
        seed: Seed of the initial state and of the policy's noise; the same for every arm.
    """

    index: int
    arm: str
    goal: int
    seed: int

    @property
    def episode_id(self) -> str:
        """Unique within the session, sorted as run, and fit to name a folder."""
        return f"{self.index:04d}_goal{self.goal}_{self.arm.replace(':', '-')}_seed{self.seed}"


@dataclass(frozen=True)
class Result:
    """How one episode ended.

    Attributes:
        trial: What was planned.
        outcome: ``success``, ``failure`` or ``aborted``.
        steps: Control steps from the start to the outcome.
        chunk_ms: Time from the observation's stamp to the published chunk, one per chunk, ms.
        reason: Why it was aborted; empty otherwise.
    """

    trial: Trial
    outcome: str
    steps: int
    chunk_ms: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Session:
    """Contents of ``session.json``.

    Attributes:
        arms: Labels of the steering arms.
        goals: Numbers of the goals.
        episodes: Episodes per arm and goal.
        seed: Seed of the schedule; episode i of every arm starts from state ``seed + i``.
        settings: Arm -> policy parameters it stands for.
        provenance: Hashes and names of all that takes part.
        results: What is done, in the order of the schedule.
    """

    arms: tuple[str, ...]
    goals: tuple[int, ...]
    episodes: int
    seed: int
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Result, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a session that has nothing to run.

        Raises:
            ConfigError: No arm, no goal, no episode, or one of them named twice.
        """
        for name, values in (("arms", self.arms), ("goals", self.goals)):
            if not values or len(set(values)) != len(values):
                raise ConfigError(
                    f"'{name}' of a session must name at least one, each once: got {list(values)}."
                )
        if self.episodes < 1:
            raise ConfigError(f"'episodes' of a session must be at least 1: got {self.episodes}.")

    def schedule(self) -> list[Trial]:
        """Every planned episode, in the order in which they run.

        Repeat i holds one episode of each arm and goal from the same state, in an order drawn
        from the seed, so that a drift of the machine or of the light meets all arms alike.
        """
        shuffle = random.Random(self.seed).shuffle
        order: list[tuple[str, int, int]] = []
        for repeat in range(self.episodes):
            block = [(arm, goal, self.seed + repeat) for goal in self.goals for arm in self.arms]
            shuffle(block)
            order += block
        return [Trial(index, *planned) for index, planned in enumerate(order)]

    def remaining(self) -> list[Trial]:
        """The part of the schedule that has no result yet."""
        done = {result.trial.index for result in self.results}
        return [trial for trial in self.schedule() if trial.index not in done]

    def with_result(self, result: Result) -> Session:
        """The same session with one more result."""
        results = sorted((*self.results, result), key=lambda r: r.trial.index)
        return replace(self, results=tuple(results))

    def of(self, arm: str, goal: int | None = None) -> list[Result]:
        """Results of one arm that count: aborted episodes say nothing about it."""
        return [
            r
            for r in self.results
            if r.trial.arm == arm and goal in (None, r.trial.goal) and r.outcome != "aborted"
        ]

    def success(self, arm: str, goal: int | None = None) -> float | None:
        """Share of successes of one arm, or None before its first episode."""
        results = self.of(arm, goal)
        return sum(r.outcome == "success" for r in results) / len(results) if results else None

    def matched(self) -> dict[tuple[int, int], dict[str, Result]]:
        """(goal, seed) -> arm -> result: the pairs that start from the same state."""
        pairs: dict[tuple[int, int], dict[str, Result]] = defaultdict(dict)
        for result in self.results:
            pairs[(result.trial.goal, result.trial.seed)][result.trial.arm] = result
        return dict(pairs)

    def save(self, folder: Path) -> None:
        """Replace ``session.json`` atomically and wait for the disk."""
        text = json.dumps(
            {"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, allow_nan=False
        )
        write_atomically(folder / SESSION, text + "\n")

    @classmethod
    def load(cls, folder: Path) -> Session:
        """Read ``session.json`` of a session's folder.

        Raises:
            ConfigError: There is none.
            DataError: It is damaged, or of a newer version.
        """
        path = folder / SESSION
        if not path.is_file():
            raise ConfigError(
                f"'{folder}' must be the folder of a session: it has no {SESSION}. "
                "Give the folder that the session was started with."
            )
        try:
            entries = json.loads(path.read_text())
            found = (entries.pop("format"), entries.pop("version"))
            if found != (FORMAT, VERSION):
                raise ValueError(f"found {found[0]} {found[1]}")
            return _from_json(entries)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"'{path}' must be {FORMAT} version {VERSION}: {error}. Restore it from a copy."
            ) from error

    def check_same_plan(self, other: Session) -> None:
        """Refuse to continue another plan than the one in the folder.

        Raises:
            ConfigError: Arms, goals, number, seed, settings or provenance differ.
        """
        for name in ("arms", "goals", "episodes", "seed", "settings", "provenance"):
            mine, wanted = getattr(self, name), getattr(other, name)
            if mine != wanted:
                raise ConfigError(
                    f"a resumed session must have the '{name}' it began with, {mine}: got "
                    f"{wanted}. Use another folder for another session."
                )


def _from_json(entries: Mapping[str, Any]) -> Session:
    values = dict(entries)
    values["arms"] = tuple(values["arms"])
    values["goals"] = tuple(values["goals"])
    values["results"] = tuple(_result(r) for r in values["results"])
    return Session(**values)


def _result(entry: Mapping[str, Any]) -> Result:
    values = dict(entry)
    values["trial"] = Trial(**values["trial"])
    values["chunk_ms"] = tuple(values["chunk_ms"])
    return Result(**values)
