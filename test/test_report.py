from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from synthetic_store import START_NS, traffic, write_episode

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.evaluation.collected import collect
from qsteer_ros.evaluation.film import animation, film_strip, side_by_side
from qsteer_ros.evaluation.report import write_report
from qsteer_ros.replay.sessions import STORE, Result, Session

ARMS = ("off", "qgf")


def write_session(
    folder: Path, *, goals: tuple[int, ...] = (1,), into_existing: bool = False
) -> Session:
    """A session in which qgf always wins and off never does."""
    session = Session(
        ARMS,
        goals,
        episodes=2,
        seed=3,
        settings={"qgf": {"guidance_weight": 0.03}},
        provenance={"package": "0.1.0", "hashes": {"policy": "p" * 8}},
    )
    (folder / STORE).mkdir(parents=True, exist_ok=into_existing)
    for trial in session.schedule():
        won = trial.arm == "qgf"
        messages = list(traffic(20, success_at=15 if won else None))
        write_episode(
            folder / STORE,
            trial.episode_id,
            messages,
            outcome="success" if won else "failure",
            arm=trial.arm,
            goal=trial.goal,
            seed=trial.seed,
        )
        session = session.with_result(
            Result(trial, "success" if won else "failure", 15 if won else 20, (60.0, 64.0))
        )
    session.save(folder)
    return session


class Page(HTMLParser):
    """Text and addresses of a page, and whether its tags are balanced."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "image", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_report_is_one_file_that_loads_nothing_else(tmp_path: Path) -> None:
    write_session(tmp_path / "s")
    page = Page(write_report(tmp_path / "s").read_text())
    assert page.open == []
    assert page.addresses
    assert all(a.startswith(("data:image/", "#")) for a in page.addresses)


def test_the_report_states_success_with_its_interval(tmp_path: Path) -> None:
    write_session(tmp_path / "s")
    out = write_report(tmp_path / "s", tmp_path / "elsewhere" / "r.html")
    assert out == tmp_path / "elsewhere" / "r.html"
    text = " ".join(Page(out.read_text()).words)
    assert re.search(r"off 0 / 2 0 % 0 to 66 %", text)
    assert re.search(r"qgf 2 / 2 100 % 34 to 100 % 0\.5 15", text)
    assert "One policy, several goals" not in text


def test_several_goals_get_a_table_of_their_own(tmp_path: Path) -> None:
    write_session(tmp_path / "s", goals=(1, 2, 3))
    text = " ".join(Page(write_report(tmp_path / "s").read_text()).words)
    assert re.search(r"arm goal 1 goal 2 goal 3 off 0 / 2 0 / 2 0 / 2 qgf 2 / 2", text)


def test_losses_are_added_up_and_a_missing_frame_counts_once(tmp_path: Path) -> None:
    write_session(tmp_path / "s")
    losses = {loss.topic: loss for loss in collect(tmp_path / "s").losses()}
    front = losses["/front/image_raw/compressed"]
    assert (front.messages, front.missing, front.total) == (80, 0, 0)
    assert losses["/reward"].missing is None


def test_tracks_hold_the_numbers_of_the_decisions(tmp_path: Path) -> None:
    write_session(tmp_path / "s")
    track = collect(tmp_path / "s").of("qgf")[0]
    assert track.episode.start_ns == START_NS
    np.testing.assert_allclose(track.time_s, [0.0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(track.latency_ms, 60.0)
    np.testing.assert_allclose(track.values["delta_q"], 0.5)
    assert np.isnan(track.values["ratio"]).all()
    assert track.mean("ratio") is None


def test_the_report_of_an_unfinished_session_says_so(tmp_path: Path) -> None:
    session = write_session(tmp_path / "s")
    Session(**{**vars(session), "results": session.results[:1]}).save(tmp_path / "s")
    assert "3 planned episodes have not run" in write_report(tmp_path / "s").read_text()


def test_refusals_of_a_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be the folder of a session"):
        write_report(tmp_path)
    Session(ARMS, (1,), episodes=1, seed=0).save(tmp_path)
    with pytest.raises(ConfigError, match="needs at least one finished episode"):
        write_report(tmp_path)
    session = write_session(tmp_path / "s")
    (tmp_path / "s" / STORE / session.results[0].trial.episode_id / "episode.json").unlink()
    with pytest.raises(DataError, match="must describe an episode"):
        write_report(tmp_path / "s")


def test_the_animation_plays_all_panels_for_as_long_as_the_longest() -> None:
    frames = [np.full((24, 36, 3), 10 * i, np.uint8) for i in range(12)]
    movie = Picture.open(io.BytesIO(animation([("a", frames[:4], True), ("b", frames, False)])))
    assert movie.is_animated
    assert movie.size == (2 * 72 + 8, 48 + 20)


def test_a_film_strip_runs_from_the_first_to_the_last_frame() -> None:
    frames = [np.full((16, 16, 3), 20 * i, np.uint8) for i in range(12)]
    strip = np.asarray(Picture.open(io.BytesIO(film_strip(frames, count=4))))
    assert strip.shape == (16, 4 * 18 - 2, 3)
    assert abs(int(strip[8, 8, 0]) - 0) < 6
    assert abs(int(strip[8, -8, 0]) - 220) < 6


def test_views_stand_side_by_side_at_one_height() -> None:
    joined = side_by_side(np.zeros((96, 144, 3), np.uint8), np.ones((48, 48, 3), np.uint8))
    assert joined.shape == (96, 240, 3)
