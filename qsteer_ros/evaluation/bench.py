"""``qsteer bench ogbench``: trains, evaluates every method alike, writes a table and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsteer_ros.evaluation.bench_figure import success_figure
from qsteer_ros.evaluation.bench_jobs import Job, jobs_of
from qsteer_ros.evaluation.bench_run import run_jobs
from qsteer_ros.evaluation.bench_settings import BenchSettings, Recipes
from qsteer_ros.evaluation.bench_table import Results, markdown, summary
from qsteer_ros.learning.generation import written_whole

TABLE, SUMMARY, FIGURE = "table.md", "summary.json", "success.svg"


def bench(settings: BenchSettings, *, command: str = "") -> str:
    """Do what is missing of a benchmark; the table is written after every evaluation.

    Args:
        settings: What.
        command: Written into the summary.

    Returns:
        The table.

    Raises:
        ConfigError: A setting is wrong, or a step has been done with other settings.
        DataError: A step failed; the message names its log.
        KeyboardInterrupt: Stopped by the user; the same command goes on.
    """

    def written(job: Job) -> None:
        if job.batch:
            write_table(settings.out, command=command)

    run_jobs(
        jobs_of(settings),
        workers=settings.workers,
        logs=settings.out / "logs",
        on_done=written,
    )
    return write_table(settings.out, command=command)


def write_table(out: Path, *, command: str) -> str:
    """Table, summary and figure of the results that are there; returns the table.

    Raises:
        DataError: There is no result, or one is damaged.
    """
    results = Results.read(out / "results")
    table = markdown(results)
    texts = {
        TABLE: table,
        SUMMARY: json.dumps(summary(results, command=command), indent=1) + "\n",
        FIGURE: success_figure(results),
    }
    for name, text in texts.items():
        with written_whole(out / name) as path:
            path.write_text(text)
    return table


def bench_from_options(options: Mapping[str, Any], *, command: str = "") -> str:
    """A benchmark as the command line's options say; the table.

    Raises:
        ConfigError: As `bench`.
        DataError: As `bench`.
    """
    recipes = Recipes.read(options["config"], quick=options["quick"], words=options["set"])
    out = Path(options["out"])
    first = options["first_seed"]
    settings = BenchSettings(
        tasks=tuple(recipes.task(text) for text in options["tasks"].split(",")),
        methods=tuple(method.strip() for method in options["methods"].split(",")),
        seeds=tuple(range(first, first + options["seeds"])),
        episodes=options["episodes"],
        out=out.absolute(),
        data=(out / "data" if options["data"] is None else options["data"]).absolute(),
        workers=options["workers"],
        block=options["block"],
        recipes=recipes,
    )
    return bench(settings, command=command)
