"""Small honest stand-ins for simulator, policy node and logger: no physics, no torch."""

from __future__ import annotations

import contextlib
import json
import threading

import numpy as np
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool, String, UInt8MultiArray
from std_srvs.srv import Trigger

from qsteer_ros.replay.decision import DecisionRecord

LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TICK_S = 0.005
TICK_NS = 50_000_000


class FakeSim(Node):
    """Time runs ten times as fast; success comes a given number of steps after activation."""

    def __init__(self, context, policy, steps_to_success) -> None:
        super().__init__("sim_node", context=context, use_global_arguments=False)
        self.declare_parameter("seed", 0)
        self.declare_parameter("goal", 1)
        self.resets: list[tuple[int, int]] = []
        self.time_ns = 1_000_000_000
        self.stop_when_active = False
        self._policy = policy
        self._steps_to_success = steps_to_success
        self._moving_ns: int | None = None
        self._time = self.create_publisher(Clock, "/clock", 10)
        self._goal_reached = self.create_publisher(Bool, "success", 10)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_timer(TICK_S, self._tick)

    def _on_reset(self, _, response):
        seed, goal = (self.get_parameter(n).value for n in ("seed", "goal"))
        self.resets.append((seed, goal))
        self._moving_ns = None
        response.success = True
        return response

    def _tick(self) -> None:
        if self.stop_when_active and self._policy.active:
            return
        self.time_ns += TICK_NS
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(self.time_ns, 1_000_000_000)
        self._time.publish(message)
        if self._policy.active and self._moving_ns is None:
            self._moving_ns = self.time_ns
        steps = self._steps_to_success(self._policy.get_parameter("steering").value)
        reached = (
            self._moving_ns is not None
            and steps is not None
            and self.time_ns - self._moving_ns >= steps * TICK_NS
        )
        self._goal_reached.publish(Bool(data=reached))


class FakePolicy(LifecycleNode):
    """Publishes one decision per activation; refuses the critic 'bad'."""

    def __init__(self, context) -> None:
        super().__init__("policy_node", context=context, use_global_arguments=False)
        self.active = False
        self.fail_to_activate = False
        self.log: list[str] = []
        for name, value in {
            "robot": "", "encoder": "", "policy": "", "critic": "", "steering": "off",
            "guidance": "weight", "guidance_weight": 0.0, "num_samples": 16, "seed": 0,
            "noise_policy": "", "posterior_map": "",
        }.items():  # fmt: skip
            self.declare_parameter(name, value)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._decision = self.create_publisher(UInt8MultiArray, "~/decision", 10)

    def _on_parameters(self, parameters):
        from rcl_interfaces.msg import SetParametersResult

        for parameter in parameters:
            if parameter.name == "noise_policy":
                self.log.append(f"noise_policy {parameter.value}")
            if parameter.name == "critic":
                self.log.append(f"critic {parameter.value}")
                if parameter.value.endswith("bad"):
                    return SetParametersResult(successful=False, reason="no such critic")
        return SetParametersResult(successful=True)

    def on_configure(self, state):
        self.log.append("configure")
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state):
        if self.fail_to_activate:
            return TransitionCallbackReturn.FAILURE
        values = [self.get_parameter(n).value for n in ("steering", "guidance_weight", "seed")]
        self.log.append(f"activate {values}")
        self.active = True
        chunk = np.zeros((5, 5), np.float32)
        meta = {
            "stamp_ns": 0, "control_dt_ns": TICK_NS, "execute_steps": 5, "mode": values[0],
            "hashes": {}, "latency_ms": 61.5,
        }  # fmt: skip
        blob = DecisionRecord({"noise": chunk, "chunk": chunk}, meta).encode()
        self._decision.publish(UInt8MultiArray(data=blob))
        return super().on_activate(state)

    def on_deactivate(self, state):
        self.log.append("deactivate")
        self.active = False
        return super().on_deactivate(state)


class FakeLogger(Node):
    """Says what it records, as the real one does."""

    def __init__(self, context) -> None:
        super().__init__("logger_node", context=context, use_global_arguments=False)
        self.events: list[dict] = []
        self.deaf = False
        self.refuse = False
        self._state = self.create_publisher(String, "~/recording", LATCHED)
        self.create_subscription(String, "episode/event", self._on_event, LATCHED)
        self._say("", "idle")

    def _say(self, episode_id: str, state: str) -> None:
        entries = {"episode_id": episode_id, "state": state, "reason": "no provenance"}
        self._state.publish(String(data=json.dumps(entries)))

    def _on_event(self, message: String) -> None:
        event = json.loads(message.data)
        self.events.append(event)
        if self.deaf:
            return
        if event["event"] == "start":
            self._say(event["episode_id"], "refused" if self.refuse else "recording")
        else:
            self._say(event["episode_id"], "closed")
            self._say("", "idle")


class Spinning:
    """Spins each node in a background thread of its own until the block ends."""

    def __init__(self, context, *nodes) -> None:
        self._nodes = nodes
        self._executors = [SingleThreadedExecutor(context=context) for _ in nodes]
        self._threads = [threading.Thread(target=self._spin, args=(e,)) for e in self._executors]
        for executor, node in zip(self._executors, nodes, strict=True):
            executor.add_node(node)

    def _spin(self, executor) -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        for executor, thread in zip(self._executors, self._threads, strict=True):
            executor.shutdown()
            thread.join()
        for node in self._nodes:
            node.destroy_node()
