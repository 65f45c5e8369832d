"""``qsteer verify``: is every episode of a store whole, and if not, what is wrong with it.

Damage (a torn file, a checksum, a count, a record that cannot be decoded) makes the exit status 1.
Loss that the log itself is honest about (frames that never came, messages that were dropped) is
reported as a warning, and counts as damage only with ``strict``.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qsteer_ros.errors import DataError
from qsteer_ros.replay.bag import read_metadata
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.replay.definitions import deserialize, has_header, header_stamp_ns
from qsteer_ros.replay.episode import (
    CLOSED,
    RECOVERED_SUFFIX,
    Episode,
    find_episodes,
    recovered_folder,
)
from qsteer_ros.replay.gaps import Gap, missing_frames
from qsteer_ros.replay.reader import decode_frame
from qsteer_ros.replay.records import BagScan, LoggedMessage, bag_file
from qsteer_ros.replay.recover import recover_episode

OK = "ok"
DAMAGED = "damaged"
INTERRUPTED = "interrupted"
IN_PROGRESS = "recording"
RECOVERED = "recovered"


@dataclass
class Verdict:
    """What was found in one episode.

    Attributes:
        folder: Its folder.
        state: ``ok``, ``damaged``, ``interrupted`` (its logger died), ``recovered`` (a whole
            recovered copy lies beside it) or ``recording`` (a logger writes it now).
        damage: What is wrong, one line each.
        warnings: What is missing though the files are whole, one line each.
        messages: Whole messages found.
        decisions: Decision records that decode.
        gaps: Camera -> gaps between its frames.
    """

    folder: Path
    state: str = OK
    damage: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    messages: int = 0
    decisions: int = 0
    gaps: dict[str, list[Gap]] = field(default_factory=dict)


def verify_episode(folder: Path) -> Verdict:
    """Check one episode; never raises for what is wrong with it, and changes nothing."""
    verdict = Verdict(folder)
    try:
        info = Episode.load(folder)
        path = bag_file(folder)
    except DataError as error:
        verdict.state = DAMAGED
        verdict.damage.append(str(error))
        return verdict
    if info.state != CLOSED:
        _judge_unfinished(verdict, path)
        return verdict
    counts = _check_messages(verdict, info, path)
    _check_counts(verdict, info, counts)
    _check_hash(verdict, info, path)
    for topic in info.topics:
        if topic.dropped:
            verdict.warnings.append(f"{topic.dropped} messages of {topic.name} were dropped")
        if topic.lost:
            verdict.warnings.append(f"{topic.lost} messages of {topic.name} were lost on the way")
    if verdict.damage:
        verdict.state = DAMAGED
    return verdict


def _judge_unfinished(verdict: Verdict, path: Path) -> None:
    if being_written(path):
        verdict.state = IN_PROGRESS
        return
    scan = BagScan(path)
    verdict.messages = sum(1 for _ in scan.messages())
    verdict.state = INTERRUPTED
    verdict.damage.append(
        f"its logger ended without closing it; {verdict.messages} whole messages. "
        "Run 'qsteer verify --recover'"
    )


def _check_messages(verdict: Verdict, info: Episode, path: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    stamps: dict[str, list[int]] = {name: [] for name in info.cameras}
    roles = {topic.name: topic.role for topic in info.topics}
    scan = BagScan(path)
    for message in scan.messages():
        counts[message.topic] += 1
        try:
            _check_content(verdict, message, roles.get(message.topic, ""), stamps)
        except DataError as error:
            verdict.damage.append(f"message {counts[message.topic]} of {message.topic}: {error}")
    verdict.messages = counts.total()
    verdict.damage += scan.damage
    for camera, found in stamps.items():
        topic = info.topic(f"camera/{camera}")
        period_ns = None if topic is None else topic.period_ns
        gaps = missing_frames(found, period_ns, info.start_ns, info.end_ns)
        verdict.gaps[camera] = gaps
        if gaps:
            where = ", ".join(
                f"{gap.frames} after {(gap.after_ns - info.start_ns) / 1e9:.2f} s"
                for gap in gaps[:4]
            )
            more = f" and {len(gaps) - 4} more gaps" if len(gaps) > 4 else ""
            total = sum(gap.frames for gap in gaps)
            verdict.warnings.append(f"camera '{camera}' misses {total} frames: {where}{more}")
    return counts


def _check_content(
    verdict: Verdict, message: LoggedMessage, role: str, stamps: dict[str, list[int]]
) -> None:
    if role == "decision":
        data = deserialize(message.data, message.type).data
        DecisionRecord.decode(np.asarray(data, np.uint8).tobytes())
        verdict.decisions += 1
    elif role.startswith("camera/"):
        decode_frame(message)
        stamps[role.split("/", 1)[1]].append(header_stamp_ns(message.data))
    elif has_header(message.type):
        header_stamp_ns(message.data)


def _check_counts(verdict: Verdict, info: Episode, counts: Counter[str]) -> None:
    for topic in info.topics:
        if counts[topic.name] != topic.messages:
            verdict.damage.append(
                f"{topic.name} must hold {topic.messages} messages by episode.json: found "
                f"{counts[topic.name]}"
            )
    unknown = sorted(set(counts) - {topic.name for topic in info.topics})
    if unknown:
        verdict.damage.append(f"episode.json does not know the topics {unknown}")
    try:
        metadata = read_metadata(verdict.folder)
        said = {
            topic["topic_metadata"]["name"]: topic["message_count"]
            for topic in metadata["topics_with_message_count"]
        }
    except (DataError, KeyError, TypeError) as error:
        verdict.damage.append(f"metadata.yaml: {error}")
        return
    wrong = {name: n for name, n in said.items() if counts[name] != n}
    if wrong or metadata["message_count"] != counts.total():
        verdict.damage.append(
            f"metadata.yaml must count {counts.total()} messages: it says "
            f"{metadata['message_count']}" + (f", and {wrong}" if wrong else "")
        )


def _check_hash(verdict: Verdict, info: Episode, path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != info.bag.get("sha256"):
        verdict.damage.append(f"the SHA-256 of {path.name} is not the one in episode.json")


def being_written(path: Path) -> bool:
    """Whether a logger holds the lock of an MCAP file."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def verify_store(store: str | Path, *, recover: bool = False) -> list[Verdict]:
    """Check every episode under a folder.

    Args:
        store: An episode or a folder of episodes.
        recover: Write a recovered copy beside every interrupted or damaged episode that has none.

    Raises:
        ConfigError: The folder does not exist.
    """
    verdicts = []
    for folder in find_episodes(store):
        if folder.name.endswith(RECOVERED_SUFFIX):
            continue
        verdict = verify_episode(folder)
        copy = recovered_folder(folder)
        if recover and verdict.state in (INTERRUPTED, DAMAGED) and not copy.exists():
            try:
                recover_episode(folder)
            except DataError as error:
                verdict.damage.append(str(error))
        verdicts.append(verdict)
        if copy.exists():
            second = verify_episode(copy)
            verdicts.append(second)
            if second.state == OK and verdict.state in (INTERRUPTED, DAMAGED):
                verdict.state = RECOVERED
    return verdicts


def verify(
    store: str | Path,
    *,
    recover: bool = False,
    strict: bool = False,
    say: Callable[[str], None] = print,
) -> int:
    """Print one line per episode and what is wrong with it.

    Returns:
        0 when every episode is whole, recovered or being recorded; 1 otherwise, and with
        ``strict`` also when anything is missing from a whole one.

    Raises:
        ConfigError: The folder does not exist.
    """
    verdicts = verify_store(store, recover=recover)
    for verdict in verdicts:
        say(
            f"{verdict.state:12s} {verdict.folder}  {verdict.messages} messages, "
            f"{verdict.decisions} decisions, "
            f"{sum(g.frames for gaps in verdict.gaps.values() for g in gaps)} frames missing"
        )
        kind = "note:   " if verdict.state == RECOVERED else "damage: "
        for line in verdict.damage:
            say(f"    {kind} {line}")
        for line in verdict.warnings:
            say(f"    warning: {line}")
    bad = sum(v.state in (DAMAGED, INTERRUPTED) for v in verdicts)
    warned = sum(bool(v.warnings) for v in verdicts)
    if not verdicts:
        say(f"no episodes under {store}")
    say(f"{len(verdicts)} episodes, {bad} damaged, {warned} with warnings")
    return 1 if bad or (strict and warned) else 0
