from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy")

from arm_traffic import BEST_EFFORT, PROVENANCE, ArmTraffic, LoggerProcess  # noqa: E402
from rosbags.highlevel import AnyReader  # noqa: E402

from qsteer_ros.replay.episode import Episode  # noqa: E402
from qsteer_ros.replay.reader import EpisodeReader  # noqa: E402
from qsteer_ros.replay.verify import verify, verify_episode  # noqa: E402

pytestmark = pytest.mark.ros


@pytest.fixture
def logger(context, tmp_path):
    """Starts logger nodes on a store and ends those that are left."""
    running = []

    def start(**parameters) -> LoggerProcess:
        running.append(LoggerProcess(context, tmp_path / "store", **parameters))
        return running[-1]

    yield start
    for process in running:
        process.close()


@pytest.fixture
def arm(context):
    node = ArmTraffic(context)
    yield node
    node.destroy_node()


def in_bag(folder) -> Counter:
    with AnyReader([folder]) as reader:
        return Counter({c.topic: c.msgcount for c in reader.connections if c.msgcount})


def test_the_logger_starts_without_torch_mujoco_and_the_policy():
    script = (
        "import sys, qsteer_ros.nodes.logger_node\n"
        "heavy = {'torch', 'mujoco', 'pinocchio', 'qsteer_ros.policies'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_episode_over_dds_holds_every_message_published_between_start_and_end(
    logger, arm, tmp_path
):
    process = logger()
    arm.until_connected()
    arm.until_state("", "idle")
    arm.task("put the cube on the mark")
    for episode_id in ("first", "second"):
        arm.rest(0.15)  # else frames from before the start are part of the episode
        arm.sent.clear()
        folder = arm.start(episode_id, goal=2, seed=5)
        assert folder == tmp_path / "store" / episode_id
        arm.run(1.5)
        arm.end(episode_id, "success")
        arm.until(lambda: arm.heard[-1]["state"] == "idle", "the logger is idle again")
        info = Episode.load(folder)
        assert (info.outcome, info.goal, info.seed, info.arm) == ("success", 2, 5, "qgf")
        assert info.task == "put the cube on the mark"
        assert info.robot["gripper_joint"] == "robotiq_85_left_knuckle_joint"
        found = in_bag(folder)
        assert found.pop("/diagnostics") >= 1
        assert found.pop("/task") == 1
        assert found == arm.sent
        assert sum(t.lost + t.dropped + (t.missing or 0) for t in info.topics) == 0
        assert verify_episode(folder).state == "ok"
    assert process.signal(signal.SIGINT) == 0


def test_messages_from_just_before_the_start_belong_to_it_and_are_no_loss(logger, arm):
    logger()
    arm.until_connected()
    arm.run(0.2)
    published = arm.stamps["/front/image_raw/compressed"]
    last_ns = published[-1]
    folder = arm.start("running")
    arm.run(0.2)
    arm.end("running")
    info = Episode.load(folder)
    assert [t.lost for t in info.topics] == [0] * len(info.topics)
    frames = list(EpisodeReader(folder).frame_messages("front"))
    # Older ones too, when the start overtakes frames that are still on their way.
    assert frames[0] <= last_ns or frames[0] - last_ns > 100_000_000
    first = published.index(frames[0])
    assert frames == published[first : first + len(frames)]


def test_a_killed_logger_loses_at_most_the_last_second(logger, arm, tmp_path):
    process = logger()
    arm.until_connected()
    folder = arm.start("killed")
    arm.run(2.5)
    killed_ns = time.time_ns()
    process.signal(signal.SIGKILL)
    assert verify(tmp_path / "store", say=lambda _: None) == 1
    lines: list[str] = []
    assert verify(tmp_path / "store", recover=True, say=lines.append) == 0, lines
    info = Episode.load(folder.with_name("killed.recovered"))
    assert (info.outcome, info.provenance) == ("aborted", PROVENANCE)
    reader = EpisodeReader(folder.with_name("killed.recovered"))
    for camera in ("front", "wrist"):
        published = arm.stamps[f"/{camera}/image_raw/compressed"]
        kept = list(reader.frame_messages(camera))
        assert kept == published[: len(kept)]
        assert killed_ns - kept[-1] < 1_000_000_000
    for role, name in (("reward", "/reward"), ("joint_states", "/joint_states")):
        assert len(reader.of_role(role)) >= arm.sent[name] * (2.5 - 1.0) / 2.5
    assert reader.decisions()
    assert Episode.load(folder).state == "recording"


def test_a_logger_that_is_told_to_stop_closes_the_episode_as_aborted(logger, arm):
    process = logger()
    arm.until_connected()
    folder = arm.start("stopped")
    arm.run(0.3)
    assert process.signal(signal.SIGTERM) == 0
    info = Episode.load(folder)
    assert (info.state, info.outcome, info.label_source) == ("closed", "aborted", "logger")
    assert info.reason == "the logger stopped"
    assert verify_episode(folder).damage == []


def test_an_episode_without_provenance_is_refused_and_the_logger_goes_on(logger, arm, tmp_path):
    logger()
    arm.until_connected()
    arm.event("start", episode_id="bare", arm="qgf")
    assert (
        "needs provenance before it may be recorded"
        in arm.until_state("bare", "refused")["reason"]
    )
    assert not (tmp_path / "store" / "bare").exists()
    arm.start("good")
    arm.end("good")
    arm.event("start", episode_id="good", provenance=PROVENANCE)
    assert "Episodes are never overwritten" in arm.until_state("good", "refused")["reason"]


def test_a_logger_that_comes_late_records_the_running_episode_and_no_finished_one(logger, arm):
    arm.event("start", episode_id="over", provenance=PROVENANCE)
    arm.event("end", episode_id="over", outcome="failure")
    arm.event("start", episode_id="running", provenance=PROVENANCE)
    logger()
    arm.until_state("running", "recording")
    arm.run(0.3)
    arm.end("running")
    assert "over" not in {heard["episode_id"] for heard in arm.heard}
    folder = Path(next(h["path"] for h in arm.heard if h["state"] == "closed"))
    assert Episode.load(folder).session == {"late_start": True}


def test_cameras_that_offer_best_effort_only_are_recorded_as_they_offer(logger, context):
    arm = ArmTraffic(context, cameras=BEST_EFFORT)
    logger()
    arm.until_connected()
    folder = arm.start("sensor")
    arm.run(0.6)
    arm.end("sensor")
    with AnyReader([folder]) as reader:
        camera = next(c for c in reader.connections if c.topic.startswith("/front"))
    assert camera.msgcount >= 10
    assert camera.ext.offered_qos_profiles[0].reliability.name == "BEST_EFFORT"
    arm.destroy_node()


def test_with_simulated_time_messages_are_logged_at_the_time_of_the_clock(logger, arm):
    logger(use_sim_time=True)
    arm.until_connected()
    arm.event("start", episode_id="sim", provenance=PROVENANCE)
    now_ns = 5_000_000_000

    def tick() -> bool:
        arm.clock(now_ns)
        return any(h["state"] == "recording" for h in arm.heard)

    arm.until(tick, "the episode starts once there is a clock")
    for index in range(10):
        now_ns += 50_000_000
        arm.clock(now_ns)
        arm.step(index, now_ns)
    arm.end("sim")
    reader = EpisodeReader(next(h["path"] for h in arm.heard if h["state"] == "closed"))
    log_ns, _, sequence = reader.numbers("reward")
    assert len(log_ns) == 10
    assert log_ns[0] >= 5_000_000_000
    assert log_ns[-1] <= now_ns
    assert list(sequence) == list(range(sequence[0], sequence[0] + 10))


def test_a_missing_robot_file_ends_the_logger_with_the_reason(logger):
    process = logger(robot="robot_nowhere.yaml")
    assert process.process.wait(timeout=30) == 1
    assert "robot_nowhere.yaml" in process.log.read_text()
