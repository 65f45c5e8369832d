"""The decision: observation in, action chunk and the record that reproduces it out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros.critics.critic import Critic
from qsteer_ros.deadline import Deadline, measure_costs
from qsteer_ros.ensemble import QFunction, probe
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler
from qsteer_ros.policies.bookkeeping import Stopwatch, check_finite, stamps_of, summary_of
from qsteer_ros.policies.engines import Engine, make_engine
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.judged import clip_shares, judge
from qsteer_ros.policies.making import Made, Question, make, start
from qsteer_ros.policies.running import RunningChunk, continuation
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.steering.settings import FIELD_MODES, SteeringSettings
from qsteer_ros.steering.trace import Trace
from qsteer_ros.step_costs import StepCosts
from qsteer_ros.types import Observation


class ObservationEncoder(Protocol):
    """What turns an observation into features.

    Attributes:
        hash: Of its checkpoint.
        feature_names: Name of each feature it gives.
    """

    hash: str
    feature_names: tuple[str, ...]

    def features(self, observation: Observation) -> Tensor:
        """Features of one observation, (1, F)."""
        ...


@dataclass(frozen=True)
class Decision:
    """One answer to one observation.

    Attributes:
        chunk: Normalised actions inside the bounds, (H, A) float32.
        record: Everything needed to reproduce and to judge it.
    """

    chunk: NDArray[np.float32]
    record: DecisionRecord


@dataclass(frozen=True, eq=False)
class SteeredPolicy:
    """A frozen policy steered by a critic. Immutable: swapping a part makes a new, cheap object.

    Attributes:
        encoder: Turns observations into features; None where `act` is given features.
        policy: The frozen velocity field.
        critic: What steers it; None will do for mode ``off``.
        settings: How it steers.
        sampler: How the field is integrated from noise to chunk.
        device: Where policy and critic were loaded.
        backend: How the path of a chunk is computed, see `policies.engines`.

    Raises:
        ConfigError: The parts were not made for each other, or the mode needs a critic.
    """

    encoder: ObservationEncoder | None
    policy: FlowPolicy
    critic: Critic | None
    settings: SteeringSettings
    _: dataclasses.KW_ONLY
    sampler: Sampler = dataclasses.field(default_factory=Sampler)
    device: torch.device | str = "cpu"
    backend: str = "auto"
    _engine: Engine | None = dataclasses.field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a combination that would act on meaningless numbers, and prepare the loop."""
        if self.settings.needs_critic and self.critic is None:
            raise ConfigError(
                f"steering mode '{self.settings.mode}' needs a critic: none is loaded. "
                "Set parameter 'critic', or steering: off."
            )
        if self.settings.mode == "qpilots_m":
            _ = self.settings.tilt  # refuses when the critic's values are not known
        if self.critic is not None:
            self.critic.interface.check_same(
                self.policy.interface,
                mine="the critic",
                theirs="the policy",
                remedy="Train a critic for this policy: qsteer train critic.",
            )
        if self.encoder is not None:
            self._check_encoder(self.encoder)
        engine = make_engine(
            self.backend,
            self.policy,
            self.critic,
            self.settings,
            self.sampler,
            torch.device(self.device),
        )
        object.__setattr__(self, "_engine", engine)

    def with_critic(self, critic: Critic | None) -> SteeredPolicy:
        """Return the same policy steered by another critic; nothing is loaded or copied.

        Raises:
            ConfigError: The critic was not made for this policy. This object still works.
        """
        return dataclasses.replace(self, critic=critic)

    def with_settings(self, settings: SteeringSettings) -> SteeredPolicy:
        """Return the same policy and critic with another way of steering.

        Raises:
            ConfigError: The mode needs a critic and there is none. This object still works.
        """
        return dataclasses.replace(self, settings=settings)

    def decide(
        self,
        observation: Observation,
        *,
        seed: int,
        running: RunningChunk | None = None,
        deadline: Deadline | None = None,
    ) -> Decision:
        """Answer one observation with a chunk.

        Args:
            observation: What the policy sees.
            seed: Decides the noise, and the directions of mode ``random_matched``. The same
                observation, parts and seed give the same chunk bit for bit on the same device.
            running: The chunk that is being executed, to be continued by real-time chunking;
                None decides afresh.
            deadline: When the chunk must be done: guidance is dropped first, then steps, and the
                record says so. None takes the time it takes.

        Returns:
            The chunk and its record, which names the observation's stamps.

        Raises:
            ConfigError: There is no encoder, or it gives features of another length.
            DataError: Features, chunk or values are not finite; no action may follow.
        """
        if self.encoder is None:
            raise ConfigError("deciding on an observation needs an encoder: there is none.")
        clock = Stopwatch(self.device)
        with torch.no_grad():
            features = self.encoder.features(observation)
        clock.lap("encode")
        question = self._question(features, seed=seed, running=running, deadline=deadline)
        return self._answer(question, running, clock, stamps_of(observation))

    def act(self, features: Tensor, *, seed: int, running: RunningChunk | None = None) -> Decision:
        """Answer features that were computed elsewhere, or read from a record, (1, F).

        Raises:
            ConfigError: Features of another length, or a running chunk that does not fit.
            DataError: Features, chunk or values are not finite; no action may follow.
        """
        clock = Stopwatch(self.device)
        question = self._question(features, seed=seed, running=running)
        return self._answer(question, running, clock, {})

    def step_costs(self, features: Tensor, *, running: RunningChunk | None = None) -> StepCosts:
        """Measure what the steps of a chunk cost, for `Deadline`; takes some chunks' time.

        Args:
            features: Of a typical observation, (1, F).
            running: A typical running chunk, where chunks will continue one.
        """
        question = self._question(features, seed=0, running=running)
        bent = self.settings.mode in FIELD_MODES
        with torch.no_grad():
            steered = question.steered()
            frozen = question.unguided if bent else steered
            return measure_costs(steered, frozen, question.noise, self.sampler)

    @torch.no_grad()
    def _question(
        self,
        features: Tensor,
        *,
        seed: int,
        running: RunningChunk | None = None,
        deadline: Deadline | None = None,
    ) -> Question:
        """Refuse what cannot be answered, before anything is sampled."""
        if features.ndim != 2 or features.shape[0] != 1:
            raise ConfigError(
                f"a decision needs the features of one observation, (1, F): got "
                f"{tuple(features.shape)}."
            )
        check_finite(features, "the encoder's features", "Check the cameras and joint states.")
        features, bounds = features.to(self.device), self.policy.bounds
        shape = (self.policy.horizon, self.policy.action_dim)
        noise = start(shape, self.settings, seed=seed, device=torch.device(self.device))
        field, q = self.policy.condition(features), self._value_function(features)
        if q is not None:
            probe(q, noise.clamp(*bounds))
        others = () if running is None else (continuation(running, like=noise),)
        return Question(
            features,
            field,
            q,
            self.settings,
            self.sampler,
            noise,
            seed,
            bounds,
            others,
            deadline,
            None if others or deadline is not None else self._engine,
        )

    @torch.no_grad()
    def _answer(
        self,
        question: Question,
        running: RunningChunk | None,
        clock: Stopwatch,
        stamps: Mapping[str, Any],
    ) -> Decision:
        trace, q = Trace(), question.q
        clock.lap("condition")
        made = make(question, trace=trace, clock=clock)
        tensors = _described(question, made)
        tensors["features"] = question.features[0]
        meta = {**stamps, **self._provenance(question.seed), "backend": "eager", **made.notes}
        if running is not None:
            tensors["running_chunk"] = torch.from_numpy(running.chunk)
            meta["running"] = {"elapsed": running.elapsed, "committed": running.committed}
        if q is not None:
            meta |= judge(q, made.chunk, made.twin, self.settings.aggregate)
        chosen = made.unclipped[made.index : made.index + 1]
        meta |= clip_shares(chosen, made.twin_unclipped, question.bounds)
        clock.lap("judge")
        return _decision(tensors, meta, trace, clock)

    def _value_function(self, features: Tensor) -> QFunction | None:
        if self.critic is None or not self.settings.needs_critic:
            return None
        return self.critic.condition(features)

    def _provenance(self, seed: int) -> dict[str, Any]:
        return {
            "mode": self.settings.mode,
            "steering": self.settings.to_json(),
            "seed": seed,
            "sampler": dataclasses.asdict(self.sampler),
            "control_dt_ns": round(self.policy.interface.control_dt_s * 1e9),
            "device": str(self.device),
            "torch": str(torch.__version__),
            "hashes": {
                "encoder": None if self.encoder is None else self.encoder.hash,
                "policy": self.policy.hash,
                "critic": None if self.critic is None else self.critic.hash,
            },
        }

    def _check_encoder(self, encoder: ObservationEncoder) -> None:
        parts = {"policy": self.policy.interface}
        if self.critic is not None:
            parts["critic"] = self.critic.interface
        for name, interface in parts.items():
            if tuple(encoder.feature_names) != interface.feature_names:
                raise ConfigError(
                    f"the encoder must give the {interface.feature_dim} features that the {name} "
                    f"was trained on: it gives {len(encoder.feature_names)}, or others. "
                    "Set parameter 'encoder' to the one they were trained with."
                )
            if interface.encoder_hash not in (None, encoder.hash):
                raise ConfigError(
                    f"the {name} must be used with the encoder it was trained for: that is "
                    f"{str(interface.encoder_hash)[:12]}, loaded is {encoder.hash[:12]}. "
                    f"Set parameter 'encoder', or train the {name} for this one."
                )


def _described(question: Question, made: Made) -> dict[str, Tensor]:
    """What the record keeps of a chunk and how it came about, batch axis removed."""
    tensors = {
        "noise": question.noise[made.index],
        "chunk": made.chunk[0],
        "chunk_unclipped": made.unclipped[made.index],
    }
    if question.settings.mode == "best_of_n":
        candidates = made.unclipped.clamp(*question.bounds)
        tensors |= {"candidate_noise": question.noise, "candidate_chunks": candidates}
    if made.twin is not None:
        tensors["chunk_unguided"] = made.twin[0]
    return tensors


def _decision(
    tensors: Mapping[str, Tensor], meta: Mapping[str, Any], trace: Trace, clock: Stopwatch
) -> Decision:
    """Move everything to numpy and close the clock."""
    arrays = {name: _numpy(tensor) for name, tensor in tensors.items()}
    steps = {name: rows[:, 0] for name, rows in trace.arrays().items()}
    arrays |= {f"step_{name}": values for name, values in steps.items()}
    complete = {**meta, **summary_of(steps), "timings_ns": clock.laps()}
    return Decision(arrays["chunk"], DecisionRecord(arrays, complete))


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy().copy()
