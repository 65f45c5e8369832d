r"""Which inputs the critic looks at.

An input is examined by permutation: it is given the value that it has in another window, drawn at
random, while all others stay. Its effect is how far the value moves,

.. math:: \Delta_g = \sqrt{\operatorname{mean}_i (Q(x_i^{g \leftarrow \pi(i)}) - Q(x_i))^2}

relative to the same with all inputs of its kind permuted together: all features for a feature, the
whole chunk for a part of the chunk. What the critic ignores has effect zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qsteer_ros.critics.gate import FAIL, PASS, UNKNOWN, Check
from qsteer_ros.critics.gate_settings import GateSettings

SHOWN = 4
"""Names in a sentence; all are in the figures."""


@dataclass(frozen=True)
class Effect:
    """What permuting some inputs does.

    Attributes:
        name: Of the group or the single number.
        kind: ``feature`` or ``chunk``.
        group: Whether it is a whole group.
        varies: Whether it differs enough between the windows; otherwise permuting it says nothing.
        moved: Root mean square change of the value, return units.
    """

    name: str
    kind: str
    group: bool
    varies: bool
    moved: float


@dataclass(frozen=True)
class Effects:
    """Effects of all inputs.

    Attributes:
        together: Everything permuted alike.
        features: All features.
        chunk: The whole chunk.
        parts: Groups and single numbers.
    """

    together: float
    features: float
    chunk: float
    parts: tuple[Effect, ...]

    def relative(self, part: Effect) -> float:
        """Effect of one part as a share of its kind's, 0 where that is zero."""
        whole = self.features if part.kind == "feature" else self.chunk
        return part.moved / whole if whole > 0.0 else 0.0

    @property
    def of_chunk(self) -> float:
        """Effect of the whole chunk as a share of everything's."""
        return self.chunk / self.together if self.together > 0.0 else 0.0


def groups_of(names: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """Names that differ in an index, an axis, or cosine and sine belong together.

    ``joint_position_0``, ... become ``joint_position``; ``tool_x``, ``tool_y``, ``tool_z``
    become ``tool``; ``tool_cos_yaw`` and ``tool_sin_yaw`` become ``tool_yaw``.

    Returns:
        Group -> indices into ``names``, in the order of first appearance.
    """
    groups: dict[str, tuple[int, ...]] = {}
    for index, name in enumerate(names):
        short = re.sub(r"_(cos|sin)(?=_|$)", "", re.sub(r"_(\d+|[xyzw])$", "", name))
        groups[short] = (*groups.get(short, ()), index)
    return groups


def check_inputs(effects: Effects, settings: GateSettings) -> Check:
    """No input may be dead, and the chunk must matter.

    Args:
        effects: What permuting does.
        settings: ``group_effect_min``, ``channel_effect_min``, ``action_effect_min``, ``exempt``.
    """
    rule = (
        f"effect of each input group at least {settings.group_effect_min:g} of its kind, of each "
        f"number {settings.channel_effect_min:g}, of the chunk {settings.action_effect_min:g} of "
        "all inputs"
    )
    figures: dict[str, float | None] = {"chunk": effects.of_chunk}
    figures |= {part.name: effects.relative(part) for part in effects.parts if part.group}
    asked = [part for part in effects.parts if part.name not in settings.exempted]
    dead = [
        part
        for part in asked
        if part.varies
        and effects.relative(part)
        < (settings.group_effect_min if part.group else settings.channel_effect_min)
    ]
    still = [part for part in asked if not part.varies]
    unjudged = [part for part in still if part.group]
    named = f"the chunk has {effects.of_chunk:.3g} of the effect of all inputs"
    if effects.of_chunk < settings.action_effect_min:
        reason = (
            f"{named}: it hardly matters. Give the action to every layer of the critic, or train "
            "on more different chunks."
        )
        return Check("inputs", FAIL, rule, reason, figures)
    if dead:
        figures |= {f"dead {part.name}": effects.relative(part) for part in dead}
        reason = (
            f"dead: {_list(dead)}. Check that training data and encoder fill these inputs and "
            "that the network reads them, or exempt what does not matter: --set exempt=NAME"
        )
        return Check("inputs", FAIL, rule, reason, figures)
    if unjudged:
        reason = (
            f"not judged, because almost the same in all windows: {_list(unjudged)}. Record "
            "episodes in which they differ, or exempt them: --set exempt=NAME"
        )
        return Check("inputs", UNKNOWN, rule, reason, figures)
    groups = [part for part in asked if part.group]
    least = min(groups, key=effects.relative, default=None)
    weakest = "" if least is None else f"; least is {least.name}, {effects.relative(least):.3g}"
    aside = f"; hardly varying and not judged: {_list(still)}" if still else ""
    return Check("inputs", PASS, rule, f"{named}{weakest}{aside}.", figures)


def _list(parts: Sequence[Effect]) -> str:
    more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return ", ".join(part.name for part in parts[:SHOWN]) + more
