from __future__ import annotations

import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy")

from fake_nodes import FakeLogger, FakePolicy, FakeSim, Spinning
from rclpy.node import Node
from rclpy.parameter import Parameter

from qsteer_ros.errors import ConfigError
from qsteer_ros.nodes import session_node
from qsteer_ros.nodes.session_node import PREFIX, SessionRunner
from qsteer_ros.nodes.session_parameters import SessionParameters
from qsteer_ros.nodes.waiting import Foreground, NoAnswer, Stopped
from qsteer_ros.replay.sessions import Session

pytestmark = pytest.mark.ros

STEPS = {"off": None, "qgf": 20}


@pytest.fixture
def graph(context, monkeypatch, tmp_path):
    """The three other nodes, spinning, and a session's node and parameters."""
    monkeypatch.setattr(session_node, "provenance", lambda files: dict.fromkeys(files, "h"))
    policy = FakePolicy(context)
    sim = FakeSim(context, policy, STEPS.get)
    logger = FakeLogger(context)
    node = Node(
        "session_node",
        context=context,
        use_global_arguments=False,
        parameter_overrides=[Parameter("use_sim_time", value=True)],
    )
    parameters = SessionParameters(
        folder=str(tmp_path / "s"), arms=("off", "qgf"), episodes=2, seed=40, timeout_s=3.0
    )
    with Spinning(context, policy, sim, logger), Foreground(node) as foreground:
        yield SimpleNamespace(
            policy=policy, sim=sim, logger=logger, foreground=foreground, parameters=parameters,
            folder=tmp_path / "s",
            runner=lambda **changes: SessionRunner(foreground, replace(parameters, **changes)),
        )  # fmt: skip
    node.destroy_node()


def test_a_session_runs_every_planned_episode_and_records_its_outcome(graph, capsys):
    session = graph.runner().run()
    assert [r.trial for r in session.results] == session.schedule()
    assert {(r.trial.arm, r.outcome) for r in session.results} == {
        ("off", "failure"),
        ("qgf", "success"),
    }
    assert Session.load(graph.folder) == session
    said = [json.loads(s.removeprefix(PREFIX)) for s in capsys.readouterr().out.splitlines()]
    assert [s["kind"] for s in said] == ["plan", *("start", "end") * 4, "done"]


def test_arms_meet_the_same_states_and_the_policy_gets_their_parameters(graph):
    session = graph.runner().run()
    assert [seed for seed, _ in graph.sim.resets] == [t.seed for t in session.schedule()]
    activations = [entry for entry in graph.policy.log if entry.startswith("activate")]
    weights = {"off": 0.0, "qgf": SessionParameters().qgf_weight}
    assert activations == [
        f"activate {[t.arm, weights[t.arm], t.seed]}" for t in session.schedule()
    ]


def test_steps_and_chunk_times_are_measured(graph):
    for result in graph.runner().run().results:
        wanted = 60 if result.trial.arm == "off" else 20
        assert abs(result.steps - wanted) <= 12
        assert result.chunk_ms == (61.5,)


def test_the_logger_records_before_the_policy_is_active_and_closes_after_it_rests(graph):
    graph.runner(arms=("qgf",), episodes=1).run()
    start, end = graph.logger.events
    assert start["provenance"]["critic"] == "h"
    assert (start["arm"], start["goal"], start["seed"]) == ("qgf", 1, 40)
    assert (end["event"], end["outcome"]) == ("end", "success")
    assert graph.policy.log[-1] == "deactivate"


def test_the_critic_changes_with_the_goal_and_only_then(graph):
    graph.runner(arms=("off",), goals=(1, 2), critics=("one", "two"), episodes=2).run()
    critics = [entry for entry in graph.policy.log if entry.startswith("critic")]
    goals = [goal for _, goal in graph.sim.resets]
    changes = [g for i, g in enumerate(goals) if i == 0 or g != goals[i - 1]]
    assert critics == [f"critic {('one', 'two')[g - 1]}" for g in changes]


def test_the_noise_policy_of_arm_dsrl_follows_the_goal(graph):
    changes = {"arms": ("dsrl",), "goals": (1, 2), "critics": ("one", "two"), "episodes": 1}
    graph.runner(**changes, noise_policy="noise{goal}").run()
    goals = [goal for _, goal in graph.sim.resets]
    chosen = [entry for entry in graph.policy.log if entry.startswith("noise_policy")]
    assert chosen == [f"noise_policy noise{goal}" for goal in goals]
    named = {f"noise_policy_goal{goal}" for goal in (1, 2)}
    assert named <= set(Session.load(graph.folder).provenance)
    starts = [event for event in graph.logger.events if event["event"] == "start"]
    assert all(event["provenance"]["noise_policy"] == "h" for event in starts)


def test_without_arm_dsrl_no_noise_policy_is_set(graph):
    graph.runner(arms=("off",), episodes=1).run()
    assert not any(entry.startswith("noise_policy") for entry in graph.policy.log)


def test_a_session_is_resumed_where_it_was_stopped(graph):
    runner = graph.runner()
    threading.Timer(1.0, lambda: setattr(graph.foreground, "stopped", True)).start()
    with pytest.raises(Stopped):
        graph.runner(timeout_s=3600.0).run()
    assert graph.logger.events[-1]["outcome"] == "aborted"
    assert not graph.policy.active
    done = len(Session.load(graph.folder).results)
    assert done < 4
    graph.foreground.stopped = False
    assert len(runner.run().results) == 4
    assert len(graph.sim.resets) == 4 + (1 if done < 4 else 0)


def test_a_refused_critic_ends_the_session_with_the_reason(graph):
    with pytest.raises(ConfigError, match=r"policy_node refuses .*no such critic"):
        graph.runner(critics=("bad",)).run()
    assert Session.load(graph.folder).results[0].outcome == "aborted"


def test_a_policy_that_cannot_be_activated_ends_the_session(graph):
    graph.policy.fail_to_activate = True
    with pytest.raises(ConfigError, match="policy_node must activate: it failed"):
        graph.runner().run()
    assert graph.logger.events[-1]["outcome"] == "aborted"


def test_a_silent_logger_is_named(graph, monkeypatch):
    monkeypatch.setattr(session_node, "RECORDING_TIMEOUT_S", 0.3)
    graph.logger.deaf = True
    with pytest.raises(NoAnswer, match=r"the logger must record '0000_.*within 0\.3 s"):
        graph.runner().run()


def test_a_logger_that_refuses_is_quoted(graph):
    graph.logger.refuse = True
    with pytest.raises(ConfigError, match=r"the logger refuses '0000_.*: no provenance"):
        graph.runner().run()


def test_a_stopped_clock_does_not_hang_the_session(graph):
    graph.sim.stop_when_active = True
    with pytest.raises(NoAnswer, match=r"2 s of simulated time must pass within 2 s"):
        graph.runner(arms=("off",), timeout_s=2.0, wall_factor=1.0).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": ""}, "parameter 'folder' must name the session's folder"),
        ({"arms": ("qfg",)}, "an arm must be one of off, zero"),
        ({"arms": ("qgf:x",)}, "the number of an arm must follow its mode"),
        ({"goals": (4,)}, "goal 4 needs a critic"),
        ({"arms": ("off", "dsrl")}, "arm dsrl needs a noise policy: parameter 'noise_policy' is"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_moves(graph, changes, message):
    with pytest.raises(ConfigError, match=message):
        graph.runner(**changes).run()
    assert graph.sim.resets == []
