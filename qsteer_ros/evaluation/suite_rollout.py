"""Episodes of a task of the public suite: many at once, one batched decision for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros.errors import ConfigError

Actor = Callable[[Tensor, Sequence[int]], Tensor]
"""Observations (B, F) and one seed for each -> chunks (B, H, A), normalised."""


class World(Protocol):
    """What an episode is played in: some states of one environment, stepped in turn."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def reset(self, world: int, *, seed: int) -> NDArray[np.float64]:
        """Initial state ``seed`` in one of them; observation (F,)."""
        ...

    def step(
        self, world: int, action: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], float, bool]:
        """One control step: observation, reward, and whether it was solved before the step."""
        ...


class Outcome(NamedTuple):
    """How an episode ended.

    Attributes:
        solved: The task was solved within the limit, as the suite judges it: before an action.
        steps: Control steps taken; of a solved episode including the one it was judged at.
    """

    solved: bool
    steps: int


def state_seeds(seed: int, count: int, *, block: int = 0) -> list[int]:
    """Seeds of initial states: the same for every method.

    Args:
        seed: Of the training run that is judged.
        count: Episodes.
        block: 0 for what is reported; others are for choosing settings, and share no state
            with it.
    """
    drawn = np.random.SeedSequence((block, seed)).generate_state(count, np.uint32)
    return [int(number >> 1) for number in drawn]


def decision_seed(episode: int, decision: int) -> int:
    """Seed of everything random in one decision of one episode."""
    return int(np.random.SeedSequence((episode, decision)).generate_state(1, np.uint32)[0])


@torch.no_grad()
def play_episodes(
    actor: Actor,
    worlds: World,
    seeds: Sequence[int],
    *,
    max_steps: int,
    execute: int,
    on_episode: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """Play one episode from each initial state, chunks open loop.

    All episodes advance together: one call of the actor decides for those that still run. What
    is random in an episode depends on its seed and on the number of the decision, not on which
    others still run.

    Args:
        actor: Decides.
        worlds: At least as many as there are seeds.
        seeds: Of the initial states.
        max_steps: Control steps after which an episode has failed.
        execute: Actions of a chunk that are carried out before the next decision.
        on_episode: Called when an episode ends.

    Raises:
        ConfigError: There are fewer worlds than seeds, or chunks are shorter than ``execute``.
    """
    if len(worlds) < len(seeds):
        raise ConfigError(
            f"{len(seeds)} episodes must have a world each: there are {len(worlds)}."
        )
    seen = np.stack([worlds.reset(i, seed=seed) for i, seed in enumerate(seeds)])
    ended: dict[int, Outcome] = {}
    taken, decision = 0, 0
    while len(ended) < len(seeds):
        running = [i for i in range(len(seeds)) if i not in ended]
        features = torch.from_numpy(seen[running].astype(np.float32))
        chunks = actor(features, [decision_seed(seeds[i], decision) for i in running])
        if chunks.shape[1] < execute:
            raise ConfigError(
                f"chunks must have at least the {execute} actions that are carried out: they have "
                f"{chunks.shape[1]}. Lower execute."
            )
        actions = chunks.numpy().astype(np.float64)
        for i, chunk in zip(running, actions, strict=True):
            for number, action in enumerate(chunk[:execute], start=taken + 1):
                seen[i], _, solved = worlds.step(i, action)
                if solved or number == max_steps:
                    ended[i] = Outcome(solved, number)
                    on_episode()
                    break
        taken, decision = taken + execute, decision + 1
    return [ended[i] for i in range(len(seeds))]
