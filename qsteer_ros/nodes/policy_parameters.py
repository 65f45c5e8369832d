"""What can be set on the policy node."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qsteer_ros.nodes.observations import AgeLimits
from qsteer_ros.nodes.parameters import param
from qsteer_ros.steering.settings import MODES, SteeringSettings

#: Parameters that are read when the node is configured; they cannot change before a cleanup.
AT_CONFIGURE = frozenset({"robot", "encoder", "policy", "device", "num_threads"})


@dataclass(frozen=True)
class PolicyParameters:
    """Parameters of the policy node. Those in ``AT_CONFIGURE`` are fixed while it is configured;
    all others take effect at the next chunk.
    """  # noqa: D205

    robot: str = param(
        "robot_ur5e_sim.yaml", "Robot file, or its name under the package's config/."
    )
    encoder: str = param("checkpoints/encoder", "Folder of the camera encoder.")
    policy: str = param("checkpoints/policy", "Folder of the frozen policy.")
    critic: str = param(
        "checkpoints/critic_goal1", "Folder of the critic that steers; empty for none."
    )
    device: str = param("cpu", "Where the networks run.", choices=("cpu", "cuda"))
    num_threads: int = param(1, "Threads of torch on the CPU.", bounds=(1, 64))
    steering: str = param("off", "How the critic steers the policy.", choices=MODES)
    guidance_weight: float = param(
        0.04,
        "Weight of the critic's gradient, (normalised action)^2 per unit of return; for qpilots_u "
        "the ratio of guidance to velocity.",
        bounds=(0.0, 10.0),
    )
    max_ratio: float = param(
        math.inf,
        "Largest ||guidance|| / ||velocity|| of qgf and random_matched.",
        bounds=(1e-3, math.inf),
    )
    reduction: str = param(
        "min",
        "How the values of the critic's members become one.",
        choices=("min", "mean", "pessimistic"),
    )
    pessimism: float = param(
        0.5, "Spreads below the mean, for reduction 'pessimistic'.", bounds=(0.0, 10.0)
    )
    num_samples: int = param(16, "Candidates per chunk of best_of_n.", bounds=(1, 1024))
    compare: bool = param(
        True, "Also compute each chunk without steering, to report the gain in Q (delta_q)."
    )
    denoising_steps: int = param(10, "Euler steps from noise to action.", bounds=(1, 100))
    execute_steps: int = param(
        5, "Actions of a chunk that are executed before the next is decided.", bounds=(1, 100)
    )
    seed: int = param(
        0,
        "Decides, with the number of a chunk since activation, its noise. Setting it starts the "
        "numbers again.",
        bounds=(0, 2**31 - 1),
    )
    max_age_s: float = param(
        0.4, "Oldest observation that may be acted on, s.", bounds=(0.01, 10.0)
    )
    max_skew_s: float = param(
        0.025,
        "Most that frames and joint states of one observation may differ, s.",
        bounds=(0.0, 1.0),
    )
    lead_s: float = param(
        0.01, "From publishing a chunk to the time at which it takes effect, s.", bounds=(0.0, 0.5)
    )

    def steering_settings(self) -> SteeringSettings:
        """The steering that these parameters choose.

        Raises:
            ConfigError: They contradict one another.
        """
        return SteeringSettings(
            mode=self.steering,
            weight=self.guidance_weight,
            reduction=self.reduction,
            rho=self.pessimism,
            max_ratio=self.max_ratio,
            num_samples=self.num_samples,
            twin_rate=float(self.compare),
        )

    def age_limits(self) -> AgeLimits:
        """How old and how far apart the parts of an observation may be."""
        return AgeLimits(age_ns=round(self.max_age_s * 1e9), skew_ns=round(self.max_skew_s * 1e9))
