"""``episode.json``: what an episode is, where it comes from and what was counted in it.

It is written twice: at the start, with state ``recording``, and at the end, with everything that
was counted. A file that still says ``recording`` belongs to an episode in progress or to one whose
logger was killed; ``qsteer verify`` tells which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.replay.durable import write_atomically

EPISODE = "episode.json"
FORMAT = "qsteer_episode"
VERSION = 1
RECORDING = "recording"
CLOSED = "closed"
OUTCOMES = ("success", "failure", "aborted", "stopped", "unlabelled")
RECOVERED_SUFFIX = ".recovered"
REQUIRED_PROVENANCE = ("package", "policy")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclass(frozen=True)
class TopicCount:
    """What was counted on one topic of an episode.

    Attributes:
        name: Resolved topic name.
        type: Message type.
        role: What the topic is to this package.
        period_ns: Nominal time between two header stamps, or None.
        messages: Messages in the bag.
        bytes: Bytes of message data in the bag.
        dropped: Messages that arrived and could not be written.
        lost: Messages that were published and never arrived, by the publisher's own count.
        missing: Frames missing between header stamps; None where the topic has no period.
    """

    name: str
    type: str
    role: str
    period_ns: int | None = None
    messages: int = 0
    bytes: int = 0
    dropped: int = 0
    lost: int = 0
    missing: int | None = None


@dataclass(frozen=True)
class Episode:
    """Contents of ``episode.json``.

    Attributes:
        episode_id: Unique name; also the folder's name.
        provenance: Hashes and names of all that produced the episode; never empty.
        arm: Label of the steering arm, for example ``qgf``.
        goal: Number of the goal.
        seed: Seed of the initial state.
        task: Language instruction.
        session: Further entries of the start event, as they came.
        robot: Layout of the robot: joint names, gripper, effort scale, control period.
        state: ``recording`` or ``closed``.
        outcome: One of `OUTCOMES`, or None while recording.
        label_source: Who said so: ``sim``, ``operator``, ``session``, ``logger`` or ``recovery``.
        reason: Free text with an outcome that the task did not decide.
        start_ns: ROS time of the start event.
        end_ns: ROS time of the end, or None while recording.
        topics: One entry per recorded topic.
        bag: ``file``, ``bytes`` and ``sha256`` of the MCAP file once it is closed.
        recovery: What a recovered copy was made from and what was lost; empty otherwise.
        package_version: Version of this package that wrote the episode.
    """

    episode_id: str
    provenance: Mapping[str, Any]
    arm: str = ""
    goal: int = 0
    seed: int = 0
    task: str = ""
    session: Mapping[str, Any] = field(default_factory=dict)
    robot: Mapping[str, Any] = field(default_factory=dict)
    state: str = RECORDING
    outcome: str | None = None
    label_source: str | None = None
    reason: str = ""
    start_ns: int = 0
    end_ns: int | None = None
    topics: tuple[TopicCount, ...] = ()
    bag: Mapping[str, Any] = field(default_factory=dict)
    recovery: Mapping[str, Any] = field(default_factory=dict)
    package_version: str = ""

    @classmethod
    def from_event(cls, event: Mapping[str, Any], *, start_ns: int) -> Episode:
        """Read the start event of an episode.

        Args:
            event: The JSON object of ``episode/event``.
            start_ns: ROS time at which it was received.

        Raises:
            ConfigError: No usable id, or no provenance. Nothing may be recorded then.
        """
        episode_id = event.get("episode_id")
        if not isinstance(episode_id, str) or not _ID.fullmatch(episode_id):
            raise ConfigError(
                "an episode needs an 'episode_id' of letters, digits, '.', '_' and '-': got "
                f"{episode_id!r}. Set it in the start event."
            )
        provenance = event.get("provenance")
        lacking = [
            key
            for key in REQUIRED_PROVENANCE
            if not isinstance(provenance, Mapping) or not provenance.get(key)
        ]
        if lacking or not isinstance(provenance, Mapping):
            raise ConfigError(
                f"episode '{episode_id}' needs provenance before it may be recorded: the start "
                f"event's 'provenance' lacks {', '.join(lacking)}. Send the hashes of package, "
                "policy, encoder, critic and robot file with the start event."
            )
        named = ("arm", "goal", "seed", "task")
        rest = {
            k: v
            for k, v in event.items()
            if k not in (*named, "event", "episode_id", "provenance", "outcome")
        }
        try:
            return cls(
                episode_id=episode_id,
                provenance=dict(provenance),
                arm=str(event.get("arm", "")),
                goal=int(event.get("goal", 0)),
                seed=int(event.get("seed", 0)),
                task=str(event.get("task", "")),
                session=rest,
                start_ns=start_ns,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"episode '{episode_id}' needs whole numbers as 'goal' and 'seed': {error}. "
                "Correct the start event."
            ) from error

    def save(self, folder: Path) -> None:
        """Write ``episode.json`` atomically and wait for the disk."""
        text = json.dumps(
            {"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, allow_nan=False
        )
        write_atomically(folder / EPISODE, text + "\n")

    @classmethod
    def load(cls, folder: Path) -> Episode:
        """Read ``episode.json`` of an episode's folder.

        Raises:
            DataError: The file is missing, damaged or of a newer version.
        """
        path = folder / EPISODE
        try:
            entries = json.loads(path.read_text())
            found = (entries.pop("format"), entries.pop("version"))
        except Exception as error:
            raise DataError(
                f"'{path}' must describe an episode: {type(error).__name__}: {error}. "
                "Run 'qsteer verify --recover' on the store."
            ) from error
        if found != (FORMAT, VERSION):
            raise DataError(
                f"'{path}' must be {FORMAT} version {VERSION}: found {found[0]} {found[1]}. "
                "Read it with the release of qsteer_ros that wrote it."
            )
        known = {f.name for f in fields(cls)}
        try:
            counts = tuple(TopicCount(**topic) for topic in entries.pop("topics", ()))
            return cls(topics=counts, **{k: v for k, v in entries.items() if k in known})
        except TypeError as error:
            raise DataError(
                f"'{path}' must be complete: {error}. Restore it from a copy."
            ) from error

    def topic(self, role: str) -> TopicCount | None:
        """The recorded topic of a role, or None."""
        return next((t for t in self.topics if t.role == role), None)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the recorded cameras, sorted."""
        return tuple(
            sorted(t.role.split("/", 1)[1] for t in self.topics if t.role.startswith("camera/"))
        )

    @property
    def duration_s(self) -> float:
        """Time from the start event to the end, s; 0 while recording."""
        return 0.0 if self.end_ns is None else (self.end_ns - self.start_ns) / 1e9

    def with_counts(self, counts: tuple[TopicCount, ...]) -> Episode:
        """The same episode with other counts."""
        return replace(self, topics=counts)


def find_episodes(store: str | Path) -> list[Path]:
    """Folders under a store that hold an episode or what is left of one, sorted by name.

    A folder counts when it has an ``episode.json`` or an MCAP file and no name below the store
    begins with a dot. Recovered copies are listed like any other episode.

    Raises:
        ConfigError: The store does not exist.
    """
    root = Path(store)
    if not root.is_dir():
        raise ConfigError(f"an episode store must be a folder: '{root}' is not. Check the path.")
    found = {path.parent for path in root.rglob(EPISODE)}
    found |= {path.parent for path in root.rglob("*_0.mcap")}
    return sorted(
        folder
        for folder in found
        if not any(part.startswith(".") for part in folder.relative_to(root).parts)
    )


def recovered_folder(episode: Path) -> Path:
    """Where the recovered copy of an interrupted episode goes: beside it."""
    return episode.with_name(episode.name + RECOVERED_SUFFIX)
