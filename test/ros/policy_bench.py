"""A policy loop with a fake policy and a clock that the test turns."""

import threading
import time
from types import SimpleNamespace

import numpy as np

from qsteer_ros.motion.decoder import make_decoder
from qsteer_ros.motion.kinematics import Kinematics, tool_down
from qsteer_ros.motion.path import sample
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.nodes.observations import ObservationAssembler
from qsteer_ros.nodes.policy_loop import Outlets, PolicyLoop
from qsteer_ros.nodes.policy_parameters import PolicyParameters
from qsteer_ros.nodes.policy_parts import Parts
from qsteer_ros.nodes.policy_report import PolicyReport
from qsteer_ros.policies.recording import Decision
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.types import RobotState

WAIT_S = 10.0
MS = 1_000_000
ROBOT = RobotFile.load("robot_ur5e_sim.yaml")
HOME = np.array([-np.pi / 2, -np.pi / 2, np.pi / 2, -np.pi / 2, -np.pi / 2, 0.0])
START = Kinematics(ROBOT).inverse(np.array([0.4, 0.0, 0.2]), tool_down(0.0), HOME)
SIZES = {"front": (4, 6)}


class FakeSteered:
    """Sends the tool along x; what it is asked and how long it takes is the test's."""

    def __init__(self):
        self.asked, self.continued, self.deadlines = [], [], []
        self.more = {}  # of the record
        self.chunk = np.tile(np.float32([0.5, 0, 0, 0, 0]), (5, 1))
        self.gate = threading.Event()
        self.gate.set()
        self.error = None
        self.settings = SimpleNamespace(mode="qgf")

    def decide(self, observation, *, seed, running=None, deadline=None):
        self.asked.append((observation.stamp_ns, seed))
        self.continued.append(running)
        self.deadlines.append(deadline)
        assert self.gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        meta = {
            "stamp_ns": observation.stamp_ns,
            "control_dt_ns": 50 * MS,
            "mode": "qgf",
            "hashes": {"policy": "p"},
            "ratio": 0.1,
            "timings_ns": {"total": MS},
            **self.more,
        }
        if running is not None:
            meta["running"] = {"elapsed": running.elapsed, "committed": running.committed}
        tensors = {"noise": np.zeros_like(self.chunk), "chunk": self.chunk}
        return Decision(self.chunk, DecisionRecord(tensors, meta))


class Bench:
    """A loop, its clock, and everything that came out of it."""

    def __init__(self, steered=None, pace=None, **parameters):
        self.now_ns = 1_000 * MS
        self.step_ns = 0  # how far the clock was set since it was last looked at
        self.position = START  # of an arm that has been told nothing yet
        self.steered = steered or FakeSteered()
        self.parameters = PolicyParameters(**{"seed": 7, **parameters})
        self.assembler = ObservationAssembler(SIZES, self.parameters.age_limits(), lambda f: f)
        self.paths, self.records, self.warnings = [], [], []
        self.report = PolicyReport()
        self.parts = Parts(
            ROBOT, make_decoder(ROBOT, Kinematics(ROBOT)), SIZES, self.steered, pace
        )
        self.loop = PolicyLoop(
            self.parts,
            self.parameters,
            self.assembler,
            lambda: self.now_ns,
            Outlets(
                path=lambda path, stamp_ns: self.paths.append((path, stamp_ns)),
                record=self.records.append,
                warn=self.warnings.append,
            ),
            self.report,
            self.look,
        )

    def look(self):
        step_ns, self.step_ns = self.step_ns, 0
        return step_ns

    def set_clock(self, by_ms):
        self.step_ns = by_ms * MS
        self.now_ns += by_ms * MS

    def observe(self, at_ms, position=None, velocity=0.0):
        """A frame and joints at a time; the clock moves on to it if it is behind.

        The arm is where it was told to be, unless the test says otherwise.
        """
        stamp_ns = round(at_ms * MS)
        self.now_ns = max(self.now_ns, stamp_ns)
        if position is None:
            position = self.position
            for path, start_ns in self.paths:
                if stamp_ns >= start_ns:
                    position = sample(path, stamp_ns - start_ns)[0][:6]
        state = RobotState(stamp_ns, np.array(position), np.full(6, velocity), 0.0)
        self.assembler.add_joints(state)
        self.assembler.add_frame("front", stamp_ns, np.zeros((4, 6, 3), dtype=np.uint8))
        self.loop.notify()

    def answer_after(self, at_ms, latency_ms):
        """Observe, and let the fake policy answer that much later."""
        count, self.steered.error = len(self.records), None
        self.steered.gate.clear()
        asked = len(self.steered.asked)
        self.observe(at_ms)
        self.until(lambda: len(self.steered.asked) > asked, "a question")
        self.now_ns += round(latency_ms * MS)
        self.steered.gate.set()
        self.answered(count + 1)

    def until(self, condition, what):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
            time.sleep(0.002)

    def answered(self, count):
        self.until(lambda: len(self.records) >= count, f"{count} records")
