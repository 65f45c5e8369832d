"""Parameters of a node: one frozen dataclass defines names, defaults, bounds and documentation.

::

    @dataclass(frozen=True)
    class SimParameters:
        seed: int = param(0, "Seed of the next episode's start.", bounds=(0, 2**31 - 1))

    parameters = declare(node, SimParameters)

Values from files, the command line and ``ros2 param set`` pass the same checks and are refused
with the same sentences. Whole numbers are taken where a field is a float. A misspelt name is
refused at start; one that is like none of the node's own, or is another node's, may stand in a
file that is given to every node: it is told in the log.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import yaml
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.parameter import Parameter

from qsteer_ros import resources
from qsteer_ros.errors import ConfigError

P = TypeVar("P")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_MEMBERS = {int: "whole numbers", str: "texts"}


@dataclass(frozen=True)
class _Rule:
    """What a parameter may be, and what it is."""

    description: str
    bounds: tuple[float, float] | None
    choices: tuple[str, ...] | None
    read_only: bool

    @property
    def constraint(self) -> str:
        if self.bounds is not None:
            return f"in [{self.bounds[0]:g}, {self.bounds[1]:g}]"
        return f"one of {', '.join(self.choices)}" if self.choices else ""


def param(
    default: Any,
    description: str,
    *,
    bounds: tuple[float, float] | None = None,
    choices: Sequence[str] | None = None,
    read_only: bool = False,
) -> Any:
    """A dataclass field that is a parameter.

    Args:
        default: Value when nobody sets it; its type (bool, int, float, str, or a tuple of str or
            of int; an empty one of str) is the parameter's.
        description: What it is, with its unit. Part of every refusal.
        bounds: Smallest and largest accepted number.
        choices: Accepted texts.
        read_only: It cannot change once the node is made.
    """
    chosen = None if choices is None else tuple(choices)
    return dataclasses.field(
        default=default, metadata={"param": _Rule(description, bounds, chosen, read_only)}
    )


def check(kind: type[P], name: str, value: Any) -> Any:
    """The value as the field's type.

    Args:
        kind: The dataclass of parameters.
        name: The field.
        value: What was given.

    Raises:
        ConfigError: It is of another type, out of bounds, not a choice, or not a number.
    """
    field = next(f for f in fields(cast(Any, kind)) if f.name == name)
    rule = cast(_Rule, field.metadata["param"])
    value = _typed(name, value, field.default, rule)
    wrong = isinstance(value, float) and math.isnan(value)
    if rule.bounds is not None:
        wrong = not rule.bounds[0] <= value <= rule.bounds[1]
    if rule.choices is not None:
        wrong = value not in rule.choices
    if wrong:
        must = rule.constraint or "a number"
        raise ConfigError(f"parameter '{name}' must be {must}: got {value!r}. {rule.description}")
    return value


def _typed(name: str, value: Any, default: Any, rule: _Rule) -> Any:
    if isinstance(default, tuple):
        member = type(default[0]) if default else str
        if isinstance(value, Sequence) and not isinstance(value, str):
            values = [v for v in value if v != ""]  # ROS has no empty list of texts in a file
            if all(type(v) is member for v in values):
                return tuple(values)
        raise ConfigError(
            f"parameter '{name}' must be a list of {_MEMBERS[member]}: got {value!r}. "
            f"{rule.description}"
        )
    wanted = type(default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        quotes = " Put it in quotes: YAML reads a bare off, on, yes or no as true or false."
        hint = quotes if wanted is str and isinstance(value, bool) else ""
        raise ConfigError(
            f"parameter '{name}' must be {_KINDS[wanted]}: got {value!r}. {rule.description}{hint}"
        )
    return value


def declare(node: Any, kind: type[P]) -> P:
    """Declare every field on a node and return their values.

    Later changes that break a rule are refused by the node with the rule's sentence; what a node
    does with accepted ones is its own business (``add_post_set_parameters_callback``).

    Raises:
        ConfigError: A value given at start breaks its rule, or a name is a misspelt one.
    """
    _refuse_misspelt(node, {field.name for field in fields(cast(Any, kind))})
    values = {}
    for field in fields(cast(Any, kind)):
        rule = cast(_Rule, field.metadata["param"])
        default = field.default
        declared = node.declare_parameter(
            field.name,
            list(default) or [""] if isinstance(default, tuple) else default,
            ParameterDescriptor(
                description=rule.description,
                additional_constraints=rule.constraint,
                read_only=rule.read_only,
                dynamic_typing=True,  # so that our own check, with its sentence, judges types
            ),
        )
        values[field.name] = check(kind, field.name, declared.value)

    def judge(changes: list[Parameter]) -> SetParametersResult:
        try:
            for change in changes:
                if change.name in values:
                    check(kind, change.name, change.value)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(judge)
    return kind(**values)


def _refuse_misspelt(node: Any, own: set[str]) -> None:
    """Hold the names given at start against the node's own; rclpy ignores unknown ones."""
    given = set(node._parameter_overrides)  # rclpy offers no other way
    other = sorted(
        name
        for name in given - own
        if not node.has_parameter(name) and not name.startswith("qos_overrides.")
    )
    if not other:
        return
    elsewhere = _shipped_names()
    for name in other:
        close = difflib.get_close_matches(name, sorted(own), 1, cutoff=0.75)
        if close and name not in elsewhere:
            raise ConfigError(
                f"'{name}' is not a parameter of {node.get_name()}. Did you mean '{close[0]}'? If "
                "it is meant for another node, put it under that node's name in the file."
            )
    node.get_logger().warning(f"{other} are not parameters of this node: they are ignored.")


def _shipped_names() -> set[str]:
    """Names in the shipped parameter files: a copy of one of them may be given to every node."""
    names: set[str] = set()
    for file in ("sim.yaml", "policy.yaml", "logger.yaml", "session.yaml"):
        content = yaml.safe_load(resources.find(file).read_text(encoding="utf-8"))
        names |= set(content["/**"]["ros__parameters"])
    return names


def changed(parameters: P, changes: Sequence[Parameter]) -> P:
    """The parameters with accepted changes applied; names that are not fields are ignored."""
    kind = type(parameters)
    known = {f.name for f in fields(cast(Any, kind))}
    values = {c.name: check(kind, c.name, c.value) for c in changes if c.name in known}
    return cast(P, dataclasses.replace(cast(Any, parameters), **values))
