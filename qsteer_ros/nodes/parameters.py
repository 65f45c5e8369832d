"""Parameters of a node: one frozen dataclass says their names, types, bounds and meaning."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from qsteer_ros.errors import ConfigError

P = TypeVar("P")
_METADATA_KEY = "parameter"
#: Parameters that rclpy itself declares or reads.
_BUILT_IN = ("use_sim_time", "start_type_description_service", "qos_overrides.")


@dataclass(frozen=True)
class _Constraint:
    description: str
    bounds: tuple[float, float] | None
    choices: tuple[str, ...] | None
    read_only: bool


def param(
    default: Any,
    description: str,
    *,
    bounds: tuple[float, float] | None = None,
    choices: Sequence[str] | None = None,
    read_only: bool = False,
) -> Any:
    """Field of a parameter dataclass.

    Args:
        default: Value when nothing is said; its type is the parameter's type.
        description: One sentence, with the unit; shown by ``ros2 param describe`` and in refusals.
        bounds: Smallest and largest value of a number, both allowed.
        choices: Values of a string.
        read_only: Whether it can only be given at start.
    """
    constraint = _Constraint(
        description, bounds, tuple(choices) if choices is not None else None, read_only
    )
    return field(default=default, metadata={_METADATA_KEY: constraint})


def declare(node: Node, kind: type[P]) -> P:
    """Declare every field of a parameter dataclass and return the values given to the node.

    Raises:
        ConfigError: A value has another type or is out of bounds, or a parameter was given that
            the node does not have.
    """
    _refuse_unknown(node, [f.name for f in fields(kind)])  # type: ignore[arg-type]
    values = {}
    for entry in fields(kind):  # type: ignore[arg-type]
        constraint: _Constraint = entry.metadata[_METADATA_KEY]
        descriptor = _descriptor(entry.default, constraint)
        try:
            value = node.declare_parameter(entry.name, entry.default, descriptor).value
        except InvalidParameterValueException as error:
            raise ConfigError(_refusal(entry.name, error.value, constraint)) from error
        except InvalidParameterTypeException as error:
            raise ConfigError(
                f"parameter '{entry.name}' must be a {type(entry.default).__name__}: got "
                f"{node._parameter_overrides[entry.name].value!r}. {constraint.description}"
            ) from error
        if constraint.choices is not None and value not in constraint.choices:
            raise ConfigError(_refusal(entry.name, value, constraint))
        values[entry.name] = value
    return kind(**values)


def _descriptor(default: Any, constraint: _Constraint) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(
        description=constraint.description, read_only=constraint.read_only
    )
    if constraint.choices is not None:
        descriptor.additional_constraints = f"one of {', '.join(constraint.choices)}"
    if constraint.bounds is not None:
        low, high = constraint.bounds
        if isinstance(default, int):
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
        else:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high))
            ]
    return descriptor


def _refusal(name: str, value: object, constraint: _Constraint) -> str:
    allowed = f"in {list(constraint.bounds)}" if constraint.bounds else "allowed"
    if constraint.choices is not None:
        allowed = f"one of {', '.join(constraint.choices)}"
    return f"parameter '{name}' must be {allowed}: got {value}. {constraint.description}"


def _refuse_unknown(node: Node, names: list[str]) -> None:
    for given in node._parameter_overrides:
        if given in names or given.startswith(_BUILT_IN) or node.has_parameter(given):
            continue
        close = difflib.get_close_matches(given, names, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else f"It has {', '.join(sorted(names))}."
        raise ConfigError(f"node {node.get_name()} has no parameter '{given}'. {hint}")
