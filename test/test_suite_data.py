"""Play of the suite on disk and as transitions: resumed, refused, relabelled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.learning.settings import checked
from qsteer_ros.learning.settings_critic import CriticSettings
from qsteer_ros.learning.sources import load_chunks, load_transitions
from qsteer_ros.learning.suite import load_suite, suite_transitions
from qsteer_ros.learning.suite_data import SuiteDataSettings, generate_suite


def small(out: Path, **changes: Any) -> SuiteDataSettings:
    made = SuiteDataSettings(
        out=str(out), suite="cube-single", transitions=16, held_out=8, episode_steps=8, workers=1
    )
    return replace(made, **changes)


def written(folder: Path, at: list[tuple[int, int]], steps: int = 14) -> None:
    """Two episodes of cube-double; cube i is at its goal of task 1 in the rows of ``at``."""
    rng = np.random.default_rng(0)
    (folder / "play").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"settings": {"suite": "cube-double"}}))
    goals = np.array([[0.425, 0.0, 0.02], [0.425, 0.1, 0.02]])
    for episode in range(2):
        qpos = np.zeros((steps, 28), np.float32)
        for cube in range(2):
            first = 14 + 7 * cube
            qpos[:, first : first + 3] = goals[cube] + [0.0, 0.0, 0.1]
            for row, which in at:
                if which == cube and episode == 0:
                    qpos[row, first : first + 3] = goals[cube] + [0.03, 0.0, 0.0]
        np.savez(
            folder / "play" / f"episode_{episode:05d}.npz",
            observation=rng.normal(size=(steps, 37)).astype(np.float32),
            action=rng.uniform(-1, 1, (steps, 5)).astype(np.float32),
            qpos=qpos,
            qvel=np.zeros((steps, 26), np.float32),
            buttons=np.zeros((steps, 0), np.int8),
        )


def test_an_episode_that_is_missing_is_made_again_as_it_was(tmp_path: Path) -> None:
    generate_suite(small(tmp_path))
    paths = sorted(tmp_path.glob("*/episode_*.npz"))
    assert [path.parent.name for path in paths] == ["held_out", "play", "play"]
    before = {path: dict(np.load(path)) for path in paths}
    paths[1].unlink()
    times = {path: path.stat().st_mtime_ns for path in paths if path.exists()}
    generate_suite(small(tmp_path, transitions=24))
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    for name, array in before[paths[1]].items():
        np.testing.assert_array_equal(array, np.load(paths[1])[name])
    assert len(load_suite(tmp_path).observation) == 24
    first, held_out = load_suite(tmp_path, limit=1), load_suite(tmp_path, split="held_out")
    assert not np.array_equal(first.observation, held_out.observation)


def test_play_made_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    settings = small(tmp_path, transitions=1, held_out=0, episode_steps=2)
    generate_suite(settings)
    with pytest.raises(ConfigError, match=r"'noise' was 0.1, now it is 0.2"):
        generate_suite(replace(settings, noise=0.2))
    with pytest.raises(ConfigError, match="'out' is empty"):
        generate_suite(replace(settings, out=""))


def test_a_window_earns_the_conditions_of_the_states_it_arrives_in(tmp_path: Path) -> None:
    # the first cube is at its goal in rows 2 to 6, the second in row 6: solved there alone
    written(tmp_path, [(row, 0) for row in range(2, 7)] + [(6, 1)])
    found = suite_transitions(tmp_path, task=1, horizon=3, discount=0.5)
    assert found.rewards is not None
    assert found.ended is not None
    assert found.bootstrap is not None
    np.testing.assert_array_equal(found.rewards[0], [-2, -1, -1])  # rows 1, 2, 3
    np.testing.assert_array_equal(found.rewards[3], [-1, -1, 0])  # rows 4, 5, 6
    np.testing.assert_array_equal(found.ended[3], [False, False, True])
    np.testing.assert_array_equal(found.rewards[5], [0, 0, 0])  # over at row 6
    np.testing.assert_array_equal(found.rewards[6], [0, 0, 0])  # over before it began
    np.testing.assert_array_equal(found.rewards[7], [-2, -2, -2])
    np.testing.assert_array_equal(found.bootstrap[[0, 3, 6, 7]], [0.125, 0.0, 0.0, 0.125])
    assert len(found) == 2 * (14 - 3)
    sparse = suite_transitions(tmp_path, task=1, horizon=3, discount=0.5, sparse=True)
    assert sparse.rewards is not None
    np.testing.assert_array_equal(sparse.rewards[[0, 3]], [[-1, -1, -1], [-1, -1, 0]])


def test_q_of_the_suites_own_rewards_is_the_states_reward_and_the_discounted_q_here(
    tmp_path: Path,
) -> None:
    # returns along the recorded rows, by hand: OGBench pays r(s_t) and ends at a solved state
    written(tmp_path, [(row, 0) for row in range(2, 7)] + [(6, 1)])
    reward, solved = load_suite(tmp_path).rewards(1)
    theirs, here = np.zeros(14), np.zeros(14)
    for row in range(6, -1, -1):
        if not solved[row]:
            theirs[row] = reward[row] + 0.9 * theirs[row + 1]
            here[row] = reward[row + 1] + 0.9 * here[row + 1]
    np.testing.assert_allclose(theirs[:6], reward[:6] + 0.9 * here[:6])
    found = suite_transitions(tmp_path, task=1, horizon=3, discount=0.9)
    assert found.mc_return is not None
    np.testing.assert_allclose(found.mc_return[:6], here[:6], rtol=1e-6)


def test_settings_of_a_training_find_the_suite(tmp_path: Path) -> None:
    written(tmp_path, [(6, 0), (6, 1)])
    words = {"data": str(tmp_path), "horizon": 4, "task": 1}
    found = load_transitions(checked(CriticSettings, words))
    space = found.interface
    assert (space.horizon, space.feature_dim, space.action_dim) == (4, 37, 5)
    assert space.feature_names[:2] == ("obs_0", "obs_1")
    assert space.action_scale == (0.05, 0.05, 0.05, 0.3, 1.0)
    assert space.control_dt_s == 0.05
    chunks = load_chunks(checked(CriticSettings, words))
    np.testing.assert_array_equal(chunks.chunk, found.chunk)
    assert chunks.reward is None
    assert chunks.data_hash == found.data_hash
    with pytest.raises(ConfigError, match="must be 1 to 5"):
        load_transitions(checked(CriticSettings, words | {"task": 9}))


def test_damaged_and_missing_play_is_named_with_the_remedy(tmp_path: Path) -> None:
    written(tmp_path, [])
    path = tmp_path / "play" / "episode_00001.npz"
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"qpos": arrays["qpos"][:5]}))
    with pytest.raises(DataError, match=r"'qpos' of .*episode_00001\.npz' must have shape"):
        load_suite(tmp_path)
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="is damaged"):
        load_suite(tmp_path)
    with pytest.raises(ConfigError, match="must hold episodes: none found"):
        load_suite(tmp_path, split="held_out")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match=r"dataset\.json' is damaged"):
        load_suite(tmp_path)
    with pytest.raises(ConfigError, match="qsteer bench data"):
        load_suite(tmp_path / "elsewhere")
