"""How fast a configured policy decides: measured where nothing waits for it."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from qsteer_ros.deadline import Deadline
from qsteer_ros.errors import ConfigError
from qsteer_ros.nodes.policy_parameters import PolicyParameters
from qsteer_ros.nodes.policy_parts import Pace, Parts
from qsteer_ros.policies.running import RunningChunk
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.step_costs import upper_quartile
from qsteer_ros.types import Observation, RobotState

ROUNDS = 5
"""Measured decisions, of which the middle one counts."""
RECENT = 16
"""Chunks whose time beside denoising is remembered; their upper quartile counts, so that a hiccup
of the machine does not."""
AFTER = ("select", "judge", "plan")
"""Stages between a denoised chunk and its path."""


class Reserve:
    """Time that must be left when a chunk is denoised: to judge it, compare it and plan."""

    def __init__(self) -> None:
        self._recent_ns: deque[int] = deque(maxlen=RECENT)

    def saw(self, timings_ns: Mapping[str, int]) -> None:
        """Take in the stages of a chunk that was published."""
        self._recent_ns.append(sum(timings_ns.get(stage, 0) for stage in AFTER))

    def deadline(self, pace: Pace, *, start_ns: int, longest_s: float) -> Deadline:
        """When a chunk must be denoised, on ``time.monotonic_ns``.

        Args:
            pace: Of these parts.
            start_ns: When the decision began.
            longest_s: From there to its path.
        """
        lately_ns = upper_quartile(self._recent_ns) if self._recent_ns else 0
        reserve_ns = max(pace.after_ns, lately_ns)
        return Deadline(start_ns + round(longest_s * 1e9) - reserve_ns, pace.costs)


def warm_up(parts: Parts, *, least: int = 5, most: int = 30) -> float:
    """Decide on an empty scene until the time it takes is steady.

    Steady means that the last five decisions differ by less than half of their median.

    Returns:
        Median of the last five, ms.
    """
    observation = _empty(parts)
    taken_ms: list[float] = []
    for seed in range(most):
        start_ns = time.perf_counter_ns()
        parts.steered.decide(observation, seed=seed)
        taken_ms.append((time.perf_counter_ns() - start_ns) * 1e-6)
        last = taken_ms[-5:]
        if len(taken_ms) >= least and max(last) - min(last) < 0.5 * statistics.median(last):
            break
    return statistics.median(taken_ms[-5:])


def paced(
    parts: Parts,
    parameters: PolicyParameters,
    *,
    before: tuple[Parts, PolicyParameters] | None = None,
) -> Parts:
    """Measure what decisions cost, on an empty scene, where there is a deadline.

    Args:
        parts: What decides.
        parameters: How.
        before: What was used until now; what was measured then is kept, with what it has learnt
            since, if nothing that costs time has changed.

    Returns:
        The same parts with their pace; without one where there is no deadline.

    Raises:
        ConfigError: What decides does not go together.
        DataError: A decision is not finite.
    """
    if parameters.deadline_s == 0.0:
        return replace(parts, pace=None)
    pace = None if before is None else before[0].pace
    if before is None or pace is None or _costly(*before) != _costly(parts, parameters):
        pace = _measured(parts, parameters)
    return replace(parts, pace=pace)


def _measured(parts: Parts, parameters: PolicyParameters) -> Pace:
    observation, running = _empty(parts), _continued(parts.steered, parameters)
    settings = parts.steered.settings
    compared = parts.steered.with_settings(
        replace(settings, twin_rate=1.0 if settings.twin_rate > 0.0 else 0.0)
    )
    after = [
        compared.decide(observation, seed=seed, running=running).record.meta["timings_ns"]
        for seed in range(ROUNDS)
    ]
    if compared.encoder is None:
        raise ConfigError("deciding on an observation needs an encoder: there is none.")
    with torch.no_grad():
        features = compared.encoder.features(observation)
    return Pace(
        parts.steered.step_costs(features, running=running),
        statistics.median(sum(timings.get(stage, 0) for stage in AFTER) for timings in after),
    )


def _costly(parts: Parts, parameters: PolicyParameters) -> tuple[object, ...]:
    """Everything on which the cost of a decision depends."""
    steered = parts.steered
    hashes = [
        None if part is None else part.hash for part in (steered.critic, steered.posterior_map)
    ]
    return steered.settings, steered.sampler, hashes, parameters.real_time_chunking


def _continued(steered: SteeredPolicy, parameters: PolicyParameters) -> RunningChunk | None:
    """A chunk to continue, where chunks will be continued."""
    if not parameters.real_time_chunking:
        return None
    shape = (steered.policy.horizon, steered.policy.action_dim)
    return RunningChunk(np.zeros(shape, dtype=np.float32), parameters.execute_steps, 0)


def _empty(parts: Parts) -> Observation:
    joints = np.zeros(len(parts.robot.joints))
    images = {name: np.zeros((*size, 3), dtype=np.uint8) for name, size in parts.sizes.items()}
    return Observation(0, images, RobotState(0, joints, joints, 0.0))
