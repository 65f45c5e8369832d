"""Features of observations that a policy really meets, to measure steering at."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from qsteer_ros.critics.calibration import Observations
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.interface import Interface
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.replay.episode import find_episodes
from qsteer_ros.replay.reader import EpisodeReader

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Observed:
    """Features and where they are from.

    Attributes:
        features: (N, F), as the encoder gave them, not standardised.
        source: Their origin.
        skipped: Folder and reason of every episode that gave none, or not all that it has.
    """

    features: Tensor
    source: Observations
    skipped: tuple[tuple[str, str], ...] = ()


def from_episodes(
    store: str | Path, interface: Interface, *, count: int, seed: int, goal: int | None = None
) -> Observed:
    """Features that decision records of logged episodes hold, spread evenly over the episodes.

    Every episode gives equally many, drawn at random, unless it has fewer. Rows that are not
    finite are left out, and counted among what was skipped.

    Args:
        store: An episode, or a folder of episodes.
        interface: What the features must fit.
        count: Largest number of observations.
        seed: Of the draw.
        goal: Use only episodes of this goal; None uses all.

    Raises:
        ConfigError: The store does not exist, or its features are of another encoder.
        DataError: No decision of the store holds finite features; the message says why.
    """
    rows: list[Float32] = []
    skipped: list[tuple[str, str]] = []
    for folder in tqdm(find_episodes(store), desc="read", unit="episode"):
        try:
            reader = EpisodeReader(folder)
            if goal is not None and reader.info.goal != goal:
                continue
            records = [decision.record for decision in reader.decisions()]
        except DataError as error:
            skipped.append((folder.name, str(error)))
            continue
        found = [_features(record, interface, folder) for record in records]
        held = [row for row in found if row is not None]
        finite = [row for row in held if np.all(np.isfinite(row))]
        if finite:
            rows.append(np.stack(finite))
        if len(finite) < len(held):
            odd = len(held) - len(finite)
            skipped.append((folder.name, f"{odd} of its {len(held)} rows are not finite"))
        elif not held:
            skipped.append((folder.name, f"its {len(records)} decisions hold no features"))
    if not rows:
        reason = f" ({skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        of_goal = "" if goal is None else f" of goal {goal}"
        raise DataError(
            f"'{store}' must hold episodes{of_goal} whose decisions hold finite features: none "
            f"does{reason}. Record some with a policy: qsteer demo"
        )
    return _spread(rows, str(store), count=count, seed=seed, skipped=skipped)


def from_play(data: str | Path, interface: Interface, *, count: int, seed: int) -> Observed:
    """Features of play from the simulator's truth, spread evenly over its episodes.

    Play visits more of the state space than a policy does, and has no encoder's errors.

    Raises:
        ConfigError: There is no play, or its features are not those of the interface.
        DataError: An episode is damaged.
    """
    from qsteer_ros.learning.play import load_play

    play = load_play(Path(data) / "play")
    features = play.features()
    if features.shape[1] != interface.feature_dim:
        raise ConfigError(
            f"play must have the {interface.feature_dim} features of the policy: it has "
            f"{features.shape[1]}. Give logged episodes instead: --episodes DIR"
        )
    ends = np.flatnonzero(np.diff(play.episode)) + 1
    return _spread(np.split(features, ends), str(data), count=count, seed=seed, skipped=[])


def _features(record: DecisionRecord, interface: Interface, folder: Path) -> Float32 | None:
    """The features of one record, (F,), or None when it holds none.

    Raises:
        ConfigError: They come from another encoder than the interface names, or fit no policy of
            this interface.
    """
    row = record.tensors.get("features")
    if row is None:
        return None
    if row.shape != (interface.feature_dim,):
        raise ConfigError(
            f"logged features must be those of the policy, ({interface.feature_dim},): episode "
            f"'{folder.name}' has {row.shape}. Give episodes that were recorded with its encoder."
        )
    encoder = record.meta["hashes"].get("encoder")
    if None not in (encoder, interface.encoder_hash) and encoder != interface.encoder_hash:
        raise ConfigError(
            f"logged features must come from the encoder that the checkpoints were trained with, "
            f"{str(interface.encoder_hash)[:12]}: those of episode '{folder.name}' come from "
            f"{encoder[:12]}. Give episodes that were recorded with it."
        )
    return row.astype(np.float32)


def _spread(
    rows: list[Float32], source: str, *, count: int, seed: int, skipped: list[tuple[str, str]]
) -> Observed:
    """At most ``count`` rows, the same number from each episode as far as it has them."""
    if count < 2:
        raise ConfigError(f"'observations' must be at least 2: got {count}.")
    draw = np.random.default_rng(seed)
    turns: list[tuple[int, int, int]] = []  # (turn, episode, row): each episode gives one per turn
    for episode, held in enumerate(rows):
        order = draw.permutation(len(held))
        turns += [(turn, episode, int(row)) for turn, row in enumerate(order)]
    chosen = sorted((episode, row) for _, episode, row in sorted(turns)[:count])
    if len(chosen) < 2:
        raise DataError(
            f"'{source}' must hold at least 2 observations: it holds {len(chosen)}. Record more."
        )
    features = np.stack([rows[episode][row] for episode, row in chosen])
    origin = Observations(
        source=source,
        episodes=len({episode for episode, _ in chosen}),
        count=len(chosen),
        hash=hashlib.sha256(features.tobytes()).hexdigest(),
    )
    return Observed(torch.from_numpy(features), origin, tuple(skipped))
