from __future__ import annotations

import argparse
import io
import json
import re
import sys
import textwrap
from pathlib import Path

import pytest

from qsteer_ros import cli
from qsteer_ros.errors import ConfigError
from qsteer_ros.graph import training
from qsteer_ros.graph.demo import DemoOptions, demo, parse_goals, summary
from qsteer_ros.graph.live_table import LiveTable
from qsteer_ros.graph.systems import Process
from qsteer_ros.graph.training import GOALS, CheckpointFolders
from qsteer_ros.replay.sessions import Result, Trial

TEST = Path(__file__).resolve().parent
WAITS = "import signal, sys; signal.sigwait({signal.SIGINT, signal.SIGTERM})"
SESSION = """
    import json, sys
    from pathlib import Path
    sys.path.insert(0, {test!r})
    from test_report import write_session
    folder = Path(json.loads(sys.argv[1]))
    session = write_session(folder, into_existing=True)
    for result in session.results:
        trial = vars(result.trial)
        print("@session " + json.dumps({{"kind": "start", "trial": trial}}))
        entry = {{**vars(result), "trial": trial}}
        print("@session " + json.dumps({{"kind": "end", "result": entry}}))
"""


def fake(process: Process) -> list[str]:
    """A session that has been run before, and three nodes that wait."""
    if process.name != "session_node":
        return [sys.executable, "-c", WAITS]
    code = textwrap.dedent(SESSION).format(test=str(TEST))
    return [sys.executable, "-c", code, json.dumps(process.parameters["folder"])]


def options(out: Path) -> DemoOptions:
    return DemoOptions(episodes=2, arms=("off", "qgf"), seed=3, out=out)


def test_the_last_line_of_the_demo_is_one_json_object(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    for _ in range(2):
        assert demo(options(tmp_path), command=fake) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found["episodes"] == 4
    assert found["success"] == {"off": 0.0, "qgf": 1.0}
    assert found["chunk_ms_p50"] == {"off": 62.0, "qgf": 62.0}
    assert found["drops"] == 0
    assert found["report"] == str(tmp_path / "report.html")
    assert Path(found["report"]).is_file()
    assert Path(found["store"]).is_dir()
    assert (tmp_path / "keep.txt").read_text() == "mine"
    assert len(list(tmp_path.glob("session_*/session.json"))) == 2


def test_a_node_that_dies_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    def command(process: Process) -> list[str]:
        dies = process.name == "policy_node"
        return [sys.executable, "-c", "print('no weights'); exit(2)" if dies else WAITS]

    with pytest.raises(ConfigError, match="the session must run: policy_node ended with status 2"):
        demo(options(tmp_path), command=command)


def test_the_summary_says_success_per_goal_when_there_are_several(tmp_path: Path) -> None:
    from test_report import write_session

    session = write_session(tmp_path / "s", goals=(1, 3))
    found = summary(session, tmp_path / "s", tmp_path / "r.html")
    assert found["success_by_goal"] == {
        "1": {"off": 0.0, "qgf": 1.0},
        "3": {"off": 0.0, "qgf": 1.0},
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DemoOptions(arms=("magic",)), "an arm must be one of"),
        (lambda: DemoOptions(goals=(4,)), r"goals must be among \[1, 2, 3\]: got \[4\]"),
        (lambda: DemoOptions(episodes=0), "'episodes' of a session must be at least 1"),
        (lambda: parse_goals("first"), "'--goal' must be 1, 2, 3 or all: got 'first'"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()  # type: ignore[operator]


def test_goals_are_read() -> None:
    assert parse_goals("2") == (2,)
    assert parse_goals("1,3") == (1, 3)
    assert parse_goals("all") == GOALS


def given(call: argparse.Namespace) -> dict[str, str]:
    """Options and key=value words of a command, as text."""
    words = dict(word.split("=", 1) for word in getattr(call, "settings", ()))
    return {name: str(value) for name, value in vars(call).items()} | words


def test_training_goes_through_commands_that_exist_and_skips_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[argparse.Namespace] = []

    def record(*arguments: str) -> None:
        calls.append(cli.parser().parse_args(arguments))
        out = Path(given(calls[-1])["out"])
        out.mkdir(exist_ok=True)
        (out / "config.json").write_text("{}")

    monkeypatch.setattr(training, "qsteer", record)
    made = training.train_everything(tmp_path, seed=7)
    programs = [getattr(call, "program", call.verb) for call in calls]
    assert programs == ["data", "encoder", "bc", "critic", "critic", "critic"]
    assert {given(call)["seed"] for call in calls} == {"7"}
    assert [given(call)["goal"] for call in calls[3:]] == [str(goal) for goal in GOALS]
    assert made.settings()["policy_node"]["critic"] == str(tmp_path / "critic_goal1")
    assert made.settings()["policy_node"]["allow_ungated_critic"] is True  # nothing is held out
    calls.clear()
    training.train_everything(tmp_path, seed=7)
    assert [call.verb for call in calls] == ["data"]


def test_the_shipped_checkpoints_are_the_default() -> None:
    settings = CheckpointFolders().settings()
    assert len(settings["session_node"]["critics"]) == 3
    assert settings["policy_node"]["allow_ungated_critic"] is False


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ends(table: LiveTable, arm: str, outcome: str, goal: int = 1) -> None:
    trial = vars(Trial(0, arm, goal, 5))
    table.take({"kind": "start", "trial": trial})
    result = vars(Result(Trial(0, arm, goal, 5), outcome, 77, (50.0, 60.0, 90.0)))
    table.take({"kind": "end", "result": {**result, "trial": trial}})


def test_the_table_counts_per_arm_and_goal() -> None:
    table = LiveTable(("off", "qgf"), (1, 2), 3, stream=io.StringIO())
    ends(table, "off", "failure")
    ends(table, "qgf", "success", goal=2)
    ends(table, "qgf", "aborted", goal=2)
    rows = [re.split(r"\s{2,}", row.strip()) for row in table.rows()]
    assert rows[0] == ["arm", "goal 1", "goal 2", "success", "chunk ms"]
    assert rows[1] == ["off", "0/1 of 3", "0/0 of 3", "0 %", "60"]
    assert rows[2] == ["qgf", "0/0 of 3", "1/1 of 3", "100 %", "60"]


def test_without_a_terminal_each_episode_is_one_line() -> None:
    stream = io.StringIO()
    table = LiveTable(("off",), (1,), 2, stream=stream)
    ends(table, "off", "failure")
    table.redraw()
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().split() == ["1/2", "goal", "1", "state", "5", "off", "failure",
                                         "77", "steps", "60", "ms"]  # fmt: skip


def test_on_a_terminal_the_table_is_drawn_over_itself() -> None:
    stream = Terminal()
    table = LiveTable(("off", "qgf"), (1,), 2, stream=stream)
    table.redraw()
    first = stream.getvalue()
    ends(table, "off", "success")
    table.redraw()
    second = stream.getvalue()[len(first) :]
    assert first.count("\n") == second.count("\n") == 4
    assert second.startswith("\x1b[4F")
    assert "1/4 episodes" in second


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="'--out' must be a folder that can be written"):
        demo(DemoOptions(out=file / "demo"))
