"""The simulated tabletop: one UR5e, one gripper, one cube, two cameras.

The model is OGBench's ``CubeEnv`` (variant *single*) with two cameras added to it and everything
removed from the picture that would tell a policy more than a real camera could: the goal marker is
invisible and the cube keeps its colour when it reaches the goal.

Rendering is set up for a machine without a GPU: EGL with Mesa's software rasteriser, no shadows,
no reflections, no multi-sampling, one thread. The environment variables that choose this
(``MUJOCO_GL=egl``, ``LP_NUM_THREADS=0``: rasterise in the calling thread) are set here unless the
user has set them, and must be set before MuJoCo is imported; import this module first.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsteer_ros.errors import ConfigError
from qsteer_ros.types import Array, Image

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "0")

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glfw warns that there is no display; none is needed
        import mujoco
        from gymnasium.spaces import Box
        from ogbench.manipspace import lie
        from ogbench.manipspace.envs.cube_env import CubeEnv
except ModuleNotFoundError as error:
    raise ConfigError(
        f"the simulator needs the packages mujoco and ogbench: {error}. "
        "Install them with: pip install 'ogbench==1.2.2' 'mujoco==4.0.0'"
    ) from error
except (ImportError, AttributeError, OSError) as error:
    raise ConfigError(
        f"MuJoCo must be able to load the GL library of MUJOCO_GL={os.environ['MUJOCO_GL']}: "
        f"{error}. Install libegl1 and libgl1-mesa-dri, or set MUJOCO_GL=osmesa with libosmesa6."
    ) from error

CONTROL_DT_S = 0.05
PHYSICS_DT_S = 0.002
GRIPPER_CLOSED_RAD = 0.8
GRIPPER_FULL_SCALE_N = 50.0


@dataclass(frozen=True)
class Camera:
    """A camera of the scene.

    Attributes:
        body: Name of the body it is fixed to; ``None`` is the world.
        position_m: Optical centre in the frame of the body, (3,).
        target_m: Point it looks at, in the same frame, (3,).
        up: Direction that is up in the picture, in the same frame, (3,).
        fov_deg: Vertical field of view.
        width: Pixels.
        height: Pixels.
    """

    body: str | None
    position_m: tuple[float, float, float]
    target_m: tuple[float, float, float]
    up: tuple[float, float, float]
    fov_deg: float
    width: int
    height: int

    def axes(self) -> tuple[float, ...]:
        """The picture's x (right) and y (up) axes in the frame of the body, six numbers."""
        forward = np.subtract(self.target_m, self.position_m)
        right = np.cross(forward, self.up)
        up = np.cross(right, forward)
        return (*(right / np.linalg.norm(right)), *(up / np.linalg.norm(up)))


CAMERAS = {
    "front": Camera(None, (0.95, 0.0, 0.60), (0.42, 0.0, 0.06), (0.0, 0.0, 1.0), 45.0, 144, 96),
    "wrist": Camera(
        "ur5e/robotiq/base",
        (0.075, 0.0, 0.01),
        (0.0, 0.0, 0.16),
        (1.0, 0.0, 0.0),
        70.0,
        96,
        96,
    ),
}


class _CubeEnvWithCameras(CubeEnv):  # type: ignore[misc]
    """OGBench's environment with :data:`CAMERAS` added before the model is compiled."""

    _actions = Box(-np.ones(5, np.float32), np.ones(5, np.float32))

    @property
    def action_space(self) -> Box:
        """OGBench's box, made once; it makes one per call, with a warning each time."""
        return self._actions

    def add_objects(self, arena_mjcf: Any) -> None:
        super().add_objects(arena_mjcf)
        for name, camera in CAMERAS.items():
            body = arena_mjcf.worldbody
            if camera.body is not None:
                body = arena_mjcf.find("body", camera.body)
            body.add(
                "camera",
                name=f"policy_{name}",  # OGBench has a camera 'front' of its own
                pos=camera.position_m,
                xyaxes=camera.axes(),
                fovy=camera.fov_deg,
            )
        arena_mjcf.visual.map.znear = 0.015  # the default near plane cuts the fingers away
        arena_mjcf.visual.quality.offsamples = 0


def goal_position(task_id: int) -> Array:
    """Where OGBench's task wants the cube, (3,), m. Builds no model.

    Args:
        task_id: OGBench's number, counted from 1.
    """
    env = CubeEnv("single", mode="task")
    return np.array(env.task_infos[task_id - 1]["goal_xyzs"][0], dtype=np.float64)


class Scene:
    """The compiled model, its physics state, and pictures of it.

    Pictures are drawn from a copy of the state, so that rendering never disturbs the physics. All
    pictures of one scene must be taken in one thread: a GL context belongs to the thread that
    made it.

    Args:
        mode: ``"task"`` resets to OGBench's tasks, ``"data_collection"`` to random scenes.
        seed: Seeds the first reset.

    Attributes:
        env: OGBench's environment; its ``reset(seed=..., options={"task_id": ...})`` and ``step``
            may be used as they are.
        arm_qpos: Indices of the six arm joints in ``qpos`` (and, for this model, in ``qvel``).
        gripper_qpos: Index of the gripper's driver joint in ``qpos``; 0 rad open, 0.8 rad closed.
        cube_qpos: Slice of the cube's position and quaternion (w, x, y, z) in ``qpos``.
    """

    def __init__(self, *, mode: str = "task", seed: int = 0) -> None:
        self.env = _CubeEnvWithCameras(
            "single",
            mode=mode,
            visualize_info=False,
            terminate_at_goal=False,
            success_timing="post",
            width=max(c.width for c in CAMERAS.values()),
            height=max(c.height for c in CAMERAS.values()),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium: float32 action space
            self.env.reset(seed=seed, options={"task_id": 2} if mode == "task" else None)
        model = self.model
        self.arm_qpos = np.array(
            [model.jnt_qposadr[j] for j in self.env._arm_joint_ids], dtype=np.int64
        )
        self.arm_actuators = np.asarray(self.env._arm_actuator_ids, dtype=np.int64)
        self.gripper_qpos = int(model.jnt_qposadr[self.env._gripper_opening_joint_id])
        self.gripper_actuator = int(self.env._gripper_actuator_ids[0])
        cube = int(model.jnt_qposadr[model.joint("object_joint_0").id])
        self.cube_qpos = slice(cube, cube + 7)
        self._pinch_site = model.site("ur5e/robotiq/pinch").id
        self._picture = mujoco.MjData(model)
        self._renderers: dict[str, Any] = {}
        self._camera_ids = {
            name: model.camera(
                f"policy_{name}" if c.body is None else f"ur5e/robotiq/policy_{name}"
            ).id
            for name, c in CAMERAS.items()
        }
        self._nominal = {
            name: (model.cam_pos[i].copy(), model.cam_quat[i].copy())
            for name, i in self._camera_ids.items()
        }

    @property
    def model(self) -> Any:
        """The compiled ``MjModel``."""
        return self.env.model

    @property
    def data(self) -> Any:
        """The physics state, ``MjData``."""
        return self.env.data

    def set_state(self, qpos: Array, qvel: Array | None = None) -> None:
        """Put the physics into a state and update everything that follows from it.

        Args:
            qpos: (nq,).
            qvel: (nv,); zeros when left out.
        """
        self.data.qpos[:] = qpos
        self.data.qvel[:] = 0.0 if qvel is None else qvel
        mujoco.mj_forward(self.model, self.data)

    def pinch(self, qpos: Array) -> tuple[Array, float]:
        """Position (3,) in m and yaw in rad of the pinch point at ``qpos``; physics untouched.

        The yaw is that of OGBench's observation.
        """
        self._picture.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self._picture)
        rotation = self._picture.site_xmat[self._pinch_site].reshape(3, 3)
        yaw = float(lie.SO3.from_matrix(rotation.copy()).compute_yaw_radians())
        return self._picture.site_xpos[self._pinch_site].copy(), yaw

    def move_camera(
        self, camera: str, *, offset_m: Array | None = None, turn_rad: Array | None = None
    ) -> None:
        """Put a camera off its nominal pose, like a badly calibrated one, until called again.

        Args:
            camera: Name of the camera.
            offset_m: Displacement in the frame of its body, (3,); zero when left out.
            turn_rad: Rotation vector in the camera's own frame (x right, y up), (3,).

        Raises:
            ConfigError: There is no such camera.
        """
        index = self._index(camera)
        position, quat_wxyz = self._nominal[camera]
        turned = np.empty(4)
        angle = np.zeros(3) if turn_rad is None else np.asarray(turn_rad, dtype=np.float64)
        norm = float(np.linalg.norm(angle))
        rotation = np.array([1.0, 0.0, 0.0, 0.0])
        if norm > 0.0:
            mujoco.mju_axisAngle2Quat(rotation, angle / norm, norm)
        mujoco.mju_mulQuat(turned, quat_wxyz, rotation)
        self.model.cam_quat[index] = turned
        self.model.cam_pos[index] = position + (0.0 if offset_m is None else offset_m)

    def render(self, camera: str, qpos: Array | None = None) -> Image:
        """Take a picture.

        Args:
            camera: A key of :data:`CAMERAS`.
            qpos: State to show, (nq,); the physics state when left out, which never changes.

        Returns:
            (height, width, 3) uint8 RGB, a fresh array.

        Raises:
            ConfigError: There is no such camera, or this machine cannot render.
        """
        index = self._index(camera)
        picture = self._picture
        picture.qpos[:] = self.data.qpos if qpos is None else qpos
        picture.mocap_pos[:] = self.data.mocap_pos
        picture.mocap_quat[:] = self.data.mocap_quat
        mujoco.mj_kinematics(self.model, picture)
        mujoco.mj_comPos(self.model, picture)
        mujoco.mj_camlight(self.model, picture)
        renderer = self._renderer(camera)
        renderer.update_scene(picture, camera=index)
        return np.asarray(renderer.render()).copy()

    def close(self) -> None:
        """Free the GL contexts. The scene can render again afterwards."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _index(self, camera: str) -> int:
        if camera not in self._camera_ids:
            raise ConfigError(
                f"the scene has no camera '{camera}': it has {sorted(CAMERAS)}. "
                "Fix 'cameras' in the robot file."
            )
        return int(self._camera_ids[camera])

    def _renderer(self, camera: str) -> Any:
        if camera not in self._renderers:
            shape = CAMERAS[camera]
            try:
                renderer = mujoco.Renderer(self.model, height=shape.height, width=shape.width)
            except mujoco.FatalError as error:
                raise ConfigError(
                    f"MuJoCo must be able to render with MUJOCO_GL={os.environ['MUJOCO_GL']}: "
                    f"{error}. Install libegl1 and libgl1-mesa-dri, and import "
                    "qsteer_ros.sim.scene before mujoco."
                ) from error
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            self._renderers[camera] = renderer
        return self._renderers[camera]
