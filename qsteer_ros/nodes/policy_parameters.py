"""What can be set on the policy node."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qsteer_ros.ensemble import REDUCTIONS
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import INTEGRATORS, Sampler
from qsteer_ros.nodes.observations import AgeLimits
from qsteer_ros.nodes.parameters import param
from qsteer_ros.policies.engines import BACKENDS
from qsteer_ros.steering.clean import ESTIMATES
from qsteer_ros.steering.settings import MODES, NOISE_DRAWS, SteeringSettings

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
    allow_ungated_critic: bool = param(
        False,
        "Steer by a critic that has not passed qsteer gate for this policy, encoder and robot.",
    )
    noise_policy: str = param(
        "", "Folder of the noise policy that chooses where dsrl starts; empty for none."
    )
    posterior_map: str = param(
        "",
        "Folder of the posterior map from which qpilots_m draws; empty: the policy itself draws.",
    )
    device: str = param("cpu", "Where the networks run.", choices=("cpu", "cuda"))
    num_threads: int = param(1, "Threads of torch on the CPU.", bounds=(1, 64))
    steering: str = param(
        "off", "How the critic, or for dsrl the noise policy, steers the policy.", choices=MODES
    )
    guidance: str = param(
        "weight",
        "What decides how strong modes that bend the field are: 'guidance_weight'; "
        "'guidance_ratio', exactly, at every step; or the weight that qsteer calibrate found for "
        "this critic, policy and mode.",
        choices=("weight", "ratio", "calibrated"),
    )
    guidance_weight: float = param(
        0.04,
        "Strength in the mode's own units: (normalised action)^2 per unit of return, for "
        "qpilots_u and qpilots_m the ratio of guidance to velocity, for noisy_gradient a share, "
        "for gradient_step the length of a step.",
        bounds=(0.0, 1000.0),
    )
    guidance_ratio: float = param(
        0.05, "||guidance|| / ||velocity|| for guidance 'ratio'.", bounds=(1e-4, 10.0)
    )
    max_ratio: float = param(
        math.inf,
        "Largest ||guidance|| / ||velocity|| per step, real-time chunking included; infinity sets "
        "no limit.",
        bounds=(1e-3, math.inf),
    )
    project_guidance: bool = param(
        False, "Cut guidance that would push the predicted action out of its bounds."
    )
    max_displacement: float = param(
        math.inf,
        "Largest distance of a chunk from the one without steering, root mean square per "
        "normalised action; infinity sets no limit.",
        bounds=(1e-3, math.inf),
    )
    reduction: str = param(
        "min", "How the values of the critic's members become one.", choices=REDUCTIONS
    )
    pessimism: float = param(
        0.5, "Spreads below the mean, for reduction 'pessimistic'.", bounds=(0.0, 10.0)
    )
    estimate: str = param(
        "euler", "Action at which qgf asks the critic in each step.", choices=ESTIMATES
    )
    keep_jacobian: bool = param(
        True, "Differentiate qpilots_u through the policy too: exact, and slower."
    )
    posterior_samples: int = param(
        SteeringSettings.posterior_samples,
        "Clean actions that qpilots_m draws per step.",
        bounds=(1, 256),
    )
    posterior_steps: int = param(
        SteeringSettings.posterior_steps,
        "Steps in which qpilots_m draws one of them.",
        bounds=(1, 100),
    )
    tilt_clip: float = param(
        SteeringSettings.tilt_clip,
        "Standard deviations beyond which qpilots_m does not follow a value; infinity: none.",
        bounds=(0.1, math.inf),
    )
    inverse_temperature: float = param(
        SteeringSettings.inverse_temperature,
        "Strength of the value against the prior in noisy_gradient, per unit of return.",
        bounds=(0.0, 1e4),
    )
    num_samples: int = param(16, "Candidates per chunk of best_of_n.", bounds=(1, 1024))
    ascent_steps: int = param(
        SteeringSettings.ascent_steps, "Steps of gradient_step.", bounds=(1, 100)
    )
    noise_draw: str = param(
        SteeringSettings.noise_draw,
        "Whether dsrl draws its noise by the seed or starts at the median.",
        choices=NOISE_DRAWS,
    )
    compare_rate: float = param(
        1.0,
        "Share of chunks that are also computed without steering, to report the gain in value "
        "(delta_q), the displacement and whose clips a chunk carries.",
        bounds=(0.0, 1.0),
    )
    denoising_steps: int = param(10, "Steps from noise to action.", bounds=(1, 100))
    integrator: str = param(
        "euler",
        "How a step is taken; midpoint and heun ask policy and critic twice per step.",
        choices=INTEGRATORS,
    )
    time_power: float = param(
        1.0,
        "Flow times of the steps are 1 - (1 - k / T)^p: above 1 they are shorter near the action, "
        "below 1 near the noise.",
        bounds=(0.1, 10.0),
    )
    backend: str = param(
        "auto",
        "How the path of a chunk is computed; auto takes the fastest way that can do what is "
        "asked. Deadlines and continued chunks always take the readable loop, eager.",
        choices=BACKENDS,
    )
    deadline_s: float = param(
        0.0,
        "Longest time from the start of a decision to its path, s: guidance is dropped first, "
        "then steps; 0 sets none.",
        bounds=(0.0, 10.0),
    )
    real_time_chunking: bool = param(
        False,
        "Continue the running chunk: its actions until the new one takes effect are kept, the "
        "next ones drawn to it. Needs 'execute_steps' below the actions in a chunk.",
    )
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
        if self.guidance != "weight" and self.steering == "gradient_step":
            raise ConfigError(
                "steering 'gradient_step' must go by 'guidance_weight', the length of its steps: "
                f"'guidance' is '{self.guidance}', which is for modes that bend the field. Set "
                "guidance: weight."
            )
        return SteeringSettings(
            mode=self.steering,
            weight=self.guidance_weight,
            ratio=self.guidance_ratio if self.guidance == "ratio" else 0.0,
            reduction=self.reduction,
            rho=self.pessimism,
            max_ratio=self.max_ratio,
            project=self.project_guidance,
            max_displacement=self.max_displacement,
            estimate=self.estimate,
            keep_jacobian=self.keep_jacobian,
            posterior_samples=self.posterior_samples,
            posterior_steps=self.posterior_steps,
            tilt_clip=self.tilt_clip,
            inverse_temperature=self.inverse_temperature,
            num_samples=self.num_samples,
            ascent_steps=self.ascent_steps,
            noise_draw=self.noise_draw,
            twin_rate=self.compare_rate,
        )

    def sampler(self) -> Sampler:
        """How the field is integrated.

        Raises:
            ConfigError: The steps would be too short to tell apart.
        """
        return Sampler(
            self.denoising_steps, integrator=self.integrator, time_power=self.time_power
        )

    def age_limits(self) -> AgeLimits:
        """How old and how far apart the parts of an observation may be."""
        return AgeLimits(age_ns=round(self.max_age_s * 1e9), skew_ns=round(self.max_skew_s * 1e9))
