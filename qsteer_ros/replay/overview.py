"""``qsteer inspect``: a store as a table, one episode in detail. Text for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qsteer_ros.errors import DataError
from qsteer_ros.replay.episode import EPISODE, RECORDING, Episode, find_episodes
from qsteer_ros.replay.reader import EpisodeReader

COLUMNS = (
    "episode", "arm", "goal", "outcome", "s", "messages", "frames", "missing", "drops", "chunks",
    "dQ", "ratio", "ms",
)  # fmt: skip
NUMBERS = ("latency_ms", "delta_q", "q_before", "q_after", "q_spread", "ratio", "cosine")
ABSENT = "-"


def inspect_store(store: str | Path) -> str:
    """Describe a store, or one episode when the folder is one.

    ``frames`` and ``missing`` are over all cameras; ``drops`` are messages that arrived and could
    not be written plus those that never arrived; ``dQ``, ``ratio`` and ``ms`` (observation to
    published chunk) are medians over the episode's chunks.

    Raises:
        ConfigError: The folder does not exist.
    """
    root = Path(store)
    if (root / EPISODE).is_file():
        return describe_episode(root)
    folders = find_episodes(root)
    if not folders:
        return f"no episodes under {root}"
    rows = [_row(folder, root) for folder in folders]
    return f"{_table(COLUMNS, rows)}\n{len(rows)} episodes in {root}"


def describe_episode(folder: Path) -> str:
    """Everything that is known of one episode.

    Raises:
        DataError: ``episode.json`` is missing or damaged.
    """
    info = Episode.load(folder)
    state = info.outcome if info.state != RECORDING else "not closed"
    lines = [
        f"episode    {info.episode_id} ({folder})",
        f"outcome    {state} (said by {info.label_source or 'nobody'})"
        + (f": {info.reason}" if info.reason else ""),
        f"arm        {info.arm}, goal {info.goal}, seed {info.seed}",
        f"task       {info.task or ABSENT}",
        f"duration   {info.duration_s:.2f} s from {info.start_ns / 1e9:.3f} s",
        f"robot      {info.robot.get('name', ABSENT)}",
        f"written by qsteer_ros {info.package_version}",
    ]
    for title, entries in (
        ("provenance", info.provenance),
        ("session", info.session),
        ("recovery", info.recovery),
    ):
        lines += [f"{title}"] if entries else []
        lines += [f"    {key}: {_plain(value)}" for key, value in entries.items()]
    counts = [
        [t.name, t.role, str(t.messages), _size(t.bytes), str(t.dropped), str(t.lost),
         ABSENT if t.missing is None else str(t.missing)]
        for t in info.topics
    ]  # fmt: skip
    header = ("topic", "role", "messages", "size", "dropped", "lost", "missing")
    return "\n".join([*lines, "", _table(header, counts), "", *_decision_lines(folder)])


def _decision_lines(folder: Path) -> list[str]:
    try:
        metas = [d.record.meta for d in EpisodeReader(folder).decisions()]
    except DataError as error:
        return [str(error)]
    rows = []
    for name in NUMBERS:
        values = _values(metas, name)
        if values.size:
            low, middle, high = np.percentile(values, [5, 50, 95])
            rows.append([name, str(values.size), f"{low:.3g}", f"{middle:.3g}", f"{high:.3g}"])
    modes = sorted({str(meta["mode"]) for meta in metas})
    title = f"{len(metas)} decisions" + (f", steering {', '.join(modes)}" if modes else "")
    return [title, _table(("per chunk", "n", "p5", "p50", "p95"), rows)] if rows else [title]


def _row(folder: Path, root: Path) -> list[str]:
    name = str(folder.relative_to(root))
    try:
        info = Episode.load(folder)
    except DataError:
        return [name, *[ABSENT] * 2, "no episode.json", *[ABSENT] * (len(COLUMNS) - 4)]
    first = [name, info.arm or ABSENT, str(info.goal)]
    if info.state == RECORDING:
        return [*first, "not closed", *[ABSENT] * (len(COLUMNS) - 4)]
    try:
        metas = [d.record.meta for d in EpisodeReader(folder).decisions()]
    except DataError:
        return [*first, "damaged", *[ABSENT] * (len(COLUMNS) - 4)]
    cameras = [t for t in info.topics if t.role.startswith("camera/")]
    return [
        *first,
        info.outcome or ABSENT,
        f"{info.duration_s:.1f}",
        str(sum(t.messages for t in info.topics)),
        str(sum(t.messages for t in cameras)),
        str(sum(t.missing or 0 for t in cameras)),
        str(sum(t.dropped + t.lost for t in info.topics)),
        str(len(metas)),
        _median(metas, "delta_q", "+.2f"),
        _median(metas, "ratio", ".3f"),
        _median(metas, "latency_ms", ".0f"),
    ]


def _values(metas: Sequence[Mapping[str, Any]], name: str) -> np.ndarray[Any, np.dtype[Any]]:
    return np.array([meta[name] for meta in metas if meta.get(name) is not None], dtype=float)


def _median(metas: Sequence[Mapping[str, Any]], name: str, style: str) -> str:
    values = _values(metas, name)
    return format(float(np.median(values)), style) if values.size else ABSENT


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns wide enough for their entries; columns of numbers to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [i > 0 and all(map(_number_like, c[1:])) for i, c in enumerate(columns)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        ).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *[line(row) for row in rows]])


def _number_like(cell: str) -> bool:
    return cell == ABSENT or cell.lstrip("+-")[:1].isdigit()


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count} B"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
