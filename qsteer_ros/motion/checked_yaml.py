"""YAML whose values are what they must be; every complaint names the file and the key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qsteer_ros.errors import ConfigError
from qsteer_ros.types import Array

_TOPIC = re.compile(r"(/|~/)?[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)


class UniqueKeys(yaml.SafeLoader):
    """Safe YAML in which a key may not be given twice: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a key that is given twice is an error of the YAML."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' must be given once", node.value[place][0].start_mark
                )
        return dict(super().construct_mapping(node, deep=deep))


class CheckedYaml:
    """Values of a parsed file, checked one at a time; all checks raise `ConfigError`."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def fail(self, key: str, must: str, found: object) -> ConfigError:
        """The error for a value that is not what it must be."""
        return ConfigError(f"'{key}' must {must}: got {found!r}. Fix it in {self.file}.")

    def section(self, content: object, key: str, keys: frozenset[str]) -> Mapping[str, Any]:
        """A mapping with exactly these keys."""
        if not isinstance(content, dict):
            raise self.fail(key or "robot file", "be a mapping", content)
        for name in content:
            if name not in keys:
                close = difflib.get_close_matches(str(name), sorted(keys), 1)
                hint = f"Did you mean '{close[0]}'?" if close else f"Known: {sorted(keys)}."
                raise ConfigError(
                    f"'{name}' is not a key of {key or 'a robot file'}. {hint} "
                    f"Fix it in {self.file}."
                )
        missing = sorted(keys - set(content))
        if missing:
            raise ConfigError(
                f"{key or 'the robot file'} must have {missing}. Add to {self.file}."
            )
        return content

    def number(self, value: object, key: str, *, least: float = 0.0) -> float:
        """A finite number above ``least``."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > least:
            raise self.fail(key, f"be a number above {least:g}", value)
        if not np.isfinite(value):
            raise self.fail(key, "be finite", value)
        return float(value)

    def array(self, value: object, key: str, length: int) -> Array:
        """Finite numbers, (length,) float64, read-only."""
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.empty(0)
        if array.shape != (length,) or not np.all(np.isfinite(array)):
            raise self.fail(key, f"be a list of {length} finite numbers", value)
        array.setflags(write=False)
        return array

    def text(self, value: object, key: str) -> str:
        """A text that is not empty."""
        if not isinstance(value, str) or not value:
            raise self.fail(key, "be a non-empty text", value)
        return value

    def topic(self, value: object, key: str) -> str:
        """A ROS name."""
        topic = self.text(value, key)
        if not _TOPIC.fullmatch(topic):
            raise self.fail(key, "be a ROS name: words of a-z, 0-9 and _ between slashes", value)
        return topic

    def texts(self, value: object, key: str) -> tuple[str, ...]:
        """Different texts, at least one."""
        if not isinstance(value, list) or not value or len(set(map(str, value))) != len(value):
            raise self.fail(key, "be a list of different names", value)
        return tuple(self.text(v, key) for v in value)

    def choice(self, value: object, key: str, choices: tuple[str, ...]) -> str:
        """One of the choices."""
        if value not in choices:
            raise self.fail(key, f"be one of {sorted(choices)}", value)
        return str(value)
