"""``qsteer gate``: load, examine, write ``gate.json`` and the page, say what was found."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsteer_ros import __version__, resources
from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.gate import Gate
from qsteer_ros.critics.gate_settings import GateSettings, from_assignments
from qsteer_ros.evaluation.gate import Examined, examine
from qsteer_ros.evaluation.gate_held_out import discount_of, from_store
from qsteer_ros.evaluation.gate_page import gate_page
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.policies.flow_policy import FlowPolicy

UNSTATED_DISCOUNT = 0.99
"""With which returns are counted for a critic that does not state one; it cannot pass 'unit'."""


@dataclass(frozen=True)
class GateOptions:
    """What ``qsteer gate`` examines.

    Attributes:
        critic: Checkpoint folder; the result is written into it.
        policy: Checkpoint folder.
        episodes: Store of logged episodes that the critic has not learned from.
        robot: Robot file.
        encoder: Checkpoint folder.
        page: Where the page with the plots goes; None writes none.
        settings: Thresholds.
    """

    critic: str
    policy: str
    episodes: Path
    robot: str = "robot_ur5e_sim.yaml"
    encoder: str = "checkpoints/encoder"
    page: Path | None = None
    settings: GateSettings = field(default_factory=GateSettings)


def gate(options: GateOptions, *, command: str = "") -> tuple[Gate, Examined]:
    """Examine a critic and write ``gate.json`` beside it, whatever the verdicts are.

    Args:
        options: What.
        command: What the user typed, for the record.

    Raises:
        ConfigError: A checkpoint, the store or the robot file is missing, or the critic has
            learned from an episode.
        DataError: A checkpoint is damaged, or no episode can be used.
    """
    folder = resources.find(options.critic)
    critic = Critic.load(folder)
    policy = FlowPolicy.load(resources.find(options.policy))
    robot = RobotFile.load(options.robot)
    discount = discount_of(critic)
    held_out = from_store(
        options.episodes,
        critic,
        discount=UNSTATED_DISCOUNT if discount is None else discount,
        encoder=options.encoder,
        robot=options.robot,
        windows=options.settings.windows,
    )
    examined = examine(critic, held_out, policy=policy, robot=robot, settings=options.settings)
    record = Gate(
        critic=critic.hash,
        policy=policy.hash,
        robot=robot.hash,
        encoder=held_out.interface.encoder_hash,
        episodes=held_out.episodes,
        data=held_out.data_hash,
        settings=options.settings,
        checks=examined.checks,
        command=command,
        package_version=__version__,
    )
    record.save(folder)
    if options.page is not None:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(gate_page(record, examined, critic_name=folder.name))
    return record, examined


def lines(record: Gate) -> str:
    """One line per check, and the verdict."""
    marks = {"pass": "pass", "fail": "FAIL", "cannot be judged": "?"}
    text = [
        f"{marks[check.verdict]:4}  {check.name:11}  {check.reason}"
        + ("  (exempt)" if check.name in record.settings.exempted else "")
        for check in record.checks
    ]
    verdict = "passed: this critic may steer this policy on this robot"
    if not record.passed:
        names = ", ".join(check.name for check in record.missing)
        verdict = f"not passed: {names or 'nothing was examined'}"
    return "\n".join([*text, verdict])


def gate_from_options(options: Mapping[str, Any]) -> tuple[int, str]:
    """Exit status, 0 passed or 1 not, and what to tell the user.

    Raises:
        ConfigError: As `gate`, or a threshold is unknown or out of range.
        DataError: As `gate`.
    """
    chosen = GateOptions(
        critic=options["critic"],
        policy=options["policy"],
        episodes=options["episodes"],
        robot=options["robot"],
        encoder=options["encoder"],
        page=options["page"],
        settings=from_assignments(options["set"]),
    )
    record, examined = gate(chosen, command=" ".join(["qsteer", *sys.argv[1:]]))
    solved = sum(entry.success for entry in record.episodes)
    head = (
        f"{len(record.episodes)} held-out episodes ({solved} successful), "
        f"{len(examined.held_out)} windows"
    )
    aside = [f"left out: {name}: {reason}" for name, reason in examined.held_out.left_out]
    return 0 if record.passed else 1, "\n".join([head, *aside, lines(record)])
