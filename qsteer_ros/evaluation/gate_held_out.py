"""Held-out windows: what a critic is examined on, and that it has not learned from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.gate import HeldOutEpisode
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.interface import Interface
from qsteer_ros.learning.settings import ChunkSource
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.replay.episode import Episode, find_episodes
from qsteer_ros.types import Array

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

UNSTEERED = ("off", "zero", "random_matched")
"""Modes in which no critic chooses."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Windows of held-out episodes.

    Attributes:
        features: At the start of each window, (M, F).
        chunk: Executed, normalised, (M, H, A).
        observed: Monte-Carlo return to go, (M,).
        tail: Weight of the future after the cut of the episode, (M,): gamma to the number of steps
            that were seen, 0 where the task was solved.
        reward: Of each step, (M, H).
        episode: (M,).
        step: Number of the window in its episode, (M,).
        success: Whether the task is solved at or after the window's start, (M,).
        steered: Whether the critic that is examined chose the chunk, (M,).
        interface: The space they live in.
        data_hash: Names them.
        episodes: Where they are from; empty hashes where the data has none.
        left_out: Name and reason of each episode that was not used.
    """

    features: Float32
    chunk: Float32
    observed: Array
    tail: Array
    reward: Array
    episode: Ints
    step: Ints
    success: Bools
    steered: Bools
    interface: Interface
    data_hash: str
    episodes: tuple[HeldOutEpisode, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        """M."""
        return len(self.features)


def from_transitions(
    transitions: Transitions,
    *,
    discount: float,
    windows: int = 20_000,
    names: tuple[str, ...] = (),
) -> HeldOut:
    """Windows of any source that knows returns and episodes.

    Windows of one episode must be in the order of time. Of more than ``windows``, every second,
    third, ... step of each episode is taken, the same steps in all of them.

    Args:
        transitions: With ``mc_return``, ``episode``, ``success`` and ``rewards``.
        discount: gamma, per control step.
        windows: At most about this many.
        names: Of the episodes, in the order of their numbers; default: the numbers.

    Raises:
        ConfigError: The transitions do not know one of these.
    """
    found = transitions.needed("mc_return", "episode", "success", "rewards")
    episode, success = found["episode"], found["success"]
    step = np.zeros(len(transitions), dtype=np.int64)
    tail = np.zeros(len(transitions))
    entries = []
    for place, number in enumerate(np.unique(episode)):
        mine = np.flatnonzero(episode == number)
        step[mine] = np.arange(len(mine))
        seen = len(mine) - 1 - step[mine] + transitions.interface.horizon
        tail[mine] = np.where(success[mine], 0.0, discount**seen)
        hashed = transitions.episodes[place] if transitions.episodes else ""
        name = names[place] if names else str(int(number))
        entries.append(HeldOutEpisode(name, hashed, bool(success[mine].any()), len(mine)))
    keep = step % max(1, -(-len(transitions) // windows)) == 0
    return HeldOut(
        features=transitions.features[keep],
        chunk=transitions.chunk[keep],
        observed=found["mc_return"][keep].astype(np.float64),
        tail=tail[keep],
        reward=found["rewards"][keep].astype(np.float64),
        episode=episode[keep],
        step=step[keep],
        success=success[keep],
        steered=np.zeros(int(keep.sum()), dtype=np.bool_),
        interface=transitions.interface,
        data_hash=transitions.data_hash,
        episodes=tuple(entries),
    )


def from_store(
    store: str | Path,
    critic: Critic,
    *,
    discount: float,
    encoder: str,
    robot: str,
    windows: int = 20_000,
) -> HeldOut:
    """Windows of the logged episodes of the critic's goal.

    Args:
        store: An episode, or a folder of episodes.
        critic: Gives horizon and goal; a critic that names no goal gets all episodes.
        discount: gamma, per control step.
        encoder: Checkpoint that makes the features.
        robot: Robot file of the episodes.
        windows: At most about this many.

    Raises:
        ConfigError: Something is missing, does not fit, or the critic has learned from an episode.
        DataError: No episode of this goal can be used.
    """
    from qsteer_ros.learning.logged import logged_transitions

    goal = critic.training.get("goal")
    names: dict[str, str] = {}
    infos: dict[str, Episode] = {}
    for folder in find_episodes(store):
        try:
            info = Episode.load(folder)
        except DataError:
            continue  # whoever reads the steps says why it cannot be used
        if goal in (None, info.goal):
            hashed = str(info.bag.get("sha256"))
            names[hashed], infos[hashed] = folder.name, info
    check_unseen(critic, names)
    source = ChunkSource(episodes=str(store), encoder=encoder, robot=robot, horizon=critic.horizon)
    transitions = logged_transitions(source, goal=goal, discount=discount)
    check_unseen(critic, names, data_hash=transitions.data_hash)
    used = tuple(names[hashed] for hashed in transitions.episodes)
    found = from_transitions(transitions, discount=discount, windows=windows, names=used)
    return _judged(_marked(found, infos, critic), infos)


def _marked(found: HeldOut, infos: dict[str, Episode], critic: Critic) -> HeldOut:
    """With the episodes named that this critic steered: what it likes there says nothing."""
    entries = tuple(
        replace(
            entry,
            steered=infos[entry.sha256].provenance.get("critic") == critic.hash
            and infos[entry.sha256].arm.partition(":")[0] not in UNSTEERED,
        )
        for entry in found.episodes
    )
    mine = np.unique(found.episode)[[entry.steered for entry in entries]]
    return replace(found, episodes=entries, steered=np.isin(found.episode, mine))


def _judged(found: HeldOut, infos: dict[str, Episode]) -> HeldOut:
    """Without episodes of which nobody knows how they would have ended."""
    why = [_unusable(entry, infos[entry.sha256].outcome) for entry in found.episodes]
    if all(why):
        raise DataError(
            f"held-out episodes must have ended by themselves: none of {len(why)} did "
            f"({found.episodes[0].name}: {why[0]}). Record others."
        )
    keep = ~np.isin(found.episode, np.unique(found.episode)[[bool(reason) for reason in why]])
    arrays: dict[str, Any] = {k: v for k, v in vars(found).items() if isinstance(v, np.ndarray)}
    both = list(zip(found.episodes, why, strict=True))
    return replace(
        found,
        **{name: array[keep] for name, array in arrays.items()},
        episodes=tuple(entry for entry, reason in both if not reason),
        left_out=tuple((entry.name, reason) for entry, reason in both if reason),
    )


def _unusable(entry: HeldOutEpisode, outcome: str | None) -> str:
    """Why the return of an episode is not known; empty when it is."""
    if outcome not in ("success", "failure"):
        return f"its outcome is '{outcome}'"
    if entry.success != (outcome == "success"):
        seen = "reaches" if entry.success else "does not reach"
        return f"its outcome is '{outcome}', but its log {seen} the goal"
    return ""


def check_unseen(critic: Critic, names: dict[str, str], *, data_hash: str = "") -> None:
    """Refuse episodes that the critic has learned from.

    Args:
        critic: Names them in its training.
        names: Hash of each episode's bag -> what it is called.
        data_hash: Of all of them together.

    Raises:
        ConfigError: One of them is among its training data.
    """
    learned = set(critic.training.get("episodes", ()))
    both = sorted(name for hashed, name in names.items() if hashed in learned)
    if not both and data_hash and data_hash == critic.training.get("data_hash"):
        both = sorted(names.values())
    if both:
        raise ConfigError(
            f"held-out episodes must be new to the critic: it was trained on {len(both)} of "
            f"these {len(names)}, such as '{both[0]}'. Record others, or keep some back from "
            "training."
        )


def known_training(critic: Critic) -> bool:
    """Whether a critic names what it learned from: its data, and every logged episode."""
    logged = critic.interface.encoder_hash is not None
    return "data_hash" in critic.training and (not logged or "episodes" in critic.training)


def discount_of(critic: Critic) -> float | None:
    """Discount of a critic's training, per control step; None where it does not say."""
    settings: Any = critic.training.get("settings", {})
    found = settings.get("discount") if isinstance(settings, dict) else None
    return None if found is None else float(found)
