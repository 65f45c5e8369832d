from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from synthetic_store import PROVENANCE, START_NS, TOPICS, episode, number, text, traffic

from qsteer_ros.errors import ConfigError
from qsteer_ros.replay.episode import Episode
from qsteer_ros.replay.reader import EpisodeReader
from qsteer_ros.replay.recorder import Recorder
from qsteer_ros.replay.records import LoggedMessage
from qsteer_ros.replay.verify import verify_episode
from qsteer_ros.replay.writer import EpisodeWriter


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> object:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.002)
    raise AssertionError(f"{what} within {timeout_s} s")


@pytest.fixture
def recorder(tmp_path):
    made = Recorder(tmp_path, flush_interval_s=0.01, queue_bytes=4096)
    yield made
    made.shutdown()


def reward(value: float, log_time_ns: int = START_NS) -> LoggedMessage:
    return LoggedMessage(
        "/reward", "std_msgs/msg/Float64", log_time_ns, log_time_ns, 1, number(value)
    )


def test_everything_put_before_the_close_is_in_the_episode_in_order(tmp_path):
    recorder = Recorder(tmp_path)
    folder = recorder.start(episode("a"), TOPICS)
    sent = list(traffic())
    types = {topic.name: topic.type for topic in TOPICS}
    for count, m in enumerate(sent):
        assert recorder.put(
            LoggedMessage(m.topic, types[m.topic], m.log_time_ns, m.log_time_ns, count, m.data)
        )
    recorder.close("success", label_source="sim", end_ns=START_NS + 1, task="move it")
    assert not recorder.put(reward(1.0))
    done = wait_for(recorder.finished, "the episode is closed")
    assert [(d.episode_id, d.folder, d.error) for d in done] == [("a", folder, "")]
    assert not recorder.recording
    assert [m.data for m in EpisodeReader(folder).messages()] == [m.data for m in sent]
    info = Episode.load(folder)
    assert (info.outcome, info.task) == ("success", "move it")
    recorder.shutdown()


def test_messages_reach_the_file_while_the_episode_runs(recorder):
    folder = recorder.start(episode("a"), TOPICS)
    path = folder / "a_0.mcap"
    before = path.stat().st_size
    recorder.put(reward(-1.0))
    wait_for(lambda: path.stat().st_size > before, "the message is flushed")


def test_what_does_not_fit_is_dropped_counted_and_told(recorder, monkeypatch):
    gate = threading.Event()
    write = EpisodeWriter.write
    monkeypatch.setattr(EpisodeWriter, "write", lambda *a, **k: (gate.wait(10), write(*a, **k))[1])
    folder = recorder.start(episode("a"), TOPICS)
    big = LoggedMessage("/task", "std_msgs/msg/String", START_NS, START_NS, 1, text("x" * 1500))
    assert recorder.put(big)
    wait_for(lambda: recorder.waiting[0] == 0, "the writer has taken the first")
    accepted = [recorder.put(big) for _ in range(5)]
    assert accepted == [True, True, False, False, False]
    assert recorder.waiting[0] == 2
    assert recorder.dropped == {"/task": 3}
    gate.set()
    recorder.close("failure", label_source="sim", end_ns=START_NS)
    wait_for(recorder.finished, "the episode is closed")
    assert Episode.load(folder).topic("task").dropped == 3
    assert Episode.load(folder).topic("task").messages == 3
    folder = recorder.start(episode("b"), TOPICS)
    recorder.close("failure", label_source="sim", end_ns=START_NS)
    wait_for(recorder.finished, "the next episode is closed")
    assert Episode.load(folder).topic("task").dropped == 0


def test_a_broken_message_is_one_drop_and_the_recording_goes_on(recorder):
    folder = recorder.start(episode("a"), TOPICS)
    recorder.put(LoggedMessage(TOPICS[0].name, TOPICS[0].type, START_NS, START_NS, 1, b"\0\1\0\0"))
    recorder.put(reward(1.0))
    recorder.close("failure", label_source="sim", end_ns=START_NS)
    wait_for(recorder.finished, "the episode is closed")
    info = Episode.load(folder)
    assert (info.topic("camera/front").dropped, info.topic("reward").messages) == (1, 1)
    assert verify_episode(folder).damage == []


def test_a_disk_that_fails_ends_the_episode_as_aborted_and_says_why(recorder, monkeypatch):
    def full(self: EpisodeWriter) -> None:
        raise OSError(28, "No space left on device")

    folder = recorder.start(episode("a"), TOPICS)
    monkeypatch.setattr(EpisodeWriter, "flush", full)
    recorder.put(reward(1.0))
    wait_for(lambda: not recorder.put(reward(2.0)), "the failure is noticed")
    recorder.close("success", label_source="sim", end_ns=START_NS)
    done = wait_for(recorder.finished, "the episode is closed")
    assert "No space left" in done[0].error
    info = Episode.load(folder)
    assert info.outcome == "aborted"
    assert info.reason == "writing failed: [Errno 28] No space left on device"
    assert info.topic("reward").dropped >= 1
    monkeypatch.undo()
    recorder.start(episode("b"), TOPICS)
    assert recorder.put(reward(1.0))


def test_one_episode_at_a_time(recorder):
    recorder.start(episode("a"), TOPICS)
    with pytest.raises(ConfigError, match="must wait until the one before it is closed"):
        recorder.start(episode("b"), TOPICS)


def test_a_shutdown_closes_the_open_episode_as_aborted(tmp_path):
    recorder = Recorder(tmp_path)
    folder = recorder.start(episode("a"), TOPICS)
    recorder.put(reward(-1.0, START_NS + 7))
    recorder.shutdown()
    info = Episode.load(folder)
    assert (info.outcome, info.label_source, info.reason) == (
        "aborted",
        "logger",
        "the logger stopped",
    )
    assert info.end_ns == START_NS + 7
    assert verify_episode(folder).state == "ok"


def test_a_store_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    recorder = Recorder(tmp_path / "file" / "store")
    with pytest.raises(ConfigError, match="the episode store must be writable"):
        recorder.start(episode("a", provenance=PROVENANCE), TOPICS)
    recorder.shutdown()


def test_messages_without_an_episode_are_not_drops(recorder):
    assert not recorder.put(reward(1.0))
    assert not recorder.dropped
    recorder.close("failure", label_source="sim")
    assert recorder.finished() == []
