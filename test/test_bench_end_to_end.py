"""A whole benchmark, a few steps of everything, from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from qsteer_ros import cli
from qsteer_ros.evaluation import bench_run

WORDS = [
    "bench", "ogbench", "--tasks", "cube-single:2", "--seeds", "1", "--episodes", "2",
    "--set", "data.transitions=60", "--set", "data.held_out=30", "--set", "data.episode_steps=30",
    "--set", "bc.steps=3", "--set", "bc.hidden=8", "--set", "critic.steps=3",
    "--set", "critic.hidden=8", "--set", "execute=5",
]  # fmt: skip


class Finished:
    """A program that ran in this process."""

    def __init__(self, status: int) -> None:
        self._status = status

    def poll(self) -> int:
        return self._status

    def send_signal(self, number: int, /) -> None:
        raise AssertionError("it has ended")

    def wait(self, timeout: float | None = None) -> int:
        return self._status

    def kill(self) -> None:
        raise AssertionError("it has ended")


def test_the_same_command_trains_evaluates_and_later_fills_in_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def here(words: Sequence[str], log: Path) -> Finished:
        started.append(" ".join(words[:2]))
        log.touch()
        return Finished(cli.main(list(words)))

    monkeypatch.setattr(bench_run, "_subprocess", here)
    words = [*WORDS, "--out", str(tmp_path)]
    assert cli.main([*words, "--methods", "off"]) == 0
    assert started == ["bench data", "train bc", "train critic", "bench evaluate"]
    first = json.loads((tmp_path / "summary.json").read_text())
    assert list(first["tasks"]["cube-single-task2"]) == ["off"]
    started.clear()
    assert cli.main([*words, "--methods", "off,best_of_n,qgf"]) == 0
    assert started == ["bench evaluate"]
    results = tmp_path / "results" / "cube-single-task2" / "seed0"
    found = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    assert set(found) == {"off", "best_of_n", "qgf"}
    assert len(found["off"]["solved"]) == 2
    assert found["qgf"]["calibrated"]["ratio"] == pytest.approx(0.05, rel=0.01)
    hashes = {name: result["hashes"]["bc"] for name, result in found.items()}
    assert len(set(hashes.values())) == 1
    assert "| best_of_n | " in (tmp_path / "table.md").read_text()
    started.clear()
    assert cli.main([*words, "--methods", "off,qgf", "--set", "bc.steps=4"]) == 1
    assert not started
