"""The simulated world: tracking, resets, pictures, what it tells and what it keeps to itself."""

from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("ogbench") is None:
    pytest.skip("ogbench is not installed", allow_module_level=True)

from qsteer_ros.errors import ConfigError
from qsteer_ros.sim.goals import GOALS, SUCCESS_DISTANCE_M
from qsteer_ros.sim.world import CONTROL_DT_NS, JOINTS, PHYSICS_DT_NS, World
from qsteer_ros.types import JointPath, RobotState


@pytest.fixture(scope="module")
def world():
    world = World()
    yield world
    world.close()


def swing(world, *, seconds, speed_rad_per_s, seed):
    """A smooth path in free air that starts at rest where the arm is: one sine per joint."""
    random = np.random.default_rng(seed)
    start = world.joint_positions
    rate = 2 * np.pi * random.uniform(0.3, 0.8, 6)
    reach = random.uniform(0.5, 1.0, 6) * np.minimum(speed_rad_per_s / rate, 0.2)
    times = np.arange(1, round(seconds / 0.05) + 1) * 0.05
    ramp = np.clip(times / 0.5, 0, 1) ** 2 * (3 - 2 * np.clip(times / 0.5, 0, 1))
    positions = start + np.c_[ramp[:, None] * reach * np.sin(times[:, None] * rate), 0 * times]
    velocities = np.gradient(positions, 0.05, axis=0)
    velocities[-1] = 0.0
    return JointPath(times, positions, velocities)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_arm_tracks_a_smooth_path_within_six_milliradians_at_the_99th_percentile(world, seed):
    world.reset(goal=1, seed=seed)
    path = swing(world, seconds=4.0, speed_rad_per_s=1.5, seed=seed)
    assert world.accept(path, world.time_ns) is None
    errors = []
    for _ in range(1950):
        world.advance(PHYSICS_DT_NS)
        wanted, _ = world.follower.sample(world.time_ns)
        errors.append(np.abs(world.joint_positions - wanted)[:6])
    assert np.percentile(errors, 99) < 6e-3
    assert np.ptp(path.positions[:, :6], axis=0).min() > 0.05  # the arm did move


def test_a_held_arm_neither_sags_nor_drifts(world):
    world.reset(goal=1, seed=3)
    before = world.joint_positions
    world.advance(2_000_000_000)
    np.testing.assert_allclose(world.joint_positions[:6], before[:6], atol=1e-3)


def test_the_gripper_follows_its_joint_from_open_to_closed(world):
    world.reset(goal=1, seed=0)
    assert world.robot_state().gripper == pytest.approx(0.0, abs=0.01)
    closed = world.joint_positions
    closed[-1] = 0.8
    world.accept(
        JointPath(np.array([0.3]), closed[None], np.zeros((1, len(JOINTS)))), world.time_ns
    )
    world.advance(1_500_000_000)
    state = world.robot_state()
    assert state.gripper > 0.95  # the fingers meet
    assert state.gripper_effort > 0.0
    assert world.joint_efforts()[-1] / 50.0 == pytest.approx(state.gripper_effort, rel=1e-9)


@pytest.mark.parametrize("goal", sorted(GOALS))
def test_reset_draws_the_state_that_ogbench_draws(world, goal):
    world.reset(goal=goal, seed=17)
    ours = world.qpos
    world.scene.env.reset(seed=17, options={"task_id": GOALS[goal].task_id})
    np.testing.assert_array_equal(ours, world.scene.data.qpos)
    info = world.scene.env.task_infos[GOALS[goal].task_id - 1]
    assert info["task_name"] == GOALS[goal].name
    assert np.abs(ours[14:16] - info["init_xyzs"][0][:2]).max() <= 0.01
    np.testing.assert_array_equal(world.scene.data.mocap_pos[0], info["goal_xyzs"][0])


def test_the_same_goal_and_seed_give_the_same_episode_whatever_came_before(world):
    def episode():
        world.reset(goal=2, seed=5)
        path = swing(world, seconds=0.5, speed_rad_per_s=1.0, seed=9)
        assert world.accept(path, world.time_ns) is None
        world.advance(600_000_000)
        return world.qpos

    first = episode()
    world.reset(goal=1, seed=8)
    world.advance(246_000_000)
    np.testing.assert_array_equal(episode(), first)


def test_another_seed_is_another_start(world):
    world.reset(goal=1, seed=1)
    one = world.qpos
    world.reset(goal=1, seed=2)
    assert np.abs(world.qpos - one)[:6].max() > 0.1


def test_a_reset_drops_the_trajectory_and_leaves_the_clock_alone(world):
    world.reset(goal=1, seed=0)
    world.accept(swing(world, seconds=4.0, speed_rad_per_s=1.0, seed=0), world.time_ns)
    world.advance(100_000_000)
    time_ns = world.time_ns
    state = world.reset(goal=1, seed=0)
    assert world.time_ns == time_ns == state.stamp_ns
    np.testing.assert_array_equal(state.velocity, 0.0)
    world.advance(500_000_000)
    np.testing.assert_allclose(world.robot_state().position, state.position, atol=1e-3)


def test_reward_and_success_tell_whether_the_cube_is_within_four_centimetres(world):
    world.reset(goal=1, seed=0)
    assert (world.reward, world.success) == (-1.0, False)
    for distance_m, success in (
        (SUCCESS_DISTANCE_M - 1e-6, True),
        (SUCCESS_DISTANCE_M + 1e-6, False),
    ):
        world.scene.data.qpos[14:17] = world.scene.data.mocap_pos[0] + [0.0, distance_m, 0.0]
        assert world.success is success
        assert world.reward == (0.0 if success else -1.0)
    assert world.privileged_cube_pose()[1] == pytest.approx(SUCCESS_DISTANCE_M + 1e-6)


def test_what_the_arm_says_about_itself_contains_no_object(world):
    assert set(RobotState.__dataclass_fields__) == {
        "stamp_ns",
        "position",
        "velocity",
        "gripper",
        "gripper_effort",
    }
    world.reset(goal=1, seed=0)
    before = world.robot_state()
    world.scene.data.qpos[14:17] = [0.45, 0.2, 0.02]  # the cube is somewhere else, untouched
    after = world.robot_state()
    for name in ("position", "velocity", "gripper", "gripper_effort"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_the_goal_marker_is_invisible_and_the_cube_is_not(world):
    world.reset(goal=1, seed=0)
    before = world.images()
    world.scene.data.mocap_pos[0] = [0.42, 0.15, 0.1]
    for camera, image in world.images().items():
        np.testing.assert_array_equal(image, before[camera], err_msg=camera)
    world.scene.data.qpos[14:17] = world.scene.data.mocap_pos[0]
    assert np.abs(world.images()["front"].astype(int) - before["front"]).max() > 50


def test_the_cube_does_not_change_its_colour_at_the_goal(world):
    world.reset(goal=1, seed=0)
    world.scene.data.qpos[14:17] = world.scene.data.mocap_pos[0]
    assert world.success
    at_goal = world.images()["front"]
    world.scene.data.mocap_pos[0] = [0.3, 0.3, 0.02]
    world.advance(PHYSICS_DT_NS)
    assert not world.success
    assert np.abs(world.images()["front"].astype(int) - at_goal).max() < 30


def test_pictures_have_the_documented_shapes_and_do_not_disturb_the_physics(world):
    world.reset(goal=1, seed=4)
    world.advance(CONTROL_DT_NS)
    undisturbed = world.qpos
    world.reset(goal=1, seed=4)
    images = world.images()
    assert {name: image.shape for name, image in images.items()} == {
        "front": (96, 144, 3),
        "wrist": (96, 96, 3),
    }
    assert all(image.dtype == np.uint8 and np.ptp(image) > 100 for image in images.values())
    world.advance(CONTROL_DT_NS)
    np.testing.assert_array_equal(world.qpos, undisturbed)


def test_time_is_the_exact_sum_of_the_durations(world):
    start_ns = world.time_ns
    for _ in range(5):
        world.advance(10_000_000)
    assert world.time_ns == start_ns + 50_000_000
    with pytest.raises(ConfigError, match="multiple of 2000000 ns: got 3000000"):
        world.advance(3_000_000)


def test_goals_and_seeds_that_do_not_exist_are_refused(world):
    with pytest.raises(ConfigError, match=r"goal must be one of \[1, 2, 3\]: got 4"):
        world.reset(goal=4, seed=0)
    with pytest.raises(ConfigError, match="seed must be 0 or more: got -1"):
        world.reset(goal=1, seed=-1)
