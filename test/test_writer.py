from __future__ import annotations

import json
import os
from collections import Counter

import numpy as np
import pytest
import yaml
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.highlevel import AnyReader
from synthetic_store import (
    PROVENANCE,
    START_NS,
    TOPICS,
    episode,
    number,
    text,
    traffic,
    write_episode,
)

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.replay.bag import Topic
from qsteer_ros.replay.episode import Episode
from qsteer_ros.replay.writer import EpisodeWriter


def sent_counts() -> Counter:
    return Counter(m.topic for m in traffic())


def test_rosbags_opens_the_bag_and_finds_what_was_sent(tmp_path):
    folder = write_episode(tmp_path)
    found = Counter()
    with AnyReader([folder]) as reader:
        for connection, _, raw in reader.messages():
            reader.deserialize(raw, connection.msgtype)
            found[connection.topic] += 1
        assert {c.topic: c.msgcount for c in reader.connections} == {
            t.name: sent_counts()[t.name] for t in TOPICS
        }
        assert reader.message_count == sum(sent_counts().values())
    assert found == sent_counts()


def test_the_mcap_ros2_decoder_reads_every_message_with_its_times(tmp_path):
    folder = write_episode(tmp_path)
    sent = {}
    for one in traffic():
        sent.setdefault(one.topic, []).append(one)
    found = Counter()
    with (folder / "e0_0.mcap").open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()], validate_crcs=True)
        for _, channel, raw, decoded in reader.iter_decoded_messages(log_time_order=False):
            expected = sent[channel.topic][found[channel.topic]]
            assert (raw.data, raw.log_time) == (expected.data, expected.log_time_ns)
            assert raw.publish_time == expected.log_time_ns
            assert decoded is not None
            found[channel.topic] += 1
        assert reader.get_header().profile == "ros2"
    assert found == sent_counts()


def test_the_bag_says_what_rosbag2_of_jazzy_says(tmp_path):
    folder = write_episode(tmp_path)
    text_of_file = (folder / "metadata.yaml").read_text()
    assert "&id" not in text_of_file
    information = yaml.safe_load(text_of_file)["rosbag2_bagfile_information"]
    assert information["version"] == 9
    assert information["storage_identifier"] == "mcap"
    assert information["relative_file_paths"] == ["e0_0.mcap"]
    assert information["message_count"] == sum(sent_counts().values())
    assert information["files"][0]["message_count"] == information["message_count"]
    assert information["starting_time"]["nanoseconds_since_epoch"] == START_NS
    first = information["topics_with_message_count"][0]
    assert first["topic_metadata"]["offered_qos_profiles"][0]["reliability"] == "best_effort"
    assert first["topic_metadata"]["type_description_hash"].startswith("RIHS01_")
    with (folder / "e0_0.mcap").open("rb") as file:
        reader = make_reader(file)
        inner = next(m for m in reader.iter_metadata() if m.name == "rosbag2")
        summary = reader.get_summary()
    assert yaml.safe_load(inner.metadata["serialized_metadata"]) == information
    channel = next(
        c for c in summary.channels.values() if c.topic == first["topic_metadata"]["name"]
    )
    offered = yaml.safe_load(channel.metadata["offered_qos_profiles"])
    assert offered == first["topic_metadata"]["offered_qos_profiles"]


def test_episode_json_holds_counts_hash_and_provenance(tmp_path):
    folder = write_episode(tmp_path, outcome="success")
    info = Episode.load(folder)
    assert (info.state, info.outcome, info.label_source) == ("closed", "success", "sim")
    assert info.provenance == PROVENANCE
    assert {t.name: t.messages for t in info.topics if t.messages} == dict(sent_counts())
    assert info.topic("camera/front").missing == 0
    assert info.topic("camera/front").lost == 0
    assert info.topic("reward").missing is None
    assert info.bag["bytes"] == (folder / "e0_0.mcap").stat().st_size
    assert len(info.bag["sha256"]) == 64
    assert info.cameras == ("front", "wrist")
    assert not list(folder.glob("*.partial"))


def test_the_folder_is_a_recognisable_bag_from_the_first_moment(tmp_path):
    writer = EpisodeWriter(tmp_path, episode("e1"), TOPICS)
    information = yaml.safe_load((writer.folder / "metadata.yaml").read_text())
    assert information["rosbag2_bagfile_information"]["message_count"] == 0
    assert Episode.load(writer.folder).state == "recording"
    assert (writer.folder / "e1_0.mcap").stat().st_size > 8
    writer.close("aborted", label_source="logger", end_ns=START_NS)


def test_an_episode_without_messages_is_still_a_bag(tmp_path):
    folder = write_episode(tmp_path, messages=[])
    with AnyReader([folder]) as reader:
        assert reader.message_count == 0
        assert len(reader.connections) == len(TOPICS)


def test_flushed_messages_reach_the_file_and_the_disk_once_per_interval(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor))
    now = [0]
    writer = EpisodeWriter(
        tmp_path, episode("e"), TOPICS, fsync_interval_s=1.0, clock_ns=lambda: now[0]
    )
    path = writer.folder / "e_0.mcap"
    before, syncs = path.stat().st_size, len(synced)
    for millisecond in range(0, 3000, 100):
        now[0] = millisecond * 1_000_000
        writer.write("/reward", number(-1.0), log_time_ns=now[0])
        writer.flush()
    assert path.stat().st_size > before + 30 * 30
    assert len(synced) - syncs == 2
    writer.close("failure", label_source="sim", end_ns=now[0])


def test_drops_lost_messages_and_missing_frames_are_counted_in_episode_json(tmp_path):
    sent = list(traffic())
    fronts = [m for m in sent if m.topic.startswith("/front")]
    sent = [m for m in sent if m not in (fronts[5], fronts[6], fronts[12])]
    writer = EpisodeWriter(tmp_path, episode("e"), TOPICS)
    for one in sent:
        writer.write(one.topic, one.data, log_time_ns=one.log_time_ns, sequence=one.sequence)
    writer.note_dropped("/reward", 4)
    writer.close("failure", label_source="sim", end_ns=sent[-1].log_time_ns)
    info = Episode.load(writer.folder)
    assert info.topic("camera/front").missing == 3
    assert info.topic("camera/front").lost == 3
    assert info.topic("camera/wrist").missing == 0
    assert info.topic("reward").dropped == 4


def test_no_provenance_no_recording(tmp_path):
    with pytest.raises(ConfigError, match="needs provenance before it may be recorded"):
        EpisodeWriter(tmp_path, episode("e", provenance={}), TOPICS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("provenance", [None, {}, [], {"package": "0.1.0"}, {"policy": ""}])
def test_a_start_event_without_provenance_is_refused(provenance):
    start = {"event": "start", "episode_id": "e", "provenance": provenance}
    with pytest.raises(ConfigError, match=r"needs provenance .* lacks .*policy"):
        Episode.from_event(start, start_ns=0)


@pytest.mark.parametrize("name", [None, "", "../x", "a b", "x" * 200, 3, ".hidden"])
def test_an_episode_id_that_is_no_folder_name_is_refused(name):
    with pytest.raises(ConfigError, match="needs an 'episode_id' of letters"):
        Episode.from_event({"episode_id": name, "provenance": PROVENANCE}, start_ns=0)


def test_a_start_event_keeps_what_it_says():
    start = {
        "event": "start",
        "episode_id": "s1-003",
        "arm": "qgf",
        "goal": 2,
        "seed": 7,
        "provenance": PROVENANCE,
        "pair": 4,
    }
    info = Episode.from_event(start, start_ns=5)
    assert (info.episode_id, info.arm, info.goal, info.seed) == ("s1-003", "qgf", 2, 7)
    assert info.session == {"pair": 4}
    with pytest.raises(ConfigError, match="whole numbers"):
        Episode.from_event({**start, "goal": "two"}, start_ns=5)


def test_an_existing_episode_is_never_written_over(tmp_path):
    folder = write_episode(tmp_path)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ConfigError, match="must be recorded into a new folder"):
        write_episode(tmp_path)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_topic_of_an_unknown_type_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="must have a standard ROS 2 message type"):
        EpisodeWriter(tmp_path, episode("e"), [Topic("/x", "my_msgs/msg/Own")])
    assert not list(tmp_path.iterdir())


def test_messages_that_break_the_contract_are_refused_and_the_bag_stays_whole(tmp_path):
    writer = EpisodeWriter(tmp_path, episode("e"), TOPICS)
    with pytest.raises(DataError, match="must belong to an announced topic"):
        writer.write("/other", b"", log_time_ns=0)
    with pytest.raises(DataError, match="at least 12 bytes"):
        writer.write("/front/image_raw/compressed", b"\0\1\0\0", log_time_ns=0)
    with pytest.raises(DataError, match="must not be negative"):
        writer.write("/task", text("x"), log_time_ns=-1)
    with pytest.raises(DataError, match="an outcome must be one of"):
        writer.close("won", label_source="sim", end_ns=0)
    writer.close("failure", label_source="sim", end_ns=0)
    with pytest.raises(DataError, match="is closed"):
        writer.write("/task", text("x"), log_time_ns=0)
    with pytest.raises(DataError, match="closed already"):
        writer.close("failure", label_source="sim", end_ns=0)
    with AnyReader([writer.folder]) as reader:
        assert reader.message_count == 0


def test_an_episode_left_by_an_exception_is_closed_as_aborted(tmp_path):
    def record() -> None:
        with EpisodeWriter(tmp_path, episode("e"), TOPICS) as writer:
            writer.write("/task", text("x"), log_time_ns=START_NS + 5)
            raise RuntimeError("arm lost")

    with pytest.raises(RuntimeError, match="arm lost"):
        record()
    info = Episode.load(tmp_path / "e")
    assert (info.outcome, info.label_source) == ("aborted", "logger")
    assert info.reason == "RuntimeError: arm lost"
    assert info.end_ns == START_NS + 5


def test_an_episode_file_that_is_damaged_or_newer_is_refused(tmp_path):
    folder = write_episode(tmp_path)
    path = folder / "episode.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({**entries, "version": 9}))
    with pytest.raises(DataError, match=r"must be qsteer_episode version 1: found .* 9"):
        Episode.load(folder)
    path.write_text(path.read_text()[:40])
    with pytest.raises(DataError, match="must describe an episode"):
        Episode.load(folder)


def test_numbers_written_are_the_numbers_read(tmp_path):
    folder = write_episode(tmp_path)
    with AnyReader([folder]) as reader:
        rewards = [
            reader.deserialize(raw, c.msgtype).data
            for c, _, raw in reader.messages()
            if c.topic == "/reward"
        ]
    assert np.array_equal(rewards, -np.ones(20))
