"""Does the jobs of a benchmark: subprocesses in parallel, resumed by the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from qsteer_ros.errors import DataError
from qsteer_ros.evaluation.bench_jobs import Job
from qsteer_ros.learning.generation import written_whole

POLL_S = 0.1
PATIENCE_S = 60.0
"""How long interrupted programs get to finish their step and save."""


class Process(Protocol):
    """A program that was started."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        ...

    def send_signal(self, number: int, /) -> None:
        """Send it a signal."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises subprocess.TimeoutExpired."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


@dataclass
class Running:
    """A process and the jobs it does."""

    jobs: tuple[Job, ...]
    process: Process
    log: Path


@dataclass
class State:
    """How far a benchmark is.

    Attributes:
        todo: Jobs that have not been started, in order.
        done: Names of those that are done.
        running: Processes.
        failed: What failed and where it said why.
    """

    todo: list[Job]
    done: set[str]
    running: list[Running] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def slots(self) -> int:
        """Slots that are in use."""
        return sum(max(job.slots for job in each.jobs) for each in self.running)

    def next(self, workers: int) -> tuple[Job, ...]:
        """The next jobs that one process can do now; empty if there are none."""
        free = workers - self.slots
        for job in self.todo:
            fits = min(job.slots, workers) <= free
            if not fits or not self.done.issuperset(job.needs):
                continue
            if not job.batch:
                return (job,)
            together = [j for j in self.todo if j.batch == job.batch]
            return tuple(j for j in together if self.done.issuperset(j.needs))
        return ()


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int,
    logs: Path,
    on_done: Callable[[Job], object] = lambda job: None,
    launch: Callable[[Sequence[str], Path], Process] | None = None,
) -> None:
    """Do what has not been done, several at a time, with one line of progress.

    A job that fails does not stop those that do not need it. Ctrl-C stops the programs after
    their step, with their state saved; the same command goes on from there.

    Args:
        jobs: Each after those that it needs.
        workers: Processes at a time. Each program has one thread.
        logs: Folder for what the programs say.
        on_done: Called after each job.
        launch: Starts a program, given its words and its log; None: `qsteer` in a process.

    Raises:
        ConfigError: A job has been done with other settings.
        DataError: Jobs failed; the message names their logs.
        KeyboardInterrupt: The user pressed Ctrl-C, or the process was told to end.
    """
    done = {job.name for job in jobs if job.done()}
    state = State([job for job in jobs if job.name not in done], done)
    with _bar(jobs, done) as bar, _ended_as_interrupted():
        try:
            while state.todo or state.running:
                while ready := state.next(workers):
                    _start(state, ready, logs, launch or _subprocess)
                if not state.running:
                    break
                time.sleep(POLL_S)
                for job in _collect(state):
                    bar.update(job.seconds)
                    on_done(job)
                names = [each.jobs[0].name for each in state.running]
                bar.set_postfix_str(", ".join(names), refresh=False)
                bar.update(0)
        except KeyboardInterrupt:
            _interrupt(state)
            raise
    if state.failed:
        waiting = f"; {len(state.todo)} jobs wait for them" if state.todo else ""
        raise DataError(
            f"every job must succeed: {'; '.join(state.failed)}{waiting}. Repair the cause and "
            "run the same command again."
        )


def _start(
    state: State,
    jobs: tuple[Job, ...],
    logs: Path,
    launch: Callable[[Sequence[str], Path], Process],
) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{jobs[0].name.replace('/', '_')}.log"
    words = [*jobs[0].words, *(job.words[-1] for job in jobs[1:])]
    state.running.append(Running(jobs, launch(words, log), log))
    started = {job.name for job in jobs}
    state.todo = [job for job in state.todo if job.name not in started]


def _subprocess(words: Sequence[str], log: Path) -> Process:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "qsteer_ros.cli", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is passed on once, by `_interrupt`
            env=_environment(),
        )


def _environment() -> dict[str, str]:
    """One thread per process, and this copy of the package."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": package if not path else f"{package}{os.pathsep}{path}",
        **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")},
    }


def _collect(state: State) -> Iterator[Job]:
    """Jobs that have ended; those that succeeded are yielded."""
    for each in list(state.running):
        status = each.process.poll()
        if status is None:
            continue
        state.running.remove(each)
        for job in each.jobs:
            if not job.batch and status == 0:
                _write_record(job)
            if job.record.exists():
                state.done.add(job.name)
                yield job
            else:
                state.failed.append(f"{job.name} ({_last_line(each.log)}; see {each.log})")


def _write_record(job: Job) -> None:
    with written_whole(job.record) as path:
        path.write_text(json.dumps({"made": job.made, "words": job.words}, indent=1) + "\n")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")


def _interrupt(state: State) -> None:
    """Let trainings finish their step and save; evaluations have nothing to keep."""
    for each in state.running:
        evaluating = bool(each.jobs[0].batch)
        each.process.send_signal(signal.SIGTERM if evaluating else signal.SIGINT)
    deadline = time.monotonic() + PATIENCE_S
    for each in state.running:
        try:
            each.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.process.kill()
            each.process.wait()


@contextmanager
def _bar(jobs: Sequence[Job], done: set[str]) -> Iterator[Any]:
    before = sum(job.seconds for job in jobs if job.name in done)
    every = 1.0 if sys.stderr.isatty() else 30.0
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} so far, {remaining} left {postfix}"
    total = sum(job.seconds for job in jobs)
    with tqdm(
        total=total, initial=before, desc="bench", bar_format=layout, mininterval=every
    ) as bar:
        yield bar


@contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """SIGTERM ends a benchmark as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
