"""What the policy node tells on ``/diagnostics``: counts, means and latencies."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from qsteer_ros.motion.controller import PlanReport
from qsteer_ros.nodes.messages import ERROR, OK, STALE, WARN
from qsteer_ros.steering.settings import FIELD_MODES

#: Chunks over which means and latencies are taken.
WINDOW = 100
#: Guidance below this part of the velocity does nothing; above this one it replaces the policy.
LEAST_RATIO, MOST_RATIO = 0.002, 1.0
#: Modes that mean to bend the field; ``zero`` only says what it would have done.
GUIDED = tuple(mode for mode in FIELD_MODES if mode != "zero")
#: Share of recent chunks that may lose guidance or steps to the deadline; of how many at least.
MOST_SHORTENED, FEWEST = 0.1, 10
#: Chunks that the deadline changed, counted.
SHORTENED = ("guidance_dropped", "steps_dropped", "deadlines_missed")
#: What is averaged over recent chunks, where a record has it.
MEANS = (
    "ratio",
    "critic_ratio",
    "cosine",
    "delta_q",
    "q_after",
    "q_spread",
    "clipped_share",
    "clipped_by_steering",
    "clipped_by_policy",
    "displacement",
)


class PolicyReport:
    """Collects from the inference thread and the timers; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: dict[str, deque[float]] = {}
        self._counts: Counter[str] = Counter()
        self._mode = ""
        self._reason = ""
        self._serious = False
        self._refused_before = 0
        self._stale = ""
        self._failure = ""

    def activated(self) -> None:
        """Begin anew."""
        with self._lock:
            self._recent.clear()
            self._counts.clear()
            self._refused_before = 0
            self._reason = self._stale = self._failure = ""

    def chunk(self, meta: Mapping[str, Any], plan: PlanReport) -> None:
        """A chunk was published."""
        with self._lock:
            if meta["mode"] != self._mode:  # another mode's numbers say nothing about this one
                self._recent.clear()
            self._mode = str(meta["mode"])
            self._counts["chunks"] += 1
            self._counts["shaped"] += plan.shaped
            self._counts["over_limits"] += plan.limits.exceeded
            for name in MEANS:
                if meta.get(name) is not None:
                    self._note(name, meta[name])
            self._note_strength(meta)
            self._note_deadline(meta.get("deadline"))
            if "running" in meta:
                self._counts["continued"] += 1
                self._note("committed", meta["running"]["committed"])
            self._note("latency_ms", meta["latency_ms"])
            for stage in ("assemble", "total", "plan"):
                self._note(f"{stage}_ms", meta["timings_ns"][stage] * 1e-6)
            self._note("tracking_error_rad", float(np.abs(plan.tracking_error_rad).max()))

    def refused(self, kind: str, reason: str, *, serious: bool = False) -> None:
        """An observation or chunk was refused; ``kind`` is the error's name.

        ``serious``: nothing gets better by itself.
        """
        with self._lock:
            self._counts["refused"] += 1
            self._counts[f"refused_{kind}"] += 1
            self._reason, self._serious = reason, serious

    def held(self, reason: str) -> None:
        """The arm was brought to rest, or left to come to rest, because ``reason``."""
        with self._lock:
            self._counts["holds"] += 1
            self._stale = reason

    def stale(self, reason: str | None) -> None:
        """Whether observations may be acted on now."""
        with self._lock:
            self._stale = reason or ""

    def failed(self, reason: str) -> None:
        """The inference thread ended on an unexpected error."""
        with self._lock:
            self._failure = reason

    def summary(self, state: str) -> tuple[bytes, str, dict[str, Any]]:
        """Level, one sentence and details, for :func:`messages.to_diagnostics`."""
        with self._lock:
            values: dict[str, Any] = {"state": state, "mode": self._mode}
            values |= {n: self._counts[n] for n in ("chunks", "refused", "holds")}
            values |= {n: self._counts[n] for n in ("shaped", "over_limits", "continued")}
            values |= {n: self._counts[n] for n in SHORTENED}
            for name, recent in sorted(self._recent.items()):
                values[f"{name}_mean"] = float(np.mean(recent))
                if name in ("latency_ms", "total_ms", "tracking_error_rad"):
                    values[f"{name}_p50"] = float(np.percentile(recent, 50))
                    values[f"{name}_p99"] = float(np.percentile(recent, 99))
            values |= {k: v for k, v in sorted(self._counts.items()) if k.startswith("refused_")}
            values["last_refusal"] = self._reason
            level, sentence = self._judge(state)
            self._refused_before = self._counts["refused"]
        return level, sentence, values

    def _note(self, name: str, value: float) -> None:
        self._recent.setdefault(name, deque(maxlen=WINDOW)).append(float(value))

    def _note_strength(self, meta: Mapping[str, Any]) -> None:
        """How much of the policy's velocity is the critic's.

        That is the critic's ratio, without what real-time chunking adds; for ``noisy_gradient``
        it is its weight, the critic's share by definition: its guidance is long near the noise
        at any.
        """
        steering = meta.get("steering", {})
        if meta["mode"] == "noisy_gradient" and not steering.get("ratio"):
            self._note("strength", steering.get("weight", 0.0))
        elif meta["mode"] in GUIDED and meta.get("critic_ratio") is not None:
            self._note("strength", meta["critic_ratio"])

    def _note_deadline(self, deadline: Mapping[str, Any] | None) -> None:
        if deadline is None:
            return
        dropped = deadline["guidance"] == "dropped"
        fewer = len(deadline["path"]) - 1 < deadline["planned_steps"]
        self._counts["guidance_dropped"] += dropped
        self._counts["steps_dropped"] += fewer
        self._counts["deadlines_missed"] += not deadline["met"]
        self._note("shortened", float(dropped or fewer))
        self._note("left_ms", deadline["left_ns"] * 1e-6)

    def _judge(self, state: str) -> tuple[bytes, str]:
        if self._failure:
            return ERROR, self._failure
        if state != "active":
            return OK, state
        if self._stale:
            return STALE, self._stale
        if self._counts["refused"] > self._refused_before:
            return ERROR if self._serious else WARN, self._reason
        return self._judge_steering() or (OK, f"active, {self._counts['chunks']} chunks")

    def _judge_steering(self) -> tuple[bytes, str] | None:
        """What is wrong with how chunks come about; None: nothing."""
        shortened = self._recent.get("shortened", ())
        if len(shortened) >= FEWEST and np.mean(shortened) > MOST_SHORTENED:
            return WARN, (
                f"{sum(shortened):.0f} of the last {len(shortened)} chunks lost guidance or steps "
                "to the deadline. Raise 'deadline_s', or lower 'denoising_steps' or "
                "'compare_rate', or choose a cheaper 'steering'."
            )
        if self._mode not in GUIDED:
            return None
        strength = self._recent.get("strength")
        if strength and (mean := float(np.mean(strength))) < LEAST_RATIO:
            return WARN, (
                f"steering has no effect: guidance is {mean:.2g} of the velocity. Raise "
                "'guidance_weight' or 'guidance_ratio', or check the critic."
            )
        if strength and (mean := float(np.mean(strength))) > MOST_RATIO:
            return WARN, (
                f"steering replaces the policy: guidance is {mean:.2g} of the velocity. Lower "
                "'guidance_weight', 'guidance_ratio' or 'max_ratio'."
            )
        return None
