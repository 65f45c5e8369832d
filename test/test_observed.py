"""Observations for a calibration: where features come from and which are refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from logged_features import feature_rows, log
from parts import INTERFACE

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.evaluation.observed import from_episodes, from_play


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Episodes of 3, 20 and 20 decisions; the second feature says which."""
    for number, count in enumerate((3, 20, 20)):
        rows = feature_rows(count, seed=number)
        rows[:, 1] = number
        log(tmp_path, f"e{number}", rows, goal=1 + number % 2)
    return tmp_path


def test_features_come_out_as_they_were_logged(store: Path) -> None:
    found = from_episodes(store / "e1", INTERFACE, count=100, seed=0)
    expected = feature_rows(20, seed=1)
    expected[:, 1] = 1
    np.testing.assert_array_equal(found.features.numpy(), expected)
    assert (found.source.episodes, found.source.count) == (1, 20)
    assert found.source.source == str(store / "e1")


def test_observations_are_spread_evenly_as_far_as_episodes_last(store: Path) -> None:
    found = from_episodes(store, INTERFACE, count=15, seed=0)
    assert Counter(found.features[:, 1].int().tolist()) == {0: 3, 1: 6, 2: 6}
    assert len({tuple(row) for row in found.features.tolist()}) == 15


def test_the_seed_decides_the_choice_and_the_hash_tells(store: Path) -> None:
    first, again, other = (
        from_episodes(store, INTERFACE, count=9, seed=seed).source.hash for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_goal_leaves_other_episodes_out(store: Path) -> None:
    found = from_episodes(store, INTERFACE, count=100, seed=0, goal=2)
    assert set(found.features[:, 1].tolist()) == {1.0}
    with pytest.raises(DataError, match="of goal 3 whose decisions hold finite features: none"):
        from_episodes(store, INTERFACE, count=100, seed=0, goal=3)


def test_an_episode_that_cannot_be_used_is_named_and_the_others_serve(store: Path) -> None:
    log(store, "e3", [None, None])
    (store / "e1" / "episode.json").write_text("{")
    found = from_episodes(store, INTERFACE, count=100, seed=0)
    assert [name for name, _ in found.skipped] == ["e1", "e3"]
    assert "its 2 decisions hold no features" in found.skipped[1][1]
    assert found.source.episodes == 2


def test_a_store_without_features_is_refused_with_the_reason(tmp_path: Path) -> None:
    log(tmp_path, "e0", [None])
    with pytest.raises(DataError, match=r"none does \(e0: its 1 decisions hold no features\)"):
        from_episodes(tmp_path, INTERFACE, count=10, seed=0)
    with pytest.raises(ConfigError, match="must be a folder"):
        from_episodes(tmp_path / "nothing", INTERFACE, count=10, seed=0)


def test_features_of_another_encoder_or_length_are_refused(store: Path) -> None:
    with pytest.raises(ConfigError, match=r"must come from the encoder .* ffffffffffff"):
        from_episodes(store, replace(INTERFACE, encoder_hash="f" * 64), count=10, seed=0)
    longer = replace(INTERFACE, feature_names=(*INTERFACE.feature_names, "more"))
    with pytest.raises(ConfigError, match=r"must be those of the policy, \(5,\)"):
        from_episodes(store, longer, count=10, seed=0)
    from_episodes(store, replace(INTERFACE, encoder_hash=None), count=10, seed=0)


def test_rows_that_are_not_finite_are_left_out_and_counted(store: Path) -> None:
    rows = feature_rows(20, seed=1)
    rows[3, 2], rows[7, 0] = np.nan, np.inf
    log(store, "e3", rows)
    log(store, "e4", np.full((2, 4), np.nan, np.float32))
    found = from_episodes(store, INTERFACE, count=1000, seed=0)
    assert found.source.count == 3 + 20 + 20 + 18
    assert found.source.episodes == 4
    assert np.isfinite(found.features.numpy()).all()
    assert found.skipped == (
        ("e3", "2 of its 20 rows are not finite"),
        ("e4", "2 of its 2 rows are not finite"),
    )


def test_a_store_of_nothing_finite_is_refused_with_the_reason(tmp_path: Path) -> None:
    log(tmp_path, "e0", np.full((2, 4), np.nan, np.float32))
    with pytest.raises(DataError, match=r"none does \(e0: 2 of its 2 rows are not finite\)"):
        from_episodes(tmp_path, INTERFACE, count=10, seed=0)


def test_a_single_observation_is_too_few(store: Path) -> None:
    with pytest.raises(ConfigError, match="'observations' must be at least 2: got 1"):
        from_episodes(store, INTERFACE, count=1, seed=0)
    log(store, "e9", feature_rows(1))
    with pytest.raises(DataError, match="must hold at least 2 observations: it holds 1"):
        from_episodes(store / "e9", INTERFACE, count=10, seed=0)


def test_play_gives_its_true_features_spread_over_its_episodes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "play").mkdir()
    for number, count in enumerate((4, 30)):
        qpos = rng.normal(size=(count, 21)).astype(np.float32)
        qpos[:, 14] = number  # x of the cube
        arrays = {
            "qpos": qpos,
            "qvel": rng.normal(size=(count, 20)),
            "ctrl": rng.normal(size=(count, 7)),
            "action": rng.normal(size=(count, 5)),
            "tool_xyz": rng.normal(size=(count, 3)),
            "tool_yaw": rng.normal(size=count),
            "effort": rng.uniform(size=count),
        }
        plain = {name: array.astype(np.float32) for name, array in arrays.items()}
        np.savez(tmp_path / "play" / f"episode_0000{number}.npz", **plain)
    names = tuple(f"f{i}" for i in range(27))
    interface = replace(INTERFACE, feature_names=names)
    found = from_play(tmp_path, interface, count=10, seed=0)
    assert found.features.shape == (10, 27)
    assert found.source.episodes == 2
    cube_x = found.features[:, 19].tolist()
    assert sorted(cube_x) == sorted([min(cube_x)] * 4 + [max(cube_x)] * 6)
    with pytest.raises(ConfigError, match="must have the 4 features of the policy: it has 27"):
        from_play(tmp_path, INTERFACE, count=10, seed=0)
