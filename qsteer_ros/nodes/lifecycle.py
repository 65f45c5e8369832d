"""Drives a lifecycle node from outside, with refusals as errors; tells of its own failures."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParametersAtomically
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter, parameter_value_to_python

from qsteer_ros.errors import ConfigError
from qsteer_ros.nodes.waiting import REPEAT_S, Foreground, NoAnswer

STATES = {
    "unconfigured": State.PRIMARY_STATE_UNCONFIGURED,
    "inactive": State.PRIMARY_STATE_INACTIVE,
    "active": State.PRIMARY_STATE_ACTIVE,
}
_NEXT = {
    (STATES["unconfigured"], STATES["inactive"]): Transition.TRANSITION_CONFIGURE,
    (STATES["unconfigured"], STATES["active"]): Transition.TRANSITION_CONFIGURE,
    (STATES["inactive"], STATES["active"]): Transition.TRANSITION_ACTIVATE,
    (STATES["active"], STATES["inactive"]): Transition.TRANSITION_DEACTIVATE,
    (STATES["active"], STATES["unconfigured"]): Transition.TRANSITION_DEACTIVATE,
    (STATES["inactive"], STATES["unconfigured"]): Transition.TRANSITION_CLEANUP,
}
_NAMES = {
    Transition.TRANSITION_CONFIGURE: "configure",
    Transition.TRANSITION_ACTIVATE: "activate",
    Transition.TRANSITION_DEACTIVATE: "deactivate",
    Transition.TRANSITION_CLEANUP: "clean up",
}


def told(transition: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A transition whose unexpected errors are logged; rclpy swallows them without a word.

    The node then goes through its ``on_error``.
    """

    @functools.wraps(transition)
    def wrapped(node: Any, state: Any) -> Any:
        try:
            return transition(node, state)
        except Exception:  # a defect: whatever it is, it must be seen
            node.get_logger().error(
                f"{transition.__name__} failed unexpectedly:\n{traceback.format_exc()}"
            )
            return TransitionCallbackReturn.ERROR

    return wrapped


class RemoteNode:
    """Another node as seen by one that drives it.

    Args:
        foreground: Whose node the clients belong to.
        name: The other node's name, relative or absolute.
    """

    def __init__(self, foreground: Foreground, name: str) -> None:
        self.name = name
        self._foreground = foreground
        create = foreground.node.create_client
        self._get_state = create(GetState, f"{name}/get_state")
        self._change_state = create(ChangeState, f"{name}/change_state")
        self._get_parameters = create(GetParameters, f"{name}/get_parameters")
        self._set_parameters = create(SetParametersAtomically, f"{name}/set_parameters_atomically")

    def get_parameters(self, names: Sequence[str], *, timeout_s: float) -> dict[str, Any]:
        """Read parameters; one that the node does not have is None.

        Raises:
            NoAnswer: The node does not answer.
        """
        request = GetParameters.Request(names=list(names))
        answer = self._foreground.call(
            self._get_parameters, request, timeout_s=timeout_s, repeat_s=REPEAT_S
        )
        values = list(answer.values) or [None] * len(names)
        return {
            name: None if value is None else parameter_value_to_python(value)
            for name, value in zip(names, values, strict=True)
        }

    def set_parameters(self, values: Mapping[str, Any], *, timeout_s: float) -> None:
        """Set parameters, all or none.

        Raises:
            ConfigError: The node refuses; its reason is in the message, its state is unchanged.
            NoAnswer: It does not answer.
        """
        request = SetParametersAtomically.Request()
        request.parameters = [
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
        result = self._foreground.call(
            self._set_parameters, request, timeout_s=timeout_s, repeat_s=REPEAT_S
        ).result
        if not result.successful:
            raise ConfigError(f"{self.name} refuses {dict(values)}: {result.reason}")

    def drive_to(self, state: str, *, timeout_s: float) -> None:
        """Walk the lifecycle to ``unconfigured``, ``inactive`` or ``active``.

        Raises:
            ConfigError: A transition fails; the node's log says why.
            NoAnswer: The node does not answer a request within ``timeout_s``.
        """
        target = STATES[state]
        while (current := self._state(timeout_s)).id != target:
            if (current.id, target) not in _NEXT:
                raise ConfigError(
                    f"{self.name} must be able to become {state}: it is {current.label}. "
                    "Look at its log and start it again."
                )
            transition = _NEXT[(current.id, target)]
            request = ChangeState.Request(transition=Transition(id=transition))
            try:
                done = self._foreground.call(self._change_state, request, timeout_s=timeout_s)
            except NoAnswer:  # the answer may be lost, the transition made
                if self._state(timeout_s).id == current.id:
                    raise
                continue
            if not done.success:
                raise ConfigError(
                    f"{self.name} must {_NAMES[transition]}: it failed. Its log says why."
                )

    def _state(self, timeout_s: float) -> Any:
        request = GetState.Request()
        return self._foreground.call(
            self._get_state, request, timeout_s=timeout_s, repeat_s=REPEAT_S
        ).current_state
