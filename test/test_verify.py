from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import yaml
from mcap.records import Chunk, Message
from mcap.stream_reader import StreamReader, breakup_chunk
from rosbags.highlevel import AnyReader
from synthetic_store import (
    START_NS,
    TOPICS,
    Sent,
    episode,
    frame,
    number,
    traffic,
    write_episode,
)

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.replay.episode import Episode
from qsteer_ros.replay.reader import EpisodeReader
from qsteer_ros.replay.recover import recover_episode
from qsteer_ros.replay.verify import verify, verify_episode
from qsteer_ros.replay.writer import EpisodeWriter


def said(store: Path, **options) -> tuple[int, str]:
    lines: list[str] = []
    status = verify(store, say=lines.append, **options)
    return status, "\n".join(lines)


def chunk_ends(path: Path) -> list[tuple[int, int]]:
    """(offset at which a chunk ends, messages in all chunks up to there)."""
    ends, total = [], 0
    with path.open("rb") as file:
        for record in StreamReader(file, emit_chunks=True).records:
            if isinstance(record, Chunk):
                total += sum(isinstance(r, Message) for r in breakup_chunk(record))
                ends.append((file.tell(), total))
    return ends


def test_a_whole_store_passes(tmp_path):
    write_episode(tmp_path, "a")
    write_episode(tmp_path, "b", list(traffic(12, success_at=9)), outcome="success")
    status, text = said(tmp_path, strict=True)
    assert status == 0
    assert "2 episodes, 0 damaged, 0 with warnings" in text
    assert said(tmp_path / "a")[0] == 0


def test_missing_frames_are_told_with_their_place_and_count_only_when_strict(tmp_path):
    sent = list(traffic())
    fronts = [m for m in sent if m.topic.startswith("/front")]
    gone = [fronts[5], fronts[6], fronts[12]]
    write_episode(tmp_path, "a", [m for m in sent if m not in gone])
    status, text = said(tmp_path)
    assert status == 0
    assert "camera 'front' misses 3 frames: 2 after 0.20 s, 1 after 0.55 s" in text
    assert "3 messages of /front/image_raw/compressed were lost on the way" in text
    assert said(tmp_path, strict=True)[0] == 1


def test_a_camera_that_dies_or_never_lives_is_found(tmp_path):
    sent = [m for m in traffic() if not m.topic.startswith("/wrist")]
    fronts = [m for m in sent if m.topic.startswith("/front")]
    write_episode(tmp_path, "a", [m for m in sent if m not in fronts[8:]])
    text = said(tmp_path)[1]
    assert "camera 'wrist' misses 20 frames" in text
    assert "camera 'front' misses 13 frames: 13 after 0.35 s" in text


def test_a_wrong_count_in_either_file_is_damage(tmp_path):
    folder = write_episode(tmp_path, "a")
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text())
    information = metadata["rosbag2_bagfile_information"]
    information["topics_with_message_count"][2]["message_count"] += 1
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    status, text = said(tmp_path)
    assert status == 1
    assert "metadata.yaml must count" in text
    entries = json.loads((folder / "episode.json").read_text())
    entries["topics"][6]["messages"] -= 1
    (folder / "episode.json").write_text(json.dumps(entries))
    assert "/reward must hold 19 messages by episode.json: found 20" in said(tmp_path)[1]


@pytest.mark.parametrize("name", ["episode.json", "metadata.yaml", "a_0.mcap"])
def test_a_missing_file_is_damage(tmp_path, name):
    folder = write_episode(tmp_path, "a")
    (folder / name).unlink()
    status, text = said(tmp_path)
    assert status == 1
    assert "damaged" in text


def test_any_changed_byte_of_the_bag_is_damage(tmp_path):
    folder = write_episode(tmp_path, "a")
    path = folder / "a_0.mcap"
    whole = path.read_bytes()
    for position in random.Random(1).sample(range(len(whole)), 25):
        damaged = bytearray(whole)
        damaged[position] ^= 0x20
        path.write_bytes(damaged)
        assert verify_episode(folder).state == "damaged", f"byte {position}"
    path.write_bytes(whole)
    assert verify_episode(folder).state == "ok"


def test_a_decision_or_a_frame_that_does_not_decode_is_damage(tmp_path):
    sent = list(traffic())
    blob = next(i for i, m in enumerate(sent) if m.topic == "/policy_node/decision")
    broken = sent[blob].data[:-9] + b"\x7f" * 9
    sent[blob] = Sent(sent[blob].topic, broken, sent[blob].log_time_ns)
    camera = next(i for i, m in enumerate(sent) if m.topic.startswith("/wrist"))
    cut = frame(START_NS, (1, 2, 3))[:-40] + bytes(40)
    sent[camera] = Sent(sent[camera].topic, cut, sent[camera].log_time_ns, 7)
    write_episode(tmp_path, "a", sent)
    status, text = said(tmp_path)
    assert status == 1
    assert "message 1 of /policy_node/decision: a decision record" in text
    assert "message 1 of /wrist/image_raw/compressed: a camera frame must be" in text


def test_an_episode_being_written_is_neither_damaged_nor_recovered(tmp_path):
    writer = EpisodeWriter(tmp_path, episode("a"), TOPICS)
    status, text = said(tmp_path, recover=True)
    assert status == 0
    assert "recording " in text
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    writer.close("failure", label_source="sim", end_ns=START_NS)
    assert said(tmp_path)[0] == 0


def test_recovery_makes_a_whole_copy_and_leaves_the_original_alone(tmp_path):
    folder = write_episode(tmp_path, "a", close=False)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    status, text = said(tmp_path)
    assert status == 1
    assert "its logger ended without closing it" in text
    status, text = said(tmp_path, recover=True)
    assert status == 0
    assert "recovered" in text
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    info = Episode.load(tmp_path / "a.recovered")
    assert (info.state, info.outcome, info.label_source) == ("closed", "aborted", "recovery")
    assert info.recovery["from"] == "a"
    assert info.episode_id == "a"
    sent = list(traffic())
    assert [m.data for m in EpisodeReader(tmp_path / "a.recovered").messages()] == [
        m.data for m in sent
    ]
    with AnyReader([tmp_path / "a.recovered"]) as reader:
        assert reader.message_count == len(sent)
    assert said(tmp_path, recover=True)[0] == 0
    with pytest.raises(DataError, match="must not exist yet"):
        recover_episode(folder)


def test_a_bag_cut_anywhere_gives_all_messages_of_the_chunks_before_the_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    whole = write_episode(tmp_path / "whole", "a", list(traffic(8)), batch=5)
    path = whole / "a_0.mcap"
    ends, size = chunk_ends(path), path.stat().st_size
    header = 8 + 9 + 4 + len("ros2") + 4 + len("qsteer_ros")
    sent = [m.data for m in traffic(8)]
    assert ends[-1][1] == len(sent)
    edges = [offset + shift for offset, _ in ends for shift in (-1, 0, 1)]
    cuts = {
        *random.Random(2).sample(range(9, size), 30),
        *edges,
        header - 1,
        header,
        size - 1,
        size - 9,
    }
    for cut in sorted(cuts):
        store = tmp_path / f"cut{cut}"
        shutil.copytree(whole, store / "a")
        with (store / "a" / "a_0.mcap").open("r+b") as file:
            file.truncate(cut)
        expected = max((n for offset, n in ends if offset <= cut), default=0)
        if cut < header:
            with pytest.raises(DataError, match="nothing to recover"):
                recover_episode(store / "a")
            continue
        copy = recover_episode(store / "a")
        assert [m.data for m in EpisodeReader(copy).messages()] == sent[:expected], cut
        assert verify_episode(copy).state == "ok"


@pytest.mark.parametrize("length", [0, 1, 7, 8])
def test_a_file_without_a_beginning_is_refused(tmp_path, length):
    folder = write_episode(tmp_path, "a", close=False)
    with (folder / "a_0.mcap").open("r+b") as file:
        file.truncate(length)
    with pytest.raises(DataError, match="nothing to recover"):
        recover_episode(folder)
    assert said(tmp_path, recover=True)[0] == 1


def test_a_damaged_chunk_in_the_middle_costs_that_chunk_only(tmp_path):
    folder = write_episode(tmp_path, "a", list(traffic(8)), batch=5)
    path = folder / "a_0.mcap"
    (_, _), (start, before), (end, after) = chunk_ends(path)[:3]
    data = bytearray(path.read_bytes())
    data[end - 20] ^= 1
    assert start < end - 20
    path.write_bytes(data)
    copy = recover_episode(folder)
    sent = [m.data for m in traffic(8)]
    assert [m.data for m in EpisodeReader(copy).messages()] == sent[:before] + sent[after:]
    assert "chunk after byte" in Episode.load(copy).recovery["damage"][0]


def test_an_episode_that_lost_its_json_is_recovered_from_its_start_event(tmp_path):
    folder = write_episode(tmp_path, "a", close=False)
    (folder / "episode.json").unlink()
    copy = recover_episode(folder)
    info = Episode.load(copy)
    assert info.episode_id == "e"
    assert info.provenance["policy"] == "p" * 64
    assert info.cameras == ("front", "wrist")
    assert info.topic("trajectory").type == "trajectory_msgs/msg/JointTrajectory"


def test_reading_a_torn_episode_gives_what_came_before_and_then_an_error(tmp_path):
    folder = write_episode(tmp_path, "a", list(traffic(8)), batch=5)
    path = folder / "a_0.mcap"
    offset, count = chunk_ends(path)[4]
    with path.open("r+b") as file:
        file.truncate(offset + 30)
    read = []
    with pytest.raises(DataError, match="must be a whole bag: the file ends early"):
        read.extend(EpisodeReader(folder).messages())
    stream = EpisodeReader(folder).messages()
    assert [next(stream).data for _ in range(count)] == [m.data for m in traffic(8)][:count]


def test_a_store_that_does_not_exist_is_refused_and_an_empty_one_says_so(tmp_path):
    with pytest.raises(ConfigError, match="an episode store must be a folder"):
        said(tmp_path / "nowhere")
    status, text = said(tmp_path)
    assert (status, text.splitlines()[0]) == (0, f"no episodes under {tmp_path}")


def test_dropped_messages_are_a_warning(tmp_path):
    writer = EpisodeWriter(tmp_path, episode("a"), TOPICS)
    writer.write("/reward", number(0.0), log_time_ns=START_NS)
    writer.note_dropped("/reward", 3)
    writer.close("failure", label_source="sim", end_ns=START_NS)
    status, text = said(tmp_path)
    assert status == 0
    assert "3 messages of /reward were dropped" in text
