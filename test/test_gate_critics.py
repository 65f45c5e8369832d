"""A good critic passes every check; each fault fails its own and, where it can, no other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gate_world import (
    ACTIONS,
    HORIZON,
    SETTINGS,
    apart,
    best,
    critic_of,
    good,
    windows,
    worth,
)
from parts import make_policy, other
from torch import Tensor

from qsteer_ros.critics.gate import FAIL, PASS, UNKNOWN, Check
from qsteer_ros.errors import ConfigError
from qsteer_ros.evaluation.gate import examine

ALL = {
    "interface", "held_out", "gradient", "inputs", "direction", "outcome", "random", "shuffled",
    "calibration", "unit", "flatness", "spread",
}  # fmt: skip
ROBOT = other()


class Doubled(torch.autograd.Function):
    """The same number with twice the derivative in the first component."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return a.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.cat([2.0 * grad[:, :1], grad[:, 1:]], dim=1)


def without_gripper(s: Tensor) -> Tensor:
    return torch.cat([s[:, :3], torch.zeros_like(s[:, 3:])], dim=1)


def one_line(s: Tensor, a: Tensor) -> Tensor:
    """Only one combination of the numbers of a chunk matters; how much of it depends on s."""
    along = (a - best(s)) @ torch.tensor([1.0, -0.8, 0.9, 1.1, -1.0, 0.7]).to(s)
    return torch.stack([worth(s) - 4.0 * along.square(), worth(s) - 6.0 * along.square()])


def flat_below(s: Tensor, a: Tensor) -> Tensor:
    """Where states are worth little, chunks hardly matter."""
    steep = torch.where(worth(s) > -30.0, 1.0, 0.02)
    return torch.stack([worth(s) - k * steep * apart(s, a) for k in (4.0, 6.0)])


def sure_elsewhere(s: Tensor, a: Tensor) -> Tensor:
    """Members disagree near the best chunk and nowhere else."""
    value = worth(s) - 6.0 * apart(s, a)
    return torch.stack([value, value - 0.2 * torch.exp(-4.0 * apart(s, a))])


def wrong_way(s: Tensor, a: Tensor) -> Tensor:
    return torch.stack([worth(s) + k * apart(s, a) - 6.0 for k in (2.0, 2.2)])


def state_blind(s: Tensor, a: Tensor) -> Tensor:
    """Small chunks are good in every state."""
    return torch.stack([worth(s) - k * a.square().sum(1) for k in (4.0, 6.0)])


FAULTS = {
    "gradient": lambda s, a: good(s, Doubled.apply(a)),
    "inputs": lambda s, a: good(without_gripper(s), a),
    "direction": one_line,
    "flatness": flat_below,
    "calibration": lambda s, a: good(s, a) / 10.0,
    "spread": sure_elsewhere,
    "shuffled": state_blind,
}


def verdicts(*arguments: Any, **keywords: Any) -> dict[str, Check]:
    found = examine(*arguments, **{"settings": SETTINGS, **keywords}).checks
    return {check.name: check for check in found}


def unpassed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.verdict != PASS}


def test_a_good_critic_passes_every_check_with_and_without_a_policy() -> None:
    found = verdicts(critic_of(), windows())
    assert (set(found), unpassed(found)) == (ALL, set())
    found = verdicts(critic_of(), windows(), policy=make_policy(), robot=ROBOT)
    assert set(found) == ALL
    assert unpassed(found) <= {"outcome"}  # by chunks of an untrained policy


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_fails_its_own_check_and_no_other(name: str) -> None:
    found = verdicts(critic_of(FAULTS[name]), windows())
    assert unpassed(found) == {name}, {n: found[n].reason for n in unpassed(found)}


def test_a_dead_input_is_named() -> None:
    check = verdicts(critic_of(FAULTS["inputs"]), windows())["inputs"]
    assert check.verdict == FAIL
    assert "dead: gripper." in check.reason
    assert check.figures["gripper"] == 0.0


def test_a_dead_action_and_a_dead_position_are_named() -> None:
    def formula(s: Tensor, a: Tensor) -> Tensor:
        mask = torch.ones(HORIZON, ACTIONS).to(a)
        mask[:, 1], mask[2, :] = 0.0, 0.0
        apart = ((a - best(s)) * mask.flatten()).square().sum(1)
        return torch.stack([worth(s) - 4.0 * apart, worth(s) - 6.0 * apart])

    reason = verdicts(critic_of(formula), windows())["inputs"].reason
    assert "action dyaw" in reason
    assert "position 2" in reason


def test_a_constant_direction_has_share_one_and_is_refused() -> None:
    slope = torch.tensor([1.0, 2.0, 0.0, -1.0, 0.5, 0.0])
    formula = lambda s, a: torch.stack([worth(s) + a @ slope.to(a)] * 2)  # noqa: E731
    check = verdicts(critic_of(formula), windows())["direction"]
    assert check.verdict == FAIL
    for name in ("share", "share_of_mean_gradient", "share_of_mean_direction"):
        assert check.figures[name] == pytest.approx(1.0, abs=1e-6)
    assert check.figures["energy_dx"] == pytest.approx(1.25 / 6.25, rel=1e-5)
    assert "The critic wants the same in every state" in check.reason


def test_a_critic_that_ignores_the_chunk_has_no_gradient() -> None:
    formula = lambda s, a: torch.stack([worth(s) + 0.0 * a.sum(1)] * 2)  # noqa: E731
    found = verdicts(critic_of(formula), windows())
    assert found["gradient"].figures["zero"] == 1.0
    assert {n for n, c in found.items() if c.verdict == FAIL} >= {"gradient", "inputs", "random"}
    assert found["direction"].verdict == UNKNOWN


def test_a_critic_that_likes_what_was_not_done_fails_both_comparisons_of_chunks() -> None:
    found = verdicts(critic_of(wrong_way), windows())
    assert {"random", "shuffled"} <= {n for n, c in found.items() if c.verdict == FAIL}


def test_inverted_outcomes_fail_the_outcome_alone() -> None:
    held_out = windows()
    found = verdicts(critic_of(), replace(held_out, success=~held_out.success))
    assert unpassed(found) == {"outcome"}
    assert found["outcome"].verdict == FAIL


def test_values_that_no_return_can_have_fail_the_unit_alone() -> None:
    found = verdicts(critic_of(settings={"discount": 0.9}), windows())
    assert unpassed(found) == {"unit"}
    assert "are outside of -10 to 0" in found["unit"].reason


def test_a_critic_that_does_not_state_its_discount_or_its_episodes_does_not_pass() -> None:
    assert unpassed(verdicts(critic_of(settings={}), windows())) == {"unit"}
    critic = critic_of()
    training = {k: v for k, v in critic.training.items() if k != "episodes"}
    found = verdicts(replace(critic, training=training), windows())
    assert unpassed(found) == {"held_out"}  # its interface names an encoder: it saw episodes
    assert found["held_out"].verdict == UNKNOWN


@pytest.mark.parametrize(("successes", "failures"), [(6, 2), (3, 6)])
def test_too_few_episodes_cannot_be_judged_and_that_is_no_pass(
    successes: int, failures: int
) -> None:
    found = verdicts(critic_of(), windows(successes, failures))
    assert {found[name].verdict for name in ("outcome", "flatness")} == {UNKNOWN}
    assert f"{successes} successful and {failures} failing" in found["outcome"].reason
    assert unpassed(found) == {"outcome", "flatness"}


def test_chunks_that_this_critic_chose_do_not_count_as_liked() -> None:
    held_out = windows()
    found = verdicts(critic_of(), replace(held_out, steered=held_out.episode > 2))
    assert unpassed(found) == {"random", "shuffled"}
    assert "3 episodes whose chunks this critic did not choose" in found["random"].reason


def test_an_input_that_never_varies_cannot_be_judged_unless_it_is_exempt() -> None:
    held_out = windows()
    held_out.features[:, 0] = 0.25
    found = verdicts(critic_of(), held_out)
    assert found["inputs"].verdict == UNKNOWN
    assert "almost the same in all windows: joint." in found["inputs"].reason
    held_out.features[::2, 0] += 0.02  # a hundredth of the training data's deviation
    assert verdicts(critic_of(), held_out)["inputs"].verdict == UNKNOWN
    found = verdicts(critic_of(), held_out, settings=replace(SETTINGS, exempt="joint"))
    assert found["inputs"].verdict == PASS


def test_an_exemption_must_name_something() -> None:
    with pytest.raises(ConfigError, match=r"'exempt' must name checks .* got gripperr"):
        verdicts(critic_of(), windows(), settings=replace(SETTINGS, exempt="spread,gripperr"))


def test_a_single_member_has_no_spread_to_judge() -> None:
    found = verdicts(critic_of(lambda s, a: good(s, a)[1:]), windows())
    assert unpassed(found) == {"spread"}
    assert found["spread"].verdict == UNKNOWN


@pytest.mark.parametrize(
    ("policy", "robot", "message"),
    [
        (other(horizon=2), ROBOT, "the critic and the policy must have the same horizon: got 3"),
        (other(feature_names=("joint", "cube_x", "cube_y", "grip")), ROBOT, "feature_names"),
        (other(encoder_hash="f" * 64), ROBOT, "features of one encoder"),
        (other(), other(action_scale=(0.05, 0.4)), "the robot file must have the same action_sc"),
        (other(), other(control_dt_s=0.1), "the robot file must have the same control_dt_s"),
    ],
)
def test_a_critic_of_another_interface_fails_before_it_is_asked(
    policy: Any, robot: Any, message: str
) -> None:
    found = verdicts(critic_of(), windows(), policy=make_policy(interface=policy), robot=robot)
    assert list(found) == ["interface"]
    assert found["interface"].verdict == FAIL
    assert message in found["interface"].reason


def test_windows_of_another_encoder_are_no_examination() -> None:
    found = verdicts(critic_of(), windows(interface=other(encoder_hash="f" * 64)))
    assert list(found) == ["interface"]
    assert "the held-out windows must be trained on" in found["interface"].reason


@pytest.mark.parametrize("training", [{"episodes": [f"{3:064d}"]}, {"data_hash": "d" * 64}])
def test_episodes_that_the_critic_learned_from_are_refused(training: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="held-out episodes must be new to the critic: it was"):
        examine(critic_of(**training), windows(), settings=SETTINGS)


def test_the_same_seed_gives_the_same_figures_and_another_seed_other_random_chunks() -> None:
    first, second = (verdicts(critic_of(), windows()) for _ in range(2))
    assert first == second
    third = verdicts(critic_of(), windows(), settings=replace(SETTINGS, seed=1))
    assert third["spread"].figures["random"] != first["spread"].figures["random"]
