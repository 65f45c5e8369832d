from __future__ import annotations

import pytest

from qsteer_ros.errors import ConfigError
from qsteer_ros.replay.arms import MODES, arm_parameters

WEIGHTS = {"qgf": 0.03}


def test_an_arm_is_a_mode_with_its_default_number():
    expected = {
        "steering": "qgf",
        "guidance": "weight",
        "guidance_weight": 0.03,
        "num_samples": 16,
    }
    assert arm_parameters("qgf", weights=WEIGHTS, num_samples=16) == expected
    assert arm_parameters("off", weights=WEIGHTS, num_samples=16)["guidance_weight"] == 0.0


def test_the_number_after_the_mode_is_its_weight_or_its_candidates():
    assert arm_parameters("qgf:0.1", weights=WEIGHTS, num_samples=16)["guidance_weight"] == 0.1
    candidates = arm_parameters("best_of_n:64", weights=WEIGHTS, num_samples=16)
    assert (candidates["num_samples"], candidates["guidance_weight"]) == (64, 0.0)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("annealed", "an arm must be one of off, zero, random_matched"),
        ("qgf:strong", "the number of an arm must follow its mode"),
        ("best_of_n:1.5", "the number of an arm must follow its mode"),
    ],
)
def test_what_is_no_arm_is_refused(label, message):
    with pytest.raises(ConfigError, match=message):
        arm_parameters(label, weights=WEIGHTS, num_samples=16)


def test_a_session_knows_every_mode_of_the_policy_node():
    from qsteer_ros.steering import settings

    assert MODES == settings.MODES
