"""Every checkpoint of the demo from nothing, through the same verbs that a user types."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qsteer_ros.errors import ConfigError
from qsteer_ros.resources import find

GOALS = (1, 2, 3)


@dataclass(frozen=True)
class CheckpointFolders:
    """Where the checkpoints of a session are.

    Attributes:
        encoder: Camera encoder.
        policy: Frozen policy.
        critics: Critic of goal 1, 2, 3.
        gated: Whether they have passed the gate; if not, the session lets them steer by name.
    """

    encoder: str = "checkpoints/encoder"
    policy: str = "checkpoints/policy"
    critics: tuple[str, ...] = tuple(f"checkpoints/critic_goal{goal}" for goal in GOALS)
    gated: bool = True

    def settings(self) -> dict[str, dict[str, str | bool | list[str]]]:
        """The same as settings of the nodes, with absolute paths."""
        critics = [str(find(critic)) for critic in self.critics]
        return {
            "policy_node": {
                "encoder": str(find(self.encoder)),
                "policy": str(find(self.policy)),
                "critic": critics[0],
                "allow_ungated_critic": not self.gated,
            },
            "session_node": {"critics": list(critics)},
        }


def train_everything(folder: Path, *, seed: int) -> CheckpointFolders:
    """Generate data and train encoder, policy and one critic per goal, in processes of their own.

    What an interrupted run has finished is resumed or taken as it is.

    Args:
        folder: Data and checkpoints go here.
        seed: Of the data and of every training.

    Raises:
        ConfigError: A step failed; it has said why.
    """
    data = str(folder / "data")
    wanted = CheckpointFolders(
        str(folder / "encoder"),
        str(folder / "policy"),
        tuple(str(folder / f"critic_goal{goal}") for goal in GOALS),
        gated=False,
    )
    common = (f"data={data}", f"seed={seed}")
    qsteer("data", "--out", data, "--seed", str(seed))
    _train("encoder", wanted.encoder, *common)
    _train("bc", wanted.policy, *common)
    for goal, critic in zip(GOALS, wanted.critics, strict=True):
        _train("critic", critic, *common, f"goal={goal}")
    return wanted


def qsteer(*arguments: str) -> None:
    """Run a verb in a process of its own; its output is the user's.

    Raises:
        ConfigError: It ended with an error.
    """
    status = subprocess.run(
        [sys.executable, "-m", "qsteer_ros.cli", *arguments], env=os.environ, check=False
    ).returncode
    if status != 0:
        raise ConfigError(
            f"'qsteer {' '.join(arguments)}' must succeed: it ended with status {status}. "
            "Its message is above."
        )


def _train(program: str, out: str, *arguments: str) -> None:
    if not (Path(out) / "config.json").is_file():
        qsteer("train", program, "--resume", f"out={out}", *arguments)
