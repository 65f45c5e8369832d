r"""Value-gradient matching: teach a policy what a critic would correct, then drop the critic.

The policy starts as a copy of the frozen reference and rolls out its own path from noise. On the
steps that count, its velocity is regressed on the reference's plus what the critic asks there (see
:mod:`~qsteer_ros.learning.value_gradient`). Of the data only states are used. What comes out is an
ordinary policy of the same interface, which acts with steering off.

Source: Q-VGM, arXiv:2606.08015; the version is a setting.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from qsteer_ros import resources
from qsteer_ros.critics.critic import Critic
from qsteer_ros.ensemble import QFunction
from qsteer_ros.errors import ConfigError
from qsteer_ros.learning import states
from qsteer_ros.learning.buffer import Buffer
from qsteer_ros.learning.learner import Batch, Learner
from qsteer_ros.learning.qvgm_variants import Variant, adjusted, find_variant
from qsteer_ros.learning.settings_qvgm import QvgmSettings
from qsteer_ros.learning.sources import load_chunks
from qsteer_ros.learning.trainer import provenance, run
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.learning.value_gradient import (
    bounds_of,
    climb_of,
    correct,
    matching_loss,
    roll,
    step_weights,
)
from qsteer_ros.policies.flow_policy import FlowPolicy

_OF_VARIANT = (
    "denoising_steps",
    "last_steps",
    "gate_power",
    "ascent_steps",
    "step_size",
    "max_norm",
)


class Judge(Protocol):
    """What is asked of a critic."""

    def condition(self, features: Tensor) -> QFunction:
        """Fix the observations, (B, F)."""
        ...


class QvgmLearner(Learner):
    """Matches a copy of a policy's velocity to the reference's plus the critic's corrections.

    Args:
        transitions: States to learn in.
        settings: How.
        policy: The reference; it is not changed.
        critic: Judges chunks; it is not changed.
        variant: What counts; see :func:`variant_for`.

    Raises:
        ConfigError: No weight is to be trained, or a number of the variant is out of range.
    """

    def __init__(
        self,
        transitions: Transitions,
        settings: QvgmSettings,
        policy: FlowPolicy,
        critic: Judge,
        variant: Variant,
    ) -> None:
        super().__init__()
        self._settings, self._variant, self._critic = settings, variant, critic
        self._buffer = Buffer(transitions, device=settings.device)
        self._shape = (policy.horizon, policy.action_dim)
        self._reference = policy
        self.network = copy.deepcopy(policy.network)
        _free(self.network, settings.trainable)
        self.policy = replace(policy, network=self.network, hash="")
        weights = step_weights(variant)
        self._matched = [step for step, weight in enumerate(weights) if weight > 0.0]
        self._early = [step for step, weight in enumerate(weights) if weight == 0.0]
        self._weights = [weights[step] for step in self._matched]
        trained = [w for w in self.network.parameters() if w.requires_grad]
        self._optimisers = {
            "network": torch.optim.Adam(trained, lr=settings.learning_rate, fused=True)
        }

    def draw(self, source: torch.Generator) -> Batch:
        """States of the data and the noise that the path starts from."""
        count = self._settings.batch
        features = self._buffer.take(self._buffer.rows(count, source))["features"]
        noise = torch.randn((count, *self._shape), generator=source)
        return {"features": features, "noise": noise.to(features.device)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The matching loss of one path per state, and what the critic did.

        Returns:
            ``loss``; ``accepted``, share of climbs that found something better; ``chosen``, mean
            number of the iterate that was kept; ``delta_q``, how much better it is, return units;
            ``correction`` and ``change``, mean norms of h and of v - v_ref on the steps that
            count; ``early_change``, the latter on the others, which nothing holds in place.
        """
        features, variant = batch["features"], self._variant
        path = roll(
            self.policy.condition(features),
            batch["noise"],
            denoising_steps=variant.denoising_steps,
        )
        rows, states_, times = self._flat(path, self._matched, features)
        with torch.no_grad():
            reference = self._reference.condition(rows)(states_, times)
        found = correct(
            reference,
            states_,
            times,
            climb_of(variant, self._critic.condition(rows)),
            bounds=bounds_of(variant),
        )
        velocity = self.policy.condition(rows)(states_, times)
        shape = (len(self._matched), *batch["noise"].shape)
        loss = matching_loss(
            velocity.view(shape),
            reference.view(shape),
            found.velocity.view(shape),
            found.velocity.new_tensor(self._weights),
        )
        accepted, values = found.ascent.accepted, found.ascent.values
        shown = {
            "loss": loss,
            "accepted": (accepted > 0).float().mean(),
            "chosen": accepted.float().mean(),
            "delta_q": (values.gather(0, accepted[None])[0] - values[0]).mean(),
            "correction": _length(found.velocity),
            "change": _length(velocity.detach() - reference),
        }
        return shown | self._drift(path, features)

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One."""
        return self._optimisers

    @torch.no_grad()
    def _drift(self, path: Tensor, features: Tensor) -> dict[str, Tensor]:
        """How far the velocity went from the reference where no step is corrected."""
        if not self._early:
            return {}
        rows, states_, times = self._flat(path, self._early, features)
        now = self.policy.condition(rows)(states_, times)
        return {"early_change": _length(now - self._reference.condition(rows)(states_, times))}

    def _flat(
        self, path: Tensor, steps: list[int], features: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features, states and flow times of some steps of the path, one row each, step-major."""
        times = path.new_tensor([step / self._variant.denoising_steps for step in steps])
        batch = path.shape[1]
        return (
            features.repeat(len(steps), 1),
            path[steps].flatten(0, 1),
            times.repeat_interleave(batch),
        )


def variant_for(settings: QvgmSettings, critic: Critic) -> Variant:
    """The version that the settings name, with what they change, for this critic.

    Raises:
        ConfigError: There is no such version, or it wants another critic or other numbers.
    """
    trained = critic.training.get("settings", {})
    changes = {name: value for name in _OF_VARIANT if (value := getattr(settings, name)) != -1} | {
        "gradient_clip": settings.gradient_clip
    }
    return adjusted(
        find_variant(settings.variant),
        changes,
        objective=trained.get("objective"),
        members=critic.network.members,
        custom=settings.custom,
    )


def train_qvgm(
    settings: QvgmSettings,
    *,
    resume: bool = False,
    command: str = "",
    transitions: Transitions | None = None,
) -> dict[str, float]:
    """Teach a policy what a critic wants and write it as a policy's checkpoint.

    Args:
        settings: How, from which policy, critic and states.
        resume: Continue an interrupted run.
        command: Written into the checkpoint.
        transitions: Data that are loaded already; None loads what the settings name.

    Returns:
        Mean of what `QvgmLearner.forward` shows over the last tenth of the steps.

    Raises:
        ConfigError: Policy, critic, data or variant do not fit, or the run to resume was another.
    """
    if not settings.critic:
        raise ConfigError(
            "value-gradient matching must be told its critic: 'critic' is empty. Add "
            "critic=FOLDER, written by qsteer train critic."
        )
    policy = FlowPolicy.load(resources.find(settings.policy), device=settings.device)
    critic = Critic.load(resources.find(settings.critic), device=settings.device)
    policy.interface.check_same(
        critic.interface,
        mine="the policy",
        theirs="the critic",
        remedy="Train the critic for this policy.",
    )
    variant = variant_for(settings, critic)
    data = load_chunks(settings) if transitions is None else transitions
    data.interface.check_same(
        policy.interface,
        mine="the data",
        theirs="the policy",
        remedy="Give the data and the horizon it was trained with.",
    )
    learner = QvgmLearner(data, settings, policy, critic, variant)
    metrics = run(
        learner,
        settings,
        data_hash=f"{data.data_hash}, policy {policy.hash}, critic {critic.hash}",
        description=f"policy, {variant.name}",
        resume=resume,
    )
    training = provenance(settings, command=command, data_hash=data.data_hash, metrics=metrics)
    training |= {
        "variant": variant.name,
        "numbers": _plain(variant),
        "reference_hash": policy.hash,
        "critic_hash": critic.hash,
        **data.origin(),
    }
    states.finish(settings.out, replace(learner.policy, training=training).save)
    return metrics


def _free(network: nn.Module, trainable: str) -> None:
    """Let the named weights learn and no others."""
    beginnings = tuple(part.strip() for part in trainable.split(","))
    names = [name for name, _ in network.named_parameters()]
    for beginning in beginnings:
        if not beginning or not (
            beginning == "all" or any(name.startswith(beginning) for name in names)
        ):
            raise ConfigError(
                f"'trainable' must be 'all' or beginnings of names of weights: got '{beginning}'. "
                f"The policy has {', '.join(names)}."
            )
    for name, weight in network.named_parameters():
        weight.requires_grad_("all" in beginnings or name.startswith(beginnings))


def _length(velocity: Tensor) -> Tensor:
    """Mean Euclidean norm over chunks."""
    norms: Tensor = torch.linalg.vector_norm(velocity.float(), dim=(1, 2))
    return norms.mean()


def _plain(variant: Variant) -> dict[str, object]:
    """The version for a checkpoint; an infinite limit is None."""
    found = {k: v for k, v in asdict(variant).items() if k not in ("name", "stated")}
    return {k: None if v == float("inf") else v for k, v in found.items()}
