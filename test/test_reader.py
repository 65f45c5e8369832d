from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mcap.reader import make_reader
from synthetic_store import (
    DT_NS,
    GRIPPER,
    JOINTS,
    START_NS,
    TOPICS,
    Sent,
    action,
    colour,
    episode,
    header,
    message,
    text,
    traffic,
    write_episode,
)

from qsteer_ros.errors import DataError
from qsteer_ros.replay.definitions import header_stamp_ns
from qsteer_ros.replay.reader import EpisodeReader, decode_frame
from qsteer_ros.replay.records import LoggedMessage
from qsteer_ros.replay.writer import EpisodeWriter


def test_frames_come_back_with_their_stamps_and_colours(tmp_path):
    reader = EpisodeReader(write_episode(tmp_path))
    for camera in ("front", "wrist"):
        frames = list(reader.frames(camera))
        assert [stamp for stamp, _ in frames] == [START_NS + i * DT_NS for i in range(20)]
        for step, (_, image) in enumerate(frames):
            assert image.shape == (8, 12, 3)
            assert np.max(np.abs(image.astype(int) - colour(step, camera))) <= 3
    with pytest.raises(DataError, match="must have camera 'side': it has"):
        list(reader.frames("side"))


def test_joints_are_found_by_name_in_the_order_asked_for(tmp_path):
    track = EpisodeReader(write_episode(tmp_path)).joints((*JOINTS, GRIPPER))
    assert track.position[4] == pytest.approx([0.04, -0.04, 0.16])
    assert track.velocity[4] == pytest.approx([0.1, 0.2, 0.0])
    assert track.effort[4] == pytest.approx([0.0, 0.0, 25.0])
    assert np.array_equal(track.stamp_ns, START_NS + np.arange(20) * DT_NS)
    with pytest.raises(DataError, match=r"must have the joints \['wrist'\]"):
        EpisodeReader(tmp_path / "e0").joints(("wrist",))


def test_a_changed_byte_anywhere_before_the_summary_is_noticed_while_reading(tmp_path):
    folder = write_episode(tmp_path, messages=list(traffic(4)))
    path = folder / "e0_0.mcap"
    whole = path.read_bytes()
    with path.open("rb") as file:
        last = make_reader(file).get_summary().chunk_indexes[-1]
    index_start = last.chunk_start_offset + last.chunk_length
    for position in range(8, index_start + last.message_index_length, 31):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(DataError, match="must be a whole bag"):
            list(EpisodeReader(folder).messages())


def test_decisions_events_and_numbers_come_back(tmp_path):
    reader = EpisodeReader(write_episode(tmp_path, messages=list(traffic(success_at=15))))
    decisions = reader.decisions()
    assert [d.record.stamp_ns for d in decisions] == [START_NS + i * 5 * DT_NS for i in range(4)]
    assert np.array_equal(decisions[1].record.chunk[2], action(7))
    assert [event["event"] for _, event in reader.events()] == ["start", "end"]
    log_ns, reward, sequence = reader.numbers("reward")
    assert log_ns[0] == START_NS + 4_000_000
    assert reward.tolist() == [-1.0] * 15 + [0.0] * 5
    assert sequence.tolist() == list(range(1, 21))
    assert reader.numbers("success")[1].sum() == 5


def test_an_event_that_is_no_json_object_is_refused(tmp_path):
    for index, bad in enumerate(("[1]", "{")):
        sent = [Sent("/episode/event", text(bad), START_NS)]
        reader = EpisodeReader(write_episode(tmp_path, f"e{index}", sent))
        with pytest.raises(DataError, match="must be a JSON object"):
            reader.events()


def raw(encoding: str, pixels: np.ndarray, step: int, kind: str = "Image") -> LoggedMessage:
    data = message(
        "sensor_msgs/msg/Image",
        header=header(5),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=step,
        data=np.pad(pixels.reshape(len(pixels), -1), ((0, 0), (0, step - 3 * pixels.shape[1])))
        .ravel()
        .astype(np.uint8),
    )
    return LoggedMessage("/front/image_raw", f"sensor_msgs/msg/{kind}", 0, 0, 0, data)


def test_raw_frames_are_read_with_padding_and_in_either_colour_order():
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    assert np.array_equal(decode_frame(raw("rgb8", pixels, 15)), pixels)
    assert np.array_equal(decode_frame(raw("bgr8", pixels, 16)), pixels[..., ::-1])
    with pytest.raises(DataError, match=r"raw frames must be one of bgr8.*: got '16UC1'"):
        decode_frame(raw("16UC1", pixels, 15))
    with pytest.raises(DataError, match="must be an image: it is a std_msgs/msg/Header"):
        decode_frame(replace(raw("rgb8", pixels, 15), type="std_msgs/msg/Header"))


def test_a_compressed_frame_that_is_no_jpeg_is_refused():
    data = message(
        "sensor_msgs/msg/CompressedImage",
        header=header(5),
        format="png",
        data=np.zeros(8, np.uint8),
    )
    with pytest.raises(DataError, match=r"must be a JPEG: its format is 'png'"):
        decode_frame(LoggedMessage("/c", "sensor_msgs/msg/CompressedImage", 0, 0, 0, data))


def test_a_message_that_is_not_of_its_type_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"must be a sensor_msgs/msg/CompressedImage: 4 bytes"):
        decode_frame(LoggedMessage("/c", "sensor_msgs/msg/CompressedImage", 0, 0, 0, b"\0\1\0\0"))


@pytest.mark.parametrize("stamp_ns", [0, 1, 999_999_999, 1_700_000_000_123_456_789])
def test_the_stamp_is_read_from_the_serialised_header(stamp_ns):
    data = message("sensor_msgs/msg/JointState", header=header(stamp_ns), name=[],
                   position=np.zeros(0), velocity=np.zeros(0), effort=np.zeros(0))  # fmt: skip
    assert header_stamp_ns(data) == stamp_ns


def test_a_joint_state_without_velocities_reads_as_zero(tmp_path):
    writer = EpisodeWriter(tmp_path, episode("e"), TOPICS)
    data = message("sensor_msgs/msg/JointState", header=header(START_NS), name=["elbow"],
                   position=np.ones(1), velocity=np.zeros(0), effort=np.zeros(0))  # fmt: skip
    writer.write("/joint_states", data, log_time_ns=START_NS)
    writer.close("failure", label_source="sim", end_ns=START_NS)
    track = EpisodeReader(writer.folder).joints(("elbow",))
    assert (track.position.tolist(), track.velocity.tolist()) == ([[1.0]], [[0.0]])
