r"""DSRL: an actor that chooses the noise a frozen flow policy starts from.

.. math::

    y &= R + b \, (\operatorname{mean}_e - \rho \operatorname{std}_e) \,
         \bar Q_e \big( s', \operatorname{denoise}(z') \big), \qquad z' \sim \pi(\cdot | s') \\
    L_Q &= \operatorname{mean} (Q_e(s, a) - y)^2 \\
    L_{Q^z} &= \operatorname{mean} \big( Q^z_e(s, z) - Q_e(s, \operatorname{denoise}(z)) \big)^2,
         \qquad z \sim N(0, I) \\
    L_\pi &= \operatorname{mean} \big( \alpha \log \pi - \operatorname{mean}_e Q^z_e \big), \qquad
    L_\alpha = \alpha (\hat H - H^*)

Given a trained critic, Q is that critic, frozen, and the first two lines fall away. All losses are
of the weights before the step, and so are the weights the target networks follow.

Two things differ from the code this follows: the flow policy is frozen, where the code goes on
cloning beside it, and the bootstrap takes one chunk, which is the code's default.

Source: DSRL, arXiv:2506.15799; github.com/zhouzypaul/qgf, ``agents/dsrl.py``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.losses import chunk_target, critic_loss
from qsteer_ros.critics.networks import EnsembleMLP
from qsteer_ros.ensemble import pessimistic
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import denoise
from qsteer_ros.learning.buffer import Buffer
from qsteer_ros.learning.dsrl import actor_loss, distillation_loss, temperature_loss
from qsteer_ros.learning.learner import Batch, Learner
from qsteer_ros.learning.settings import widths
from qsteer_ros.learning.settings_dsrl import DsrlSettings
from qsteer_ros.learning.trainer import generator
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.noise_network import NoiseActor
from qsteer_ros.weights import ema_update

COMPARED = 512
"""Observations over which the chunks of both kinds of noise are compared after training."""


class DsrlLearner(Learner):
    """Trains the actor, the noise-space critic, the temperature and, if none is given, a critic.

    Args:
        transitions: Observations; with rewards if the critic is trained along.
        policy: Frozen; its statistics standardise the features of every network.
        critic: Frozen; None trains one.
        settings: How.

    Raises:
        ConfigError: Data, policy and critic live in different spaces, or the data lack rewards.
    """

    def __init__(
        self,
        transitions: Transitions,
        policy: FlowPolicy,
        critic: Critic | None,
        settings: DsrlSettings,
    ) -> None:
        super().__init__()
        _check(transitions, policy, critic)
        torch.manual_seed(settings.seed)
        self._policy, self._critic, self._settings = policy, critic, settings
        needs = () if critic is not None else ("reward", "bootstrap", "next_features")
        self._buffer = Buffer(transitions, needs, device=settings.device)
        space, hidden = policy.interface, widths(settings.hidden)
        inputs = space.feature_dim + space.chunk_dim
        self.actor = NoiseActor(
            space.feature_dim, space.chunk_dim, hidden, noise_scale=settings.noise_scale
        )
        self.noise_critic = EnsembleMLP(self._members(), inputs, hidden)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(settings.temperature)))
        self.q: EnsembleMLP | None = None
        self.target: EnsembleMLP | None = None
        if critic is None:
            self.q = EnsembleMLP(settings.ensemble, inputs, hidden)
            self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.to(settings.device)
        self._optimisers = self._make_optimisers()
        if critic is not None:
            self._start_at_mean_value()

    @property
    def target_entropy(self) -> float:
        """H*, nats."""
        return self._settings.entropy_per_component * self._policy.interface.chunk_dim

    def draw(self, source: torch.Generator) -> Batch:
        """Rows, noise to distil at, and what the actor's noise is made of, now and after."""
        batch = self._buffer.take(self._buffer.rows(self._settings.batch, source))
        like = batch["chunk"]
        for name in ("noise", "gaussian", "next_gaussian"):
            batch[name] = torch.randn(like.shape, generator=source).to(like.device)
        return batch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """All losses, on disjoint sets of weights."""
        features = batch["features"]
        rows = self._policy.standardised(features)
        with torch.no_grad():
            judged = self._q(features, rows, self.chunk(features, batch["noise"]))
        parts = {"distillation": distillation_loss(self._noise_q(rows, batch["noise"]), judged)}
        if self.q is not None:
            values = self.q.q(rows, batch["chunk"])
            parts["critic"] = critic_loss(values, self._backup(batch))
        chosen = self.actor.distribution(rows)
        gaussian = batch["gaussian"].flatten(1)
        density = chosen.log_density(gaussian)
        noise = self.actor.noise(chosen.before_tanh(gaussian)).view_as(batch["gaussian"])
        values = self._noise_q(rows, noise, frozen=True)
        parts["actor"] = actor_loss(density, values, temperature=self.log_temperature.exp())
        parts["temperature_loss"] = temperature_loss(
            self.log_temperature, density, target_entropy=self.target_entropy
        )
        return {
            "loss": torch.stack(list(parts.values())).sum(),
            **parts,
            "temperature": self.log_temperature.detach().exp(),
            "entropy": -density.detach().mean(),
            "value": values.detach().mean(),
        }

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One for each set of weights."""
        return self._optimisers

    def before_step(self) -> None:
        """The target networks follow the critic's weights from before the step."""
        if self.q is not None and self.target is not None:
            ema_update(self.target, self.q, rate=self._settings.ema)

    @torch.no_grad()
    def chunk(self, features: Tensor, noise: Tensor) -> Tensor:
        """What the frozen policy makes of noise, inside the bounds, (B, H, A)."""
        field = self._policy.condition(features)
        chunk = denoise(field, noise, denoising_steps=self._settings.denoising_steps)
        return chunk.clamp(*self._policy.bounds)

    @torch.no_grad()
    def comparison(self) -> dict[str, float]:
        """Mean value of the actor's chunks and of the policy's own, for the same observations."""
        source = generator(self._settings.seed, self._settings.steps)
        batch = self._buffer.take(self._buffer.rows(COMPARED, source))
        features, like = batch["features"], batch["chunk"]
        gaussian = torch.randn(like.shape, generator=source).to(like.device)
        rows = self._policy.standardised(features)
        point = self.actor.distribution(rows).before_tanh(gaussian.flatten(1))
        own = self.actor.noise(point).view_as(gaussian)
        found = {}
        for name, noise in (("value_steered", own), ("value_unsteered", gaussian)):
            values = self._q(features, rows, self.chunk(features, noise))
            found[name] = float(values.mean())
        return found

    @torch.no_grad()
    def _backup(self, batch: Batch) -> Tensor:
        """Target y of the critic that is trained along, (B,)."""
        features = batch["next_features"]
        rows = self._policy.standardised(features)
        chosen = self.actor.distribution(rows)
        noise = self.actor.noise(chosen.before_tanh(batch["next_gaussian"].flatten(1)))
        assert self.target is not None
        values = self.target.q(rows, self.chunk(features, noise.view_as(batch["next_gaussian"])))
        next_value = pessimistic(self._settings.rho)(values)
        return chunk_target(batch["reward"], batch["bootstrap"], next_value)

    def _make_optimisers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self._settings.learning_rate
        found: dict[str, tuple[list[nn.Parameter], float]] = {
            "actor": (list(self.actor.parameters()), rate),
            "noise_critic": (list(self.noise_critic.parameters()), rate),
            "temperature": ([self.log_temperature], self._settings.temperature_rate),
        }
        if self.q is not None:
            found["q"] = (list(self.q.parameters()), rate)
        return {
            name: torch.optim.Adam(weights, lr=peak, fused=True)
            for name, (weights, peak) in found.items()
        }

    @torch.no_grad()
    def _start_at_mean_value(self) -> None:
        """Let every member begin at the mean of what it has to learn, not at 0."""
        batch = self.draw(generator(self._settings.seed, self._settings.steps))
        chunk = self.chunk(batch["features"], batch["noise"])
        rows = self._policy.standardised(batch["features"])
        values = self._q(batch["features"], rows, chunk)
        self.noise_critic.biases[-1].copy_(values.mean(dim=1).view(-1, 1, 1))

    def _q(self, features: Tensor, rows: Tensor, chunk: Tensor) -> Tensor:
        """Values of chunks, (E, B); ``rows`` are ``features`` standardised."""
        if self._critic is not None:
            return self._critic.condition(features)(chunk)
        assert self.q is not None
        return self.q.q(rows, chunk)

    def _noise_q(self, rows: Tensor, noise: Tensor, *, frozen: bool = False) -> Tensor:
        """Values of noise, (E, B); ``frozen`` gives its weights no gradient."""
        inputs = torch.cat([rows, noise.flatten(1)], dim=1)
        weights: dict[str, Tensor] = dict(self.noise_critic.named_parameters())
        if frozen:
            weights = {name: value.detach() for name, value in weights.items()}
        values: Tensor = functional_call(self.noise_critic, weights, (inputs,))
        return values

    @torch.no_grad()
    def _members(self) -> int:
        """Of the critic that is learned from."""
        if self._critic is None:
            return self._settings.ensemble
        row = self._buffer.take(torch.zeros(1, dtype=torch.int64))
        return len(self._critic.condition(row["features"])(row["chunk"]))


def _check(transitions: Transitions, policy: FlowPolicy, critic: Critic | None) -> None:
    """Refuse parts that live in different spaces."""
    policy.interface.check_same(
        transitions.interface,
        mine="the policy",
        theirs="the data",
        remedy="Set horizon, encoder and data as for 'qsteer train bc'.",
    )
    if not policy.hash:
        raise ConfigError(
            "a noise policy must be trained for a flow policy that was saved: this one has no "
            "hash. Save it and load it again."
        )
    if critic is not None:
        critic.interface.check_same(
            policy.interface,
            mine="the critic",
            theirs="the policy",
            remedy="Train a critic for this policy: qsteer train critic.",
        )
