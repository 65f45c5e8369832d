"""Training of a noise policy; the losses and what they share are in `dsrl_learner`."""

from __future__ import annotations

from pathlib import Path

from qsteer_ros.critics.critic import Critic
from qsteer_ros.learning import states
from qsteer_ros.learning.dsrl_learner import DsrlLearner
from qsteer_ros.learning.settings_dsrl import DsrlSettings
from qsteer_ros.learning.sources import load_chunks, load_transitions
from qsteer_ros.learning.trainer import provenance, run
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.noise_policy import NoisePolicy


def train_dsrl(
    settings: DsrlSettings,
    *,
    resume: bool = False,
    command: str = "",
    transitions: Transitions | None = None,
) -> dict[str, float]:
    """Train a noise policy and write its checkpoint.

    A critic that was trained along is written to ``critic`` inside it.

    Args:
        settings: How, for which policy, and from what.
        resume: Continue an interrupted run.
        command: Written into the checkpoint.
        transitions: Data that are loaded already; None loads what the settings name.

    Returns:
        Mean of each scalar over the last tenth of the steps, and the mean value of chunks from
        the actor's noise and from standard normal noise.

    Raises:
        ConfigError: Data, policy or critic are missing or do not fit each other, or the run to
            resume was another one.
        DataError: One of them is damaged.
    """
    policy = FlowPolicy.load(settings.policy, device=settings.device)
    critic = Critic.load(settings.critic, device=settings.device) if settings.critic else None
    if transitions is None:
        transitions = load_chunks(settings) if critic else load_transitions(settings)
    learner = DsrlLearner(transitions, policy, critic, settings)
    parts = {"policy_hash": policy.hash, "critic_hash": None if critic is None else critic.hash}
    data_hash = transitions.data_hash
    metrics = run(
        learner,
        settings,
        data_hash="/".join([data_hash, *(str(value) for value in parts.values())]),
        description="noise policy",
        resume=resume,
    )
    metrics |= learner.comparison()
    training = provenance(settings, command=command, data_hash=data_hash, metrics=metrics)
    training |= {**transitions.origin(), **parts}
    made = (policy.feature_mean, policy.feature_std, policy.interface, training)
    states.finish(settings.out, NoisePolicy(learner.actor, *made).save)
    if learner.target is not None:
        Critic(learner.target, *made).save(Path(settings.out) / "critic")
    return metrics
