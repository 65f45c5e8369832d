"""The policy node's parts: a critic that has not passed the gate does not steer."""

import json
import shutil
from dataclasses import replace

import pytest

from qsteer_ros import resources
from qsteer_ros.critics.gate import FAIL, FILE, Check, Gate
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.nodes import policy_parts
from qsteer_ros.nodes.policy_parameters import PolicyParameters

SHIPPED = "checkpoints/critic_goal1"
NEVER = r"must be examined before it may steer: it has no gate\.json\. Run: qsteer gate .* Or set "


@pytest.fixture
def folder(tmp_path):
    """A copy of a shipped critic, with its gate."""
    return shutil.copytree(resources.find(SHIPPED), tmp_path / "critic")


@pytest.fixture(scope="module")
def parts():
    """Of the shipped critic, which steers."""
    return policy_parts.load(PolicyParameters(steering="qgf"))


def test_the_shipped_critics_may_steer(parts):
    before = PolicyParameters(steering="qgf")
    for goal in (1, 2, 3):
        after = replace(before, critic=f"checkpoints/critic_goal{goal}")
        policy_parts.revise(parts, before, after)


def test_a_critic_that_was_never_examined_is_refused_and_says_what_to_run(parts, folder):
    (folder / FILE).unlink()
    before = PolicyParameters(steering="qgf")
    after = replace(before, critic=str(folder))
    with pytest.raises(ConfigError, match=NEVER + "allow_ungated_critic: true"):
        policy_parts.load(after)
    with pytest.raises(ConfigError, match=NEVER):
        policy_parts.revise(parts, before, after)


def test_it_may_be_loaded_while_it_does_not_steer_and_steer_when_the_user_says_so(parts, folder):
    (folder / FILE).unlink()
    steered = PolicyParameters(steering="qgf")
    off = replace(steered, steering="off", critic=str(folder))
    waiting = policy_parts.revise(parts, steered, off)
    with pytest.raises(ConfigError, match=NEVER):
        policy_parts.revise(waiting, off, replace(off, steering="best_of_n"))
    allowed = replace(off, steering="qgf", allow_ungated_critic=True)
    steering = policy_parts.revise(waiting, off, allowed)
    assert steering.steered.settings.mode == "qgf"
    with pytest.raises(ConfigError, match=NEVER):
        policy_parts.revise(steering, allowed, replace(allowed, allow_ungated_critic=False))


def test_a_critic_that_failed_is_refused_with_the_reason(parts, folder):
    gate = Gate.find(folder)
    failed = Check("direction", FAIL, "below 0.8", "it is 0.93. Train on other data.")
    replace(gate, checks=(*gate.checks, failed)).save(folder)
    before = PolicyParameters(steering="qgf")
    with pytest.raises(ConfigError, match=r"must pass every check .*: direction: it is 0\.93"):
        policy_parts.revise(parts, before, replace(before, critic=str(folder)))


@pytest.mark.parametrize("part", ["critic", "policy", "robot", "encoder"])
def test_an_examination_with_another_part_does_not_count(parts, folder, part):
    replace(Gate.find(folder), **{part: "f" * 64}).save(folder)
    before = PolicyParameters(steering="qgf")
    with pytest.raises(ConfigError, match=f"must be examined with the {part} it is used with"):
        policy_parts.revise(parts, before, replace(before, critic=str(folder)))


def test_verdicts_that_were_changed_by_hand_do_not_count(parts, folder):
    plain = json.loads((folder / FILE).read_text())
    plain["settings"]["exempt"] = "direction"
    (folder / FILE).write_text(json.dumps(plain))
    before = PolicyParameters(steering="qgf")
    with pytest.raises(DataError, match="not those that were written"):
        policy_parts.revise(parts, before, replace(before, critic=str(folder)))
