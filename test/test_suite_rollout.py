"""Episodes of the suite: who decides when, what ends an episode, and that rows are independent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from parts import INTERFACE, make_critic, make_noise_policy, make_policy, make_posterior_map
from torch import Tensor

from qsteer_ros.errors import ConfigError
from qsteer_ros.evaluation.suite_actors import noise_actor, noise_of, steered_actor
from qsteer_ros.evaluation.suite_rollout import (
    Outcome,
    decision_seed,
    play_episodes,
    state_seeds,
)
from qsteer_ros.steering.settings import SteeringSettings

FEATURES = torch.tensor([[0.3, -0.2, 0.1, 0.6], [0.1, 0.4, -1.0, 0.5], [-0.5, 1.2, -0.3, 0.4]])
SEEDS = (11, 12, 13)


class Counters:
    """Worlds that count: solved as soon as the sum of the first action numbers is the seed."""

    def __init__(self, count: int) -> None:
        self.sums = [0.0] * count
        self.seeds = [0] * count
        self.steps = [0] * count

    def __len__(self) -> int:
        return len(self.sums)

    def reset(self, world: int, *, seed: int) -> NDArray[np.float64]:
        self.sums[world], self.seeds[world], self.steps[world] = 0.0, seed, 0
        return np.array([0.0, seed])

    def step(
        self, world: int, action: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], float, bool]:
        solved = self.sums[world] >= self.seeds[world]
        self.sums[world] += float(action[0])
        self.steps[world] += 1
        return np.array([self.sums[world], self.seeds[world]]), 0.0, solved


def ones(features: Tensor, seeds: Sequence[int]) -> Tensor:
    return torch.ones(len(features), 5, 1)


def test_an_episode_is_solved_at_the_step_before_which_the_goal_was_reached() -> None:
    outcomes = play_episodes(ones, Counters(3), [3, 7, 12], max_steps=12, execute=5)
    # the goal of 3 is reached after 3 steps and judged at the fourth; that of 12 never is
    assert outcomes == [Outcome(True, 4), Outcome(True, 8), Outcome(False, 12)]


def test_chunks_are_carried_out_open_loop_and_nobody_decides_for_an_episode_that_ended() -> None:
    asked: list[tuple[list[float], list[int]]] = []

    def actor(features: Tensor, seeds: Sequence[int]) -> Tensor:
        asked.append((features[:, 0].tolist(), list(seeds)))
        return ones(features, seeds)

    worlds = Counters(2)
    play_episodes(actor, worlds, [2, 100], max_steps=8, execute=3)
    assert [sums for sums, _ in asked] == [[0.0, 0.0], [3.0], [6.0]]
    assert asked[1][1] == [decision_seed(100, 1)]
    assert worlds.steps == [3, 8]  # the last chunk is cut at the limit


def test_what_is_random_in_an_episode_does_not_depend_on_the_others() -> None:
    def seeds_of(episodes: list[int]) -> list[int]:
        seen: list[int] = []

        def actor(features: Tensor, seeds: Sequence[int]) -> Tensor:
            row = features[:, 1].tolist().index(50.0)
            seen.append(seeds[row])
            return ones(features, seeds)

        play_episodes(actor, Counters(3), episodes, max_steps=15, execute=5)
        return seen

    assert seeds_of([3, 50, 8]) == seeds_of([50])
    assert len(set(seeds_of([50]))) == 3


def test_too_few_worlds_and_chunks_that_are_too_short_are_refused() -> None:
    with pytest.raises(ConfigError, match="there are 1"):
        play_episodes(ones, Counters(1), [1, 2], max_steps=5, execute=5)
    with pytest.raises(ConfigError, match="Lower execute"):
        play_episodes(ones, Counters(1), [9], max_steps=9, execute=6)


def test_initial_states_are_the_same_for_every_method_and_others_for_choosing() -> None:
    assert state_seeds(0, 5) == state_seeds(0, 5) == state_seeds(0, 9)[:5]
    blocks = [set(state_seeds(seed, 50, block=b)) for seed in (0, 1) for b in (0, 1)]
    assert len(set().union(*blocks)) == 200


def test_the_first_of_several_candidates_starts_from_the_noise_of_one() -> None:
    many, one = noise_of(SEEDS, (3, 2), each=4), noise_of(SEEDS, (3, 2))
    assert torch.equal(many.view(3, 4, 3, 2)[:, 0], one)
    assert len(torch.unique(many)) == many.numel()


@pytest.mark.parametrize(
    "settings",
    [
        SteeringSettings(),
        SteeringSettings("best_of_n", num_samples=5),
        SteeringSettings("gradient_step", weight=0.2),
        SteeringSettings("qgf", weight=0.3),
        SteeringSettings("qpilots_u", weight=0.3),
        SteeringSettings("noisy_gradient", weight=0.3),
        SteeringSettings("qpilots_m", weight=0.3, tilt_mean=0.0, tilt_std=1.0),
    ],
    ids=lambda settings: settings.mode,
)
def test_a_batch_decides_as_each_row_would_alone(settings: SteeringSettings) -> None:
    policy = make_policy()
    mapped = settings.mode == "qpilots_m"
    for posterior in (None, make_posterior_map(policy)) if mapped else (None,):
        actor = steered_actor(policy, make_critic(), settings, posterior=posterior)
        with torch.no_grad():
            together = actor(FEATURES, SEEDS)
            alone = [actor(FEATURES[i : i + 1], SEEDS[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), atol=2e-6, rtol=0.0)
    assert together.shape == (3, INTERFACE.horizon, 2)
    assert float(together.abs().max()) <= 1.0


@torch.no_grad()
def test_best_of_n_keeps_the_most_valued_of_the_policys_chunks() -> None:
    policy, critic = make_policy(), make_critic()
    best = steered_actor(policy, critic, SteeringSettings("best_of_n", num_samples=6))
    chosen = critic.condition(FEATURES)(best(FEATURES, SEEDS)).amin(dim=0)
    noise = noise_of(SEEDS, (3, 2), each=6)
    chunk = noise
    for step in range(10):
        time = torch.full((18,), step / 10)
        chunk = chunk + 0.1 * policy.condition(FEATURES)(chunk, time)
    values = critic.condition(FEATURES)(chunk.clamp(-1, 1)).amin(dim=0).view(3, 6)
    torch.testing.assert_close(chosen, values.amax(dim=1))
    assert bool((values.amax(dim=1) > values[:, 0]).any())


@torch.no_grad()
def test_a_gradient_step_never_lowers_the_value_it_climbs() -> None:
    policy, critic = make_policy(), make_critic()
    q = critic.condition(FEATURES)
    plain = steered_actor(policy, None, SteeringSettings())(FEATURES, SEEDS)
    climbed = steered_actor(policy, critic, SteeringSettings("gradient_step", weight=0.05))
    gain = q(climbed(FEATURES, SEEDS)).amin(dim=0) - q(plain).amin(dim=0)
    assert bool((gain > 0.0).all())
    leapt = steered_actor(policy, critic, SteeringSettings("gradient_step", weight=3.0))
    gain = q(leapt(FEATURES, SEEDS)).amin(dim=0) - q(plain).amin(dim=0)
    assert bool((gain >= 0.0).all())


@torch.no_grad()
def test_a_noise_policy_changes_only_where_the_frozen_policy_starts() -> None:
    policy = make_policy()
    chooser = make_noise_policy(policy)
    chunk = chooser.condition(FEATURES).at(noise_of(SEEDS, (3, 2)))
    for step in range(10):
        chunk = chunk + 0.1 * policy.condition(FEATURES)(chunk, torch.full((3,), step / 10))
    decided = noise_actor(policy, chooser)(FEATURES, SEEDS)
    torch.testing.assert_close(decided, chunk.clamp(-1, 1))


@torch.no_grad()
def test_a_trained_map_takes_the_place_of_sampling_with_the_policy() -> None:
    policy, critic = make_policy(), make_critic()
    settings = SteeringSettings("qpilots_m", weight=0.5, tilt_mean=0.0, tilt_std=1.0)
    own = steered_actor(policy, critic, settings)(FEATURES, SEEDS)
    mapped = steered_actor(policy, critic, settings, posterior=make_posterior_map(policy))
    assert not torch.allclose(own, mapped(FEATURES, SEEDS))


def test_parts_of_another_policy_are_refused() -> None:
    policy, stranger = make_policy(), make_policy(9)
    with pytest.raises(ConfigError, match="trained for"):
        noise_actor(policy, make_noise_policy(stranger))
    with pytest.raises(ConfigError, match="distilled from"):
        steered_actor(
            policy, make_critic(), SteeringSettings(), posterior=make_posterior_map(stranger)
        )
    with pytest.raises(ConfigError, match="needs a critic"):
        steered_actor(policy, None, SteeringSettings("qgf", weight=1.0))
