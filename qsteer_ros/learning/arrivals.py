"""New episodes while training goes on: those that a logger finishes in a watched folder."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from qsteer_ros import resources
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.interface import Interface
from qsteer_ros.learning.logged import check_joints, episode_features, interface_of
from qsteer_ros.learning.settings_online import OnlineSettings
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.motion.kinematics import Kinematics
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.policies.extractors import load_camera_extractor
from qsteer_ros.replay.episode import CLOSED, Episode, find_episodes
from qsteer_ros.replay.records import bag_file
from qsteer_ros.replay.steps import EpisodeSteps
from qsteer_ros.replay.transitions import FeaturesOf, LoggedTransitions, load_transitions


class Arrival(NamedTuple):
    """An episode that has come in.

    Attributes:
        key: Names it for ever; of a logged episode the SHA-256 of its bag.
        steps: Control steps in which the arm acted.
        transitions: Its windows.
    """

    key: str
    steps: int
    transitions: Transitions


class Source(Protocol):
    """Where new episodes come from."""

    def next(self, taken: Collection[str]) -> Arrival | None:
        """An episode whose key is not among ``taken``, or None where none has come yet."""
        ...


def say_once(line: str) -> None:
    """One line above the progress bar."""
    tqdm.write(line, file=sys.stderr)


class FolderWatch:
    """Finished episodes of one goal under a folder, each given once; nothing is ever changed.

    An episode that is still recorded, still copied or cannot be used is passed over with one line
    and looked at again when its files have changed.

    Args:
        store: The logger's folder.
        interface: The space of the windows.
        features: Of every row of an episode, (N, F).
        goal: Only episodes of this goal.
        discount: gamma, per control step.
        say: Told why an episode was passed over.

    Raises:
        ConfigError: The folder does not exist.
    """

    def __init__(
        self,
        store: str | Path,
        *,
        interface: Interface,
        features: FeaturesOf,
        goal: int,
        discount: float,
        say: Callable[[str], None] = say_once,
    ) -> None:
        self._store, self._interface, self._features = Path(store), interface, features
        self._goal, self._discount, self._say = goal, discount, say
        self._passed: dict[Path, object] = {}
        find_episodes(self._store)

    @classmethod
    def of(cls, settings: OnlineSettings) -> FolderWatch:
        """As ``qsteer train online watch=`` watches: features by the encoder.

        Raises:
            ConfigError: The folder, the encoder or the robot file is missing, or they do not fit.
        """
        robot = RobotFile.load(settings.robot)
        kinematics = Kinematics(robot)
        eyes = load_camera_extractor(resources.find(settings.encoder), robot)

        def features(steps: EpisodeSteps) -> NDArray[np.floating]:
            check_joints(steps, robot)
            return episode_features(steps, eyes, kinematics)

        interface = interface_of(
            robot,
            horizon=settings.horizon,
            feature_names=eyes.feature_names,
            encoder_hash=eyes.hash,
        )
        return cls(
            settings.watch,
            interface=interface,
            features=features,
            goal=settings.goal,
            discount=settings.discount,
        )

    def next(self, taken: Collection[str]) -> Arrival | None:
        """The first finished episode, by name, that is not among ``taken``."""
        for folder in find_episodes(self._store):
            looks = _looks_of(folder)
            if self._passed.get(folder) == looks:
                continue
            try:
                found = self._read(folder, taken)
            except (ConfigError, DataError, OSError) as error:
                self._say(f"passed over {folder.name}: {error}")
                found = None
            if found is not None:
                return found
            self._passed[folder] = looks
        return None

    def _read(self, folder: Path, taken: Collection[str]) -> Arrival | None:
        """The episode, or None where it was taken in already.

        Raises:
            DataError: It is not finished, or cannot be used.
        """
        info = Episode.load(folder)
        if info.state != CLOSED:
            raise DataError("it is still being recorded, or its logger died.")
        if info.goal != self._goal:
            raise DataError(f"its goal is {info.goal}, not {self._goal}.")
        key = str(info.bag["sha256"])
        if key in taken:
            return None
        if hashlib.sha256(bag_file(folder).read_bytes()).hexdigest() != key:
            raise DataError("its MCAP file is not the one that was closed: torn, or half copied.")
        steps = 0

        def features(rows: EpisodeSteps) -> NDArray[np.floating]:
            nonlocal steps
            steps += int(rows.acting.sum())
            return self._features(rows)

        logged = load_transitions(
            folder,
            horizon=self._interface.horizon,
            discount=self._discount,
            features=features,
            goal=self._goal,
        )
        return Arrival(key, steps, _windows(logged, self._interface))


def _windows(logged: LoggedTransitions, interface: Interface) -> Transitions:
    """The same windows in the space of what is trained."""
    shared = {entry.name for entry in fields(Transitions)} & {
        entry.name for entry in fields(LoggedTransitions)
    } - {"episodes"}
    return Transitions(
        interface=interface,
        data_hash=logged.hash,
        episodes=tuple(str(info.bag["sha256"]) for info in logged.episodes),
        **{name: getattr(logged, name) for name in shared},
    )


def _looks_of(folder: Path) -> tuple[Any, ...]:
    """Changes whenever a file of the episode does."""
    found = []
    for path in sorted(folder.iterdir()):
        try:
            state = path.stat()
        except OSError:  # renamed by the logger just now
            continue
        found.append((path.name, state.st_size, state.st_mtime_ns))
    return tuple(found)
