"""The decision: observation in, action chunk and the record that reproduces it out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qsteer_ros.critics.critic import Critic
from qsteer_ros.deadline import Deadline, DeadlineRecord, measure_costs
from qsteer_ros.ensemble import QFunction, probe
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler
from qsteer_ros.policies.bookkeeping import Stopwatch, check_finite, stamps_of
from qsteer_ros.policies.engines import Engine, make_engine
from qsteer_ros.policies.fitting import ObservationEncoder, check_parts
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.judged import clip_shares, judge
from qsteer_ros.policies.making import Question, make, start
from qsteer_ros.policies.noise_policy import NoisePolicy
from qsteer_ros.policies.posterior_map import MetaFlowMap
from qsteer_ros.policies.recording import Decision, decision, described
from qsteer_ros.policies.running import RunningChunk, continuation
from qsteer_ros.steering.settings import SteeringSettings
from qsteer_ros.steering.trace import Trace
from qsteer_ros.steering.trust_region import displacement
from qsteer_ros.step_costs import StepCosts
from qsteer_ros.types import Observation


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
        noise_policy: Chooses the noise in mode ``dsrl``.
        posterior_map: Where ``qpilots_m`` gets its samples from; None lets the policy's own field
            draw them.

    Raises:
        ConfigError: The parts were not made for each other, or the mode lacks one.
    """

    encoder: ObservationEncoder | None
    policy: FlowPolicy
    critic: Critic | None
    settings: SteeringSettings
    _: dataclasses.KW_ONLY
    sampler: Sampler = dataclasses.field(default_factory=Sampler)
    device: torch.device | str = "cpu"
    backend: str = "auto"
    noise_policy: NoisePolicy | None = None
    posterior_map: MetaFlowMap | None = None
    _engine: Engine | None = dataclasses.field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a combination that would act on meaningless numbers, and prepare the loop."""
        check_parts(
            self.encoder,
            self.policy,
            self.critic,
            self.settings,
            noise_policy=self.noise_policy,
            posterior_map=self.posterior_map,
        )
        engine = make_engine(
            self.backend,
            self.policy,
            self.critic,
            self.settings,
            self.sampler,
            torch.device(self.device),
            mapped=self._posterior_map is not None,
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

    def act(
        self,
        features: Tensor,
        *,
        seed: int,
        running: RunningChunk | None = None,
        shortened: DeadlineRecord | None = None,
    ) -> Decision:
        """Answer features that were computed elsewhere, or read from a record, (1, F).

        Args:
            features: As the encoder gives them.
            seed: As in `decide`.
            running: As in `decide`.
            shortened: What a deadline did to the recorded chunk, to make it again:
                ``DeadlineRecord.from_json(record.meta["deadline"])``. None: it did nothing.

        Raises:
            ConfigError: Features of another length, or a running chunk that does not fit.
            DataError: Features, chunk or values are not finite; no action may follow.
        """
        clock = Stopwatch(self.device)
        question = self._question(features, seed=seed, running=running, shortened=shortened)
        return self._answer(question, running, clock, {})

    def step_costs(self, features: Tensor, *, running: RunningChunk | None = None) -> StepCosts:
        """Measure what the steps of a chunk cost, for `Deadline`; takes some chunks' time.

        Args:
            features: Of a typical observation, (1, F).
            running: A typical running chunk, where chunks will continue one.
        """
        question = self._question(features, seed=0, running=running)
        with torch.no_grad():
            steered, frozen = question.steered(), question.unguided
            return measure_costs(steered, frozen, question.noise, self.sampler)

    @torch.no_grad()
    def _question(
        self,
        features: Tensor,
        *,
        seed: int,
        running: RunningChunk | None = None,
        deadline: Deadline | None = None,
        shortened: DeadlineRecord | None = None,
    ) -> Question:
        """Refuse what cannot be answered, before anything is sampled."""
        if features.ndim != 2 or features.shape[0] != 1:
            raise ConfigError(
                f"a decision needs the features of one observation, (1, F): got "
                f"{tuple(features.shape)}."
            )
        check_finite(features, "the encoder's features", "Check the cameras and joint states.")
        if not 0 <= seed < 2**63:
            raise ConfigError(f"'seed' must be in [0, 2^63): got {seed}.")
        features, bounds = features.to(self.device, torch.float32), self.policy.bounds
        shape = (self.policy.horizon, self.policy.action_dim)
        noise = start(shape, self.settings, seed=seed, device=torch.device(self.device))
        alone, noise = noise[:1], self._chosen(features, noise)
        field, q = self.policy.condition(features), self._value_function(features)
        posterior = self._posterior_map
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
            alone,
            seed,
            bounds,
            others,
            deadline,
            None if others or deadline or shortened else self._engine,
            shortened,
            None if posterior is None else posterior.condition(features),
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
        tensors = described(question, made)
        tensors["features"] = question.features[0]
        meta = {**stamps, **self._provenance(question.seed), "backend": "eager", **made.notes}
        if running is not None:
            tensors["running_chunk"] = torch.from_numpy(running.chunk)
            meta["running"] = {"elapsed": running.elapsed, "committed": running.committed}
        if q is not None:
            meta |= judge(q, made.chunk, made.twin, self.settings.aggregate)
        elif made.twin is not None:
            meta["displacement"] = float(displacement(made.chunk, made.twin)[0])
        chosen = made.unclipped[made.index : made.index + 1]
        meta |= clip_shares(chosen, made.twin_unclipped, question.bounds)
        clock.lap("judge")
        return decision(tensors, meta, trace, clock)

    def _value_function(self, features: Tensor) -> QFunction | None:
        """The critic that steers, or that judges what was steered without it."""
        if self.critic is None or self.settings.mode == "off":
            return None
        return self.critic.condition(features)

    @property
    def _posterior_map(self) -> MetaFlowMap | None:
        """The map, where the mode asks one."""
        return self.posterior_map if self.settings.mode == "qpilots_m" else None

    def _chosen(self, features: Tensor, noise: Tensor) -> Tensor:
        """Start of the path: the noise itself, or what the noise policy makes of it."""
        if self.noise_policy is None or not self.settings.needs_noise_policy:
            return noise
        choice = self.noise_policy.condition(features)
        return choice.median() if self.settings.noise_draw == "median" else choice.at(noise)

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
                name: None if part is None else part.hash
                for name, part in (
                    ("encoder", self.encoder),
                    ("policy", self.policy),
                    ("critic", self.critic),
                    ("noise_policy", self.noise_policy),
                    ("posterior_map", self.posterior_map),
                )
            },
        }
