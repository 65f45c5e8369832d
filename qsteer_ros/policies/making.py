"""One chunk: the noise before, the field during, the steps after."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qsteer_ros.deadline import Deadline, DeadlineRecord, denoise_before, repeat
from qsteer_ros.ensemble import QFunction
from qsteer_ros.flow import Sampler, VelocityField, sample_noise
from qsteer_ros.policies.bookkeeping import Stopwatch, check_finite
from qsteer_ros.policies.engines import Engine
from qsteer_ros.posterior import PosteriorMap
from qsteer_ros.steering.best_of_n import best_of_n
from qsteer_ros.steering.gradient import Bounds
from qsteer_ros.steering.gradient_step import gradient_step
from qsteer_ros.steering.guide import Rule, guide
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.rtc import hold_rows
from qsteer_ros.steering.settings import CHUNK_MODES, SteeringSettings
from qsteer_ros.steering.trace import Trace
from qsteer_ros.steering.trust_region import displacement, keep_near


@dataclass(frozen=True, eq=False)
class Question:
    """Everything a chunk is a function of.

    Attributes:
        features: Of one observation, (1, F).
        field: The frozen field for it.
        q: The critic for it; None in mode ``off``.
        settings: How it steers.
        sampler: How the field is integrated.
        noise: Start of the path, (N, H, A); N candidates for ``best_of_n``, else one.
        alone: What the policy alone would start from, (1, H, A); it is ``noise[:1]`` where noise
            is not chosen.
        seed: Of the chunk.
        bounds: Of normalised actions.
        others: Rules beside the critic's: real-time chunking.
        deadline: When the path must be done, and what its steps cost; None takes its time.
        shortened: How a deadline shortened it then, to make a recorded chunk again.
        posterior: A trained map for ``qpilots_m``; None lets the field draw its samples.
        engine: Makes the path faster; None is the readable loop, which a deadline and other
            rules need.
    """

    features: Tensor
    field: VelocityField
    q: QFunction | None
    settings: SteeringSettings
    sampler: Sampler
    noise: Tensor
    alone: Tensor
    seed: int
    bounds: Bounds
    others: tuple[Rule, ...] = ()
    deadline: Deadline | None = None
    engine: Engine | None = None
    shortened: DeadlineRecord | None = None
    posterior: PosteriorMap | None = None

    @cached_property
    def unguided(self) -> VelocityField:
        """The field without the critic."""
        return guide(self.field, *self.others, bounds=self.bounds)

    def held(self, chunks: Tensor) -> Tensor:
        """Chunks with the committed actions written into them, bit for bit, (N, H, A)."""
        for rule in self.others:
            chunks = hold_rows(chunks, rule.held)
        return chunks

    def steered(self, trace: Trace | None = None) -> VelocityField:
        """The field with the critic; that without it in modes that do not bend it."""
        if not self.settings.bends:
            return self.unguided
        return steer(
            self.field,
            self.q,
            self.settings,
            others=self.others,
            sampler=self.sampler,
            bounds=self.bounds,
            seed=self.seed,
            trace=trace,
            posterior=self.posterior,
        )


@dataclass(frozen=True, eq=False)
class Made:
    """A chunk and what it was made of; all normalised.

    Attributes:
        chunk: Inside the bounds, (1, H, A).
        index: Which candidate it is.
        unclipped: All candidates as integrated, (N, H, A).
        twin: The frozen policy's chunk from the noise it alone would start from, inside the
            bounds; None if not wanted.
        twin_unclipped: The same as integrated.
        notes: For the record.
    """

    chunk: Tensor
    index: int
    unclipped: Tensor
    twin: Tensor | None
    twin_unclipped: Tensor | None
    notes: dict[str, Any]


def make(question: Question, *, trace: Trace, clock: Stopwatch) -> Made:
    """Integrate, choose or climb, hold back what went too far, and write committed rows.

    Raises:
        ConfigError: The mode lacks something, or committed actions do not fit the chunk.
        DataError: Chunk or values are not finite.
    """
    unclipped, late = _integrate(question, trace)
    check_finite(unclipped, "the denoised chunk", "Check policy, critic and steering weight.")
    clock.lap("denoise")
    candidates = question.held(unclipped.clamp(*question.bounds))
    if late and not late["deadline"]["met"]:
        chunk, index, notes = candidates[:1], 0, late
    else:
        chunk, index, notes = _after(question, candidates)
        notes |= late
    if question.engine is not None:
        notes["backend"] = question.engine.name
    if question.settings.mode == "qpilots_m" and question.settings.bends:
        notes["posterior"] = "glass" if question.posterior is None else "map"
    clock.lap("select")
    twin_unclipped = _twin(question, unclipped, late)
    twin = None
    if twin_unclipped is not None:
        twin = question.held(twin_unclipped.clamp(*question.bounds))
    limit = question.settings.max_displacement
    if twin is not None and math.isfinite(limit):
        chunk, kept = keep_near(chunk, twin, max_displacement=limit)
        notes["displacement_kept"] = float(kept[0])
    return Made(question.held(chunk), index, unclipped, twin, twin_unclipped, notes)


def start(
    shape: tuple[int, int], settings: SteeringSettings, *, seed: int, device: torch.device
) -> Tensor:
    """Noise, (N, H, A); the first candidate's is that of every other mode.

    Args:
        shape: (H, A).
        settings: ``best_of_n`` wants ``num_samples`` candidates, the others one.
        seed: Of the chunk.
        device: Where it goes.
    """
    noise = sample_noise((1, *shape), seed=seed, device=device)
    extra = settings.num_samples - 1 if settings.mode == "best_of_n" else 0
    if extra == 0:
        return noise
    other = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
    return torch.cat([noise, sample_noise((extra, *shape), seed=other, device=device)])


def _integrate(question: Question, trace: Trace) -> tuple[Tensor, dict[str, Any]]:
    """From the noise to flow time 1; what is to be said of the deadline, if there is one."""
    if question.engine is not None:
        unclipped = question.engine.denoise(
            question.features, question.noise, seed=question.seed, trace=trace
        )
        return unclipped, {}
    steered = question.steered(trace)
    if question.shortened is not None:
        record = question.shortened
        field = question.unguided if record.guidance == "dropped" else steered
        unclipped = repeat(field, question.noise, question.sampler, record)
        return unclipped, {"deadline": {**asdict(record), "met": record.met}}
    if question.deadline is None:
        return question.sampler.denoise(steered, question.noise), {}
    unclipped, record = denoise_before(
        steered,
        question.unguided,
        question.noise,
        question.sampler,
        deadline_ns=question.deadline.at_ns,
        costs=question.deadline.costs,
    )
    if record.guidance == "dropped":
        trace.clear()  # those steps were thrown away
    return unclipped, {"deadline": {**asdict(record), "met": record.met}}


def _after(question: Question, candidates: Tensor) -> tuple[Tensor, int, dict[str, Any]]:
    """The chunk of the modes that work on finished chunks, which candidate it is, and notes."""
    settings, q = question.settings, question.q
    if q is None or settings.mode not in CHUNK_MODES:
        return candidates[:1], 0, {}
    if settings.mode == "best_of_n":
        near = _near(candidates, settings.max_displacement)
        chunk, place = best_of_n(candidates[near], q, aggregate=settings.aggregate)
        index = int(near[place])
        return chunk, index, {"candidate": index, "candidates_near": len(near)}
    held = next((rule.held for rule in question.others if rule.held is not None), None)
    ascent = gradient_step(
        candidates,
        q,
        step_size=settings.weight,
        steps=settings.ascent_steps,
        aggregate=settings.aggregate,
        direction="unit",
        keep="ascending",
        held=None if held is None else held.rows,
        bounds=question.bounds,
    )
    return ascent.chunk, 0, {"ascent_steps_taken": int(ascent.accepted[0])}


def _near(candidates: Tensor, max_displacement: float) -> Tensor:
    """Which candidates lie near enough to the first, (M,); the first one always does."""
    distance = displacement(candidates, candidates[:1].expand_as(candidates))
    return torch.nonzero(distance <= max_displacement).flatten()


def _twin(question: Question, unclipped: Tensor, late: dict[str, Any]) -> Tensor | None:
    """The frozen policy's own chunk, (1, H, A), where it is wanted.

    A chunk that is late is compared only if it has to stay near its twin.
    """
    settings = question.settings
    if not settings.wants_twin(question.seed):
        return None
    unbent = settings.mode in CHUNK_MODES
    if late:
        deadline = late["deadline"]
        unbent = unbent or deadline["guidance"] != "kept"
        if not deadline["met"] and math.isinf(settings.max_displacement):
            return None
    noise = question.alone
    if unbent and not settings.needs_noise_policy:  # it is there already
        return unclipped[:1]
    if question.engine is not None:
        features, seed = question.features, question.seed
        return question.engine.denoise(features, noise, seed=seed, guided=False)
    return question.sampler.denoise(question.unguided, noise)
