"""Behaviour cloning of the flow policy from play, on features of the simulator's truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from qsteer_ros.interface import Interface
from qsteer_ros.learning.play import Play, load_play, window_starts, windows
from qsteer_ros.learning.settings import PolicySettings
from qsteer_ros.learning.trainer import (
    generator,
    set_learning_rate,
    single_threaded,
    train,
    warmup_cosine,
)
from qsteer_ros.policies.features import CUBE_NAMES, FEATURE_NAMES, LENGTH_SCALE
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP, flow_matching_loss, sample_flow_time

STD_FLOOR = 0.1
"""Least standard deviation a feature is divided by. A joint that hardly moves in the data would
otherwise turn a disturbance of one degree into fifteen standard deviations."""

WARMUP_STEPS = 200
ACTION_NAMES = ("dx", "dy", "dz", "dyaw", "dgripper")
ACTION_SCALE = (0.05, 0.05, 0.05, 0.3, 1.0)
CONTROL_DT_S = 0.05

_CUBE = len(FEATURE_NAMES) - len(CUBE_NAMES)
_CUBE_POSITION = slice(_CUBE, _CUBE + 6)


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and floored standard deviation of every feature, (F,) each."""
    return features.mean(dim=0), features.std(dim=0).clamp_min(STD_FLOOR)


def noisy_cube(features: Tensor, deviation_m: float, source: torch.Generator) -> Tensor:
    """Features as an encoder with this error sees them: absolute and relative position move alike.

    Args:
        features: (B, 27), not standardised. Not modified.
        deviation_m: Standard deviation along each axis, m.
        source: Where randomness comes from.
    """
    if deviation_m == 0.0:
        return features
    shift = torch.randn(len(features), 3, generator=source) * (deviation_m * LENGTH_SCALE)
    moved = features.clone()
    moved[:, _CUBE_POSITION] += shift.repeat(1, 2)
    return moved


class PolicyLearner:
    """Regresses the velocity from noise to the data's chunks (see ``flow_matching_loss``)."""

    def __init__(self, play: Play, settings: PolicySettings) -> None:
        torch.manual_seed(settings.seed)
        starts = window_starts(play.episode, settings.horizon)
        self._settings = settings
        self._features = torch.from_numpy(play.features()[starts])
        self._chunks = torch.from_numpy(windows(play.action, starts, settings.horizon)).flatten(1)
        self.mean, self.std = statistics(self._features)
        self.network = FlowMLP(
            self._features.shape[1], self._chunks.shape[1], (settings.hidden,) * 3
        )
        self._optimiser = torch.optim.Adam(
            self.network.parameters(), lr=settings.learning_rate, fused=True
        )

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What is trained."""
        return {"network": self.network}

    @property
    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """What trains it."""
        return {"network": self._optimiser}

    def update(self, step: int) -> Mapping[str, Tensor]:
        """One step of Adam on one batch."""
        settings = self._settings
        factor = warmup_cosine(step, steps=settings.steps, warmup=WARMUP_STEPS, floor=0.05)
        set_learning_rate(self._optimiser, settings.learning_rate * factor)
        source = generator(settings.seed, step)
        rows = torch.randint(len(self._features), (settings.batch,), generator=source)
        features = noisy_cube(self._features[rows], settings.cube_noise_m, source)
        chunk = self._chunks[rows]
        loss = flow_matching_loss(
            self.network,
            (features - self.mean) / self.std,
            chunk,
            noise=torch.randn(chunk.shape, generator=source),
            flow_time=sample_flow_time(settings.batch, generator=source),
        )
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return {"loss": loss.detach()}


def interface(horizon: int, *, encoder_hash: str | None = None) -> Interface:
    """The space in which policies and critics of the simulated arm live.

    Args:
        horizon: Actions per chunk.
        encoder_hash: Encoder whose features were trained on; None for the simulator's truth.
    """
    return Interface(
        horizon=horizon,
        action_names=ACTION_NAMES,
        action_scale=ACTION_SCALE,
        feature_names=FEATURE_NAMES,
        control_dt_s=CONTROL_DT_S,
        encoder_hash=encoder_hash,
    )


def train_policy(
    data: Path,
    out: Path,
    settings: PolicySettings,
    *,
    resume: bool = False,
    command: str = "",
) -> dict[str, float]:
    """Clone the play and write the policy's checkpoint.

    Args:
        data: Folder that ``qsteer data`` wrote.
        out: Folder of the checkpoint.
        settings: How.
        resume: Continue an interrupted run.
        command: Written into the checkpoint.

    Returns:
        The mean loss over the last tenth of the steps.

    Raises:
        ConfigError: There is no play, or the run to resume was another one.
    """
    single_threaded(settings.threads)
    play = load_play(data / "play")
    learner = PolicyLearner(play, settings)
    metrics = train(
        learner,
        out,
        settings=settings,
        data_hash=play.hash,
        description="policy",
        resume=resume,
    )
    training = {
        "command": command,
        "seed": settings.seed,
        "steps": settings.steps,
        "settings": asdict(settings),
        "data_hash": play.hash,
        "transitions": len(play.action),
        "metrics": metrics,
    }
    policy = FlowPolicy(
        learner.network, learner.mean, learner.std, interface(settings.horizon), training
    )
    policy.save(out)
    return metrics
