"""The gate: may this critic steer this policy on this robot?

The critic is asked about held-out episodes and must pass every check; what fails, and what cannot
be judged, is said with the figure and the remedy. See `critics.gate` for the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.gate import Check
from qsteer_ros.critics.gate_checks import (
    check_flatness,
    check_outcome,
    check_preference,
    check_spread,
)
from qsteer_ros.critics.gate_checks_gradient import check_direction, check_gradient
from qsteer_ros.critics.gate_checks_inputs import check_inputs
from qsteer_ros.critics.gate_checks_values import (
    check_calibration,
    check_held_out,
    check_interface,
    check_unit,
)
from qsteer_ros.critics.gate_settings import GateSettings
from qsteer_ros.errors import ConfigError
from qsteer_ros.evaluation.gate_held_out import (
    HeldOut,
    check_unseen,
    discount_of,
    known_training,
)
from qsteer_ros.evaluation.gate_measure import Measured, measure, wins
from qsteer_ros.interface import ActionSpace
from qsteer_ros.policies.flow_policy import FlowPolicy


@dataclass(frozen=True, eq=False)
class Examined:
    """An examination, with what its page is drawn from.

    Attributes:
        held_out: On what.
        measured: What the critic said; None where it could not be asked.
        checks: The verdicts.
    """

    held_out: HeldOut
    measured: Measured | None
    checks: tuple[Check, ...]


def examine(
    critic: Critic,
    held_out: HeldOut,
    *,
    policy: FlowPolicy | None = None,
    robot: ActionSpace | None = None,
    settings: GateSettings | None = None,
) -> Examined:
    """Examine a critic on held-out windows; nothing is written.

    Args:
        critic: What is examined.
        held_out: Any source of windows, see `gate_held_out`.
        policy: What it will steer; None where there is none.
        robot: What that will move; None where there is none.
        settings: Thresholds; None: the defaults.

    Returns:
        The verdicts. A critic whose interface does not fit is not asked anything: that check is
        the only one then.

    Raises:
        ConfigError: The critic has learned from these windows, or a name that is exempt is no
            check and no input.
    """
    settings = settings or GateSettings()
    named = {entry.sha256: entry.name for entry in held_out.episodes if entry.sha256}
    check_unseen(critic, named or {"": "all"}, data_hash=held_out.data_hash)
    unlike = differences(critic, held_out, policy, robot)
    fits = check_interface(unlike, _stated(critic))
    if unlike:
        return Examined(held_out, None, (fits,))
    found = measure(critic, held_out, settings, policy=policy)
    rows, episode, success = found.rows, held_out.episode, held_out.success
    everywhere = np.concatenate([found.gradient, found.policy_gradient])
    free = ~held_out.steered[rows]
    norm = np.linalg.norm(found.gradient, axis=1)
    checks = (
        fits,
        check_held_out(len(held_out.episodes), known_training(critic)),
        check_gradient(everywhere, found.exact, found.differences, settings),
        check_inputs(found.effects, settings),
        check_direction(everywhere, critic.horizon, critic.interface.action_names, settings),
        check_outcome(found.state_value, held_out.step, episode, success, settings),
        check_preference(
            "random",
            wins(found.random_gain)[free],
            episode[rows][free],
            least=settings.random_win_min,
            against="random chunk",
            settings=settings,
        ),
        check_preference(
            "shuffled",
            wins(found.shuffled_gain)[free],
            episode[rows][free],
            least=settings.shuffled_win_min,
            against="chunk of another episode",
            settings=settings,
        ),
        check_calibration(found.value, held_out.observed, held_out.tail, episode, settings),
        check_unit(found.value, held_out.reward, discount_of(critic), settings),
        check_flatness(norm, episode[rows], success[rows], settings),
        check_spread(found.spread, found.random_spread, found.members, settings),
    )
    _check_exempt(settings, checks, found)
    return Examined(held_out, found, checks)


def differences(
    critic: Critic, held_out: HeldOut, policy: FlowPolicy | None, robot: ActionSpace | None
) -> list[str]:
    """What the critic does not share with windows, policy and robot file, as sentences."""
    sentences = []
    if policy is not None:
        try:
            critic.interface.check_same(
                policy.interface,
                mine="the critic",
                theirs="the policy",
                remedy="Train a critic for this policy: qsteer train critic.",
            )
        except ConfigError as error:
            sentences.append(str(error))
    if robot is not None:
        try:
            critic.interface.check_robot(robot, mine="the critic")
        except ConfigError as error:
            sentences.append(str(error))
    try:
        critic.interface.check_same(
            held_out.interface,
            mine="the critic",
            theirs="the held-out windows",
            remedy="Give the encoder and the robot file that the critic was trained with.",
        )
    except ConfigError as error:
        sentences.append(str(error))
    return sentences


def _stated(critic: Critic) -> str:
    space = critic.interface
    return (
        f"{space.horizon} actions of {space.action_dim} every {1e3 * space.control_dt_s:g} ms, "
        f"{space.feature_dim} features"
    )


def _check_exempt(settings: GateSettings, checks: Sequence[Check], measured: Measured) -> None:
    known = {check.name for check in checks} | {part.name for part in measured.effects.parts}
    unknown = sorted(settings.exempted - known)
    if unknown:
        groups = [part.name for part in measured.effects.parts if part.group]
        raise ConfigError(
            f"'exempt' must name checks ({', '.join(check.name for check in checks)}) or inputs "
            f"({', '.join(groups)}): got {', '.join(unknown)}."
        )
