"""Steering settings of another type are refused by name."""

from __future__ import annotations

import math

import pytest

from qsteer_ros.errors import ConfigError
from qsteer_ros.steering.settings import SteeringSettings

WRONG = [
    ("mode", None, "a text"),
    ("weight", True, "a number"),
    ("weight", "0.1", "a number"),
    ("ratio", None, "a number"),
    ("max_displacement", None, "a number"),
    ("keep_jacobian", "False", "true or false"),
    ("project", 1, "true or false"),
    ("posterior_samples", 2.5, "an integer"),
    ("num_samples", True, "an integer"),
    ("ascent_steps", None, "an integer"),
    ("tilt_mean", "high", "a number or null"),
    ("tilt_std", False, "a number or null"),
    ("estimate", 3, "a text"),
]


@pytest.mark.parametrize(("name", "value", "wanted"), WRONG)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: object, wanted: str) -> None:
    message = f"'{name}' must be {wanted}: got {value!r}"
    with pytest.raises(ConfigError, match=message):
        SteeringSettings(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        SteeringSettings.from_json({"mode": "qgf", name: value})


@pytest.mark.parametrize("twin", [None, "yes", 0.5])
def test_an_old_logs_twin_must_be_true_or_false(twin: object) -> None:
    with pytest.raises(ConfigError, match=f"'twin' must be true or false: got {twin!r}"):
        SteeringSettings.from_json({"mode": "qgf", "twin": twin})


def test_integers_are_numbers_and_only_unknown_statistics_and_an_old_limit_may_be_null() -> None:
    found = SteeringSettings.from_json(
        {"mode": "qpilots_m", "weight": 1, "tilt_mean": None, "tilt_std": 2, "max_ratio": None}
    )
    assert (found.weight, found.tilt_mean, found.tilt_std) == (1, None, 2)
    assert found.max_ratio == math.inf
