"""Runs the processes of a system as one: output, logs, shutdown, and what a death means."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from qsteer_ros.graph.systems import Process

INTERRUPT_TIMEOUT_S = 10.0
"""Time a node has to end after SIGINT: it brings the arm to rest and closes its episode."""
TERMINATE_TIMEOUT_S = 3.0
"""Time it has after SIGTERM, before SIGKILL."""
LAST_LINES = 8

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

Command = Callable[[Process], list[str]]
LineSink = Callable[[str, str], None]
"""(process name, line without its end) -> None; called from the reader threads."""


@dataclass
class _Running:
    process: Process
    popen: subprocess.Popen[str]
    log: Path
    started_s: float
    last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    threads: list[threading.Thread] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """How a system ended.

    Attributes:
        status: Exit status for the command: 0 when it was done or was told to stop.
        reason: One line for the user.
    """

    status: int
    reason: str


def module_command(process: Process) -> list[str]:
    """The node as a module of this interpreter: needs no installed console script."""
    module = f"qsteer_ros.nodes.{process.executable}"
    return [sys.executable, "-m", module, *process.ros_arguments()]


class Supervisor:
    """Starts processes, watches them, and takes all of them down together.

    Each runs in a process group of its own, so that Ctrl-C reaches it once, from here. A process
    is interrupted by the kernel when the supervisor itself is killed. Use as a context manager
    from the main thread: leaving the block always ends every process.
    """

    def __init__(
        self,
        processes: Sequence[Process],
        *,
        logs: Path,
        environment: Mapping[str, str],
        on_line: LineSink,
        command: Command = module_command,
    ) -> None:
        """Describe the run; nothing starts yet.

        Args:
            processes: What to start, in this order.
            logs: Folder for one ``<name>.log`` per process; made when missing.
            environment: Whole environment of the processes.
            on_line: Receives every line of output.
            command: How a process becomes a command line.
        """
        self._processes = processes
        self._logs = logs
        self._environment = dict(environment)
        self._on_line = on_line
        self._command = command
        self._running: list[_Running] = []
        # Its put may interrupt its own get: signal handlers use it.
        self._ended: queue.SimpleQueue[_Running | int] = queue.SimpleQueue()
        self._previous_handlers: dict[int, signal.Handlers | int | Callable[..., object] | None]
        self._previous_handlers = {}

    def __enter__(self) -> Supervisor:
        """Start every process; Ctrl-C and SIGTERM now end :meth:`wait`."""
        self._logs.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = signal.signal(
                number, lambda received, frame: self._ended.put(received)
            )
        try:
            for process in self._processes:
                self._running.append(self._start(process))
        except BaseException:
            self.__exit__()
            raise
        for running in self._running:
            for work in (self._read, self._watch):
                running.threads.append(threading.Thread(target=work, args=(running,), daemon=True))
                running.threads[-1].start()
        return self

    def __exit__(self, *exception: object) -> None:
        """End every process and give the signals back."""
        self.stop()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def wait(self, timeout_s: float | None = None) -> Outcome | None:
        """Block until the system ends, and say why; it is *not* stopped by this call.

        Returns:
            ``None`` when ``timeout_s`` passed and everything still runs.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                event = self._ended.get(timeout=left)
            except queue.Empty:
                return None
            outcome = self._judge(event)
            if outcome is not None:
                return outcome

    def stop(self) -> list[str]:
        """Interrupt, then terminate, then kill what is left; names of those that were killed.

        Children that a process left behind in its group are killed last.
        """
        signals = (
            (signal.SIGINT, INTERRUPT_TIMEOUT_S),
            (signal.SIGTERM, TERMINATE_TIMEOUT_S),
            (signal.SIGKILL, TERMINATE_TIMEOUT_S),
        )
        killed: list[str] = []
        for number, timeout_s in signals:
            alive = [r for r in self._running if r.popen.poll() is None]
            if number == signal.SIGKILL:
                killed = [r.process.name for r in alive]
            for running in alive:
                _signal_group(running.popen, number)
            deadline = time.monotonic() + timeout_s
            for running in alive:
                _wait_until(running.popen, deadline)
        for running in self._running:
            _signal_group(running.popen, signal.SIGKILL)
            for thread in running.threads:
                thread.join(TERMINATE_TIMEOUT_S)
        return killed

    def _start(self, process: Process) -> _Running:
        popen = subprocess.Popen(
            self._command(process),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._environment,
            start_new_session=True,
            preexec_fn=_interrupt_with_parent,
        )
        return _Running(process, popen, self._logs / f"{process.name}.log", time.monotonic())

    def _read(self, running: _Running) -> None:
        stream: IO[str] | None = running.popen.stdout
        assert stream is not None  # Popen was given a pipe
        name = running.process.name
        with running.log.open("a") as log, stream:
            for line in stream:
                running.last.append(line.rstrip("\n"))
                # A full disk or a closed terminal must not close the pipe: that would end the
                # process at its next line, in the middle of a motion.
                with contextlib.suppress(OSError):
                    log.write(line)
                    log.flush()
                try:
                    self._on_line(name, line.rstrip("\n"))
                except Exception as error:
                    with contextlib.suppress(OSError):
                        log.write(f"(the line above could not be shown: {error!r})\n")

    def _watch(self, running: _Running) -> None:
        running.popen.wait()
        running.threads[0].join(TERMINATE_TIMEOUT_S)  # its last lines, unless a child holds them
        self._ended.put(running)

    def _judge(self, event: _Running | int) -> Outcome | None:
        if isinstance(event, int):
            return Outcome(0, f"stopped by {signal.Signals(event).name}")
        status = event.popen.returncode
        name = event.process.name
        if status == 0 and event.process.when_done == "continue":
            return None
        if status == 0 and event.process.when_done == "stop":
            return Outcome(0, f"{name} is done")
        what = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        after_s = time.monotonic() - event.started_s
        said = event.last[-1].strip() if event.last else "nothing"
        return Outcome(
            1,
            f"{name} ended {what} after {after_s:.1f} s; its last line: {said} (see {event.log})",
        )


def _interrupt_with_parent() -> None:
    """In the child: ask the kernel for SIGINT when the supervisor dies, however it dies."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _signal_group(popen: subprocess.Popen[str], number: int) -> None:
    try:
        os.killpg(popen.pid, number)
    except ProcessLookupError:
        popen.poll()


def _wait_until(popen: subprocess.Popen[str], deadline: float) -> None:
    try:
        popen.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return
