"""Data sets of many files: each written whole, none made twice, folders that do not mix.

A file depends on the seed and its own number only. A run that was stopped is continued by the
same command: what exists is not made again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from qsteer_ros.errors import ConfigError

Job = TypeVar("Job")


def claim(out: Path, settings: Mapping[str, Any], *, grown: Sequence[str] = ()) -> None:
    """Write ``out/dataset.json``, or refuse to mix two data sets in one folder.

    Args:
        out: Folder of the data set; made if it does not exist.
        settings: What decides the files, without what does not (the number of processes).
        grown: Settings that may be larger than before: they say how many files there are.

    Raises:
        ConfigError: ``out`` holds a data set made with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "dataset.json"
    if path.exists():
        there = json.loads(path.read_text())["settings"]
        different = sorted(
            k
            for k in settings
            if there.get(k) != settings[k]
            and not (k in grown and k in there and there[k] < settings[k])
        )
        if different:
            k = different[0]
            raise ConfigError(
                f"'{out}' must hold data made with the same settings: '{k}' was {there.get(k)}, "
                f"now it is {settings[k]}. Use another folder, or the old value."
            )
    path.write_text(json.dumps({"settings": dict(settings)}, indent=1) + "\n")


def do_jobs(
    jobs: Sequence[Job], work: Callable[[Job], None], *, workers: int, what: str, unit: str
) -> None:
    """Do the jobs, in this process or in several, with a progress bar.

    Args:
        jobs: What is still missing.
        work: Makes one of them; must be picklable when there are several processes.
        workers: Processes.
        what: Name of the progress bar.
        unit: What one job makes.
    """
    bar = tqdm(total=len(jobs), desc=what, unit=unit, disable=not jobs)
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            work(job)
            bar.update()
        bar.close()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for _ in pool.map(work, jobs):
            bar.update()
    bar.close()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name that becomes ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
