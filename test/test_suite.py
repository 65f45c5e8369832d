"""The public suite: relabelled rewards are the environment's, worlds do not disturb each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.sim import suite
from qsteer_ros.sim.suite import Goal, button_states, goal, make
from qsteer_ros.sim.suite_play import in_sight, play
from qsteer_ros.sim.suite_worlds import Worlds

from ogbench.relabel_utils import relabel_dataset  # isort: skip - suite chooses the GL library

STEPS = 12


@pytest.fixture(scope="module")
def scene() -> Any:
    return make("scene", task=4)


def at(env: Any, rng: np.random.Generator, wanted: Goal) -> None:
    """A state in which a random half of the conditions holds."""
    env.reset(seed=int(rng.integers(1000)))
    qpos = env.data.qpos.copy()
    if rng.random() < 0.5:
        qpos[14:17] = wanted.cubes[0] + [0.0, 0.0, 0.01]
    qpos[23] = wanted.drawer if rng.random() < 0.5 else -0.08
    qpos[24] = wanted.window if rng.random() < 0.5 else 0.1
    buttons = np.where(rng.random(2) < 0.5, wanted.buttons, 1 - wanted.buttons)
    env.set_state(qpos, env.data.qvel.copy(), buttons)


def test_a_relabelled_state_has_the_reward_and_the_end_that_the_environment_gives_it(
    scene: Any,
) -> None:
    rng = np.random.default_rng(0)
    wanted = goal("scene", 4)
    seen = set()
    for _ in range(25):
        at(scene, rng, wanted)
        scene.step(np.zeros(5))  # the state after it has been judged by the environment
        qpos, buttons = scene.data.qpos.copy(), button_states(scene)
        holds = wanted.satisfied(qpos[None].astype(np.float32), buttons[None])[0]
        _, reward, terminated, _, _ = scene.step(rng.uniform(-1, 1, 5))
        assert reward == holds.sum() - wanted.conditions
        assert terminated == holds.all()
        seen.add(reward)
    assert len(seen) >= 4  # states of several rewards were judged


def test_a_solved_state_ends_the_episode_and_pays_nothing(scene: Any) -> None:
    wanted = goal("scene", 4)
    scene.reset(seed=0)
    qpos = scene.data.qpos.copy()
    qpos[14:17], qpos[23], qpos[24] = wanted.cubes[0], wanted.drawer, wanted.window
    scene.set_state(qpos, scene.data.qvel.copy(), wanted.buttons)
    scene.step(np.zeros(5))
    assert wanted.satisfied(scene.data.qpos[None], button_states(scene)[None]).all()
    _, reward, terminated, _, _ = scene.step(np.zeros(5))
    assert (reward, terminated) == (0.0, True)


@pytest.mark.parametrize(
    ("name", "size", "buttons"), [("cube-double", 28, 0), ("scene", 25, 2), ("puzzle-3x3", 23, 9)]
)
def test_rewards_are_those_of_the_suites_own_relabelling(
    name: str, size: int, buttons: int
) -> None:
    rng = np.random.default_rng(1)
    env = make(name, task=1)
    for task in (1, 3):
        env._reward_task_id = task
        wanted = goal(name, task)
        qpos = rng.uniform(-0.2, 0.2, (200, size))
        for i, cube in enumerate(wanted.cubes):
            qpos[:, 14 + 7 * i : 17 + 7 * i] = cube + rng.normal(0.0, 0.02, (200, 3))
        states = rng.integers(0, 2, (200, buttons))
        data = {"qpos": qpos, "button_states": states}
        relabel_dataset(name, env, data)
        holds = wanted.satisfied(qpos, states)
        np.testing.assert_array_equal(data["rewards"], holds.sum(axis=1) - wanted.conditions)
        np.testing.assert_array_equal(data["masks"], 1.0 - holds.all(axis=1))


def test_states_of_another_environment_are_refused() -> None:
    with pytest.raises(DataError, match="another environment"):
        goal("cube-double", 1).satisfied(np.zeros((3, 21)), np.zeros((3, 0), dtype=np.int64))


@pytest.mark.parametrize("name", ["cube-nonesuch", "antmaze-large-navigate"])
def test_an_environment_that_does_not_exist_is_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(ConfigError, match="puzzle-4x4"):
        make(name)


def test_a_task_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be 1 to 5: got 6"):
        goal("cube-single", 6)


def test_worlds_that_share_a_model_move_as_each_would_alone(scene: Any) -> None:
    actions = np.random.default_rng(2).uniform(-1, 1, (2, STEPS, 5))
    worlds = Worlds("scene", 4, 2)
    first = [worlds.reset(i, seed=10 + i) for i in range(2)]
    worlds._worlds[1]._cur_button_states[:] = 1  # its drawer and window are free
    worlds._worlds[1]._apply_button_states()
    worlds._damping[1][:] = worlds._model.dof_damping
    together = [[worlds.step(i, actions[i, t])[0] for i in range(2)] for t in range(STEPS)]
    for i in range(2):
        seen, _ = scene.reset(seed=10 + i)
        np.testing.assert_array_equal(seen, first[i])
        if i == 1:
            scene._cur_button_states[:] = 1
            scene._apply_button_states()
        for t in range(STEPS):
            np.testing.assert_array_equal(scene.step(actions[i, t])[0], together[t][i])


def test_worlds_with_locked_and_with_free_drawers_keep_their_own() -> None:
    worlds = Worlds("scene", 4, 2)
    for i in range(2):
        worlds.reset(i, seed=i)
    worlds._worlds[1]._cur_button_states[:] = 1
    for _ in range(2):
        for i in range(2):
            worlds.step(i, np.zeros(5))
    joint = worlds._model.joint("drawer_slide").dofadr[0]
    assert [damping[joint] for damping in worlds._damping] == [1e6, 2.0]


def test_an_initial_state_is_decided_by_its_seed(scene: Any) -> None:
    first = scene.reset(seed=5)[0]
    scene.step(np.ones(5))
    again = scene.reset(seed=5)[0]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, scene.reset(seed=6)[0])
    drawn = [(scene.reset(seed=5), scene.action_space.sample())[1] for _ in range(2)]
    np.testing.assert_array_equal(*drawn)


def test_play_is_decided_by_its_seed_and_records_the_state_before_each_action() -> None:
    env = make("puzzle-3x3")
    episode = play(env, "puzzle-3x3", seed=7, steps=60)
    again = play(env, "puzzle-3x3", seed=7, steps=60)
    for name, array in vars(episode).items():
        np.testing.assert_array_equal(array, getattr(again, name))
    assert episode.observation.shape == (60, 55)
    assert episode.buttons.shape == (60, 9)
    assert episode.targets >= 1
    assert episode.reached == episode.targets
    # the observation of a row shows the buttons of the same row (two numbers per state, then
    # position and velocity), and the arm's joints of the same row
    shown = episode.observation[:, 19:].reshape(60, 9, 4)[:, :, 1]
    np.testing.assert_array_equal(shown, episode.buttons)
    np.testing.assert_array_equal(episode.observation[:, :6], episode.qpos[:, :6])
    assert len(np.unique(episode.buttons, axis=0)) > 1  # a button was pressed on the way


def test_a_cube_out_of_sight_spoils_play_of_the_scene_unless_it_is_in_the_drawer() -> None:
    qpos = np.zeros((3, 25))
    qpos[:, 16] = 0.02
    assert in_sight(qpos)
    qpos[1, 15] = 0.29
    assert not in_sight(qpos)
    qpos[1, 15:17] = -0.3, 0.07
    assert in_sight(qpos)
    qpos[1, 16] = 0.02
    assert not in_sight(qpos)


def test_an_environment_has_the_time_limit_and_the_tasks_of_the_suite() -> None:
    assert suite.spec("cube-single") == suite.SuiteSpec("cube-single", 200, 5)
    assert suite.spec("scene").max_steps == 750


def test_the_suite_lists_its_environments() -> None:
    assert {"cube-single", "scene", "puzzle-3x3"} <= set(suite.names())
    assert not [name for name in suite.names() if "singletask" in name or "visual" in name]
