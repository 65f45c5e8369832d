"""What can be set on the session node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qsteer_ros.errors import ConfigError
from qsteer_ros.nodes.parameters import param
from qsteer_ros.replay.arms import WEIGHTS, arm_parameters

MOST = (0.0, 1000.0)


@dataclass(frozen=True)
class SessionParameters:
    """Parameters of the session node, read once."""

    folder: str = param("", "Folder of the session; the same plan in it is resumed.")
    arms: tuple[str, ...] = param(
        ("off", "best_of_n", "qgf", "qpilots_u"),
        "Steering arms: a mode, or a mode with its number as in qgf:0.05.",
    )
    goals: tuple[int, ...] = param((1,), "Numbers of the goals.")
    episodes: int = param(20, "Episodes per arm and goal.", bounds=(1, 100_000))
    seed: int = param(
        0, "Episode i of every arm starts from state seed + i.", bounds=(0, 2**31 - 100_001)
    )
    timeout_s: float = param(
        10.0, "Simulated time after which an episode has failed, s.", bounds=(0.1, 3600.0)
    )
    wall_factor: float = param(
        20.0, "Time limit of an episode in multiples of 'timeout_s'.", bounds=(1.0, 1000.0)
    )
    zero_weight: float = param(WEIGHTS["zero"], "Guidance weight of arm zero.", bounds=MOST)
    random_matched_weight: float = param(
        WEIGHTS["random_matched"], "Guidance weight of arm random_matched.", bounds=MOST
    )
    qgf_weight: float = param(WEIGHTS["qgf"], "Guidance weight of arm qgf.", bounds=MOST)
    qgf_jacobian_weight: float = param(
        WEIGHTS["qgf_jacobian"], "Guidance weight of arm qgf_jacobian.", bounds=MOST
    )
    qpilots_u_weight: float = param(
        WEIGHTS["qpilots_u"], "Guidance weight of arm qpilots_u.", bounds=MOST
    )
    qpilots_m_weight: float = param(
        WEIGHTS["qpilots_m"], "Guidance weight of arm qpilots_m.", bounds=MOST
    )
    noisy_gradient_weight: float = param(
        WEIGHTS["noisy_gradient"], "Guidance weight of arm noisy_gradient.", bounds=MOST
    )
    bptt_weight: float = param(WEIGHTS["bptt"], "Guidance weight of arm bptt.", bounds=MOST)
    gradient_step_weight: float = param(
        WEIGHTS["gradient_step"], "Length of a step of arm gradient_step.", bounds=MOST
    )
    num_samples: int = param(16, "Candidates of arm best_of_n.", bounds=(1, 4096))
    critics: tuple[str, ...] = param(
        tuple(f"checkpoints/critic_goal{goal}" for goal in (1, 2, 3)),
        "Critic checkpoints of goal 1, 2, ...",
    )
    noise_policy: str = param(
        "", "Noise policy of arm dsrl; {goal} in it becomes the goal's number."
    )
    policy_node: str = param("policy_node", "Name of the policy node.")
    logger_node: str = param("logger_node", "Name of the logger node.")
    sim_node: str = param("sim_node", "Name of the simulator node.")

    def arm(self, label: str) -> dict[str, Any]:
        """Policy parameters of an arm."""
        weights = {mode: getattr(self, f"{mode}_weight") for mode in WEIGHTS}
        return arm_parameters(label, weights=weights, num_samples=self.num_samples)

    def critic(self, goal: int) -> str:
        """Critic of a goal.

        Raises:
            ConfigError: There is none.
        """
        if not 1 <= goal <= len(self.critics):
            raise ConfigError(
                f"goal {goal} needs a critic: parameter 'critics' names {len(self.critics)}. "
                "Train one with 'qsteer train critic' and add its folder."
            )
        return self.critics[goal - 1]

    def noise_policy_of(self, goal: int) -> str:
        """Noise policy of a goal; empty where no arm asks one.

        Raises:
            ConfigError: Arm dsrl has none.
        """
        if not self.noise_policy and "dsrl" in self.arms:
            raise ConfigError(
                "arm dsrl needs a noise policy: parameter 'noise_policy' is empty. Train one with "
                "'qsteer train dsrl' and name its folder."
            )
        return self.noise_policy.replace("{goal}", str(goal))
