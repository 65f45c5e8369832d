"""From a fixed buffer to new episodes: one critic learner, which goes on while they arrive.

First come ``steps`` updates on the fixed data. Then every new episode is appended to the buffer
and earns updates: after S new control steps in all, ``steps`` + floor(S ``updates_per_step``)
updates have been made before the next episode is asked for. The checkpoint is rewritten whole and
at once, so that a running node or the simulator can take the newer critic at any moment.

A state of the run names the episodes it has taken in; their windows are kept in the run's folder,
so a resumed run needs neither the log nor the encoder to have them again, and takes none twice.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qsteer_ros import checkpoints
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.learning import states
from qsteer_ros.learning.arrivals import Arrival, FolderWatch, Source
from qsteer_ros.learning.kept import keep, kept
from qsteer_ros.learning.processes import Processes
from qsteer_ros.learning.scalars import Scalars
from qsteer_ros.learning.settings_online import OnlineSettings
from qsteer_ros.learning.sources import load_transitions
from qsteer_ros.learning.train_critic import CriticLearner
from qsteer_ros.learning.trainer import SHOW_EVERY, Trainer, check_finite, interruption, provenance
from qsteer_ros.learning.transitions import Transitions

_MAY_CHANGE = (
    "out",
    "checkpoint_every",
    "log_every",
    "environment_steps",
    "publish_every",
    "poll_s",
)
"""Settings that a resumed run may have otherwise: no update depends on them."""

LONGEST_WAIT_S = 0.2
"""Ctrl-C is noticed after this time at the latest."""


@dataclass
class Taken:
    """What a run has taken in and done.

    Attributes:
        episodes: Key and number of control steps of each new episode, in order.
        updates: Updates made.
    """

    episodes: list[tuple[str, int]] = field(default_factory=list)
    updates: int = 0

    @property
    def steps(self) -> int:
        """New control steps."""
        return sum(steps for _, steps in self.episodes)

    def due(self, settings: OnlineSettings) -> int:
        """Updates that must have been made before the next episode."""
        ratio = Fraction(str(settings.updates_per_step))  # 0.29 is 29/100, not a little less
        return settings.steps + math.floor(self.steps * ratio)


class OnlineRun:
    """One run: its learner, what it has taken in, and where it stands.

    Args:
        settings: How.
        fixed: The fixed data.
        source: Where new episodes come from.
        command: Written into the checkpoint.
    """

    def __init__(
        self, settings: OnlineSettings, fixed: Transitions, source: Source, *, command: str = ""
    ) -> None:
        self.settings, self._fixed, self._source = settings, fixed, source
        self._command = command
        self.learner = CriticLearner(fixed, settings)
        self.learner.buffer.mix(None if settings.new_share < 0.0 else settings.new_share)
        self.taken = Taken()
        same = {k: v for k, v in asdict(settings).items() if k not in _MAY_CHANGE}
        self._identity = {"settings": same, "data_hash": fixed.data_hash}
        self._shown: deque[Mapping[str, Tensor]] = deque(maxlen=1000)

    def resume(self) -> None:
        """Go on from the saved state, if there is one.

        Raises:
            ConfigError: It belongs to other settings or other data.
            DataError: It is damaged, or windows it had taken in are gone.
        """
        folder = states.run_folder(self.settings.out) / states.STATE
        checkpoints.recover(folder)
        if not folder.exists():
            return
        self.taken.updates = states.restore(self.learner, self.settings.out, self._identity)
        config = checkpoints.load(folder, kind=states.STATE).config
        for number, (key, steps) in enumerate(config["episodes"]):
            self.learner.buffer.append(kept(self._file(number)))
            self.taken.episodes.append((str(key), int(steps)))

    def run(self) -> dict[str, float]:
        """Train to the end of what the settings allow.

        State and checkpoint are written at the end.

        Returns:
            Means of the last thousand updates' scalars, and counts of updates, control steps and
            episodes.

        Raises:
            DataError: The loss is not finite. The last saved state is kept.
            KeyboardInterrupt: Ctrl-C; the update was finished, state and checkpoint written.
        """
        settings = self.settings
        torch.set_num_threads(settings.threads)
        with (
            interruption() as interrupted,
            closing(Trainer(self.learner, settings)) as trainer,
            Scalars(settings, first=self.taken.updates, on=True) as scalars,
            tqdm(initial=self.taken.updates, desc="critic, online", unit="update") as bar,
        ):
            while True:
                while self.taken.updates < self.taken.due(settings) and not interrupted:
                    self._update(trainer, scalars, bar)
                if interrupted:
                    self._save()
                    if self.taken.updates >= settings.steps:
                        self.publish()
                    raise KeyboardInterrupt
                if self.taken.updates == settings.steps and not self.taken.episodes:
                    self.publish()  # the critic that collects the first episode
                if settings.environment_steps and self.taken.steps >= settings.environment_steps:
                    break
                arrival = self._source.next(self._known())
                if arrival is None:
                    bar.set_description_str("critic, waiting for episodes")
                    _wait(settings.poll_s, interrupted)
                else:
                    bar.set_description_str(f"critic, {len(self.taken.episodes) + 1} new episodes")
                    self._take(arrival)
        self._save()
        self.publish()
        return self.metrics()

    def publish(self) -> None:
        """Write the critic as it is now, atomically."""
        settings, learner = self.settings, self.learner
        training = provenance(
            settings,
            command=self._command,
            data_hash=self._fixed.data_hash,
            metrics=self.metrics(),
        )
        new = [key for key, _ in self.taken.episodes]
        training |= {
            "goal": settings.goal,
            "transitions": len(learner.buffer),
            "episodes": [*self._fixed.episodes, *new],
        }
        space = self._fixed.interface
        Critic(learner.target, learner.mean, learner.std, space, training).save(settings.out)

    def metrics(self) -> dict[str, float]:
        """Means of recent scalars, and counts."""
        names = self._shown[-1] if self._shown else ()
        means = {n: float(torch.stack([row[n] for row in self._shown]).mean()) for n in names}
        return means | {
            "updates": float(self.taken.updates),
            "environment_steps": float(self.taken.steps),
            "new_episodes": float(len(self.taken.episodes)),
        }

    def _update(self, trainer: Trainer, scalars: Scalars, bar: Any) -> None:
        settings, number = self.settings, self.taken.updates
        shown = trainer.step(number)
        self._shown.append(shown)
        if number % SHOW_EVERY == 0:
            check_finite(shown["loss"], number)
            bar.set_postfix({k: f"{float(v):.4g}" for k, v in shown.items()}, refresh=False)
        scalars.add(number, shown, Processes())
        bar.update()
        self.taken.updates = done = number + 1
        if done % settings.checkpoint_every == 0:
            check_finite(shown["loss"], number)
            self._save()
        if done > settings.steps and (done - settings.steps) % settings.publish_every == 0:
            self.publish()

    def _take(self, arrival: Arrival) -> None:
        """Append an episode to the buffer and keep its windows."""
        self.learner.buffer.append(arrival.transitions)
        keep(self._file(len(self.taken.episodes)), arrival.transitions)
        self.taken.episodes.append((arrival.key, arrival.steps))

    def _known(self) -> Collection[str]:
        return {*self._fixed.episodes, *(key for key, _ in self.taken.episodes)}

    def _save(self) -> None:
        entries = {**self._identity, "episodes": self.taken.episodes}
        states.save(self.learner, self.settings.out, entries, self.taken.updates)

    def _file(self, number: int) -> Path:
        return states.run_folder(self.settings.out) / "taken" / f"{number:06d}.npz"


def train_online(
    settings: OnlineSettings,
    *,
    resume: bool = False,
    command: str = "",
    simulator: Callable[[OnlineSettings], Source] | None = None,
) -> dict[str, float]:
    """Train a critic on fixed data and go on with new episodes.

    The state is kept when it ends: with more ``environment_steps`` the run can be resumed.

    Args:
        settings: How, and from what.
        resume: Continue an interrupted run.
        command: Written into the checkpoint.
        simulator: Makes what plays the episodes of ``simulate=true``.

    Returns:
        See `OnlineRun.run`.

    Raises:
        ConfigError: There are no data or no source of episodes, or the run to resume was another.
    """
    if bool(settings.watch) == settings.simulate:
        raise ConfigError(
            "new episodes must come from one place: set watch=FOLDER or simulate=true, got "
            f"{'both' if settings.watch else 'neither'}."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "qsteer train online must run in one process: torchrun started "
            f"{os.environ['WORLD_SIZE']}. Start it without torchrun."
        )
    if settings.simulate and simulator is None:
        raise ConfigError(
            "simulate=true needs a simulator: none was given. Use the qsteer command."
        )
    if settings.simulate and not settings.environment_steps:
        raise ConfigError(
            "'environment_steps' must be above 0 with simulate=true, whose episodes never end: "
            "got 0."
        )
    source: Source
    if simulator is None or settings.watch:
        source = FolderWatch.of(settings)
    else:
        source = simulator(settings)
    run = OnlineRun(settings, _fixed(settings, resume=resume), source, command=command)
    if resume:
        run.resume()
    return run.run()


def _fixed(settings: OnlineSettings, *, resume: bool) -> Transitions:
    """The fixed data; logged ones are kept, for their folder may be the watched one and grow."""
    path = states.run_folder(settings.out) / "taken" / "fixed.npz"
    if resume and settings.episodes and path.exists():
        return kept(path)
    data = load_transitions(settings)
    if settings.episodes:
        keep(path, data)
    return data


def _wait(seconds: float, interrupted: list[int]) -> None:
    """Until the time is over or Ctrl-C was pressed."""
    end = time.monotonic() + seconds
    while not interrupted and (left := end - time.monotonic()) > 0.0:
        time.sleep(min(left, LONGEST_WAIT_S))
