from __future__ import annotations

from dataclasses import dataclass

import pytest
from parts import INTERFACE, other

from qsteer_ros.errors import ConfigError
from qsteer_ros.interface import Interface


@dataclass
class Robot:
    action_names: tuple[str, ...] = ("dx", "dyaw")
    action_scale: tuple[float, ...] = (0.05, 0.3)
    control_dt_s: float = 0.05


def compare(theirs: Interface) -> None:
    INTERFACE.check_same(theirs, mine="the critic", theirs="the policy", remedy="Train it again.")


def test_sizes_are_counted_from_the_names() -> None:
    assert (INTERFACE.action_dim, INTERFACE.feature_dim, INTERFACE.chunk_dim) == (2, 4, 6)


def test_equal_spaces_agree() -> None:
    compare(other())
    INTERFACE.check_robot(Robot(), mine="the policy")


def test_an_encoder_hash_of_none_agrees_with_every_encoder() -> None:
    compare(other(encoder_hash=None))
    other(encoder_hash=None).check_same(INTERFACE, mine="a", theirs="b", remedy="")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 4}, "the critic and the policy must have the same horizon: got 3 and 4. Tra"),
        ({"action_names": ("dx", "dz")}, "the same action_names: got .*dyaw.* and .*dz"),
        ({"action_scale": (0.05, 0.2)}, r"the same action_scale: got .*0.3.* and .*0.2"),
        ({"control_dt_s": 0.1}, "the same control_dt_s: got 0.05 and 0.1"),
        ({"feature_names": ("joint",)}, "the same feature_names"),
        (
            {"encoder_hash": "f" * 64},
            "features of one encoder: got encoders eeeeeeeeeeee and ffff",
        ),
    ],
)
def test_a_difference_is_refused_by_its_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(other(**changes))


def test_a_difference_in_a_long_list_is_shown_by_its_first_entry() -> None:
    names = tuple(f"f{i}" for i in range(9))
    swapped = (*names[:7], "g", names[8])
    with pytest.raises(ConfigError, match="got 'f7' and 'g' at index 7"):
        other(feature_names=names).check_same(
            other(feature_names=swapped), mine="a", theirs="b", remedy=""
        )
    with pytest.raises(ConfigError, match="got 9 and 8 of them"):
        other(feature_names=names).check_same(
            other(feature_names=names[:8]), mine="a", theirs="b", remedy=""
        )


@pytest.mark.parametrize(
    ("robot", "name"),
    [
        (Robot(action_names=("dx", "dz")), "action_names"),
        (Robot(action_scale=(0.05, 0.1)), "action_scale"),
        (Robot(action_scale=(0.05, 0.3, 1.0)), "action_scale"),
        (Robot(control_dt_s=0.1), "control_dt_s"),
    ],
)
def test_a_robot_whose_actions_mean_something_else_is_refused(robot: Robot, name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"the policy and the robot file must have the same {name}"
    ):
        INTERFACE.check_robot(robot, mine="the policy")


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one action per chunk"):
        other(feature_names=())
