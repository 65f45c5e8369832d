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
from qsteer_ros.ensemble import QFunction, probe
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler
from qsteer_ros.policies.bookkeeping import Stopwatch, check_finite, stamps_of, summary_of
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.judged import clip_shares, judge
from qsteer_ros.policies.making import Made, Question, make, start
from qsteer_ros.policies.running import RunningChunk, continuation
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.steering.settings import SteeringSettings
from qsteer_ros.steering.trace import Trace
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

    def __post_init__(self) -> None:
        """Refuse a combination that would act on meaningless numbers."""
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
        self, observation: Observation, *, seed: int, running: RunningChunk | None = None
    ) -> Decision:
        """Answer one observation with a chunk.

        Args:
            observation: What the policy sees.
            seed: Decides the noise, and the directions of mode ``random_matched``. The same
                observation, parts and seed give the same chunk bit for bit on the same device.
            running: The chunk that is being executed, to be continued by real-time chunking;
                None decides afresh.

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
        return self._answer(
            features, seed=seed, running=running, clock=clock, stamps=stamps_of(observation)
        )

    def act(self, features: Tensor, *, seed: int, running: RunningChunk | None = None) -> Decision:
        """Answer features that were computed elsewhere, or read from a record, (1, F).

        Raises:
            ConfigError: Features of another length, or a running chunk that does not fit.
            DataError: Features, chunk or values are not finite; no action may follow.
        """
        clock = Stopwatch(self.device)
        return self._answer(features, seed=seed, running=running, clock=clock, stamps={})

    @torch.no_grad()
    def _answer(
        self,
        features: Tensor,
        *,
        seed: int,
        running: RunningChunk | None,
        clock: Stopwatch,
        stamps: Mapping[str, Any],
    ) -> Decision:
        settings, bounds = self.settings, self.policy.bounds
        if features.ndim != 2 or features.shape[0] != 1:
            raise ConfigError(
                f"a decision needs the features of one observation, (1, F): got "
                f"{tuple(features.shape)}."
            )
        check_finite(features, "the encoder's features", "Check the cameras and joint states.")
        features, device = features.to(self.device), torch.device(self.device)
        shape = (self.policy.horizon, self.policy.action_dim)
        noise = start(shape, settings, seed=seed, device=device)
        q = self._value_function(features)
        if q is not None:
            probe(q, noise.clamp(*bounds))
        others = () if running is None else (continuation(running, like=noise),)
        field, trace = self.policy.condition(features), Trace()
        question = Question(field, q, settings, self.sampler, noise, seed, bounds, others)
        clock.lap("condition")
        made = make(question, trace=trace, clock=clock)
        tensors, meta = _described(question, made), {**stamps, **self._provenance(seed)}
        tensors["features"] = features[0]
        if running is not None:
            tensors["running_chunk"] = torch.from_numpy(running.chunk)
            meta["running"] = {"elapsed": running.elapsed, "committed": running.committed}
        if q is not None:
            meta |= judge(q, made.chunk, made.twin, settings.aggregate)
        chosen = made.unclipped[made.index : made.index + 1]
        meta |= {**made.notes, **clip_shares(chosen, made.twin_unclipped, bounds)}
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
