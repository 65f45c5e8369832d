"""What is refused before a training begins; what its checkpoint may replace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parts import make_policy

from qsteer_ros.checkpoints import CONFIG, WEIGHTS
from qsteer_ros.cli import main
from qsteer_ros.errors import ConfigError
from qsteer_ros.learning.programs import PROGRAMS, check_out, choose_device


def test_a_checkpoint_never_replaces_what_is_none(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "play").mkdir(parents=True)
    (data / "play" / "episode.npz").write_text("hours of work")
    with pytest.raises(ConfigError, match="new, empty, or a checkpoint, which is replaced"):
        make_policy().save(data)
    note = tmp_path / "note"
    note.write_text("mine")
    with pytest.raises(ConfigError, match="must be a folder, to get a checkpoint: it is a file"):
        make_policy().save(note)
    assert (data / "play" / "episode.npz").read_text() == "hours of work"
    assert note.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "note"]


def test_a_checkpoint_replaces_an_older_one_half_of_one_and_an_empty_folder(
    tmp_path: Path,
) -> None:
    (tmp_path / "c").mkdir()
    make_policy().save(tmp_path / "c")
    (tmp_path / "c" / WEIGHTS).unlink()
    make_policy().save(tmp_path / "c")
    (tmp_path / "c" / "gate.json").write_text("{}")
    make_policy().save(tmp_path / "c")
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", "'out' must be a folder with a name: got '.'"),
        ("/", "'out' must be a folder with a name: got '/'"),
        ("full", "it holds other files"),
        ("note", "it is a file"),
        ("note/c", "'out' must be in a folder that can be written: got 'note/c'"),
    ],
)
def test_out_is_refused_before_the_data_are_looked_for(
    out: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("note").write_text("mine")
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("mine")
    assert main(["train", "bc", f"out={out}", "data=nowhere"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "note", "thesis.tex"]


def test_two_checkpoints_in_one_folder_may_be_made_again(tmp_path: Path) -> None:
    parts = PROGRAMS["image-bc"].parts
    for part in parts:
        make_policy().save(tmp_path / "both" / part)
    check_out(str(tmp_path / "both"), parts)
    with pytest.raises(ConfigError, match="it holds other files"):
        check_out(str(tmp_path / "both"))


@pytest.mark.parametrize("device", ["gpu", "cpu:1", "cuda:", "cuda:x", "mps"])
def test_a_device_is_the_processor_or_a_gpu(device: str) -> None:
    with pytest.raises(ConfigError, match=f"'device' must be cpu, cuda or cuda:N: got '{device}'"):
        choose_device(device)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="'cuda' asks for GPU 0, PyTorch finds 0"):
        choose_device("cuda")


def test_every_process_of_torchrun_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    choose_device("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    choose_device("cuda")
    assert taken == [1]
    with pytest.raises(ConfigError, match="must be cuda under torchrun, one GPU per process"):
        choose_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="asks for GPU 2, PyTorch finds 2"):
        choose_device("cuda")


def test_settings_may_stand_on_both_sides_of_an_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"out={tmp_path / 'c'}"
    assert main(["train", "bc", out, "--resume", "steps=x"]) == 1
    assert "'steps' must be of type int: got 'x'" in capsys.readouterr().err
    for wrong in (["train", "bc", out, "--steps", "10"], ["up", "sim", "steps=10"]):
        with pytest.raises(SystemExit):
            main(wrong)
        assert "unrecognized arguments" in capsys.readouterr().err


def test_resuming_says_that_there_is_nothing_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c"
    assert main(["train", "bc", "--resume", f"out={out}", f"data={tmp_path / 'none'}"]) == 1
    assert f"nothing to resume in '{out}.run/training_state': starting from" in (
        capsys.readouterr().err
    )
