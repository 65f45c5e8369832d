"""What the policy node tells on ``/diagnostics``: counts, means and latencies."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from qsteer_ros.motion.controller import PlanReport
from qsteer_ros.nodes.messages import ERROR, OK, STALE, WARN

#: Chunks over which means and latencies are taken.
WINDOW = 100
#: Guidance below this part of the velocity does nothing; above this one it replaces the policy.
LEAST_RATIO, MOST_RATIO = 0.002, 1.0
GUIDED = ("qgf", "qpilots_u", "random_matched")


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
            self._mode = str(meta["mode"])
            self._counts["chunks"] += 1
            self._counts["shaped"] += plan.shaped
            self._counts["over_limits"] += plan.limits.exceeded
            for name in ("ratio", "cosine", "delta_q", "q_after", "q_spread", "clipped_share"):
                if meta.get(name) is not None:
                    self._note(name, meta[name])
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
            values |= {n: self._counts[n] for n in ("shaped", "over_limits")}
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

    def _judge(self, state: str) -> tuple[bytes, str]:
        if self._failure:
            return ERROR, self._failure
        if state != "active":
            return OK, state
        if self._stale:
            return STALE, self._stale
        if self._counts["refused"] > self._refused_before:
            return ERROR if self._serious else WARN, self._reason
        ratio = self._recent.get("ratio")
        if self._mode in GUIDED and ratio:
            mean = float(np.mean(ratio))
            if mean < LEAST_RATIO:
                return WARN, (
                    f"steering has no effect: guidance is {mean:.2g} of the velocity. Raise "
                    "'guidance_weight', or check the critic."
                )
            if mean > MOST_RATIO:
                return WARN, (
                    f"steering replaces the policy: guidance is {mean:.2g} of the velocity. Lower "
                    "'guidance_weight' or 'max_ratio'."
                )
        return OK, f"active, {self._counts['chunks']} chunks"
