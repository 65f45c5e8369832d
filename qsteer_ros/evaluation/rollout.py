"""One episode in one process: the whole chain without ROS, and the same with links replaced.

The chain is that of the running system: two rendered cameras through JPEG, the encoder, policy and
critic, the action decoder, the chunk controller, a latency between observation and command, and
the trajectory follower. Each link can be replaced by the truth, to find out which loses success:

============ ===============================================================================
true_pose    the cube's pose comes from the simulator instead of the encoder
no latency   a path takes effect at the stamp of its observation
native       OGBench's own end-effector control executes the chunk: no decoder, no follower
============ ===============================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsteer_ros.errors import DataError, StaleObservation
from qsteer_ros.motion.controller import ChunkController
from qsteer_ros.motion.kinematics import Kinematics
from qsteer_ros.policies.bookkeeping import chunk_seed
from qsteer_ros.policies.features import proprioception, teacher_features
from qsteer_ros.policies.recording import Decision
from qsteer_ros.policies.running import (
    RunningChunk,
    check_overlap,
    running_chunk,
    seam_jump,
)
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.replay.images import decode_jpeg, encode_jpeg
from qsteer_ros.sim.world import CONTROL_DT_NS, PHYSICS_DT_NS, World
from qsteer_ros.types import Observation, RobotState

import torch  # isort: skip


@dataclass(frozen=True)
class Links:
    """Which links of the chain are real.

    Attributes:
        true_pose: Take the cube's pose from the simulator.
        latency_ns: From the stamp of an observation to the moment its path takes effect.
        native: Execute chunks by OGBench's own control. The latency then has no meaning.
        camera_shift_m: Displacement of the front camera in the world, (3,).
    """

    true_pose: bool = False
    latency_ns: int = 60_000_000
    native: bool = False
    camera_shift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class EpisodeResult:
    """What became of one episode.

    Attributes:
        goal: Number of the goal.
        seed: Initial state.
        success: The cube came within 4 cm of the goal.
        steps: Control steps until then, or until time was up.
        chunks: Chunks decided.
        refused: Chunks that the controller or the follower refused.
        ratio: Mean of ||guidance|| / ||velocity|| over chunks and steps at which the critic was
            asked; 0 where it never was.
        cube_error_mm: Median distance of the estimated from the true cube.
        seam_jump: Mean over chunks of how far one departs from the chunk before where it takes
            over, see `policies.running.seam_jump`; None where no two chunks overlap.
    """

    goal: int
    seed: int
    success: bool
    steps: int
    chunks: int
    refused: int
    ratio: float
    cube_error_mm: float
    seam_jump: float | None = None


class Rollout:
    """Runs episodes of one world.

    Args:
        world: The simulated arm.
        controller: Plans paths; its ``execute_steps`` also rules native execution.
        kinematics: Of the arm.
        links: Which links are real.
    """

    def __init__(
        self, world: World, controller: ChunkController, kinematics: Kinematics, links: Links
    ) -> None:
        self._world = world
        self._controller = controller
        self._kinematics = kinematics
        self._links = links

    def episode(
        self,
        policy: SteeredPolicy,
        *,
        goal: int,
        seed: int,
        max_steps: int = 200,
        rtc: bool = False,
    ) -> EpisodeResult:
        """Run one episode until success or until ``max_steps`` control steps have passed.

        Args:
            policy: Decides; its encoder may be None with ``true_pose``.
            goal: Number of the goal.
            seed: Decides the initial state and the noise of every chunk.
            max_steps: Control steps of 50 ms.
            rtc: Continue the running chunk by real-time chunking.

        Raises:
            ConfigError: Chunks are to be continued, but do not overlap.
        """
        world, links = self._world, self._links
        if rtc:
            check_overlap(
                execute_steps=self._controller.execute_steps, horizon=policy.policy.horizon
            )
        world.reset(goal=goal, seed=seed)
        world.scene.move_camera("front", offset_m=np.array(links.camera_shift_m))
        self._controller.reset()
        decisions: list[Decision] = []
        last: tuple[Decision, int] | None = None  # what is being executed, and its stamp
        errors_mm: list[float] = []
        jumps: list[float] = []
        refused, step = 0, 0
        while step < max_steps and not world.success:
            observation = self._observe()
            running = self._running(last, observation)
            decision = self._decide(
                policy,
                observation,
                seed=chunk_seed(seed, len(decisions)),
                running=running if rtc else None,
            )
            decisions.append(decision)
            errors_mm.append(self._cube_error_mm(decision))
            if running is not None and (jump := self._jump(running, decision)) is not None:
                jumps.append(jump)
            until = min(step + self._controller.execute_steps, max_steps)
            if links.native:
                accepted, step = True, self._execute_natively(decision, step, until)
            else:
                accepted, step = self._execute(decision, observation.robot, step, until)
            refused += not accepted
            last = (decision, observation.stamp_ns) if accepted else None
        ratios = [r for decision in decisions if (r := decision.record.meta["ratio"]) is not None]
        return EpisodeResult(
            goal=goal,
            seed=seed,
            success=world.success,
            steps=step,
            chunks=len(decisions),
            refused=refused,
            ratio=float(np.mean(ratios)) if ratios else 0.0,
            cube_error_mm=float(np.median(errors_mm)) if errors_mm else 0.0,
            seam_jump=float(np.mean(jumps)) if jumps else None,
        )

    @property
    def _latency_ns(self) -> int:
        """From the stamp of an observation to the moment its path takes effect."""
        if self._links.native:  # the simulation stands still while a chunk is decided
            return 0
        return self._links.latency_ns // PHYSICS_DT_NS * PHYSICS_DT_NS

    def _running(
        self, last: tuple[Decision, int] | None, observation: Observation
    ) -> RunningChunk | None:
        """What is being executed of the last chunk at an observation."""
        if last is None:
            return None
        decision, stamp_ns = last
        return running_chunk(
            decision.chunk,
            age_ns=observation.stamp_ns - stamp_ns,
            latency_ns=self._latency_ns,
            control_dt_ns=CONTROL_DT_NS,
        )

    def _jump(self, running: RunningChunk, decision: Decision) -> float | None:
        return seam_jump(
            running, decision.chunk, latency_ns=self._latency_ns, control_dt_ns=CONTROL_DT_NS
        )

    def _observe(self) -> Observation:
        """What the wire would carry now; no pictures where nothing looks at them."""
        robot = self._world.robot_state()
        images = {}
        if not self._links.true_pose:
            images = {
                name: decode_jpeg(encode_jpeg(image))
                for name, image in self._world.images().items()
            }
        return Observation(robot.stamp_ns, images, robot)

    def _decide(
        self,
        policy: SteeredPolicy,
        observation: Observation,
        *,
        seed: int,
        running: RunningChunk | None,
    ) -> Decision:
        if not self._links.true_pose:
            return policy.decide(observation, seed=seed, running=running)
        pose = self._world.privileged_cube_pose()
        w, x, y, z = pose[3:]
        yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        features = teacher_features(
            proprioception(observation.robot, self._kinematics)[None],
            pose[None, :3],
            np.array([yaw]),
        )
        return policy.act(torch.from_numpy(features), seed=seed, running=running)

    def _cube_error_mm(self, decision: Decision) -> float:
        estimate = decision.record.tensors["features"][19:22] / 10.0 + np.array([0.425, 0.0, 0.0])
        return float(np.linalg.norm(estimate - self._world.privileged_cube_pose()[:3]) * 1000.0)

    def _execute(
        self, decision: Decision, robot: RobotState, step: int, last: int
    ) -> tuple[bool, int]:
        """Plan, wait for the latency, follow; stop at the step that reaches the goal."""
        world = self._world
        stamp_ns = robot.stamp_ns
        due_ns = stamp_ns + self._latency_ns
        accepted = True
        try:
            path = self._controller.plan(decision.chunk, robot, stamp_ns, due_ns)
        except (DataError, StaleObservation):
            path, accepted = None, False
        while step < last and not world.success:
            end_ns = world.time_ns + CONTROL_DT_NS
            if path is not None and due_ns <= end_ns:
                world.advance(max(due_ns - world.time_ns, 0))
                accepted = world.accept(path, due_ns) is None
                path = None
            world.advance(end_ns - world.time_ns)
            step += 1
        return accepted, step

    def _execute_natively(self, decision: Decision, step: int, last: int) -> int:
        for action in decision.chunk[: last - step]:
            self._world.scene.env.step(action)
            step += 1
            if self._world.success:
                break
        return step
