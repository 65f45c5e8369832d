"""The results of a benchmark: read from their files, averaged, written as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsteer_ros.errors import DataError
from qsteer_ros.evaluation.bench_settings import METHODS
from qsteer_ros.evaluation.bootstrap import RESAMPLES, interval, stratified_means

EXPLANATION = (
    "Success in percent, with 95 % bootstrap intervals in brackets: percentiles of "
    f"{RESAMPLES} resamples of the episodes of each training run by itself, which all count the "
    "same (the interval is about episodes; runs are listed in the JSON). Average: over the tasks "
    "in which the method was evaluated."
)


@dataclass(frozen=True)
class Rate:
    """A success rate.

    Attributes:
        mean: 0 to 1.
        low: Lower end of its interval.
        high: Upper end.
        runs: Mean of each training run, in the order of the seeds (of an average: empty).
    """

    mean: float
    low: float
    high: float
    runs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Results:
    """Outcomes by task, method and seed.

    Attributes:
        solved: (task, method) -> seed -> outcome of each episode.
        weights: (task, method) -> seed -> weight that was used; empty for methods without one.
    """

    solved: dict[tuple[str, str], dict[int, NDArray[np.float64]]]
    weights: dict[tuple[str, str], dict[int, float]]

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Every result below a folder.

        Raises:
            DataError: A file is damaged, results have different numbers of episodes or blocks of
                initial states, or there is none.
        """
        solved: dict[tuple[str, str], dict[int, NDArray[np.float64]]] = {}
        weights: dict[tuple[str, str], dict[int, float]] = {}
        kinds: set[tuple[int, int]] = set()
        for path in sorted(folder.glob("*/seed*/*.json")):
            try:
                found = json.loads(path.read_text())
                made = found["made"]
                key = (f"{made['suite']}-task{made['task']}", made["method"])
                outcomes = np.array(found["solved"], dtype=np.float64)
                kinds.add((len(outcomes), made["block"]))
                seed = int(made["seed"])
                weight = found.get("steering", {}).get("weight", 0.0)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"'{path}' is damaged: {error!r}. Delete it and run the benchmark again."
                ) from error
            solved.setdefault(key, {})[seed] = outcomes
            if weight:
                weights.setdefault(key, {})[seed] = float(weight)
        if not solved:
            raise DataError(f"'{folder}' must hold results: there are none yet.")
        if len(kinds) > 1:
            raise DataError(
                f"results in '{folder}' must have the same number of episodes and block of "
                f"initial states: got {sorted(kinds)}. Use one --out for each."
            )
        return cls(solved, weights)

    @property
    def tasks(self) -> list[str]:
        """Tasks with a result."""
        return list(dict.fromkeys(task for task, _ in self.solved))

    @property
    def methods(self) -> list[str]:
        """Methods with a result, in the order of the table."""
        there = {method for _, method in self.solved}
        return [method for method in METHODS if method in there]

    def rate(self, task: str, method: str) -> Rate | None:
        """Success of one method on one task; None where there is no result."""
        runs = self.solved.get((task, method))
        if runs is None:
            return None
        strata = [runs[seed] for seed in sorted(runs)]
        means = tuple(float(run.mean()) for run in strata)
        return Rate(float(np.mean(means)), *interval(stratified_means(strata)), means)

    def average(self, method: str, tasks: Sequence[str] | None = None) -> Rate:
        """Over tasks, each counting the same; every run is a stratum of its own.

        Raises:
            DataError: There is no result of this method.
        """
        samples, means = [], []
        for number, task in enumerate(self.tasks if tasks is None else tasks):
            runs = self.solved.get((task, method))
            if runs is not None:
                samples.append(stratified_means([runs[s] for s in sorted(runs)], seed=number))
                means.append(np.mean([runs[s].mean() for s in sorted(runs)]))
        if not samples:
            raise DataError(f"there is no result of method '{method}'.")
        low, high = interval(np.mean(samples, axis=0))
        return Rate(float(np.mean(means)), low, high)


def markdown(results: Results) -> str:
    """The table: a row per method, a column per task and one for the average."""
    tasks = results.tasks
    lines = [
        "| method | " + " | ".join(tasks) + " | average |",
        "|---" * (len(tasks) + 2) + "|",
    ]
    best = {task: _best(results, task) for task in tasks}
    for method in results.methods:
        cells = []
        for task in tasks:
            rate = results.rate(task, method)
            text = "-" if rate is None else _text(rate)
            cells.append(f"**{text}**" if rate is not None and rate.mean == best[task] else text)
        cells.append(_text(results.average(method)))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    runs = {len(runs) for runs in results.solved.values()}
    episodes = len(next(iter(next(iter(results.solved.values())).values())))
    count = str(runs.pop()) if len(runs) == 1 else f"{min(runs)} to {max(runs)}"
    lines += ["", f"Training runs: {count}, of {episodes} episodes each. {EXPLANATION}"]
    return "\n".join(lines) + "\n"


def summary(results: Results, *, command: str) -> dict[str, Any]:
    """Everything in the table, and the runs behind it, as plain values."""
    cells: dict[str, Any] = {}
    for task in results.tasks:
        for method in results.methods:
            rate = results.rate(task, method)
            if rate is None:
                continue
            runs = results.solved[task, method]
            cells.setdefault(task, {})[method] = _plain(rate) | {
                "seeds": sorted(runs),
                "runs": [round(run, 4) for run in rate.runs],
                "weights": [results.weights.get((task, method), {}).get(s) for s in sorted(runs)],
            }
    average = {method: _plain(results.average(method)) for method in results.methods}
    return {"command": command, "explanation": EXPLANATION, "tasks": cells, "average": average}


def _best(results: Results, task: str) -> float:
    rates = [results.rate(task, method) for method in results.methods]
    return max(rate.mean for rate in rates if rate is not None)


def _text(rate: Rate) -> str:
    return f"{100 * rate.mean:.0f} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def _plain(rate: Rate) -> dict[str, Any]:
    return {name: round(getattr(rate, name), 4) for name in ("mean", "low", "high")}
