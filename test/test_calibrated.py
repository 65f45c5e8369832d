"""What a calibration fills in, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from parts import make_critic, make_policy

from qsteer_ros.critics.calibration import (
    FILE,
    Calibration,
    ModeCalibration,
    Observations,
    Point,
    ValueStatistics,
)
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.policies.calibrated import calibrated
from qsteer_ros.steering.settings import FIELD_MODES, MODES, SteeringSettings

CRITIC, POLICY = make_critic(), make_policy()
SOURCE = Observations("demo", 2, 30, "o" * 64)
WEIGHTS = {mode: 0.01 * (k + 1) for k, mode in enumerate(FIELD_MODES)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    modes = {}
    for mode, weight in WEIGHTS.items():
        settings = SteeringSettings(mode=mode).to_json()
        point = Point(weight, 0.05, 0.5, 0.1, 0.9, 0.01, 0.05)
        modes[mode] = ModeCalibration(
            weight, 0.05, settings, {}, 0, SOURCE, "qsteer calibrate", (point,)
        )
    values = (
        ValueStatistics("min", 0.0, -50.0, 9.0, 30, SOURCE),
        ValueStatistics("pessimistic", 0.5, -51.0, 8.0, 30, SOURCE),
    )
    Calibration(CRITIC.hash, POLICY.hash, modes, values).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mode", FIELD_MODES)
def test_every_mode_that_bends_the_field_gets_its_weight(mode: str, folder: Path) -> None:
    chosen = SteeringSettings(mode=mode, weight=7.0, ratio=0.3)
    found = calibrated(chosen, folder, CRITIC, POLICY, weight=True)
    assert (found.weight, found.ratio) == (WEIGHTS[mode], 0.0)
    assert calibrated(chosen, folder, CRITIC, POLICY).weight == 7.0


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in FIELD_MODES])
def test_other_modes_need_no_calibration(mode: str, tmp_path: Path) -> None:
    chosen = SteeringSettings(mode=mode, weight=0.3)
    assert calibrated(chosen, tmp_path, CRITIC, POLICY, weight=True) is chosen


def test_without_a_critic_the_settings_are_left_alone() -> None:
    chosen = SteeringSettings(mode="qpilots_m")
    assert calibrated(chosen, "", None, POLICY, weight=True) is chosen


def test_qpilots_m_gets_the_values_of_its_reduction_unless_they_are_set(folder: Path) -> None:
    chosen = SteeringSettings(mode="qpilots_m", weight=0.1)
    found = calibrated(chosen, folder, CRITIC, POLICY)
    assert (found.tilt_mean, found.tilt_std, found.weight) == (-50.0, 9.0, 0.1)
    found = calibrated(replace(chosen, reduction="pessimistic"), folder, CRITIC, POLICY)
    assert (found.tilt_mean, found.tilt_std) == (-51.0, 8.0)
    own = replace(chosen, tilt_mean=1.0, tilt_std=2.0)
    assert calibrated(own, folder, CRITIC, POLICY) is own
    with pytest.raises(ConfigError, match="Run: qsteer calibrate --reduction mean"):
        calibrated(replace(chosen, reduction="mean"), folder, CRITIC, POLICY)


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        ("qgf", {"estimate": "chain"}),
        ("random_matched", {"estimate": "noisy"}),
        ("qgf", {"reduction": "mean"}),
        ("qpilots_u", {"keep_jacobian": False}),
        ("noisy_gradient", {"inverse_temperature": 1.0}),
        ("qpilots_m", {"posterior_samples": 5}),
        ("bptt", {"reduction": "pessimistic"}),
    ],
)
def test_a_weight_that_was_found_with_other_settings_is_refused(
    mode: str, change: dict, folder: Path
) -> None:
    name, value = next(iter(change.items()))
    chosen = SteeringSettings(mode=mode, **change)
    with pytest.raises(ConfigError, match=f"'{name}' was .*, now it is {value}"):
        calibrated(chosen, folder, CRITIC, POLICY, weight=True)


def test_settings_that_the_mode_does_not_read_do_not_matter(folder: Path) -> None:
    chosen = SteeringSettings(
        mode="qgf", keep_jacobian=False, inverse_temperature=1.0, rho=2.0, max_ratio=0.1
    )
    assert calibrated(chosen, folder, CRITIC, POLICY, weight=True).weight == WEIGHTS["qgf"]


@pytest.mark.parametrize("weight", [False, True])
def test_a_critic_that_was_not_calibrated_is_refused_with_the_remedy(
    weight: bool, tmp_path: Path
) -> None:
    chosen = SteeringSettings(mode="qpilots_m")
    with pytest.raises(ConfigError, match=r"be calibrated: it has no .*Run: qsteer calibrate"):
        calibrated(chosen, tmp_path, CRITIC, POLICY, weight=weight)


@pytest.mark.parametrize(
    ("critic", "policy", "which"),
    [(make_critic(5), POLICY, "critic"), (CRITIC, make_policy(5), "policy")],
)
def test_a_calibration_of_another_critic_or_policy_is_refused(
    critic, policy, which: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=f"must be made with the {which} it is used with"):
        calibrated(SteeringSettings(mode="qgf"), folder, critic, policy, weight=True)


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / FILE).write_text("{")
    with pytest.raises(DataError, match="run qsteer calibrate again"):
        calibrated(SteeringSettings(mode="qgf"), folder, CRITIC, POLICY, weight=True)
