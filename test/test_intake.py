from __future__ import annotations

import time

import pytest
from synthetic_store import PROVENANCE, ROBOT, START_NS, TOPICS, event, frame, number, text

from qsteer_ros.replay.episode import Episode
from qsteer_ros.replay.intake import Announcement, Intake
from qsteer_ros.replay.reader import EpisodeReader
from qsteer_ros.replay.recorder import Recorder
from qsteer_ros.replay.records import LoggedMessage

MS = 1_000_000
BORN_NS = 1_000 * MS
TYPES = {topic.name: topic.type for topic in TOPICS}


class Bench:
    """An intake and the three clocks it is told: ROS, the publishers' system time, elapsed."""

    def __init__(self, store) -> None:
        self.recorder = Recorder(store, flush_interval_s=0.005)
        self.intake = Intake(self.recorder, lambda: TOPICS, ROBOT, born_ns=BORN_NS)
        self.now_ns = START_NS
        self.elapsed_ns = 0
        self.told: list[Announcement] = []

    def send(self, topic: str, data: bytes, published_ns: int = BORN_NS + MS) -> None:
        message = LoggedMessage(topic, TYPES[topic], self.now_ns, self.now_ns, 1, data)
        self.intake.take(message, published_ns=published_ns, elapsed_ns=self.elapsed_ns)

    def event(self, kind: str, episode_id: str, published_ns: int = BORN_NS + MS, **more) -> None:
        given = {"provenance": PROVENANCE} if kind == "start" else {"outcome": "success"}
        data = event(kind, **{"episode_id": episode_id, **given, **more})
        self.send("/episode/event", data, published_ns)

    def tick(self) -> list[tuple[str, str]]:
        new = self.intake.tick(now_ns=self.now_ns, elapsed_ns=self.elapsed_ns)
        self.told += new
        return [(a.episode_id, a.state) for a in new]

    def until_told(self, episode_id: str, state: str) -> Announcement:
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            self.tick()
            for told in self.told:
                if (told.episode_id, told.state) == (episode_id, state):
                    return told
            time.sleep(0.002)
        raise AssertionError(f"{episode_id} is {state} within 10 s: told {self.told}")


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.recorder.shutdown()


def test_an_episode_starts_at_its_start_event_and_closes_after_the_end(bench, tmp_path):
    bench.event("start", "a", arm="qgf", goal=3, pair=1)
    assert bench.tick() == [("a", "recording")]
    bench.send("/reward", number(-1.0))
    bench.now_ns += 50 * MS
    bench.event("end", "a", label_source="sim")
    bench.elapsed_ns += 2_000 * MS
    bench.until_told("a", "closed")
    info = Episode.load(tmp_path / "a")
    assert (info.arm, info.goal, info.session) == ("qgf", 3, {"pair": 1})
    assert (info.start_ns, info.end_ns) == (START_NS, START_NS + 50 * MS)
    assert (info.outcome, info.label_source) == ("success", "sim")
    assert info.robot == ROBOT
    assert [e["event"] for _, e in EpisodeReader(tmp_path / "a").events()] == ["start", "end"]
    assert bench.intake.current is None


def test_it_waits_for_every_live_stream_to_pass_the_end(bench):
    bench.event("start", "a")
    bench.send("/reward", number(-1.0), BORN_NS + 2 * MS)
    bench.send("/success", number(0.0), BORN_NS + 2 * MS)
    bench.event("end", "a", published_ns=BORN_NS + 10 * MS)
    bench.elapsed_ns = 200 * MS
    bench.send("/reward", number(-2.0), BORN_NS + 9 * MS)
    bench.send("/success", number(0.0), BORN_NS + 11 * MS)
    bench.tick()
    assert bench.recorder.put(LoggedMessage("/task", TYPES["/task"], 0, 0, 1, text("")))
    bench.send("/reward", number(-3.0), BORN_NS + 11 * MS)
    told = bench.until_told("a", "closed")
    rewards = EpisodeReader(told.path).numbers("reward")[1]
    assert sorted(rewards.tolist()) == [-3.0, -2.0, -1.0]


def test_a_stream_that_has_died_is_waited_for_only_so_long(bench):
    bench.event("start", "a")
    bench.send("/reward", number(-1.0), BORN_NS + 2 * MS)
    bench.event("end", "a", published_ns=BORN_NS + 10 * MS)
    bench.elapsed_ns = 999 * MS
    bench.tick()
    assert bench.recorder.put(LoggedMessage("/task", TYPES["/task"], 0, 0, 1, text("")))
    bench.elapsed_ns = 1_000 * MS
    bench.until_told("a", "closed")


def test_what_was_latched_or_seen_just_before_is_in_the_episode(bench):
    bench.send("/task", text("open the drawer"))
    bench.send("/front/image_raw/compressed", frame(START_NS, (1, 1, 1)))
    bench.now_ns += 101 * MS
    bench.send("/wrist/image_raw/compressed", frame(START_NS, (1, 1, 1)))
    bench.event("start", "a")
    bench.event("end", "a")
    bench.elapsed_ns = 2_000 * MS
    reader = EpisodeReader(bench.until_told("a", "closed").path)
    assert reader.info.task == "open the drawer"
    (task,) = reader.of_role("task")
    assert task.log_time_ns == START_NS + 101 * MS
    assert len(reader.of_role("camera/wrist")) == 1
    assert reader.of_role("camera/front") == []


def test_without_provenance_nothing_is_recorded_and_the_reason_is_told(bench, tmp_path):
    bench.event("start", "a", provenance={})
    assert bench.tick() == [("a", "refused")]
    assert "needs provenance" in bench.told[0].reason
    assert bench.intake.current is None
    assert not list(tmp_path.iterdir())


def test_an_event_that_is_no_json_is_refused_and_harmless(bench):
    bench.send("/episode/event", text("start!"))
    assert bench.tick() == [("", "refused")]
    bench.event("start", "a")
    assert bench.tick() == [("a", "recording")]


def test_a_second_start_closes_the_first_as_aborted_and_follows_it(bench, tmp_path):
    bench.event("start", "a")
    bench.event("start", "a")
    bench.event("start", "b")
    bench.until_told("b", "recording")
    assert [(t.episode_id, t.state) for t in bench.told] == [
        ("a", "recording"),
        ("a", "closed"),
        ("b", "recording"),
    ]
    info = Episode.load(tmp_path / "a")
    assert (info.outcome, info.reason) == ("aborted", "another episode was started")


def test_a_start_right_after_an_end_leaves_the_outcome_of_the_first_alone(bench, tmp_path):
    bench.event("start", "a")
    bench.event("end", "a")
    bench.event("start", "b")
    bench.until_told("b", "recording")
    assert Episode.load(tmp_path / "a").outcome == "success"


def test_an_end_of_another_episode_changes_nothing(bench):
    bench.event("end", "x")
    bench.event("start", "a")
    bench.event("end", "x")
    bench.elapsed_ns = 5_000 * MS
    assert bench.tick() == [("a", "recording")]
    assert bench.intake.current == "a"


def test_an_unknown_outcome_is_kept_as_unlabelled(bench, tmp_path):
    bench.event("start", "a")
    bench.event("end", "a", outcome="great")
    bench.elapsed_ns = 2_000 * MS
    bench.until_told("a", "closed")
    info = Episode.load(tmp_path / "a")
    assert (info.outcome, info.reason) == ("unlabelled", "the end event said 'great'")


def test_history_is_obeyed_only_when_nothing_followed_it(bench, tmp_path):
    bench.event("start", "a", published_ns=BORN_NS - 3)
    bench.event("end", "a", published_ns=BORN_NS - 2)
    bench.event("start", "b", published_ns=BORN_NS - 1)
    assert bench.tick() == []
    bench.elapsed_ns = 500 * MS
    assert bench.tick() == [("b", "recording")]
    assert not (tmp_path / "a").exists()
    bench.event("end", "b")
    bench.elapsed_ns = 5_000 * MS
    bench.until_told("b", "closed")
    assert Episode.load(tmp_path / "b").session == {"late_start": True}


def test_an_episode_waits_for_the_clock(bench, tmp_path):
    bench.now_ns = 0
    bench.event("start", "a")
    assert bench.tick() == []
    bench.now_ns = 77
    assert bench.tick() == [("a", "recording")]
    assert Episode.load(tmp_path / "a").start_ns == 77
