"""What a calibration fills in, and what it refuses."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
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
from qsteer_ros.flow import Sampler
from qsteer_ros.policies import calibrated as module
from qsteer_ros.steering.settings import FIELD_MODES, MODES, SteeringSettings

CRITIC, POLICY = make_critic(), make_policy()
calibrated = functools.partial(module.calibrated, sampler=Sampler())
SOURCE = Observations("demo", 2, 30, "o" * 64)
WEIGHTS = {mode: 0.01 * (k + 1) for k, mode in enumerate(FIELD_MODES)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    modes = {}
    for mode, weight in WEIGHTS.items():
        settings = SteeringSettings(mode=mode).to_json()
        point = Point(weight, 0.05, 0.5, 0.1, 0.9, 0.01, 0.05)
        modes[mode] = ModeCalibration(
            weight, 0.05, settings, asdict(Sampler()), 0, SOURCE, "qsteer calibrate", (point,)
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


OTHER_SAMPLERS = [
    ("denoising_steps", Sampler(20)),
    ("integrator", Sampler(integrator="heun")),
    ("time_power", Sampler(time_power=2.0)),
    ("times", Sampler(times=Sampler().flow_times)),
]


@pytest.mark.parametrize(("name", "sampler"), OTHER_SAMPLERS)
@pytest.mark.parametrize(
    ("mode", "estimate", "refused"),
    [
        ("bptt", "euler", True),
        ("noisy_gradient", "euler", True),
        ("qgf", "chain", True),
        ("zero", "chain", True),
        ("random_matched", "chain", True),
        ("qgf", "euler", False),
        ("qgf", "noisy", False),
        ("qgf_jacobian", "chain", False),
        ("qpilots_u", "chain", False),
        ("qpilots_m", "euler", False),
    ],
)
def test_a_weight_that_depends_on_the_steps_is_refused_with_another_sampler(
    mode: str, estimate: str, refused: bool, name: str, sampler: Sampler, folder: Path
) -> None:
    chosen = SteeringSettings(mode=mode, estimate=estimate)
    of_this_estimate(folder, mode, estimate)
    assert calibrated(chosen, folder, CRITIC, POLICY, weight=True).weight == WEIGHTS[mode]
    if refused:
        message = f"mode '{mode}' must be used with the sampler .*'{name}' was .*, now it is"
        with pytest.raises(ConfigError, match=message):
            calibrated(chosen, folder, CRITIC, POLICY, sampler=sampler, weight=True)
    else:
        found = calibrated(chosen, folder, CRITIC, POLICY, sampler=sampler, weight=True)
        assert found.weight == WEIGHTS[mode]
    own = calibrated(replace(chosen, weight=3.0), folder, CRITIC, POLICY, sampler=sampler)
    assert own.weight == 3.0


def test_explicit_flow_times_are_the_same_sampler_after_a_file(folder: Path) -> None:
    sampler = Sampler(2, times=(0.0, 0.3, 1.0))
    of_this_estimate(folder, "bptt", "euler", sampler)
    chosen = SteeringSettings(mode="bptt")
    ask = functools.partial(calibrated, chosen, folder, CRITIC, POLICY, weight=True)
    assert ask(sampler=replace(sampler, time_power=2.0)).weight == WEIGHTS["bptt"]
    with pytest.raises(ConfigError, match=r"'times' was \[0.0, 0.3, 1.0\], now it is \[0.0, 0.4"):
        ask(sampler=Sampler(2, times=(0.0, 0.4, 1.0)))


def of_this_estimate(
    folder: Path, mode: str, estimate: str, sampler: Sampler | None = None
) -> None:
    """Write the calibration anew, as one with this estimate and sampler would be."""
    before = Calibration.load(folder, critic=CRITIC.hash, policy=POLICY.hash)
    entry = before.modes[mode]
    entry = replace(entry, settings={**entry.settings, "estimate": estimate})
    if sampler is not None:
        entry = replace(entry, sampler=asdict(sampler))
    replace(before, modes={**before.modes, mode: entry}).save(folder)


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
