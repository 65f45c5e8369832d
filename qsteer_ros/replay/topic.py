"""A topic of a bag: its message type and what its publisher offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qsteer_ros.replay.definitions import definition

INFINITE = {"sec": 9223372036, "nsec": 854775807}


@dataclass(frozen=True)
class Qos:
    """What the publisher of a topic offers.

    Attributes:
        reliability: ``reliable`` or ``best_effort``.
        durability: ``volatile`` or ``transient_local``.
        depth: Messages kept.
    """

    reliability: str = "reliable"
    durability: str = "volatile"
    depth: int = 10

    def profile(self) -> dict[str, Any]:
        """The profile as rosbag2 writes it since version 9."""
        return {
            "history": "keep_last",
            "depth": self.depth,
            "reliability": self.reliability,
            "durability": self.durability,
            "deadline": dict(INFINITE),
            "lifespan": dict(INFINITE),
            "liveliness": "automatic",
            "liveliness_lease_duration": dict(INFINITE),
            "avoid_ros_namespace_conventions": False,
        }


@dataclass(frozen=True)
class Topic:
    """One topic of a bag.

    Attributes:
        name: Resolved name, starting with a slash.
        type: Message type, ``package/msg/Name``.
        role: What the topic is to this package, for example ``camera/front`` or ``joint_states``.
        qos: What its publisher offers.
        period_ns: Nominal time between two header stamps, for counting gaps; None when irregular.
        definition: Definition text; empty takes the standard one.
        type_hash: RIHS01 hash that belongs to ``definition``.
    """

    name: str
    type: str
    role: str = "extra"
    qos: Qos = Qos()
    period_ns: int | None = None
    definition: str = ""
    type_hash: str = ""

    def text_and_hash(self) -> tuple[str, str]:
        """Definition text and hash, the standard ones unless the topic brings its own."""
        return (self.definition, self.type_hash) if self.definition else definition(self.type)
