"""Episodes that the simulated arm plays for a training run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from parts import INTERFACE

from qsteer_ros import resources
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.learning.settings_online import OnlineSettings

pytest.importorskip("ogbench")

from qsteer_ros.evaluation.collecting import (
    Played,
    Simulated,
    windows_of,
)

DISCOUNT, STEPS = 0.9, 7


def played(*, solved: bool) -> Played:
    """Row numbers as features; the k-th action is all k."""
    features = np.repeat(np.arange(STEPS + 1, dtype=np.float32)[:, None], 4, axis=1)
    action = np.repeat(np.arange(STEPS, dtype=np.float32)[:, None] / 10, 2, axis=1)
    return Played(features, action, solved)


def test_every_step_of_a_solved_episode_starts_a_window_and_the_last_ones_end_with_it() -> None:
    found = windows_of(played(solved=True), interface=INTERFACE, discount=DISCOUNT, name="e")
    assert found.features[:, 0].tolist() == list(range(STEPS + 1))
    steps_left = STEPS - np.arange(STEPS + 1)
    earned = [-sum(DISCOUNT**i for i in range(min(3, left - 1))) if left else 0.0
              for left in steps_left]  # fmt: skip
    # Arriving at the goal earns 0, so the step that solves the task costs nothing.
    np.testing.assert_allclose(found.reward, earned, rtol=1e-5)
    np.testing.assert_allclose(found.bootstrap, np.where(steps_left > 3, DISCOUNT**3, 0.0))
    assert found.success.all()
    assert not found.truncated.any()
    np.testing.assert_allclose(found.chunk[STEPS - 2, :, 0], [0.5, 0.6, 0.0])
    to_go = [-sum(DISCOUNT**i for i in range(left - 1)) if left else 0.0 for left in steps_left]
    np.testing.assert_allclose(found.mc_return, to_go, rtol=1e-5)


def test_an_episode_that_ran_out_of_time_bootstraps_at_its_end() -> None:
    found = windows_of(played(solved=False), interface=INTERFACE, discount=DISCOUNT, name="e")
    assert found.features[:, 0].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found.next_features[:, 0], [3, 4, 5, 6])
    np.testing.assert_allclose(found.reward, -(1 + DISCOUNT + DISCOUNT**2), rtol=1e-6)
    np.testing.assert_allclose(found.bootstrap, DISCOUNT**3)
    assert found.truncated.tolist() == [False, False, False, True]
    assert found.next_valid.tolist() == [True, True, False, False]
    np.testing.assert_allclose(found.next_chunk[1, :, 0], [0.4, 0.5, 0.6], rtol=1e-6)
    assert not found.success.any()


def test_an_episode_shorter_than_a_window_is_refused() -> None:
    short = Played(np.zeros((3, 4), np.float32), np.zeros((2, 2), np.float32), False)
    with pytest.raises(DataError):
        windows_of(short, interface=INTERFACE, discount=DISCOUNT, name="e")


def settings_in(folder: Path, **options) -> OnlineSettings:
    base = {"out": str(folder / "critic"), "policy": "checkpoints/policy", "max_steps": 8}
    return OnlineSettings(**{**base, "goal": 1, "steering_weight": 0.05, **options})


def test_the_newest_critic_plays_and_every_episode_starts_elsewhere(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, execute_steps=3)
    shipped = Critic.load(resources.find("checkpoints/critic_goal1"))
    shipped.save(settings.out)
    simulated = Simulated(settings, backend="eager")
    first = simulated.next([])
    assert first.steps == 8
    assert first.transitions.chunk.shape[1:] == (5, 5)
    assert np.abs(first.transitions.chunk).max() <= 1.0
    again = Simulated(settings, backend="eager").next([])
    assert again.key == first.key
    np.testing.assert_array_equal(again.transitions.chunk, first.transitions.chunk)
    second = simulated.next([first.key])
    assert second.key != first.key
    assert not np.array_equal(second.transitions.features[0], first.transitions.features[0])
    Critic.load(resources.find("checkpoints/critic_goal3")).save(settings.out)
    other = simulated.next([])
    np.testing.assert_array_equal(other.transitions.features[0], first.transitions.features[0])
    assert not np.array_equal(other.transitions.chunk, first.transitions.chunk)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": ""}, "'policy' must name the policy that plays with simulate=true"),
        ({"execute_steps": 6}, "'execute_steps' must be at most the policy's horizon of 5: got 6"),
    ],
)
def test_what_cannot_play_is_refused(tmp_path: Path, options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Simulated(settings_in(tmp_path, **options))
