"""Bad data at every door to training: one line that names the file and says what to do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_store import Sent, action, decision, number, traffic
from synthetic_store import write_episode as write_any
from test_logged import ENCODER, LAYOUT, ROBOT_FILE, of_the_arm

from qsteer_ros import cli
from qsteer_ros.errors import DataError
from qsteer_ros.learning.data import load_frames
from qsteer_ros.replay.images import encode_jpeg

ROWS = 24


def play_arrays(rows: int = ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    widths = {"action": (5,), "qpos": (21,), "qvel": (20,), "ctrl": (7,), "effort": ()}
    widths |= {"tool_xyz": (3,), "tool_yaw": ()}
    arrays = {k: rng.uniform(0.1, 0.5, (rows, *w)).astype(np.float32) for k, w in widths.items()}
    arrays["qpos"][:, 17:21] = [1.0, 0.0, 0.0, 0.0]
    return arrays


def suite_arrays(rows: int = ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    widths = {"observation": 28, "action": 5, "qpos": 21}
    arrays = {k: rng.uniform(0.1, 0.5, (rows, w)).astype(np.float32) for k, w in widths.items()}
    return arrays | {"buttons": np.zeros((rows, 0), np.int8)}


@pytest.fixture(params=["play", "suite"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """Two files of a data set that can be trained from, of the package's play and of a suite."""
    folder = tmp_path / "data" / "play"
    folder.mkdir(parents=True)
    suite = {"suite": "cube-single"} if request.param == "suite" else {}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"settings": suite}))
    paths = [folder / f"episode_0000{i}.npz" for i in range(2)]
    for path in paths:
        np.savez(path, **(suite_arrays() if suite else play_arrays()))
    return paths


def change(path: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    arrays = dict(np.load(path))
    edit(arrays)
    np.savez(path, **arrays)


def poison(arrays: dict[str, np.ndarray], name: str) -> None:
    arrays[name][1, 1] = np.nan


def cut(arrays: dict[str, np.ndarray], name: str) -> None:
    arrays[name] = arrays[name][:-1]


def halve(arrays: dict[str, np.ndarray], name: str) -> None:
    arrays[name] = arrays[name][:, :2]


def empty(arrays: dict[str, np.ndarray]) -> None:
    for name in list(arrays):
        arrays[name] = arrays[name][:0]


def refused(capfd: pytest.CaptureFixture[str], out: Path, program: str, *words: str) -> str:
    """Exit status 1, one line, nothing written; the line."""
    assert cli.main(["train", program, f"out={out}", "steps=2", "batch=8", *words]) == 1
    said = [line for line in capfd.readouterr().err.splitlines() if "\r" not in line]
    told = [line for line in said if line.startswith("qsteer train: ")]
    assert len(told) == 1
    assert not [line for line in said if "Traceback" in line]
    assert not out.exists()
    return told[0]


CASES = {
    "a missing array": (lambda a: a.pop("action"), "it lacks action"),
    "numbers that are not finite": (lambda a: poison(a, "qpos"), "'qpos' .* must be finite"),
    "actions that are not finite": (lambda a: poison(a, "action"), "'action' .* must be finite"),
    "one row too few": (lambda a: cut(a, "qpos"), "'qpos' .* must have shape"),
    "actions of another width": (lambda a: halve(a, "action"), "'action' .* must have shape"),
    "no rows": (empty, "must hold rows"),
}


@pytest.mark.parametrize("program", ["bc", "critic"])
@pytest.mark.parametrize("case", CASES)
def test_a_file_of_play_that_cannot_be_used_is_named_with_the_remedy(
    case: str, program: str, files: list[Path], tmp_path: Path, capfd
) -> None:
    edit, reason = CASES[case]
    change(files[1], edit)
    line = refused(capfd, tmp_path / "out", program, f"data={files[1].parent.parent}")
    assert str(files[1]) in line
    assert re.search(reason, line)
    assert "Delete it and" in line


def test_a_torn_file_is_named_with_the_remedy(files: list[Path], tmp_path: Path, capfd) -> None:
    files[0].write_bytes(files[0].read_bytes()[:-200])
    line = refused(capfd, tmp_path / "out", "critic", f"data={files[0].parent.parent}")
    assert f"'{files[0]}' is damaged" in line
    assert "Delete it and" in line


def test_play_too_short_for_a_window_is_named_with_the_remedy(
    files: list[Path], tmp_path: Path, capfd
) -> None:
    folder = files[0].parent.parent
    line = refused(capfd, tmp_path / "out", "critic", f"data={folder}", "horizon=30")
    assert f"'{folder}'" in line
    assert "there are none. Record longer episodes" in line


def test_a_folder_without_files_is_named_with_the_command(tmp_path: Path, capfd) -> None:
    line = refused(capfd, tmp_path / "out", "bc", f"data={tmp_path / 'none'}")
    assert f"'{tmp_path / 'none'}" in line
    assert "qsteer data" in line


# ---- camera frames


def frame_arrays() -> dict[str, np.ndarray]:
    picture = np.frombuffer(encode_jpeg(np.zeros((8, 8, 3), np.uint8)), np.uint8)
    arrays: dict[str, np.ndarray] = {
        "proprio": np.zeros((2, 19), np.float32),
        "cube_xyz": np.zeros((2, 3), np.float32),
        "cube_yaw": np.zeros(2, np.float32),
        "random_cube": np.zeros(2, bool),
        "moved_camera": np.zeros(2, bool),
    }
    for camera in ("front", "wrist"):
        arrays[f"{camera}_jpeg"] = np.concatenate([picture, picture])
        arrays[f"{camera}_sizes"] = np.array([len(picture)] * 2)
    return arrays


FRAME_CASES: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "a missing array": (lambda a: a.pop("cube_yaw"), "it lacks cube_yaw"),
    "no pictures of a camera": (lambda a: a.pop("wrist_jpeg"), "'wrist_jpeg': found none"),
    "pictures that are cut off": (lambda a: cut(a, "front_jpeg"), "as 'front_jpeg': found"),
    "damaged pictures": (lambda a: a["front_jpeg"].fill(0), "is damaged"),
    "numbers that are not finite": (lambda a: poison(a, "cube_xyz"), "must be finite"),
}


@pytest.mark.parametrize("case", FRAME_CASES)
def test_a_shard_of_frames_that_cannot_be_used_is_named_with_the_remedy(
    case: str, tmp_path: Path
) -> None:
    edit, reason = FRAME_CASES[case]
    path = tmp_path / "frames" / "train_0000.npz"
    path.parent.mkdir()
    np.savez(path, **frame_arrays())
    assert len(load_frames(tmp_path, "train").images["front"]) == 2
    change(path, edit)
    with pytest.raises(DataError, match=reason) as error:
        load_frames(tmp_path, "train")
    assert str(path) in str(error.value)
    assert "Delete it and run qsteer data again." in str(error.value)


# ---- logged episodes


def write(store: Path, name: str, messages: list[Sent] | None = None, **entries: object) -> Path:
    sent = list(traffic()) if messages is None else messages
    return write_any(
        store, name, [of_the_arm(one) for one in sent], **{"robot": LAYOUT, **entries}
    )


def with_reward(value: float) -> list[Sent]:
    """An episode that publishes this reward once."""
    sent = list(traffic())
    place = [i for i, one in enumerate(sent) if one.topic == "/reward"][6]
    sent[place] = replace(sent[place], data=number(value))
    return sent


def unnamed(folder: Path) -> None:
    """Take from an episode where it comes from."""
    path = folder / "episode.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "provenance": {}}))


def from_log(store: Path) -> tuple[str, ...]:
    return f"episodes={store}", f"encoder={ENCODER}", f"robot={ROBOT_FILE}", "hidden=8"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_are_refused_by_the_episodes_name(
    value: float, tmp_path: Path, capfd
) -> None:
    write(tmp_path / "store", "e0", with_reward(value))
    line = refused(capfd, tmp_path / "out", "critic", *from_log(tmp_path / "store"))
    assert "rewards of episode 'e0' must be finite: 1 of" in line
    assert "leave the episode out" in line


def test_an_episode_without_provenance_is_refused_by_its_files_name(tmp_path: Path, capfd) -> None:
    folder = write(tmp_path / "store", "e0")
    unnamed(folder)
    line = refused(capfd, tmp_path / "out", "critic", *from_log(tmp_path / "store"))
    assert f"'{folder / 'episode.json'}' must say where the episode comes from" in line
    assert "lacks package, policy. Restore the file" in line


def test_episodes_of_policies_with_other_horizons_are_not_mixed(tmp_path: Path, capfd) -> None:
    write(tmp_path / "store", "e0")
    second = write(tmp_path / "store", "e1", list(traffic(horizon=4)))
    line = refused(capfd, tmp_path / "out", "critic", *from_log(tmp_path / "store"))
    assert f"'{second}' must have chunks like 'e0', 5 actions" in line
    assert "it has 4" in line
    assert "Keep episodes of one policy in a folder" in line


def test_actions_of_two_widths_in_one_episode_are_refused_by_its_name(
    tmp_path: Path, capfd
) -> None:
    sent = list(traffic())
    place = [i for i, one in enumerate(sent) if "decision" in one.topic][1]
    stamp = sent[place].log_time_ns - 64_000_000
    chunk = np.stack([action(k) for k in range(5)])[:, :3]
    sent[place] = replace(sent[place], data=decision(stamp, chunk, effective_ns=stamp))
    write(tmp_path / "store", "e0", sent)
    line = refused(capfd, tmp_path / "out", "critic", *from_log(tmp_path / "store"))
    assert "actions of episode 'e0' must have one width: found [3, 5]" in line


def test_a_store_without_episodes_is_named_with_the_remedy(tmp_path: Path, capfd) -> None:
    (tmp_path / "store").mkdir()
    line = refused(capfd, tmp_path / "out", "critic", *from_log(tmp_path / "store"))
    assert f"{tmp_path / 'store'} must hold episodes to learn from" in line
    assert "Record episodes" in line


def test_a_bad_episode_among_good_ones_is_left_out_said_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    write(store, "e0")
    write(store, "e1", with_reward(float("nan")))
    unnamed(write(store, "e2"))
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}
    words = [f"out={out}", "steps=2", "batch=8", *from_log(store)]
    assert cli.main(["train", "critic", *words]) == 0
    (said,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert f"2 of 3 episodes in '{store}' are left out: e1: rewards of episode 'e1'" in said
    training = json.loads((out / "config.json").read_text())["training"]
    assert [line.split(":")[0] for line in training["left_out"]] == ["e1", "e2"]
    assert len(training["episodes"]) == 1
    assert {p: p.read_bytes() for p in store.rglob("*") if p.is_file()} == before


def test_the_command_itself_says_one_line_and_exits_with_1(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", "e0", with_reward(float("nan")))
    words = ["train", "critic", f"out={tmp_path / 'out'}", *from_log(tmp_path / "store")]
    done = subprocess.run(
        [sys.executable, "-m", "qsteer_ros.cli", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if "window" not in line and line.strip()]
    assert len(lines) == 1
    assert folder.name in lines[0]
