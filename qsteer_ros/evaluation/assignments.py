"""Steering settings given on the command line as ``NAME=VALUE``."""

from __future__ import annotations

import json
import typing
from collections.abc import Collection, Iterable
from typing import Any

from qsteer_ros.errors import ConfigError
from qsteer_ros.steering.settings import SteeringSettings

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def steering_values(assignments: Iterable[str], *, elsewhere: Collection[str]) -> dict[str, Any]:
    """Fields of `SteeringSettings` and their values, of the right types.

    Args:
        assignments: ``NAME=VALUE``; ``inf`` is infinity.
        elsewhere: Fields that are given in another way.

    Raises:
        ConfigError: There is no such field, it is given twice or elsewhere, or the value is of
            another type. Ranges are for `SteeringSettings` to judge.
    """
    kinds = typing.get_type_hints(SteeringSettings)
    names = [name for name in SteeringSettings.__dataclass_fields__ if name not in elsewhere]
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or name not in names or name in values:
            raise ConfigError(
                "'--set' must give NAME=VALUE, each name once, with one of the names "
                f"{', '.join(names)}: got '{assignment}'."
            )
        kind = next(k for k in (*typing.get_args(kinds[name]), kinds[name]) if k in _KINDS)
        values[name] = _typed(name, text, kind)
    return values


def _typed(name: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    try:
        value = float("inf") if kind is float and text == "inf" else json.loads(text)
    except ValueError:
        value = text
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"'--set {name}' must be {_KINDS[kind]}: got '{text}'.")
    return value
