"""The versions of Q-VGM that were published, each with the numbers that belong to it.

They differ in the critic, in how the critic is climbed and in which steps are corrected. What a
version leaves open has a default here and may be set; what it states may be changed only as a
deviation that is written into the name of what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from qsteer_ros.errors import ConfigError

DEVIATION = "+custom"
"""Ends the name of a version that was not followed to the letter."""


@dataclass(frozen=True)
class Variant:
    """One version.

    Heads of a critic of chunks are averaged. A critic that judges positions answers as one: the
    smallest head at each position, summed over positions (see ``QNetwork.q``).

    Attributes:
        name: Version, critic, and what the critic judges.
        objective: The critic's objective, as ``qsteer train critic objective=`` names it.
        members: Heads of the critic; 0 where the version does not say.
        direction: Of ``gradient_step``.
        keep: Of ``gradient_step``.
        boxed: Whether the climb stays inside the action bounds.
        gate: ``last``: the last steps of the path count alike; ``power``: all, more and more.
        denoising_steps: T, steps of the path.
        last_steps: M, steps that count, with gate ``last``; 0 otherwise.
        gate_power: p, with gate ``power``; 0 otherwise.
        ascent_steps: J.
        step_size: alpha; normalised action (``unit``), or that squared per unit of return.
        max_norm: G, longest gradient of the critic; infinite sets no limit.
        gradient_clip: Longest gradient of the policy's weights.
        stated: Numbers among these that the version's text states.
    """

    name: str
    objective: str
    members: int
    direction: str
    keep: str
    boxed: bool
    gate: str
    denoising_steps: int
    last_steps: int
    gate_power: float
    ascent_steps: int
    step_size: float
    max_norm: float
    gradient_clip: float
    stated: frozenset[str]


VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            name="v1_calql_chunk",
            objective="calql",
            members=0,
            direction="gradient",
            keep="best",
            boxed=True,
            gate="power",
            denoising_steps=10,
            last_steps=0,
            gate_power=1.0,
            ascent_steps=3,
            step_size=0.02,
            max_norm=1.0,
            gradient_clip=3.5,
            stated=frozenset(),
        ),
        Variant(
            name="v2_iql_stepwise",
            objective="stepwise_iql",
            members=2,
            direction="gradient",
            keep="best",
            boxed=False,
            gate="last",
            denoising_steps=10,
            last_steps=5,
            gate_power=0.0,
            ascent_steps=3,
            step_size=0.02,
            max_norm=1.0,
            gradient_clip=3.5,
            stated=frozenset({"last_steps"}),
        ),
        Variant(
            name="v5_iql_chunk10",
            objective="iql",
            members=10,
            direction="unit",
            keep="ascending",
            boxed=False,
            gate="last",
            denoising_steps=10,
            last_steps=5,
            gate_power=0.0,
            ascent_steps=3,
            step_size=0.05,
            max_norm=math.inf,
            gradient_clip=3.5,
            stated=frozenset(
                {"denoising_steps", "last_steps", "ascent_steps", "step_size", "gradient_clip"}
            ),
        ),
    )
}
"""v1 of June 2026, v2 of July, v5 of September; arXiv:2606.08015. Of v3 and v4 too little is
known. Numbers that a version does not state are those of re-implementations or of another version:
T = 10, J = 3 and the clip of 3.5 from v5; p = 1, G = 1 and alpha from runs with v1's climb."""

_APPLIES = {
    "last_steps": lambda variant: variant.gate == "last",
    "gate_power": lambda variant: variant.gate == "power",
    "max_norm": lambda variant: variant.direction == "gradient",
}


def find_variant(name: str) -> Variant:
    """The version with this name.

    Raises:
        ConfigError: There is none.
    """
    if name not in VARIANTS:
        raise ConfigError(f"'variant' must be one of {', '.join(VARIANTS)}: got '{name}'.")
    return VARIANTS[name]


def adjusted(
    variant: Variant,
    changes: Mapping[str, Any],
    *,
    objective: str | None,
    members: int,
    custom: bool,
) -> Variant:
    """A version with its open numbers filled in, for a critic.

    Args:
        variant: The version.
        changes: Numbers by field name that differ from, or equal, the version's.
        objective: What the critic was trained for; None where its checkpoint does not say.
        members: Heads of the critic.
        custom: Whether deviations from what the version states are wanted.

    Returns:
        The version; with :data:`DEVIATION` after its name where anything that it states was not
        followed.

    Raises:
        ConfigError: The critic or a number is not what the version states and ``custom`` is
            false, or a number has no meaning in this version.
    """
    deviations = []
    if objective != variant.objective:
        found = "none stated" if objective is None else f"'{objective}'"
        deviations.append(
            f"a critic of objective '{variant.objective}': got {found}. Train it with qsteer "
            f"train critic objective={variant.objective}"
        )
    if variant.members and members != variant.members:
        deviations.append(
            f"a critic of {variant.members} members: got {members}. Train it with qsteer train "
            f"critic ensemble={variant.members}"
        )
    for name, value in changes.items():
        if name in _APPLIES and not _APPLIES[name](variant):
            raise ConfigError(
                f"'{name}' must be left out with variant '{variant.name}', which has no use for "
                f"it: got {value}. Remove it, or choose another variant."
            )
        if name in variant.stated and value != getattr(variant, name):
            deviations.append(
                f"'{name}' of {getattr(variant, name):g}: got {value:g}. Leave it out"
            )
    if deviations and not custom:
        raise ConfigError(
            f"variant '{variant.name}' wants {deviations[0]}, or set custom=true, which names the "
            f"result '{variant.name}{DEVIATION}'."
        )
    known = {entry.name for entry in fields(variant)} - {"name", "stated"}
    assert set(changes) <= known
    return replace(variant, **changes, name=variant.name + DEVIATION * bool(deviations))
