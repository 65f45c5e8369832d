"""The file beside a critic: what it keeps, with what it may be used, how two runs become one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from parts import make_critic

from qsteer_ros import checkpoints
from qsteer_ros.critics.calibration import (
    FILE,
    Calibration,
    ModeCalibration,
    Observations,
    Point,
    ValueStatistics,
)
from qsteer_ros.errors import ConfigError, DataError

CRITIC, POLICY = "c" * 64, "p" * 64
SOURCE = Observations("demo", 2, 30, "o" * 64)


def mode_at(weight: float) -> ModeCalibration:
    curve = tuple(Point(f * weight, 0.1 * f, 0.5, 0.1, 0.9, 0.01, 0.05) for f in (0.5, 1.0, 2.0))
    return ModeCalibration(weight, 0.1, {"reduction": "min"}, {}, 0, SOURCE, "qsteer", curve)


def values_of(reduction: str, mean: float = 1.0, rho: float = 0.0) -> ValueStatistics:
    return ValueStatistics(reduction, rho, mean, 2.0, 30, SOURCE)


def one(mode: str = "qgf", weight: float = 0.1, **hashes: str) -> Calibration:
    return Calibration(
        hashes.get("critic", CRITIC),
        hashes.get("policy", POLICY),
        {mode: mode_at(weight)},
        (values_of("min"), values_of("pessimistic", rho=0.5)),
    )


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    one().save(tmp_path)
    assert Calibration.load(tmp_path, critic=CRITIC, policy=POLICY) == one()
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_the_point_that_was_found_is_the_one_at_the_weight() -> None:
    assert one().mode("qgf").found == Point(0.1, 0.1, 0.5, 0.1, 0.9, 0.01, 0.05)


def test_names_that_later_releases_add_do_no_harm(tmp_path: Path) -> None:
    path = one().save(tmp_path)
    plain = json.loads(path.read_text())
    plain["more"] = plain["modes"]["qgf"]["more"] = plain["modes"]["qgf"]["curve"][0]["more"] = 1
    path.write_text(json.dumps(plain))
    assert Calibration.load(tmp_path, critic=CRITIC, policy=POLICY) == one()


@pytest.mark.parametrize("part", ["critic", "policy"])
def test_a_calibration_of_another_part_is_refused_with_the_remedy(
    part: str, tmp_path: Path
) -> None:
    one().save(tmp_path)
    loaded = {"critic": CRITIC, "policy": POLICY} | {part: "f" * 64}
    with pytest.raises(ConfigError, match=f"made with the {part} .* f{{12}}.*qsteer calibrate"):
        Calibration.load(tmp_path, **loaded)


def test_a_critic_without_a_calibration_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no calibration.json\. Run: qsteer calibrate"):
        Calibration.load(tmp_path, critic=CRITIC, policy=POLICY)
    assert Calibration.find(tmp_path) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: "{",
        lambda plain: "[]",
        lambda plain: json.dumps(plain | {"version": 2}),
        lambda plain: json.dumps({k: v for k, v in plain.items() if k != "policy"}),
        lambda plain: json.dumps(plain | {"modes": {"qgf": {}}}),
        lambda plain: json.dumps(plain | {"modes": []}),
        lambda plain: json.dumps(plain | {"values": [{"reduction": "min"}]}),
        lambda plain: json.dumps(plain).replace(
            '"weight": 0.1, "target', '"weight": 9.0, "target'
        ),
    ],
)
def test_a_damaged_file_is_refused(damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = one().save(tmp_path)
    text = damage(json.loads(path.read_text()))
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(DataError, match=r"calibration.json' must be qsteer_calibration version 1"):
        Calibration.load(tmp_path, critic=CRITIC, policy=POLICY)


def test_another_mode_joins_the_first_and_the_same_one_replaces_it() -> None:
    both = one("qgf").merged(one("qpilots_u", 0.3))
    assert set(both.modes) == {"qgf", "qpilots_u"}
    assert both.merged(one("qgf", 0.2)).mode("qgf").weight == 0.2
    assert both.merged(one("qgf", 0.2)).mode("qpilots_u").weight == 0.3


def test_values_are_replaced_per_reduction() -> None:
    newer = replace(one(), values=(values_of("min", 7.0), values_of("pessimistic", 8.0, rho=1.0)))
    merged = one().merged(newer)
    assert merged.statistics("min").q_mean == 7.0
    assert merged.statistics("min", rho=0.9).q_mean == 7.0
    assert merged.statistics("pessimistic", rho=0.5).q_mean == 1.0
    assert merged.statistics("pessimistic", rho=1.0).q_mean == 8.0
    assert len(merged.values) == 3


@pytest.mark.parametrize("part", ["critic", "policy"])
def test_calibrations_of_two_critics_or_policies_never_mix(part: str) -> None:
    with pytest.raises(ConfigError, match=f"must be made with the {part} it is used with"):
        one().merged(one(**{part: "f" * 64}))


def test_what_was_not_measured_is_asked_for_by_name() -> None:
    with pytest.raises(ConfigError, match=r"knows qgf\. Run: qsteer calibrate --modes bptt"):
        one().mode("bptt")
    with pytest.raises(ConfigError, match="qsteer calibrate --reduction pessimistic --rho 2"):
        one().statistics("pessimistic", rho=2.0)


def test_parts_without_a_hash_cannot_be_named() -> None:
    with pytest.raises(ConfigError, match="must name its critic by hash"):
        one(critic="")


def test_the_file_leaves_the_hash_of_the_critic_alone(tmp_path: Path) -> None:
    folder = make_critic().save(tmp_path / "critic")
    before = checkpoints.load(folder, kind="critic").hash
    one(critic=before).save(folder)
    assert checkpoints.load(folder, kind="critic").hash == before


def test_a_critic_saved_anew_takes_the_file_of_the_old_one_away(tmp_path: Path) -> None:
    folder = make_critic(seed=1).save(tmp_path / "critic")
    one().save(folder)
    make_critic(seed=2).save(folder)
    assert Calibration.find(folder) is None


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    one().save(tmp_path)
    broken = replace(one(), values=(values_of("min", float("nan")),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.save(tmp_path)
    assert Calibration.find(tmp_path) == one()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a folder that can be written"):
        one().save(tmp_path / "nowhere")
