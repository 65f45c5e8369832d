from __future__ import annotations

import pytest
from synthetic_store import traffic, write_episode

from qsteer_ros import cli
from qsteer_ros.errors import ConfigError
from qsteer_ros.replay.overview import COLUMNS, inspect_store


def cells(table: str, name: str) -> dict[str, str]:
    line = next(line for line in table.splitlines() if line.startswith(f"{name} "))
    return dict(zip(COLUMNS, line.replace("not closed", "not_closed").split(), strict=False))


def test_the_table_tells_each_episode_in_one_line(tmp_path):
    sent = list(traffic())
    fronts = [m for m in sent if m.topic.startswith("/front")]
    write_episode(tmp_path, "a", [m for m in sent if m is not fronts[4]])
    write_episode(tmp_path, "b", list(traffic(success_at=9)), outcome="success", arm="off")
    write_episode(tmp_path, "c", close=False)
    table = inspect_store(tmp_path)
    first = cells(table, "a")
    assert first["outcome"] == "failure"
    assert (first["frames"], first["missing"], first["chunks"]) == ("39", "1", "4")
    assert (first["dQ"], first["ms"], first["s"]) == ("+0.50", "60", "1.0")
    assert (cells(table, "b")["arm"], cells(table, "b")["outcome"]) == ("off", "success")
    assert cells(table, "c")["outcome"] == "not_closed"
    assert table.splitlines()[-1] == f"3 episodes in {tmp_path}"


def test_one_episode_is_told_in_full(tmp_path):
    folder = write_episode(tmp_path, "a", task="open the drawer", session={"pair": 3})
    text = inspect_store(folder)
    for part in (
        "open the drawer", "pair: 3", "policy: pppp", "camera/front", "4 decisions, steering qgf",
        "latency_ms", "qsteer_ros 0.",
    ):  # fmt: skip
        assert part in text


def test_damaged_and_nameless_episodes_are_listed_and_do_not_stop_the_table(tmp_path):
    folder = write_episode(tmp_path, "a")
    with (folder / "a_0.mcap").open("r+b") as file:
        file.truncate(5000)
    (write_episode(tmp_path, "b") / "episode.json").unlink()
    table = inspect_store(tmp_path)
    assert cells(table, "a")["outcome"] == "damaged"
    assert "no episode.json" in table


def test_an_empty_store_says_so_and_a_missing_one_is_refused(tmp_path):
    assert inspect_store(tmp_path) == f"no episodes under {tmp_path}"
    with pytest.raises(ConfigError, match="an episode store must be a folder"):
        inspect_store(tmp_path / "nowhere")


def test_the_verbs_inspect_and_verify_print_and_give_their_exit_status(tmp_path, capsys):
    folder = write_episode(tmp_path, "a")
    write_episode(tmp_path, "b", close=False)
    assert cli.main(["inspect", str(tmp_path)]) == 0
    assert "2 episodes in" in capsys.readouterr().out
    assert cli.main(["verify", str(folder)]) == 0
    assert cli.main(["verify", str(tmp_path)]) == 1
    assert cli.main(["verify", str(tmp_path), "--recover"]) == 0
    assert (tmp_path / "b.recovered" / "b.recovered_0.mcap").is_file()
    assert cli.main(["inspect", str(tmp_path / "nowhere")]) == 1
    assert "an episode store must be a folder" in capsys.readouterr().err
