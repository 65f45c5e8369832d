"""The table a person watches while a session runs."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, TextIO

from qsteer_ros.replay.sessions import Result, Trial

REDRAW_S = 0.5


class LiveTable:
    """Success per arm and goal so far: redrawn on a terminal, one line per episode elsewhere.

    Args:
        arms: Labels of the arms, one row each.
        goals: Numbers of the goals, one column each.
        episodes: Planned episodes per arm and goal.
        stream: Where to write.
    """

    def __init__(
        self,
        arms: Sequence[str],
        goals: Sequence[int],
        episodes: int,
        *,
        stream: TextIO = sys.stdout,
    ) -> None:
        self._arms, self._goals, self._episodes = tuple(arms), tuple(goals), episodes
        self._stream = stream
        self._terminal = stream.isatty()
        self._lock = threading.Lock()
        self._results: list[Result] = []
        self._running: Trial | None = None
        self._began_s = time.monotonic()
        self._drawn_lines = 0

    @property
    def results(self) -> tuple[Result, ...]:
        """What has ended so far."""
        with self._lock:
            return tuple(self._results)

    def take(self, event: dict[str, Any]) -> None:
        """Take one message of the session node; may be called from any thread."""
        with self._lock:
            if event["kind"] == "start":
                self._running = Trial(**event["trial"])
            elif event["kind"] == "end":
                entry = dict(event["result"])
                entry["trial"] = Trial(**entry["trial"])
                entry["chunk_ms"] = tuple(entry["chunk_ms"])
                self._results.append(Result(**entry))
                self._running = None
                if not self._terminal:
                    self._write(self._line(self._results[-1]) + "\n")

    def redraw(self) -> None:
        """On a terminal, draw the table over the one drawn before."""
        if not self._terminal:
            return
        with self._lock:
            lines = [*self.rows(), self._status()]
            up = f"\x1b[{self._drawn_lines}F" if self._drawn_lines else ""
            self._write(up + "".join(f"\x1b[2K{line}\n" for line in lines))
            self._drawn_lines = len(lines)

    def finish(self) -> None:
        """The table as it stands at the end."""
        self.redraw()
        if not self._terminal:
            with self._lock:
                self._write("\n".join(self.rows()) + "\n")

    def rows(self) -> list[str]:
        """Head and one line per arm."""
        width = max(len(arm) for arm in (*self._arms, "arm"))
        head = f"{'arm':<{width}}" + "".join(f"{f'goal {g}':>13}" for g in self._goals)
        lines = [head + f"{'success':>10}{'chunk ms':>10}"]
        for arm in self._arms:
            mine = [r for r in self._results if r.trial.arm == arm and r.outcome != "aborted"]
            cells = "".join(f"{self._cell(mine, goal):>13}" for goal in self._goals)
            won = sum(r.outcome == "success" for r in mine)
            rate = f"{100 * won / len(mine):.0f} %" if mine else "-"
            chunk_ms = [ms for r in mine for ms in r.chunk_ms]
            median = f"{statistics.median(chunk_ms):.0f}" if chunk_ms else "-"
            lines.append(f"{arm:<{width}}{cells}{rate:>10}{median:>10}")
        return lines

    def _cell(self, results: Sequence[Result], goal: int) -> str:
        here = [r for r in results if r.trial.goal == goal]
        won = sum(r.outcome == "success" for r in here)
        return f"{won}/{len(here)} of {self._episodes}"

    def _status(self) -> str:
        total = len(self._arms) * len(self._goals) * self._episodes
        elapsed_s = time.monotonic() - self._began_s
        done = len(self._results)
        left = f", about {elapsed_s / done * (total - done) / 60:.0f} min left" if done else ""
        now = f"; now {self._running.arm}, state {self._running.seed}" if self._running else ""
        return f"{done}/{total} episodes in {elapsed_s / 60:.1f} min{left}{now}"

    def _line(self, result: Result) -> str:
        total = len(self._arms) * len(self._goals) * self._episodes
        median = f"{statistics.median(result.chunk_ms):.0f} ms" if result.chunk_ms else "-"
        trial = result.trial
        what = f"goal {trial.goal}  state {trial.seed:<6} {trial.arm:<16} {result.outcome:<8}"
        count = f"{len(self._results):>4}/{total}"
        return f"{count}  {what} {result.steps:>4} steps  {median:>7} {result.reason}".rstrip()

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
