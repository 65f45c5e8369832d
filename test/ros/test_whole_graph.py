"""The demo as a user runs it: four processes, real DDS, rendered cameras, networks, a log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError
from qsteer_ros.graph.environment import free_domain
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.replay.reader import EpisodeReader
from qsteer_ros.replay.sessions import Session

pytestmark = [pytest.mark.ros, pytest.mark.slow]
if find_spec("ogbench") is None:
    pytest.skip("ogbench is not installed", allow_module_level=True)

TIMEOUT_S = 300
ARMS = ("off", "qgf")


def qsteer(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qsteer_ros.cli", *arguments],
        env={**os.environ, "ROS_DOMAIN_ID": str(free_domain())},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """Output folder, last line and session of a demo with one episode per arm."""
    out = tmp_path_factory.mktemp("demo")
    done = qsteer("demo", "--episodes", "1", "--arms", ",".join(ARMS), "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = next(out.glob("session_*"))
    return out, json.loads(done.stdout.splitlines()[-1]), Session.load(folder), folder


def episode(folder: Path, session: Session, arm: str) -> EpisodeReader:
    result = next(r for r in session.results if r.trial.arm == arm)
    return EpisodeReader(folder / "episodes" / result.trial.episode_id)


def test_the_demo_runs_and_says_what_came_of_it(finished):
    out, last, session, folder = finished
    assert last["episodes"] == 2
    assert set(last["success"]) == set(last["chunk_ms_p50"]) == set(ARMS)
    assert (out / "report.html").is_file()
    assert {r.outcome for r in session.results} <= {"success", "failure"}
    logs = {path.stem for path in (folder / "logs").iterdir()}
    assert logs == {"sim_node", "policy_node", "logger_node", "session_node"}


def test_no_camera_frame_is_lost_between_the_processes(finished):
    assert finished[1]["drops"] == 0


def test_the_policy_acted_in_time_and_the_log_says_how(finished):
    _, _, session, folder = finished
    for arm in ARMS:
        records = [d.record for d in episode(folder, session, arm).decisions()]
        result = next(r for r in session.results if r.trial.arm == arm)
        assert len(records) >= result.steps // 20
        assert {r.meta["mode"] for r in records} == {arm}
        assert len(result.chunk_ms) == len(records)
    assert all(r.meta["ratio"] is not None for r in records)


def test_episodes_name_everything_that_took_part(finished):
    _, _, session, folder = finished
    info = episode(folder, session, "qgf").info
    assert {"package", "robot", "encoder", "policy", "critic"} <= set(info.provenance)
    assert info.session["steering"]["steering"] == "qgf"
    hashes = episode(folder, session, "qgf").decisions()[0].record.meta["hashes"]
    assert hashes["policy"] == info.provenance["policy"]
    assert hashes["critic"] == info.provenance["critic"]


def test_a_logged_episode_replays_onto_the_same_motion(finished, tmp_path):
    _, _, session, folder = finished
    report = tmp_path / "replay.json"
    done = qsteer(
        "up", "replay",
        "--set", f"replay_node.episode={episode(folder, session, 'off').folder}",
        "--set", f"replay_node.report={report}",
        "--set", "replay_node.tolerance_rad=0.3",
        "--logs", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["compared"] > 50
    assert max(found["rms_rad"]) < 0.05


def test_a_critic_trained_from_this_log_alone_steers_the_next_chunk(finished, context, tmp_path):
    from test_policy_node import from_bytes, running

    out, _, _, _ = finished
    folder = tmp_path / "critic"
    done = qsteer(
        "train", "critic", f"episodes={out}", "goal=1", f"out={folder}", "steps=40",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    mine = checkpoints.load(folder, kind="critic").hash

    def deciding(arm):
        record = DecisionRecord.decode(from_bytes(arm.records[-1]))
        return record if record.meta["hashes"]["critic"] == mine else None

    with running(context, steering="qgf", critic="checkpoints/critic_goal1") as arm:
        arm.drive_to("active")
        arm.observe_until(lambda: arm.records, "a decision by the shipped critic")
        assert deciding(arm) is None
        with pytest.raises(ConfigError, match="must be examined before it may steer"):
            arm.set(critic=str(folder))
        # It has learned from the only episodes there are: nothing is left to examine it on.
        arm.set(critic=str(folder), allow_ungated_critic=True)
        arm.observe_until(lambda: deciding(arm), "a decision by the new critic")
        assert deciding(arm).meta["ratio"] > 0.0
