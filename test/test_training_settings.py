"""Settings of training programs: words, files, types, bounds, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from qsteer_ros.cli import main
from qsteer_ros.errors import ConfigError
from qsteer_ros.learning.programs import PROGRAMS, settings_of
from qsteer_ros.learning.settings import Training, checked, read, widths
from qsteer_ros.learning.settings_bc import PolicySettings
from qsteer_ros.learning.settings_critic import CriticSettings


def test_words_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("steps: 7\nlearning_rate: 1e-4\ngoal: 2\n")
    found = read(CriticSettings, ["steps=9", "sparse=true"], config=config)
    assert found == CriticSettings(steps=9, learning_rate=1e-4, goal=2, sparse=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learnrate=1"], "no setting 'learnrate'.*Did you mean 'learning_rate'"),
        (["goal=0"], r"'goal' must be in \[1, 1e\+06\]: got 0"),
        (["steps=2.5"], "'steps' must be of type int: got '2.5'"),
        (["sparse=1"], "'sparse' must be of type bool: got '1'"),
        (["steps"], "must be written key=value: got 'steps'"),
        (["steps=1", "steps=2"], "'steps' must be given once"),
        (["learning_rate=nan"], "'learning_rate' must be in"),
    ],
)
def test_a_wrong_word_is_refused_by_name(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(CriticSettings, words)


def test_a_wrong_file_is_refused_by_name(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    with pytest.raises(ConfigError, match=r"c\.yaml' must be a YAML file of settings: No such"):
        read(PolicySettings, config=config)
    config.write_text("- steps\n")
    with pytest.raises(ConfigError, match=r"c\.yaml' must hold keys and values: got list"):
        read(PolicySettings, config=config)
    config.write_text("steps: [1\n")
    with pytest.raises(ConfigError, match=r"c\.yaml' must be YAML"):
        read(PolicySettings, config=config)
    config.write_text("stepps: 3\n")
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        read(PolicySettings, config=config)


def test_a_number_is_no_truth_value_and_the_other_way_round() -> None:
    with pytest.raises(ConfigError, match="'steps' must be of type int: got True"):
        checked(PolicySettings, {"steps": True})
    with pytest.raises(ConfigError, match="'sparse' must be of type bool: got 1"):
        checked(CriticSettings, {"sparse": 1})


def test_widths_are_positive_integers() -> None:
    assert widths("512, 256") == (512, 256)
    for wrong in ("", "0", "256,", "a", "-3"):
        with pytest.raises(ConfigError, match="positive integers with commas"):
            widths(wrong)


def test_every_program_has_flat_settings_with_meanings_and_defaults_that_pass() -> None:
    for name in PROGRAMS:
        kind = settings_of(name)
        assert issubclass(kind, Training)
        assert read(kind) == kind()
        for entry in dataclasses.fields(kind):
            assert entry.metadata["meaning"].endswith("."), f"{name}: {entry.name}"
            assert entry.type in ("int", "float", "bool", "str"), f"{name}: {entry.name}"


def test_the_command_line_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "critic", f"out={tmp_path / 'c'}", "goal=x"]) == 1
    error = capsys.readouterr().err
    assert "'goal' must be of type int: got 'x'" in error
    assert error.count("\n") == 1
    assert main(["train", "critic"]) == 1
    assert "'out' is empty. Add out=" in capsys.readouterr().err
