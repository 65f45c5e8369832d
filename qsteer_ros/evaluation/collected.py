"""Everything a report says about a session, read once from its episode store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qsteer_ros.errors import ConfigError
from qsteer_ros.replay.episode import Episode
from qsteer_ros.replay.reader import EpisodeReader
from qsteer_ros.replay.sessions import STORE, Result, Session
from qsteer_ros.types import Array, Image

TRACED = ("ratio", "cosine", "delta_q", "q_before", "q_after", "q_spread", "clipped_share")


@dataclass(frozen=True, eq=False)
class Track:
    """Numbers of one episode's decisions, one entry per chunk; NaN where not computed.

    Attributes:
        result: How the episode ended.
        episode: Its ``episode.json``.
        time_s: Stamp of the observation after the start of the episode, s.
        latency_ms: From that stamp to the published chunk, ms.
        values: Name of `TRACED` -> numbers.
        stages_ms: Stage of the computation -> duration, ms.
    """

    result: Result
    episode: Episode
    time_s: Array
    latency_ms: Array
    values: Mapping[str, Array]
    stages_ms: Mapping[str, Array]

    def mean(self, name: str) -> float | None:
        """Mean of one traced number over the episode, or None when it was never computed."""
        known = self.values[name][np.isfinite(self.values[name])]
        return float(known.mean()) if known.size else None


@dataclass(frozen=True, eq=False)
class Losses:
    """What did not reach the store, added up over the episodes.

    Attributes:
        topic: Its name.
        messages: Messages in the store.
        dropped: Arrived and could not be written.
        lost: Published and never arrived, by the publisher's count.
        missing: Frames missing between stamps; None where the topic has no period.
    """

    topic: str
    messages: int
    dropped: int
    lost: int
    missing: int | None

    @property
    def total(self) -> int:
        """Everything that should be in the store and is not; a missing frame counts once."""
        return self.dropped + max(self.lost, self.missing or 0)


@dataclass(frozen=True, eq=False)
class Collected:
    """A session and the tracks of its episodes.

    Attributes:
        folder: The session's folder.
        session: Its ``session.json``.
        tracks: One per result, in the order in which they ran.
    """

    folder: Path
    session: Session
    tracks: tuple[Track, ...]

    def of(self, arm: str) -> list[Track]:
        """Tracks of one arm, aborted episodes left out."""
        return [
            t for t in self.tracks if t.result.trial.arm == arm and t.result.outcome != "aborted"
        ]

    def losses(self) -> list[Losses]:
        """Totals per topic, by name."""
        totals: dict[str, Counter[str]] = {}
        periodic: set[str] = set()
        for track in self.tracks:
            for topic in track.episode.topics:
                total = totals.setdefault(topic.name, Counter())
                total["messages"] += topic.messages
                total["dropped"] += topic.dropped
                total["lost"] += topic.lost
                total["missing"] += topic.missing or 0
                if topic.missing is not None:
                    periodic.add(topic.name)
        return [
            Losses(
                name,
                total["messages"],
                total["dropped"],
                total["lost"],
                total["missing"] if name in periodic else None,
            )
            for name, total in sorted(totals.items())
        ]

    def frames(self, track: Track, camera: str) -> list[Image]:
        """Frames of one camera of one episode, (h, w, 3) uint8 RGB, in the order of time."""
        reader = EpisodeReader(self.folder / STORE / track.episode.episode_id)
        return [image for _, image in reader.frames(camera)]


def collect(folder: str | Path) -> Collected:
    """Read a session and the decisions of its episodes.

    Raises:
        ConfigError: The folder holds no session, or one without a finished episode.
        DataError: An episode of the session is missing, torn or damaged.
    """
    root = Path(folder)
    session = Session.load(root)
    if not session.results:
        raise ConfigError(
            f"a report needs at least one finished episode: '{root}' has none. Run the session."
        )
    tracks = [
        _track(result, EpisodeReader(root / STORE / result.trial.episode_id))
        for result in session.results
    ]
    return Collected(root, session, tuple(tracks))


def _track(result: Result, reader: EpisodeReader) -> Track:
    records = [decision.record for decision in reader.decisions()]
    metas = [record.meta for record in records]
    start_ns = reader.info.start_ns
    stages = sorted({stage for meta in metas for stage in meta.get("timings_ns", {})})
    return Track(
        result=result,
        episode=reader.info,
        time_s=np.array([(record.stamp_ns - start_ns) * 1e-9 for record in records]),
        latency_ms=_numbers([meta.get("latency_ms") for meta in metas]),
        values={name: _numbers([meta.get(name) for meta in metas]) for name in TRACED},
        stages_ms={
            stage: _numbers([meta.get("timings_ns", {}).get(stage) for meta in metas]) * 1e-6
            for stage in stages
        },
    )


def _numbers(values: list[Any]) -> Array:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
