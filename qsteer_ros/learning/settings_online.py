"""Settings of ``qsteer train online``."""

from __future__ import annotations

from dataclasses import dataclass

from qsteer_ros.learning.settings import option
from qsteer_ros.learning.settings_critic import CriticSettings


@dataclass(frozen=True)
class OnlineSettings(CriticSettings):
    """How ``qsteer train online`` trains: Adam, constant rate.

    ``steps`` updates on a fixed buffer come first; then every control step of a new episode earns
    ``updates_per_step`` more.
    """

    watch: str = option("", "Folder of logged episodes that is watched for new ones.")
    simulate: bool = option(
        False, "New episodes come from the simulated arm in this process, steered by the critic."
    )
    updates_per_step: float = option(1.0, "Updates per new control step.", bounds=(0.0, 1000.0))
    environment_steps: int = option(
        20_000, "New control steps after which it ends; 0: at Ctrl-C.", bounds=(0, 1e9)
    )
    new_share: float = option(
        0.5, "Share of each batch from new episodes; -1: uniform from all.", bounds=(-1.0, 1.0)
    )
    publish_every: int = option(
        1000, "Updates between checkpoints once episodes arrive.", bounds=(1, 1e9)
    )
    poll_s: float = option(2.0, "Time between looks at the watched folder.", bounds=(0.01, 3600.0))
    policy: str = option(
        "", "td, calql with candidates=policy, simulate: checkpoint of the flow policy."
    )
    steering: str = option(
        "qpilots_u", "td, simulate: how chunks are steered: off, qgf, qgf_jacobian, qpilots_u."
    )
    steering_weight: float = option(
        0.2, "td, simulate: in the units of that mode.", bounds=(0.0, 1e6)
    )
    denoising_steps: int = option(
        10, "td, calql, simulate: Euler steps of the policy.", bounds=(1, 1000)
    )
    execute_steps: int = option(5, "simulate: actions executed per chunk.", bounds=(1, 1000))
    max_steps: int = option(200, "simulate: control steps per episode.", bounds=(1, 1e6))
    lr_floor: float = option(1.0, "Share of the rate at the end of a cosine.", bounds=(0.0, 1.0))
