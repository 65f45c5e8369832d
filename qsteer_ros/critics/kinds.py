"""Every kind of critic network, by the name ``config.json`` gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsteer_ros.critics.injected import InjectedMLP
from qsteer_ros.critics.networks import EnsembleMLP, QNetwork
from qsteer_ros.errors import ConfigError

KINDS = ("flat", "injected")
_COMMON = {"kind", "members", "hidden", "outputs", "activation", "layer_norm"}
_KEYS = {"flat": _COMMON, "injected": _COMMON | {"inject_head", "proprio", "proprio_dim"}}


def make_network(architecture: Mapping[str, Any], *, feature_dim: int, chunk_dim: int) -> QNetwork:
    """A critic network as an architecture describes it, its weights drawn at random.

    Args:
        architecture: As in ``config.json``; without ``kind`` it is flat, and keys that are left
            out have the defaults of the network's class.
        feature_dim: F.
        chunk_dim: D = H A.

    Raises:
        ConfigError: There is no such kind, a key is unknown, or a size is impossible.
    """
    options = dict(architecture)
    kind = options.pop("kind", "flat")
    if kind not in KINDS:
        raise ConfigError(f"a critic's network must be one of {', '.join(KINDS)}: got '{kind}'.")
    unknown = sorted(set(options) - _KEYS[kind])
    if unknown:
        raise ConfigError(
            f"a critic's network of kind '{kind}' has no '{unknown[0]}': it has "
            f"{', '.join(sorted(_KEYS[kind]))}. Update this package, or train again."
        )
    members, hidden = int(options.pop("members")), tuple(options.pop("hidden"))
    if kind == "injected":
        return InjectedMLP(members, feature_dim, chunk_dim, hidden, **options)
    return EnsembleMLP(members, feature_dim + chunk_dim, hidden, **options)
