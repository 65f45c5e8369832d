"""Recovery of an interrupted or damaged episode into a copy beside it. The original stays."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.replay.durable import sync_folder
from qsteer_ros.replay.episode import Episode, recovered_folder
from qsteer_ros.replay.reader import read_event
from qsteer_ros.replay.records import BagScan, bag_file
from qsteer_ros.replay.topic import Topic
from qsteer_ros.replay.writer import EpisodeWriter

_ROLES = {
    "joint_states": "joint_states",
    "joint_trajectory": "trajectory",
    "decision": "decision",
    "event": "event",
    "reward": "reward",
    "success": "success",
    "task": "task",
    "diagnostics": "diagnostics",
}
_CAMERA = re.compile(r"(?:^|/)([^/]+)/image_raw(?:/compressed)?$")


def recover_episode(folder: Path) -> Path:
    """Copy every certainly whole message of an episode into ``<episode>.recovered``.

    The copy is an ordinary closed episode with right counts and hashes, outcome ``aborted`` and a
    note of where it comes from. It appears under its name only when it is complete.

    Args:
        folder: The episode; it is not touched.

    Returns:
        The folder of the copy.

    Raises:
        DataError: The MCAP file is missing or does not even begin like one, or there is a copy
            already.
    """
    target = recovered_folder(folder)
    if target.exists():
        raise DataError(f"'{target}' must not exist yet. Move it away to recover again.")
    scan = BagScan(bag_file(folder))
    span = [message.log_time_ns for message in scan.messages()]
    if scan.good_bytes == 0:
        raise DataError(
            f"'{scan.path}' must begin like an MCAP file: {'; '.join(scan.damage)}. "
            "There is nothing to recover in it."
        )
    episode, topics = _description(folder, scan)
    start_ns = episode.start_ns or min(span, default=0)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    writer = EpisodeWriter(
        folder.parent,
        replace(episode, start_ns=start_ns),
        topics,
        folder=partial,
        name=target.name,
    )
    for message in BagScan(scan.path).messages():
        writer.write(
            message.topic,
            message.data,
            log_time_ns=message.log_time_ns,
            publish_time_ns=message.publish_time_ns,
            sequence=message.sequence,
        )
    writer.close(
        "aborted",
        label_source="recovery",
        reason="recovered from an episode that was not closed or is damaged",
        recovery={
            "from": folder.name,
            "state": episode.state,
            "outcome": episode.outcome,
            "damage": scan.damage,
            "bytes_read": scan.good_bytes,
            "bytes_total": scan.path.stat().st_size,
        },
    )
    os.rename(partial, target)
    sync_folder(target.parent)
    return target


def _description(folder: Path, scan: BagScan) -> tuple[Episode, list[Topic]]:
    """What the episode says of itself, else what can be told from its bag; and its topics."""
    found = {topic.name: topic for topic in scan.topics.values()}
    try:
        episode = Episode.load(folder)
    except DataError:
        return _from_bag(folder, scan), [
            replace(topic, role=_role(topic.name)) for topic in found.values()
        ]
    topics = [
        replace(
            found.pop(count.name, Topic(count.name, count.type)),
            role=count.role,
            period_ns=count.period_ns,
        )
        for count in episode.topics
    ]
    return episode, topics + list(found.values())


def _from_bag(folder: Path, scan: BagScan) -> Episode:
    for message in BagScan(scan.path).messages():
        if _role(message.topic) == "event":
            try:
                event = read_event(message)
                if event.get("event") == "start":
                    return Episode.from_event(event, start_ns=message.log_time_ns)
            except (DataError, ConfigError):
                continue
    return Episode(folder.name, {"unknown": "episode.json was lost and no start event was found"})


def _role(topic: str) -> str:
    camera = _CAMERA.search(topic)
    if camera:
        return f"camera/{camera.group(1)}"
    return _ROLES.get(topic.rsplit("/", 1)[-1], "extra")
