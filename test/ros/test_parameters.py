import dataclasses
from dataclasses import dataclass

import pytest
import yaml

pytest.importorskip("rclpy")

from rclpy.node import Node
from rclpy.parameter import Parameter

from qsteer_ros import resources
from qsteer_ros.errors import ConfigError
from qsteer_ros.nodes.logger_node import LoggerParameters
from qsteer_ros.nodes.parameters import changed, check, declare, param
from qsteer_ros.nodes.policy_parameters import AT_CONFIGURE, PolicyParameters
from qsteer_ros.nodes.session_node import SessionParameters
from qsteer_ros.nodes.sim_parameters import SimParameters

pytestmark = pytest.mark.ros


@dataclass(frozen=True)
class Some:
    steps: int = param(10, "Euler steps.", bounds=(1, 100))
    weight: float = param(0.5, "Weight of the critic gradient.", bounds=(0.0, 10.0))
    mode: str = param("off", "How.", choices=("off", "on"))
    fast: bool = param(False, "Whether to hurry.", read_only=True)
    topics: tuple[str, ...] = param((), "What to hear.")


@pytest.fixture
def node(context):
    made = []

    def make(**overrides):
        node = Node(
            "some",
            context=context,
            use_global_arguments=False,
            parameter_overrides=[Parameter(k, value=v) for k, v in overrides.items()],
        )
        made.append(node)
        return node

    yield make
    for one in made:
        one.destroy_node()


def test_without_overrides_the_defaults_hold(node):
    assert declare(node(), Some) == Some()


def test_overrides_are_taken_and_typed(node):
    found = declare(node(steps=3, weight=2, mode="on", topics=["a", "b"]), Some)
    assert found == Some(steps=3, weight=2.0, mode="on", topics=("a", "b"))
    assert isinstance(found.weight, float)


@pytest.mark.parametrize(("name", "meant"), [("wieght", "weight"), ("step", "steps")])
def test_a_misspelt_name_at_start_is_refused_with_the_one_meant(name, meant, node):
    with pytest.raises(ConfigError, match=f"'{name}' is not .* of some. Did you mean '{meant}'"):
        declare(node(**{name: 3}), Some)


def test_names_that_the_node_or_another_one_knows_are_not_refused(node):
    overrides = {
        "use_sim_time": False,
        "qos_overrides./clock.subscription.depth": 1,
        "real_time_factor": 2.0,
    }
    assert declare(node(**overrides), Some) == Some()


def test_a_copy_of_the_policys_file_may_be_given_to_every_node(node):
    content = yaml.safe_load(resources.find("policy.yaml").read_text())
    for kind in (SessionParameters, SimParameters, LoggerParameters):
        others = set(content["/**"]["ros__parameters"]) - {
            f.name for f in dataclasses.fields(kind)
        }
        declare(node(**dict.fromkeys(others, 1)), kind)


REFUSALS = {
    "below its bounds": (
        "weight",
        -1.0,
        r"'weight' must be in \[0, 10\]: got -1.0. Weight of the",
    ),
    "above its bounds": ("steps", 101, r"'steps' must be in \[1, 100\]: got 101. Euler steps."),
    "not a number": ("weight", float("nan"), r"'weight' must be in \[0, 10\]: got nan"),
    "of another type": ("steps", "many", "'steps' must be a whole number: got 'many'"),
    "a fraction of steps": ("steps", 2.5, "'steps' must be a whole number: got 2.5"),
    "no choice": ("mode", "fast", "'mode' must be one of off, on: got 'fast'"),
    "a bare off": ("mode", False, "'mode' must be a text: got False.*YAML reads a bare off"),
    "no list": ("topics", "a", "'topics' must be a list of texts: got 'a'"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_wrong_start_value_is_refused(case, node):
    name, value, sentence = REFUSALS[case]
    with pytest.raises(ConfigError, match=sentence):
        declare(node(**{name: value}), Some)


@pytest.mark.parametrize("case", REFUSALS)
def test_a_wrong_change_is_refused_with_the_same_sentence(case, node):
    name, value, sentence = REFUSALS[case]
    one = node()
    declare(one, Some)
    result = one.set_parameters([Parameter(name, value=value)])[0]
    assert not result.successful
    with pytest.raises(ConfigError, match=sentence):
        raise ConfigError(result.reason)
    default = getattr(Some(), name)
    found = one.get_parameter(name).value
    assert found in (default, [""]) if name == "topics" else found == default


def test_a_read_only_parameter_cannot_change(node):
    one = node()
    declare(one, Some)
    assert not one.set_parameters([Parameter("fast", value=True)])[0].successful


def test_all_changes_are_refused_with_one_that_is_wrong(node):
    one = node()
    declare(one, Some)
    result = one.set_parameters_atomically(
        [Parameter("steps", value=3), Parameter("weight", value=-1.0)]
    )
    assert not result.successful
    assert one.get_parameter("steps").value == 10


def test_parameters_are_documented_with_their_constraint(node):
    one = node()
    declare(one, Some)
    found = one.describe_parameter("weight")
    assert found.description == "Weight of the critic gradient."
    assert found.additional_constraints == "in [0, 10]"
    assert one.describe_parameter("fast").read_only


def test_changes_make_a_new_object_and_skip_other_names():
    before = Some()
    after = changed(before, [Parameter("weight", value=3), Parameter("use_sim_time", value=True)])
    assert after == Some(weight=3.0)
    assert before == Some()


def test_every_parameter_of_the_policy_node_is_documented_and_its_default_passes():
    for field in dataclasses.fields(PolicyParameters):
        assert field.metadata["param"].description.endswith(".")
        assert check(PolicyParameters, field.name, field.default) == field.default
    assert {f.name for f in dataclasses.fields(PolicyParameters)} >= AT_CONFIGURE


def test_the_parameter_file_names_every_parameter_with_its_default():
    content = yaml.safe_load(resources.find("policy.yaml").read_text())
    found = content["/**"]["ros__parameters"]
    assert found == dataclasses.asdict(PolicyParameters())
