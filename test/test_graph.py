from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

import qsteer_ros
from qsteer_ros.errors import ConfigError
from qsteer_ros.graph import environment
from qsteer_ros.graph.environment import LAST_PORTABLE_DOMAIN, additions, free_domain
from qsteer_ros.graph.supervisor import Supervisor
from qsteer_ros.graph.systems import SYSTEMS, Process, parse_settings, system
from qsteer_ros.graph.up import up
from qsteer_ros.resources import find

WAIT_S = 20.0

SOURCES = {
    "waits": """
        import signal, sys, time
        def stop(number, frame):
            print("saw", signal.Signals(number).name, flush=True)
            sys.exit(0)
        signal.signal(signal.SIGINT, stop)
        print("ready", flush=True)
        time.sleep(60)
    """,
    "dies": "import sys; print('no camera', flush=True); sys.exit(3)",
    "finishes": "print('all done', flush=True)",
    "leaves a child": """
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        print(child.pid, flush=True)
        sys.exit(3)
    """,
    "prints twice": """
        import time
        for line in ("first", "second"):
            print(line, flush=True)
        time.sleep(60)
    """,
    "deaf": """
        import signal, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(60)
    """,
}


def fake(process: Process) -> list[str]:
    """A small program instead of the node: what it does is its executable's name."""
    return [sys.executable, "-c", textwrap.dedent(SOURCES[process.executable])]


class Lines:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._changed = threading.Condition()

    def __call__(self, name: str, line: str) -> None:
        with self._changed:
            self.seen.append((name, line))
            self._changed.notify_all()

    def wait_for(self, *wanted: tuple[str, str]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(wanted) <= set(self.seen), WAIT_S)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def supervise(tmp_path: Path, lines: Lines, *processes: Process) -> Supervisor:
    return Supervisor(
        processes, logs=tmp_path, environment=dict(os.environ), on_line=lines, command=fake
    )


def test_output_is_prefixed_by_node_and_logged_per_node(tmp_path: Path) -> None:
    lines = Lines()
    with supervise(tmp_path, lines, Process("a", "waits"), Process("b", "waits")):
        lines.wait_for(("a", "ready"), ("b", "ready"))
    assert (tmp_path / "a.log").read_text() == "ready\nsaw SIGINT\n"
    assert (tmp_path / "b.log").read_text() == "ready\nsaw SIGINT\n"


def test_a_dying_node_is_named_with_its_status_and_last_line(tmp_path: Path) -> None:
    lines = Lines()
    with supervise(tmp_path, lines, Process("a", "waits"), Process("b", "dies")) as running:
        outcome = running.wait(WAIT_S)
    assert outcome is not None
    assert outcome.status == 1
    assert outcome.reason.startswith("b ended with status 3 after")
    assert "its last line: no camera" in outcome.reason


def test_what_the_end_of_a_process_means_is_part_of_its_description(tmp_path: Path) -> None:
    lines = Lines()
    helper = Process("helper", "finishes", when_done="continue")
    with supervise(tmp_path, lines, helper, Process("a", "waits")) as running:
        lines.wait_for(("helper", "all done"))
        assert running.wait(0.3) is None
    with supervise(tmp_path, lines, Process("s", "finishes", when_done="stop")) as running:
        done = running.wait(WAIT_S)
    with supervise(tmp_path, lines, Process("s", "finishes")) as running:
        died = running.wait(WAIT_S)
    assert done is not None
    assert (done.status, done.reason) == (0, "s is done")
    assert died is not None
    assert died.status == 1


def test_a_node_that_ignores_signals_is_killed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsteer_ros.graph.supervisor.INTERRUPT_TIMEOUT_S", 0.2)
    monkeypatch.setattr("qsteer_ros.graph.supervisor.TERMINATE_TIMEOUT_S", 0.5)
    lines = Lines()
    with supervise(tmp_path, lines, Process("a", "deaf"), Process("b", "waits")) as running:
        lines.wait_for(("a", "ready"), ("b", "ready"))
        assert running.stop() == ["a"]


def test_a_child_that_a_node_left_behind_does_not_outlive_the_system(tmp_path: Path) -> None:
    lines = Lines()
    with supervise(tmp_path, lines, Process("a", "leaves a child")) as running:
        assert running.wait(WAIT_S) is not None
        child = int(lines.seen[0][1])
        os.kill(child, 0)  # it lives
    deadline = time.monotonic() + WAIT_S
    while is_alive(child):
        assert time.monotonic() < deadline


def test_a_terminal_that_is_gone_does_not_end_a_node(tmp_path: Path) -> None:
    seen = Lines()

    def gone(name: str, line: str) -> None:
        seen(name, line)
        raise BrokenPipeError

    process = Process("a", "prints twice")
    with Supervisor(
        [process], logs=tmp_path, environment=dict(os.environ), on_line=gone, command=fake
    ) as running:
        seen.wait_for(("a", "first"), ("a", "second"))
        assert running.wait(0.3) is None
    assert (
        "(the line above could not be shown: BrokenPipeError())"
        in (tmp_path / "a.log").read_text()
    )


def test_a_signal_that_interrupts_the_wait_for_one_is_not_lost(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, Lines())
    assert isinstance(supervisor._ended, queue.SimpleQueue)  # the only queue with that promise


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_supervisor_ends_the_system_cleanly(
    tmp_path: Path, number: signal.Signals
) -> None:
    lines = Lines()
    with supervise(tmp_path, lines, Process("a", "waits")) as running:
        lines.wait_for(("a", "ready"))
        os.kill(os.getpid(), number)
        outcome = running.wait(WAIT_S)
    assert outcome is not None
    assert (outcome.status, outcome.reason) == (0, f"stopped by {number.name}")
    assert ("a", "saw SIGINT") in lines.seen


def test_nodes_do_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        from qsteer_ros.graph.supervisor import Supervisor
        from qsteer_ros.graph.systems import Process
        def command(process):
            return [sys.executable, "-c", {textwrap.dedent(SOURCES["waits"])!r}]
        with Supervisor([Process("a", "waits")], logs=Path({str(tmp_path)!r}),
                        environment=dict(os.environ), command=command,
                        on_line=lambda n, line: print(line, flush=True)) as running:
            print(running._running[0].popen.pid, flush=True)
            running.wait(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    said = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
    child = int((said - {"ready"}).pop())
    parent.kill()
    parent.wait(WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and Path(f"/proc/{child}/cmdline").exists():
        if Path(f"/proc/{child}/stat").read_text().rsplit(")")[-1].split()[0] == "Z":
            break
        threading.Event().wait(0.02)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_up_says_in_one_line_which_node_died(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def command(process: Process) -> list[str]:
        kind = {"policy_node": "dies", "autostart_node": "finishes"}.get(process.name, "waits")
        return [sys.executable, "-c", textwrap.dedent(SOURCES[kind])]

    assert up("sim", logs=tmp_path, command=command) == 1
    out, err = capfd.readouterr()
    assert err.splitlines()[0].startswith("qsteer up: policy_node ended with status 3")
    assert "[policy_node   ] no camera" in out
    assert (next(tmp_path.iterdir()) / "policy_node.log").read_text() == "no camera\n"


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_system_names_nodes_that_exist(name: str) -> None:
    folder = Path(qsteer_ros.__file__).parent / "nodes"
    for process in system(name):
        assert (folder / f"{process.executable}.py").is_file(), process.executable


def test_on_an_arm_nothing_moves_until_a_person_says_so() -> None:
    def activates(name: str, **options: bool) -> object:
        autostart = {p.name: p for p in system(name, **options)}["autostart_node"]
        return autostart.parameters["activate"]

    assert activates("arm") is False
    assert activates("sim") is True
    assert activates("arm", activate=True) is True


def test_simulated_time_is_on_exactly_where_there_is_a_simulator() -> None:
    for name in SYSTEMS:
        simulated = any(p.name == "sim_node" for p in system(name))
        for process in system(name):
            expected = simulated and process.name in {"policy_node", "logger_node", "replay_node"}
            assert process.parameters.get("use_sim_time", False) is expected


def test_the_session_replaces_the_autostart_and_ends_the_system() -> None:
    by_name = {p.name: p for p in system("sim", session=True)}
    assert "autostart_node" not in by_name
    assert by_name["session_node"].when_done == "stop"


def test_settings_win_over_the_description_and_reach_the_command_line() -> None:
    settings = parse_settings(["policy_node.steering=off", "policy_node.guidance_weight=0.03"])
    policy = {p.name: p for p in system("sim", settings=settings)}["policy_node"]
    arguments = policy.ros_arguments()
    assert 'steering:="off"' in arguments
    assert "guidance_weight:=0.03" in arguments
    assert arguments[: arguments.index("-p")].count("--params-file") == 1


def test_off_stays_a_string_for_a_yaml_reader() -> None:
    value = Process("a", "a", parameters={"steering": "off", "arms": ["off", "qgf"]})
    texts = [a.partition(":=")[2] for a in value.ros_arguments() if ":=" in a][1:]
    assert [yaml.safe_load(text) for text in texts] == ["off", ["off", "qgf"]]
    assert [json.loads(text) for text in texts] == ["off", ["off", "qgf"]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: system("simm"), "system must be one of sim, arm, replay: got 'simm'"),
        (lambda: system("arm", session=True), "a session needs the simulator"),
        (lambda: system("sim", settings={"policy": {}}), "Did you mean 'policy_node'"),
        (lambda: system("sim", parameter_files=["no.yaml"]), "'no.yaml' must exist"),
        (lambda: parse_settings(["steering=off"]), r"must read NODE\.PARAMETER=VALUE"),
    ],
)
def test_refusals_say_what_to_do(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()  # type: ignore[operator]


def test_the_graph_stays_on_this_machine_unless_told() -> None:
    added = additions({})
    profile = ET.parse(added["FASTRTPS_DEFAULT_PROFILES_FILE"])
    addresses = [e.text for e in profile.iter() if e.tag.endswith("}address")]
    assert set(addresses) == {"127.0.0.1"}
    assert added["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SYSTEM_DEFAULT"
    wider = additions({"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"})
    assert wider["FASTRTPS_DEFAULT_PROFILES_FILE"].endswith("fastdds_shm_network.xml")
    assert "ROS_AUTOMATIC_DISCOVERY_RANGE" not in wider


@pytest.mark.parametrize("name", ["fastdds_shm.xml", "fastdds_shm_network.xml"])
def test_shared_memory_holds_many_raw_images(name: str) -> None:
    elements = {e.tag.split("}")[-1]: e.text for e in ET.parse(find(name)).iter()}
    assert elements["segment_size"] == str(32 * 2**20)
    assert elements["maxMessageSize"] == str(8 * 2**20)
    assert elements["useBuiltinTransports"] == "false"


def test_without_room_in_shared_memory_messages_go_through_udp_and_the_user_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "NEEDED_SHARED_MEMORY", 2**60)
    remark = environment.shared_memory_remark()
    assert remark is not None
    assert "--shm-size=1g" in remark
    for given, name in (({}, "udp"), ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"}, "udp_network")):
        file = additions(given)["FASTRTPS_DEFAULT_PROFILES_FILE"]
        assert file.endswith(f"fastdds_{name}.xml")
        assert "SHM" not in {e.text for e in ET.parse(file).iter()}
    monkeypatch.setattr(environment, "NEEDED_SHARED_MEMORY", 0)
    assert environment.shared_memory_remark() is None


def test_what_the_user_has_set_stays() -> None:
    given = {"OMP_NUM_THREADS": "4", "MUJOCO_GL": "osmesa", "FASTRTPS_DEFAULT_PROFILES_FILE": "x"}
    assert not set(additions(given)) & {*given, "ROS_AUTOMATIC_DISCOVERY_RANGE"}


def test_a_domain_in_use_is_not_handed_out() -> None:
    import socket

    first = free_domain(seed=7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 7400 + 250 * first + 10))
        assert free_domain(seed=7) != first
    assert 1 <= first <= LAST_PORTABLE_DOMAIN
