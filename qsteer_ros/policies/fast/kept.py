"""Packed networks, kept as long as the network: new settings do not pack anything anew."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

T = TypeVar("T")
Versions = tuple[int, ...]

_KEPT: WeakKeyDictionary[nn.Module, dict[Hashable, tuple[Versions, object]]] = WeakKeyDictionary()


def counted(network: nn.Module) -> tuple[Tensor, ...]:
    """The weights that count how often they are written to: all but inference tensors."""
    return tuple(tensor for tensor in network.parameters() if not tensor.is_inference())


def versions_of(tensors: tuple[Tensor, ...]) -> Versions:
    """How often each has been written to; ``tensor.data`` escapes this count."""
    return tuple([tensor._version for tensor in tensors])


def kept(network: nn.Module, kind: Hashable, make: Callable[[], T]) -> T:
    """What was made of a network earlier, or make it: anew when a weight has changed.

    Args:
        network: Whose weights it is made of.
        kind: Tells apart what is made of one network.
        make: Makes it.
    """
    versions = versions_of(counted(network))
    shelf = _KEPT.setdefault(network, {})
    found = shelf.get(kind)
    if found is None or found[0] != versions:
        shelf[kind] = found = (versions, make())
    return found[1]  # type: ignore[return-value]
