from __future__ import annotations

import math

import pytest

from qsteer_ros.errors import ConfigError
from qsteer_ros.evaluation.assignments import steering_values
from qsteer_ros.steering.settings import SteeringSettings

ELSEWHERE = ("mode", "weight")


def test_every_kind_of_value_is_read_as_its_field_wants_it() -> None:
    found = steering_values(
        [
            "estimate=chain",
            "keep_jacobian=false",
            "posterior_samples=8",
            "tilt_mean=-50",
            "tilt_std=9.5",
            "max_ratio=inf",
        ],
        elsewhere=ELSEWHERE,
    )
    assert found == {
        "estimate": "chain",
        "keep_jacobian": False,
        "posterior_samples": 8,
        "tilt_mean": -50.0,
        "tilt_std": 9.5,
        "max_ratio": math.inf,
    }
    assert type(found["tilt_mean"]) is float
    SteeringSettings(mode="qpilots_m", **found)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["estimate"], "'--set' must give NAME=VALUE"),
        (["estimat=chain"], "one of the names ratio, reduction, .*: got 'estimat=chain'"),
        (["weight=0.1"], "got 'weight=0.1'"),
        (["rho=0.1", "rho=0.2"], "each name once, .* got 'rho=0.2'"),
        (["posterior_samples=2.5"], "'--set posterior_samples' must be a whole number: got '2.5'"),
        (["posterior_samples=true"], "must be a whole number: got 'true'"),
        (["keep_jacobian=1"], "must be true or false: got '1'"),
        (["rho=much"], "must be a number: got 'much'"),
        (["rho=null"], "must be a number: got 'null'"),
    ],
)
def test_what_is_no_assignment_of_a_setting_is_refused(assignments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        steering_values(assignments, elsewhere=ELSEWHERE)
