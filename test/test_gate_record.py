"""``gate.json`` beside a critic: what it keeps, and with what it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parts import make_critic

from qsteer_ros.critics.gate import (
    FAIL,
    FILE,
    PASS,
    UNKNOWN,
    Check,
    Gate,
    HeldOutEpisode,
    Verdict,
)
from qsteer_ros.critics.gate_settings import GateSettings
from qsteer_ros.errors import ConfigError, DataError

HASHES = {name: letter * 64 for name, letter in (("critic", "c"), ("policy", "p"), ("robot", "r"))}


def check(name: str, verdict: Verdict) -> Check:
    return Check(
        name, verdict, "it must hold", f"found {name}. Do this.", {"share": 0.5, "a": None}
    )


def one(*verdicts: Verdict, exempt: str = "", encoder: str | None = "e" * 64) -> Gate:
    checks = tuple(check(f"check{i}", verdict) for i, verdict in enumerate(verdicts))
    return Gate(
        **HASHES,
        encoder=encoder,
        episodes=(HeldOutEpisode("0001_goal1", "b" * 64, True, 55, steered=True),),
        data="d" * 64,
        settings=GateSettings(exempt=exempt, direction_share_max=0.7),
        checks=checks,
        command="qsteer gate",
        package_version="0",
    )


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    gate = one(PASS, FAIL, UNKNOWN)
    gate.save(tmp_path)
    assert Gate.load(tmp_path, **HASHES) == gate
    assert Gate.load(tmp_path, **HASHES, encoder="e" * 64) == gate
    plain = json.loads((tmp_path / FILE).read_text())
    assert (plain["passed"], plain["settings"]["direction_share_max"]) == (False, 0.7)
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        (one(PASS, PASS), True),
        (one(PASS, FAIL), False),
        (one(PASS, UNKNOWN), False),
        (one(PASS, FAIL, exempt="check1"), True),
        (one(FAIL, FAIL, exempt="check1"), False),
        (one(), False),
    ],
)
def test_every_check_must_pass_or_be_exempt_by_name(gate: Gate, passed: bool) -> None:
    assert gate.passed is passed


def test_a_critic_that_did_not_pass_is_refused_with_the_first_reason() -> None:
    one(PASS).check_passed("folder")
    with pytest.raises(
        ConfigError, match=r"'folder' must pass .*: check1: found check1\. Do this"
    ):
        one(PASS, FAIL, UNKNOWN).check_passed("folder")
    with pytest.raises(ConfigError, match="and 1 more"):
        one(PASS, FAIL, UNKNOWN).check_passed("folder")
    with pytest.raises(ConfigError, match="none was made"):
        one().check_passed("folder")


@pytest.mark.parametrize("part", ["critic", "policy", "robot", "encoder"])
def test_an_examination_with_another_part_is_refused_and_says_what_to_run(
    part: str, tmp_path: Path
) -> None:
    one(PASS).save(tmp_path)
    loaded = HASHES | {"encoder": "e" * 64} | {part: "f" * 64}
    with pytest.raises(
        ConfigError, match=f"with the {part} .* f{{12}}. Run: qsteer gate --critic"
    ):
        Gate.load(tmp_path, **loaded)


def test_an_examination_of_true_features_is_refused_with_an_encoder(tmp_path: Path) -> None:
    one(PASS, encoder=None).save(tmp_path)
    Gate.load(tmp_path, **HASHES)
    with pytest.raises(ConfigError, match=r"examined with the encoder it is used with: .* None"):
        Gate.load(tmp_path, **HASHES, encoder="e" * 64)


def test_a_critic_that_was_never_examined_is_refused_and_says_what_to_run(tmp_path: Path) -> None:
    message = r"it has no gate\.json\. Run: qsteer gate --critic .* --policy DIR --episodes DIR"
    with pytest.raises(ConfigError, match=message):
        Gate.load(tmp_path, **HASHES)
    assert Gate.find(tmp_path) is None


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[str], str]:
    def damage(text: str) -> str:
        plain = json.loads(text)
        change(plain)
        return json.dumps(plain)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:50],
        lambda text: "[]",
        changed(lambda plain: plain.update(critic="f" * 64)),
        changed(lambda plain: plain["checks"][1].update(verdict="pass")),
        changed(lambda plain: plain["checks"].pop()),
        changed(lambda plain: plain.update(passed=True)),
        changed(lambda plain: plain["settings"].update(exempt="check1")),
        changed(lambda plain: plain.pop("digest")),
        changed(lambda plain: plain.update(version=2)),
        changed(lambda plain: plain.pop("robot")),
    ],
)
def test_a_file_that_was_damaged_or_changed_by_hand_is_refused(
    damage: Callable[[str], str], tmp_path: Path
) -> None:
    path = one(PASS, FAIL).save(tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(
        DataError, match=r"must be qsteer_gate version 1: .* run qsteer gate again"
    ):
        Gate.find(tmp_path)


def test_what_was_never_saved_cannot_be_named() -> None:
    with pytest.raises(ConfigError, match="must name its policy by hash"):
        replace(one(PASS), policy="")


def test_a_critic_that_is_written_anew_has_not_been_examined(tmp_path: Path) -> None:
    folder = make_critic().save(tmp_path / "critic")
    one(PASS).save(folder)
    make_critic(seed=2).save(folder)
    assert Gate.find(folder) is None


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a folder that can be written"):
        one(PASS).save(tmp_path / "nowhere")
