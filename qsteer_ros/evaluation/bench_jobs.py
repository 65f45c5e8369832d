"""The steps of a benchmark and what each needs: data, then training, then evaluation.

::

    DATA/cube-single/                                  play (see learning.suite_data)
    OUT/checkpoints/cube-single/seed0/bc               the policy, shared by the tasks
    OUT/checkpoints/cube-single/seed0/posterior-map
    OUT/checkpoints/cube-single-task2/seed0/critic     and dsrl, qvgm
    OUT/results/cube-single-task2/seed0/qgf.json       one evaluation
    OUT/jobs/*.json                                    how each finished step was made
    OUT/logs/*.log                                     what each said
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsteer_ros.errors import ConfigError
from qsteer_ros.evaluation.bench_settings import METHODS, PROGRAMS, BenchSettings, Task
from qsteer_ros.learning.programs import settings_of
from qsteer_ros.learning.settings import checked

SECONDS_PER_STEP = {"bc": 0.005, "critic": 0.016, "posterior-map": 0.02, "dsrl": 0.04, "qvgm": 0.1}
"""Rough cost of an optimiser step on one core; only the time left is estimated from it."""
SECONDS_PER_EPISODE, SECONDS_PER_TRANSITION = 0.5, 0.0015


@dataclass(frozen=True)
class Job:
    """One step, done by one command.

    Attributes:
        name: Such as ``critic/cube-single-task2/seed0``.
        words: Of the command, after ``qsteer``.
        needs: Names of the jobs that must be done before.
        record: File that is there when it is done.
        made: How it was asked for, without the places of folders: what the record holds.
        seconds: Rough cost on one core.
        slots: Processes it uses.
        batch: Jobs of one batch that are ready together may share a process: the last words of
            all of them make one command. Empty: a process of its own. Such a job writes its own
            record.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...]
    record: Path
    made: Mapping[str, Any]
    seconds: float
    slots: int = 1
    batch: str = ""

    def done(self) -> bool:
        """Whether it has been done, in the same way.

        Raises:
            ConfigError: It has been done with other settings.
        """
        if not self.record.exists():
            return False
        there = json.loads(self.record.read_text())["made"]
        wanted = json.loads(json.dumps(self.made))
        if there != wanted:
            key = next(k for k in (*wanted, *there) if there.get(k) != wanted.get(k))
            raise ConfigError(
                f"'{self.record}' must have been made with the settings of this benchmark: "
                f"'{key}' was {there.get(key)}, now it is {wanted.get(key)}. Use another --out, "
                "or delete the file and what was made from it."
            )
        return True


def jobs_of(settings: BenchSettings) -> list[Job]:
    """Every job of a benchmark, in an order in which they can be done: seeds one after another.

    Raises:
        ConfigError: A recipe has a setting that its program does not know.
    """
    found: dict[str, Job] = {}
    suites = dict.fromkeys(task.suite for task in settings.tasks)
    for suite in suites:
        _add(found, _data(settings, suite))
    for seed in settings.seeds:
        for task in settings.tasks:
            wanted = {need for method in settings.methods for need in METHODS[method].needs}
            for program in PROGRAMS:
                if program in ("bc", "critic") or program in wanted:
                    _add(found, _training(settings, task, seed, program))
            for job in _evaluations(settings, task, seed):
                _add(found, job)
    return list(found.values())


def checkpoint(settings: BenchSettings, task: Task, seed: int, program: str) -> Path:
    """Folder of a checkpoint; what depends on no reward is shared by the tasks."""
    return settings.out / "checkpoints" / _owner(task, program) / f"seed{seed}" / program


def result(settings: BenchSettings, task: Task, seed: int, method: str) -> Path:
    """File of an evaluation."""
    return settings.out / "results" / str(task) / f"seed{seed}" / f"{method}.json"


def _add(found: dict[str, Job], job: Job) -> None:
    found.setdefault(job.name, job)


def _data(settings: BenchSettings, suite: str) -> Job:
    recipe = settings.recipes.of(suite)["data"]
    folder = settings.data / suite
    words = [f"suite={suite}", *_words(recipe), f"workers={settings.workers}", f"out={folder}"]
    return Job(
        name=f"data/{suite}",
        words=("bench", "data", *words),
        needs=(),
        record=_record(settings, f"data/{suite}"),
        made={"suite": suite, **recipe},
        seconds=recipe.get("transitions", 0) * SECONDS_PER_TRANSITION,
        slots=settings.workers,
    )


def _training(settings: BenchSettings, task: Task, seed: int, program: str) -> Job:
    recipe = dict(settings.recipes.of(task.suite)[program])
    recipe |= {"seed": seed}
    needs = [f"data/{task.suite}"]
    places: dict[str, Any] = {"data": settings.data / task.suite}
    if program in ("critic", "dsrl"):
        recipe |= {"task": task.number}
    if program in ("posterior-map", "dsrl", "qvgm"):
        places["policy"] = checkpoint(settings, task, seed, "bc")
        needs.append(f"bc/{task.suite}/seed{seed}")
    if program in ("dsrl", "qvgm"):
        places["critic"] = checkpoint(settings, task, seed, "critic")
        needs.append(f"critic/{task}/seed{seed}")
    places["out"] = checkpoint(settings, task, seed, program)
    checked(settings_of(program), {k: str(v) for k, v in {**recipe, **places}.items()})
    name = f"{program}/{_owner(task, program)}/seed{seed}"
    return Job(
        name=name,
        words=("train", program, "--resume", *_words(recipe), *_words(places)),
        needs=tuple(needs),
        record=_record(settings, name),
        made=recipe,
        seconds=recipe.get("steps", 1000) * SECONDS_PER_STEP[program],
    )


def _evaluations(settings: BenchSettings, task: Task, seed: int) -> Iterator[Job]:
    """One job per method."""
    recipe = settings.recipes.of(task.suite)
    for method in settings.methods:
        needs = ("bc", "critic", *METHODS[method].needs)
        folders = {need: checkpoint(settings, task, seed, need) for need in needs}
        made = {
            "suite": task.suite,
            "task": task.number,
            "seed": seed,
            "method": method,
            "settings": recipe[method] if method not in PROGRAMS else {},
            "execute": recipe["execute"],
            "episodes": settings.episodes,
            "block": settings.block,
        }
        owners = [_owner(task, need) for need in needs]
        record = result(settings, task, seed, method)
        places = {**folders, "data": settings.data / task.suite, "out": record}
        spec = {**made, "places": {name: str(place) for name, place in places.items()}}
        yield Job(
            name=f"evaluate/{task}/seed{seed}/{method}",
            words=("bench", "evaluate", json.dumps(spec)),
            needs=tuple(f"{n}/{o}/seed{seed}" for n, o in zip(needs, owners, strict=True)),
            record=record,
            made=made,
            seconds=settings.episodes * SECONDS_PER_EPISODE,
            batch=f"evaluate/{task}/seed{seed}",
        )


def _owner(task: Task, program: str) -> str:
    """What a program's checkpoint belongs to: the environment, if it depends on no reward."""
    return task.suite if program in ("bc", "posterior-map") else str(task)


def _record(settings: BenchSettings, name: str) -> Path:
    return settings.out / "jobs" / f"{name.replace('/', '_')}.json"


def _words(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]
