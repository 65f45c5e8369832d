r"""Distil the posterior flow of a frozen policy into a meta flow map, for QPILOTS-M.

For a chunk a of the data and three independent noises,

.. math:: x = (1-t)\,\epsilon_1 + t\,a, \quad y = (1-r)\,\epsilon_2 + r\,a, \quad
          y' = (1-r')\,\epsilon_3 + r'\,a,

.. math:: L = \lambda_d \Big\lVert \frac{u(r, r, y) - w(r, y)}{\text{unit}(t, r)} \Big\rVert^2
            + \lambda_c \Big\lVert \frac{u(r', q', y') - \text{semigroup}(r', q', y')}
                                        {\text{unit}(t, r')} \Big\rVert^2,

both means over batch and components, with targets of `posterior_losses` and the unit of
`AverageVelocity`. In a share of the rows r' = 0 and q' = 1, the step that draws a sample, and the
target is the frozen field's own way there. The network's two losses are one evaluation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.learning import states
from qsteer_ros.learning.buffer import Buffer
from qsteer_ros.learning.learner import Batch, Learner
from qsteer_ros.learning.posterior_losses import (
    between,
    conditioning_time,
    integrated_target,
    scaled_error,
    semigroup_target,
    step_times,
)
from qsteer_ros.learning.settings import widths
from qsteer_ros.learning.settings_posterior_map import PosteriorMapSettings
from qsteer_ros.learning.sources import load_chunks
from qsteer_ros.learning.trainer import provenance, run
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.policies.average_velocity import AverageVelocity
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.posterior_map import MetaFlowMap
from qsteer_ros.posterior import glass_posterior, glass_velocity_per_row
from qsteer_ros.weights import ema_update

CHUNK_STD_FLOOR = 0.05
"""Least standard deviation of an action component, normalised units."""

CHECKED_TIMES = (0.0, 0.3, 0.6, 0.9)
CHECKED_ROWS = 256


class PosteriorLearner(Learner):
    """Regresses average velocities of the posterior flow of a frozen policy.

    Args:
        transitions: Data of the policy.
        policy: The teacher. It is not part of the module: nothing of it changes.
        settings: How.

    Raises:
        ConfigError: Data and policy live in different spaces.
    """

    taken: Tensor

    def __init__(
        self, transitions: Transitions, policy: FlowPolicy, settings: PosteriorMapSettings
    ) -> None:
        super().__init__()
        transitions.interface.check_same(
            policy.interface,
            mine="the data",
            theirs="the policy",
            remedy="Give the data that the policy was trained on.",
        )
        torch.manual_seed(settings.seed)
        self._settings, self._policy = settings, (policy,)
        self._buffer = Buffer(transitions, device=settings.device)
        chunks = torch.from_numpy(transitions.chunk).flatten(1)
        self.network = AverageVelocity(
            policy.interface.feature_dim,
            chunks.mean(dim=0),
            chunks.std(dim=0).clamp_min(CHUNK_STD_FLOOR),
            widths(settings.hidden),
        ).to(settings.device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
        self._optimisers = {
            "network": torch.optim.Adam(
                self.network.parameters(), lr=settings.learning_rate, fused=True
            )
        }

    def draw(self, source: torch.Generator) -> Batch:
        """Rows of the data, three noises each, and times."""
        settings = self._settings
        batch = self._buffer.take(self._buffer.rows(settings.batch, source))
        chunk = batch["chunk"].flatten(1)
        noise = torch.randn((settings.batch, 3, chunk.shape[1]), generator=source)
        uniform = torch.rand((7, settings.batch), generator=source)
        start, end = step_times(
            uniform[3], uniform[4], uniform[5], whole_share=settings.whole_share
        )
        times = {
            "flow_time": conditioning_time(
                uniform[0],
                uniform[1],
                highest=settings.highest_time,
                zero_share=settings.zero_share,
            ),
            "inner_time": uniform[2],
            "start": start,
            "end": end,
            "share": uniform[6],
        }
        moved = {name: values.to(chunk.device) for name, values in times.items()}
        return {
            "features": batch["features"],
            "chunk": chunk,
            "noise": noise.to(chunk.device),
            **moved,
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Both losses, and their weighted sum."""
        settings, (policy,) = self._settings, self._policy
        chunk, time, noise = batch["chunk"], batch["flow_time"], batch["noise"]
        features = policy.standardised(batch["features"])
        outer = between(noise[:, 0], chunk, time)
        inner = between(noise[:, 1], chunk, batch["inner_time"])
        inner_step = between(noise[:, 2], chunk, batch["start"])

        def average(state: Tensor, start: Tensor, end: Tensor) -> Tensor:
            found: Tensor = self.network(features, outer, time, state, start, end)
            return found

        shape = (-1, policy.horizon, policy.action_dim)
        starts = torch.cat([batch["inner_time"], batch["start"]])
        with torch.no_grad():
            velocity = glass_velocity_per_row(
                policy.condition(batch["features"]),
                inner.view(shape),
                batch["inner_time"],
                outer.view(shape),
                time,
            ).flatten(1)
            unit = self.network.unit(time.repeat(2), starts)
        target = semigroup_target(
            average, inner_step, batch["start"], batch["end"], batch["share"]
        )
        if settings.whole_steps > 0:
            whole = (batch["start"] == 0.0) & (batch["end"] == 1.0)
            target[whole] = integrated_target(
                policy.condition(batch["features"][whole]),
                inner_step[whole].view(shape),
                outer[whole].view(shape),
                time[whole],
                steps=settings.whole_steps,
            )
        found = self.network(
            features.repeat(2, 1),
            outer.repeat(2, 1),
            time.repeat(2),
            torch.cat([inner, inner_step]),
            starts,
            torch.cat([batch["inner_time"], batch["end"]]),
        )
        (instant, step), (unit, unit_step) = found.chunk(2), unit.chunk(2)
        diagonal = scaled_error(instant, velocity, unit)
        consistency = scaled_error(step, target, unit_step)
        loss = settings.diagonal_weight * diagonal + settings.consistency_weight * consistency
        return {"loss": loss, "diagonal": diagonal, "consistency": consistency}

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One."""
        return self._optimisers

    def after_step(self) -> None:
        """The average follows the weights: of the last tenth of few steps, slowly after many."""
        rate = max(self._settings.ema, 9.0 / (10.0 + float(self.taken)))
        ema_update(self.average, self.network, rate=rate)
        self.taken += 1


def train_posterior_map(
    settings: PosteriorMapSettings,
    *,
    resume: bool = False,
    command: str = "",
    transitions: Transitions | None = None,
) -> dict[str, float]:
    """Distil a policy's posterior flow and write the map's checkpoint.

    Args:
        settings: How, and from what.
        resume: Continue an interrupted run.
        command: Written into the checkpoint.
        transitions: Data that are loaded already; None loads what the settings name.

    Returns:
        Mean losses over the last tenth of the steps, and `distances`.

    Raises:
        ConfigError: Policy or data are missing, they live in different spaces, or the run to
            resume was another one.
    """
    policy = FlowPolicy.load(settings.policy, device=settings.device)
    if settings.horizon not in (0, policy.horizon):
        raise ConfigError(
            f"'horizon' must be the policy's, {policy.horizon}: got {settings.horizon}. "
            "Leave it out."
        )
    settings = replace(settings, horizon=policy.horizon)
    data = load_chunks(settings) if transitions is None else transitions
    learner = PosteriorLearner(data, policy, settings)
    metrics = run(
        learner,
        settings,
        data_hash=f"{data.data_hash}/{policy.hash}",
        description="posterior map",
        resume=resume,
    )
    training = provenance(settings, command=command, data_hash=data.data_hash, metrics=metrics)
    training |= {"policy_hash": policy.hash, "transitions": len(data)}
    trained = MetaFlowMap(
        learner.average, policy.feature_mean, policy.feature_std, policy.interface, training
    )
    found = distances(trained, policy, data, seed=settings.seed)
    metrics |= found
    states.finish(settings.out, replace(trained, training={**training, "metrics": metrics}).save)
    return metrics


@torch.no_grad()
def distances(
    trained: MetaFlowMap,
    policy: FlowPolicy,
    data: Transitions,
    *,
    seed: int,
    times: tuple[float, ...] = CHECKED_TIMES,
) -> dict[str, float]:
    r"""How far one-step samples are from those of the frozen field itself, from the same noise.

    The exact map is known sample by sample: it is the posterior flow of the frozen field,
    integrated (16 midpoint steps of `glass_posterior`). Reported is the root mean square
    difference as a share of the root mean square spread of the exact samples about their mean.
    A map of the mean alone has 1, an exact one 0.

    Args:
        trained: The map.
        policy: The policy it was distilled from.
        data: Chunks and features that noisy chunks are made of.
        seed: Of rows and noise.
        times: Flow times of the noisy chunks.

    Returns:
        ``distance_at_0.3`` and so on.
    """
    source = torch.Generator().manual_seed(seed)
    device = policy.feature_mean.device
    rows = torch.randint(len(data), (CHECKED_ROWS,), generator=source).numpy()
    features = torch.from_numpy(data.features[rows]).to(device)
    chunk = torch.from_numpy(data.chunk[rows]).to(device)
    found = {}
    for time in times:
        outer = torch.randn(chunk.shape, generator=source).to(device)
        noise = torch.randn((CHECKED_ROWS, 4, *chunk.shape[1:]), generator=source).to(device)
        asked = (noise, (1.0 - time) * outer + time * chunk, chunk.new_full((CHECKED_ROWS,), time))
        exact = glass_posterior(policy.condition(features), steps=16)(*asked)
        samples = trained.condition(features)(*asked)
        spread = (exact - exact.mean(dim=1, keepdim=True)).square().mean() * 4.0 / 3.0
        found[f"distance_at_{time}"] = float(((samples - exact).square().mean() / spread).sqrt())
    return found
