"""Play in an environment of the public suite, on disk.

::

    OUT/dataset.json              settings
    OUT/play/episode_00000.npz    training play (see SuiteEpisode)
    OUT/held_out/episode_...      play of other seeds, for tests of what was learned

Every file depends on the seed and its own number only, and is written whole.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qsteer_ros.errors import ConfigError
from qsteer_ros.learning.generation import claim, do_jobs, written_whole
from qsteer_ros.learning.settings import option

SPLITS = ("play", "held_out")


@dataclass(frozen=True)
class SuiteDataSettings:
    """What is generated for one environment of the suite."""

    out: str = option("", "Folder of the data set.")
    suite: str = option("cube-single", "Environment: cube-single, scene, puzzle-3x3, ...")
    transitions: int = option(300_000, "Control steps of play.", bounds=(1, 1e9))
    held_out: int = option(20_000, "Control steps of held-out play.", bounds=(0, 1e8))
    episode_steps: int = option(1001, "Control steps of an episode.", bounds=(2, 1e6))
    noise: float = option(0.1, "Noise on the experts' plans.", bounds=(0.0, 1.0))
    smoothing: float = option(0.5, "Smoothing of that noise, in steps.", bounds=(0.0, 100.0))
    workers: int = option(2, "Processes.", bounds=(1, 256))
    seed: int = option(0, "Decides every episode.", bounds=(0, 2**31))


def generate_suite(settings: SuiteDataSettings) -> None:
    """Generate a data set of the suite, or what is still missing of one.

    Args:
        settings: What, how much, and where to.

    Raises:
        ConfigError: There is no such environment, no folder is named, or it holds a data set made
            with other settings.
    """
    from qsteer_ros.sim.suite import spec

    if not settings.out:
        raise ConfigError(
            f"play of '{settings.suite}' must be told where it goes: 'out' is empty. "
            f"Add out=data/{settings.suite}."
        )
    spec(settings.suite)
    out = Path(settings.out)
    mine = {k: v for k, v in asdict(settings).items() if k not in ("out", "workers")}
    claim(out, mine, grown=("transitions", "held_out"))
    wanted = {"play": settings.transitions, "held_out": settings.held_out}
    jobs = [
        (split, i) for split in SPLITS for i in range(-(-wanted[split] // settings.episode_steps))
    ]
    missing = [job for job in jobs if not _path(out, *job).exists()]
    work = partial(_make, out, settings)
    do_jobs(missing, work, workers=settings.workers, what=settings.suite, unit="episode")


def _path(out: Path, split: str, index: int) -> Path:
    return out / split / f"episode_{index:05d}.npz"


_environments: dict[str, Any] = {}
"""Per process: one compiled environment for each name."""


def _make(out: Path, settings: SuiteDataSettings, job: tuple[str, int]) -> None:
    from qsteer_ros.sim.suite import make
    from qsteer_ros.sim.suite_play import play

    split, index = job
    if settings.suite not in _environments:
        _environments[settings.suite] = make(settings.suite)
    drawn = np.random.SeedSequence((settings.seed, SPLITS.index(split), index))
    episode = play(
        _environments[settings.suite],
        settings.suite,
        seed=int(drawn.generate_state(1)[0]),
        steps=settings.episode_steps,
        noise=settings.noise,
        smoothing=settings.smoothing,
    )
    with written_whole(_path(out, *job)) as path:
        np.savez(path, allow_pickle=False, **vars(episode))
