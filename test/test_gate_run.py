"""`qsteer gate`, from a store of episodes to the file beside the critic and the page."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_world import SETTINGS, critic_of, windows
from parts import INTERFACE, make_critic, make_policy
from synthetic_store import PROVENANCE, write_episode

from qsteer_ros import cli, resources
from qsteer_ros.critics.critic import Critic
from qsteer_ros.critics.gate import FILE, Gate
from qsteer_ros.critics.gate_settings import GateSettings
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.evaluation import gate_run
from qsteer_ros.evaluation.gate import Examined, examine
from qsteer_ros.evaluation.gate_held_out import HeldOut, from_store, from_transitions
from qsteer_ros.evaluation.gate_measure import (
    _other_episodes,
    in_double,
    permutation_effects,
    spread_rows,
)
from qsteer_ros.evaluation.gate_page import QUESTIONS, gate_page
from qsteer_ros.learning import logged
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.policies.gated import why_ungated
from qsteer_ros.replay.episode import Episode, find_episodes

ROBOT = "robot_ur5e_sim.yaml"
STEPS = 6
STORED = (  # name, outcome, arm, whether its log reaches the goal
    ("a", "success", "qgf", True),
    ("b", "failure", "off", False),
    ("c", "aborted", "off", False),
    ("d", "success", "off", False),
    ("e", "failure", "best_of_n:16", False),
)


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Critic:
    folder = make_critic().save(tmp_path_factory.mktemp("made") / "critic")
    return Critic.load(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, critic: Critic) -> Path:
    """Episodes of goal 1, one of goal 2; all recorded with this critic."""
    folder = tmp_path_factory.mktemp("store")
    provenance = PROVENANCE | {"critic": critic.hash}
    for seed, (name, outcome, arm, _) in enumerate(STORED):
        write_episode(folder, name, outcome=outcome, arm=arm, seed=seed, provenance=provenance)
    write_episode(folder, "f", outcome="failure", goal=2, provenance=provenance)
    return folder


def transitions_of(store: Path, success: list[bool], steps: int = STEPS) -> Transitions:
    """Windows of as many of the store's episodes, with the real hashes of their bags."""
    infos = [Episode.load(folder) for folder in find_episodes(store)][: len(success)]
    rows = len(infos) * steps
    rng = np.random.default_rng(0)
    shape = (rows, INTERFACE.horizon, INTERFACE.action_dim)
    return Transitions(
        features=rng.normal(size=(rows, INTERFACE.feature_dim)).astype(np.float32),
        chunk=rng.uniform(-1, 1, size=shape).astype(np.float32),
        interface=INTERFACE,
        data_hash="d" * 64,
        rewards=np.full(shape[:2], -1.0, np.float32),
        mc_return=np.linspace(-50, 0, rows).astype(np.float32),
        success=np.repeat(success, steps),
        episode=np.repeat(np.arange(len(infos)), steps),
        episodes=tuple(str(info.bag["sha256"]) for info in infos),
    )


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch, store: Path) -> list[Any]:
    """Stands for the encoder's look at the pictures; notes what it was asked for."""
    asked: list[Any] = []

    def read(source: Any, *, goal: int | None, discount: float) -> Transitions:
        asked.append((source.horizon, goal, discount))
        return transitions_of(store, [reached for *_, reached in STORED])

    monkeypatch.setattr(logged, "logged_transitions", read)
    return asked


def load(store: Path, critic: Critic) -> HeldOut:
    return from_store(store, critic, discount=0.9, encoder="e", robot=ROBOT)


def with_training(critic: Critic, **training: Any) -> Critic:
    return replace(critic, training={**critic.training, **training})


def test_episodes_are_used_when_their_end_is_known(
    store: Path, critic: Critic, reading: list[Any]
) -> None:
    found = load(store, with_training(critic, goal=1))
    assert reading == [(INTERFACE.horizon, 1, 0.9)]
    assert [(e.name, e.success, e.windows) for e in found.episodes] == [
        ("a", True, STEPS), ("b", False, STEPS), ("e", False, STEPS),
    ]  # fmt: skip
    assert dict(found.left_out) == {
        "c": "its outcome is 'aborted'",
        "d": "its outcome is 'success', but its log does not reach the goal",
    }
    assert len(found) == 3 * STEPS
    assert found.step.tolist() == [*range(STEPS)] * 3
    assert found.episode.tolist() == np.repeat([0, 1, 4], STEPS).tolist()


def test_episodes_that_this_critic_steered_are_known_by_hash_and_arm(
    store: Path, critic: Critic, reading: list[Any]
) -> None:
    found = load(store, critic)
    assert {e.name: e.steered for e in found.episodes} == {"a": True, "b": False, "e": True}
    assert found.steered.tolist() == np.repeat([True, False, True], STEPS).tolist()
    assert not load(store, replace(critic, hash="0" * 64)).steered.any()


def test_what_nobody_saw_of_a_failing_episode_is_weighed_by_the_discount(
    store: Path, critic: Critic, reading: list[Any]
) -> None:
    found = load(store, critic)
    assert found.tail[:STEPS].tolist() == [0.0] * STEPS  # a success has no rest
    seen = np.arange(STEPS)[::-1] + INTERFACE.horizon
    assert found.tail[STEPS : 2 * STEPS] == pytest.approx(0.9**seen)


def test_an_episode_of_the_training_data_is_refused_before_any_picture_is_read(
    store: Path, critic: Critic, reading: list[Any]
) -> None:
    learned = str(Episode.load(store / "b").bag["sha256"])
    message = r"new to the critic: it was trained on 1 of these 5, such as 'b'\. Record others"
    with pytest.raises(ConfigError, match=message):
        load(store, with_training(critic, goal=1, episodes=["0" * 64, learned]))
    other_goal = str(Episode.load(store / "f").bag["sha256"])
    assert reading == []
    load(store, with_training(critic, goal=1, episodes=[other_goal]))
    with pytest.raises(ConfigError, match="it was trained on 6 of these 6"):
        load(store, with_training(critic, data_hash="d" * 64))


def test_a_store_without_an_end_that_is_known_is_refused(
    tmp_path: Path, critic: Critic, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_episode(tmp_path, "a", outcome="stopped")
    monkeypatch.setattr(
        logged, "logged_transitions", lambda *_, **__: transitions_of(tmp_path, [False])
    )
    with pytest.raises(DataError, match=r"ended by themselves: none of 1 did \(a: its outcome is"):
        load(tmp_path, critic)


def test_many_windows_are_thinned_at_the_same_steps_of_every_episode(store: Path) -> None:
    found = from_transitions(transitions_of(store, [True, False]), discount=0.9, windows=5)
    assert found.step.tolist() == [0, 3, 0, 3]
    assert [e.windows for e in found.episodes] == [STEPS, STEPS]


def test_transitions_without_returns_cannot_be_examined(store: Path) -> None:
    bare = replace(transitions_of(store, [True]), mc_return=None)
    with pytest.raises(ConfigError, match="needs mc_return of every transition"):
        from_transitions(bare, discount=0.9)


def test_rows_are_spread_evenly_over_episodes_and_through_them() -> None:
    episode = np.repeat([3, 5], [9, 100])
    assert spread_rows(episode, 6).tolist() == [0, 4, 8, 9, 58, 108]
    assert len(spread_rows(np.arange(50), 7)) == 7


def test_other_chunks_are_those_of_other_episodes() -> None:
    episode, rows = np.repeat([0, 1, 2], [5, 1, 4]), np.array([0, 5, 9])
    found = _other_episodes(episode, rows, 50, np.random.default_rng(0))
    assert (episode[found] != np.repeat(episode[rows], 50)).all()
    assert set(found[:50]) == {5, 6, 7, 8, 9}


def test_double_precision_asks_a_copy() -> None:
    critic = make_critic()
    twin = in_double(critic)
    assert {p.dtype for p in twin.network.parameters()} == {twin.feature_mean.dtype}
    assert {str(p.dtype) for p in critic.network.parameters()} == {"torch.float32"}


def test_the_command_fails_for_another_robot_and_writes_why(
    store: Path, critic: Critic, reading: list[Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, policy = make_critic().save(tmp_path / "c"), make_policy().save(tmp_path / "p")
    words = ["--critic", str(folder), "--policy", str(policy), "--episodes", str(store)]
    page = tmp_path / "pages" / "gate.html"
    assert cli.main(["gate", *words, "--page", str(page), "--set", "rows=64"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "3 held-out episodes (1 successful), 18 windows"
    assert shown[1] == "left out: c: its outcome is 'aborted'"
    assert shown[3].startswith("FAIL  interface    the critic and the robot file must have the sa")
    assert shown[4] == "not passed: interface"
    hashes = {"critic": Critic.load(folder).hash, "robot": RobotFile.load(ROBOT).hash}
    found = Gate.find(folder)
    assert found is not None
    assert (found.critic, found.robot) == (hashes["critic"], hashes["robot"])
    assert (found.passed, found.settings.rows, found.encoder) == (False, 64, "e" * 64)
    assert [e.name for e in found.episodes] == ["a", "b", "e"]
    assert "must have the same action_names" in page.read_text()


def test_the_status_says_whether_it_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    examined = examine(critic_of(), windows(), settings=SETTINGS)
    settings = SETTINGS
    record = Gate("c", "p", "r", None, examined.held_out.episodes, "d", settings, examined.checks)
    monkeypatch.setattr(gate_run, "gate", lambda *_, **__: (record, examined))
    options = dict.fromkeys(("critic", "policy", "episodes", "robot", "encoder", "page"), "x")
    status, text = gate_run.gate_from_options({**options, "set": []})
    assert status == 0
    assert text.splitlines()[-1] == "passed: this critic may steer this policy on this robot"
    assert len(text.splitlines()) == 2 + len(QUESTIONS)


def test_an_unknown_threshold_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gate", "--critic", "x", "--episodes", "y", "--set", "auc=0.4"]) == 1
    assert "'--set' must be NAME=VALUE with NAME one of" in capsys.readouterr().err


def made(**changes: Any) -> tuple[Gate, Examined]:
    settings = replace(SETTINGS, **changes)
    held_out = replace(windows(), left_out=(("<x>", "its outcome is 'aborted'"),))
    examined = examine(critic_of(), held_out, settings=settings)
    return Gate("c", "p", "r", None, held_out.episodes, "d", settings, examined.checks), examined


def test_the_page_holds_every_verdict_every_plot_and_nothing_from_elsewhere() -> None:
    record, examined = made(direction_share_max=0.01)
    text = gate_page(record, examined, critic_name="<goal 1>")
    assert "Gate of &lt;goal 1&gt;" in text
    for check in record.checks:
        assert QUESTIONS[check.name].split("'")[0] in text
    assert text.count("<svg") == 7
    assert text.count("</svg>") == 7
    assert '<b class="bad">fail</b>' in text
    assert "&lt;x&gt;" in text
    assert "<script" not in text
    assert "src=" not in text
    first = text[text.index("<svg") : text.index("</svg>") + 6]
    ET.fromstring(first)
    exempt, examined = made(direction_share_max=0.01, exempt="direction")
    assert exempt.passed
    assert "fail (exempt)" in gate_page(exempt, examined, critic_name="x")


def test_evaluation_says_why_a_critic_is_not_gated_and_goes_on(tmp_path: Path) -> None:
    shipped = "checkpoints/critic_goal1"
    parts = {"policy": "checkpoints/policy", "robot": ROBOT, "encoder": "checkpoints/encoder"}
    assert why_ungated(shipped, **parts) == ""
    assert why_ungated(shipped, **{**parts, "encoder": None}) == ""
    bare = shutil.copytree(resources.find(shipped), tmp_path / "critic")
    (bare / FILE).unlink()
    assert "has no gate.json. Run: qsteer gate" in why_ungated(bare, **parts)
    (bare / FILE).write_text("{")
    assert "run qsteer gate again" in why_ungated(bare, **parts)


@pytest.mark.parametrize("goal", [1, 2, 3])
def test_the_shipped_critics_passed_with_nothing_exempt_and_no_threshold_moved(goal: int) -> None:
    folder = resources.find(f"checkpoints/critic_goal{goal}")
    found = Gate.find(folder)
    assert found is not None
    assert found.passed
    assert found.settings == GateSettings()
    assert {check.name for check in found.checks} == set(QUESTIONS)
    assert min(
        sum(e.success for e in found.episodes), sum(not e.success for e in found.episodes)
    ) >= 10  # fmt: skip
    assert all(f"goal{goal}_" in e.name for e in found.episodes)
    command = json.loads((folder / FILE).read_text())["command"]
    assert cli.parser().parse_args(command.split()[1:]).verb == "gate"


def test_effects_of_a_known_critic_are_known() -> None:
    """Q = 3 cube_x + dx at position 0: every other input has effect zero."""
    import torch

    from qsteer_ros import ensemble

    critic = critic_of(lambda s, a: (3.0 * s[:, 1] + a[:, 0])[None])
    held_out = windows()
    found = permutation_effects(
        critic,
        torch.from_numpy(held_out.features),
        torch.from_numpy(held_out.chunk),
        ensemble.minimum,
        np.random.default_rng(0),
    )
    moved = {part.name: part.moved for part in found.parts if part.moved > 1e-5}
    assert set(moved) == {
        "cube", "cube_x", "action dx", "position 0", "action dx at position 0",
    }  # fmt: skip
    order = np.random.default_rng(0).permutation(len(held_out))
    s = (held_out.features[:, 1] - 1.0) / 2.0
    assert moved["cube_x"] == pytest.approx(
        3.0 * np.sqrt(np.square(s[order] - s).mean()), rel=1e-4
    )
    assert moved["position 0"] == moved["action dx"] == pytest.approx(found.chunk)
