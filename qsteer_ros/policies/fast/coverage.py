"""What the compiled loop can do; everything else is for the readable loop."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.networks import EnsembleMLP
from qsteer_ros.flow import Sampler
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP
from qsteer_ros.steering.settings import CHUNK_MODES, SteeringSettings

COVERED = ("off", "zero", "qgf", "qgf_jacobian", "qpilots_u", *CHUNK_MODES)
"""Modes; the last ones work on finished chunks, which come from the frozen field."""


def not_covered(
    policy: FlowPolicy,
    critic: Critic | None,
    settings: SteeringSettings,
    sampler: Sampler,
    device: torch.device,
) -> str:
    """What stands in the way of compiling, as "what must hold: what was found"; empty if nothing.

    Arguments as in `engines.make_engine`.
    """
    uniform = sampler.times is None and sampler.time_power == 1.0
    critics = () if critic is None else (critic.network,)
    networks: tuple[nn.Module, ...] = (policy.network, *critics)
    kinds = {type(network).__name__ for network in networks}
    float_types = {
        str(tensor.dtype) for tensor in chain(*(network.parameters() for network in networks))
    }
    requirements = (
        (device.type == "cpu", f"'device' must be cpu: got '{device}'"),
        (
            settings.mode in COVERED,
            f"'steering' must be one of {', '.join(COVERED)}: got '{settings.mode}'",
        ),
        (
            settings.mode not in ("qgf", "zero") or settings.estimate == "euler",
            f"'estimate' must be euler: got '{settings.estimate}'",
        ),
        (
            sampler.integrator == "euler",
            f"'integrator' must be euler: got '{sampler.integrator}'",
        ),
        (uniform, "flow times must be uniform: 'time_power' or 'times' says otherwise"),
        (
            type(policy.network) is FlowMLP and kinds <= {"FlowMLP", "EnsembleMLP"},
            f"networks must be FlowMLP and EnsembleMLP: got {', '.join(sorted(kinds))}",
        ),
        (
            float_types == {"torch.float32"},
            f"weights must be torch.float32: got {', '.join(sorted(float_types))}",
        ),
    )
    return next((found for holds, found in requirements if not holds), "")


__all__ = ["COVERED", "EnsembleMLP", "not_covered"]
