"""What the compiled loop can do; everything else is for the readable loop."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.networks import EnsembleMLP, QNetwork
from qsteer_ros.flow import Sampler
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP
from qsteer_ros.steering.settings import CHUNK_MODES, NOISE_MODES, SteeringSettings

COVERED = ("off", "zero", "qgf", "qgf_jacobian", "qpilots_u", *CHUNK_MODES, *NOISE_MODES)
"""Modes; the last ones choose noise or work on finished chunks, which come from the frozen field.

A mode that is idle (weight 0) is covered like ``off``.
"""


def is_idle(settings: SteeringSettings) -> bool:
    """Whether the frozen field is all there is to integrate, as `steering.guide` decides it."""
    if settings.mode in ("off", *CHUNK_MODES, *NOISE_MODES):
        return True
    return settings.mode != "zero" and settings.weight == 0.0 and settings.ratio == 0.0


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
    kinds = [type(network) for network in networks]
    float_types = {
        str(tensor.dtype) for tensor in chain(*(network.parameters() for network in networks))
    }
    layout = "" if critic is None else _layout(critic.network)
    requirements = (
        (device.type == "cpu", f"'device' must be cpu: got '{device}'"),
        (
            settings.mode in COVERED or is_idle(settings),
            f"'steering' must be one of {', '.join(COVERED)}: got '{settings.mode}'",
        ),
        (
            settings.mode not in ("qgf", "zero")
            or settings.estimate == "euler"
            or is_idle(settings),
            f"'estimate' must be euler: got '{settings.estimate}'",
        ),
        (
            sampler.integrator == "euler",
            f"'integrator' must be euler: got '{sampler.integrator}'",
        ),
        (uniform, "flow times must be uniform: 'time_power' or 'times' says otherwise"),
        (
            kinds == ([FlowMLP] if critic is None else [FlowMLP, EnsembleMLP]),
            "networks must be FlowMLP and EnsembleMLP: got "
            + ", ".join(kind.__name__ for kind in kinds),
        ),
        (
            not layout,
            f"the critic must have one output per member, LayerNorm and gelu: got {layout}",
        ),
        (
            float_types == {"torch.float32"},
            f"weights must be torch.float32: got {', '.join(sorted(float_types))}",
        ),
    )
    return next((found for holds, found in requirements if not holds), "")


def _layout(network: QNetwork) -> str:
    """What the kernels do not know of a critic's layers; empty if nothing."""
    found = []
    if network.outputs != 1:
        found.append(f"{network.outputs} outputs")
    if not network.layer_norm:
        found.append("no LayerNorm")
    if network.activation != "gelu":
        found.append(network.activation)
    return ", ".join(found)
