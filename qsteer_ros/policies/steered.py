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
from qsteer_ros.ensemble import QFunction, spread
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, VelocityField, sample_noise
from qsteer_ros.policies.bookkeeping import Stopwatch, check_finite, stamps_of, summary_of
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.steering.best_of_n import best_of_n
from qsteer_ros.steering.settings import SteeringSettings, steer
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

    def decide(self, observation: Observation, *, seed: int) -> Decision:
        """Answer one observation with a chunk.

        Args:
            observation: What the policy sees.
            seed: Decides the noise, and the directions of mode ``random_matched``. The same
                observation, parts and seed give the same chunk bit for bit on the same device.

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
        return self._answer(features, seed=seed, clock=clock, stamps=stamps_of(observation))

    def act(self, features: Tensor, *, seed: int) -> Decision:
        """Answer features that were computed elsewhere, or read from a record, (1, F).

        Raises:
            ConfigError: Features of another length.
            DataError: Features, chunk or values are not finite; no action may follow.
        """
        return self._answer(features, seed=seed, clock=Stopwatch(self.device), stamps={})

    @torch.no_grad()
    def _answer(
        self, features: Tensor, *, seed: int, clock: Stopwatch, stamps: Mapping[str, Any]
    ) -> Decision:
        settings, bounds = self.settings, self.policy.bounds
        if features.ndim != 2 or features.shape[0] != 1:
            raise ConfigError(
                f"a decision needs the features of one observation, (1, F): got "
                f"{tuple(features.shape)}."
            )
        check_finite(features, "the encoder's features", "Check the cameras and joint states.")
        features = features.to(self.device)
        field = self.policy.condition(features)
        q = self._value_function(features)
        trace = Trace()
        steered = steer(
            field, q, settings, sampler=self.sampler, bounds=bounds, seed=seed, trace=trace
        )
        noise = self._noise(seed)
        clock.lap("condition")
        unclipped = self.sampler.denoise(steered, noise)
        check_finite(unclipped, "the denoised chunk", "Check policy, critic and steering weight.")
        chunks = unclipped.clamp(*bounds)
        clock.lap("denoise")
        index = 0
        if settings.mode == "best_of_n" and q is not None:
            _, index = best_of_n(chunks, q, aggregate=settings.aggregate)
        clock.lap("select")
        tensors = {
            "features": features[0],
            "noise": noise[index],
            "chunk": chunks[index],
            "chunk_unclipped": unclipped[index],
        }
        meta: dict[str, Any] = {**stamps, **self._provenance(seed)}
        if settings.mode == "best_of_n":
            tensors |= {"candidate_noise": noise, "candidate_chunks": chunks}
            meta["candidate"] = index
        if q is not None:
            twin = self._twin(field, noise, chunks) if settings.wants_twin(seed) else None
            if twin is not None:
                tensors["chunk_unguided"] = twin[0]
            meta |= self._judge(q, chunks[index : index + 1], twin)
        clipped = tensors["chunk_unclipped"] != tensors["chunk"]
        meta["clipped_share"] = float(clipped.float().mean())
        clock.lap("judge")
        return _decision(tensors, meta, trace, clock)

    def _value_function(self, features: Tensor) -> QFunction | None:
        if self.critic is None or not self.settings.needs_critic:
            return None
        return self.critic.condition(features)

    def _noise(self, seed: int) -> Tensor:
        """Start of the path, (N, H, A); the first candidate's is that of every other mode."""
        shape = (self.policy.horizon, self.policy.action_dim)
        device = torch.device(self.device)
        noise = sample_noise((1, *shape), seed=seed, device=device)
        extra = self.settings.num_samples - 1 if self.settings.mode == "best_of_n" else 0
        if extra == 0:
            return noise
        other = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
        return torch.cat([noise, sample_noise((extra, *shape), seed=other, device=device)])

    def _twin(self, field: VelocityField, noise: Tensor, chunks: Tensor) -> Tensor:
        """The frozen policy's chunk from the same noise, (1, H, A)."""
        if self.settings.mode == "best_of_n":
            return chunks[:1]
        unclipped = self.sampler.denoise(field, noise)
        return unclipped.clamp(*self.policy.bounds)

    def _judge(self, q: QFunction, chunk: Tensor, twin: Tensor | None) -> dict[str, Any]:
        """Values of the final chunk and, if given, of its unguided twin."""
        values = q(chunk)
        check_finite(values, "the critic's values of the chunk", "Check the critic.")
        after = float(self.settings.aggregate(values)[0])
        judged = {"q_after": after, "q_spread": float(spread(values)[0])}
        if twin is not None:
            judged["q_unguided"] = float(self.settings.aggregate(q(twin))[0])
            judged["delta_q"] = after - judged["q_unguided"]
        return judged

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
