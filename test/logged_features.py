"""Episodes whose decisions hold features, through the real writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from parts import INTERFACE
from synthetic_store import DT_NS, START_NS, Sent, event, message, typestore, write_episode

from qsteer_ros.replay.decision import DecisionRecord


def feature_rows(count: int, seed: int = 0) -> np.ndarray:
    """Features of the common interface, (count, 4) float32; the first one numbers the rows."""
    rows = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    rows[:, 0] = np.arange(count) / 100
    return rows


def decision_with(features: np.ndarray | None, stamp_ns: int, encoder: str | None) -> bytes:
    shape = (INTERFACE.horizon, INTERFACE.action_dim)
    tensors = {"noise": np.zeros(shape, np.float32), "chunk": np.zeros(shape, np.float32)}
    if features is not None:
        tensors["features"] = features
    meta = {
        "stamp_ns": stamp_ns,
        "control_dt_ns": DT_NS,
        "execute_steps": shape[0],
        "mode": "off",
        "hashes": {"policy": "p", "encoder": encoder},
    }
    blob = np.frombuffer(DecisionRecord(tensors, meta).encode(), np.uint8)
    layout = typestore().types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
    return message("std_msgs/msg/UInt8MultiArray", layout=layout, data=blob)


def log(
    store: Path,
    episode_id: str,
    rows: np.ndarray | list[None],
    *,
    encoder: str | None = INTERFACE.encoder_hash,
    **entries: object,
) -> None:
    """One episode with a decision per row of features; None is a decision without any."""
    messages = [Sent("/episode/event", event("start", episode_id=episode_id), START_NS)]
    for number, row in enumerate(rows):
        stamp = START_NS + number * DT_NS
        blob = decision_with(row, stamp, encoder)
        messages.append(Sent("/policy_node/decision", blob, stamp + 1_000_000))
    write_episode(store, episode_id, messages, **entries)
