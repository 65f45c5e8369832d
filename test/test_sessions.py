from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.replay.sessions import SESSION, Result, Session, Trial

ARMS = ("off", "best_of_n", "qgf")


def session(**changes: object) -> Session:
    plan = Session(ARMS, (1, 2), episodes=4, seed=100, settings={"qgf": {"guidance_weight": 0.03}})
    return replace(plan, **changes)  # type: ignore[arg-type]


def test_every_arm_meets_the_same_states_once_per_goal() -> None:
    counts = Counter((t.arm, t.goal, t.seed) for t in session().schedule())
    assert set(counts.values()) == {1}
    for arm in ARMS:
        for goal in (1, 2):
            assert {s for a, g, s in counts if (a, g) == (arm, goal)} == {100, 101, 102, 103}


def test_arms_alternate_in_blocks_of_one_state() -> None:
    schedule = session().schedule()
    for start in range(0, len(schedule), 6):
        assert len({t.seed for t in schedule[start : start + 6]}) == 1


def test_the_order_follows_from_the_seed_and_is_not_the_order_of_the_names() -> None:
    assert session().schedule() == session().schedule()
    assert session().schedule() != session(seed=101).schedule()
    first = [t.arm for t in session(episodes=20).schedule()][::6]
    assert len(set(first)) > 1


def test_a_resumed_session_runs_exactly_what_is_missing(tmp_path: Path) -> None:
    plan = session()
    for trial in plan.schedule()[:3]:
        plan = plan.with_result(Result(trial, "success", 90, (50.5, 61.0)))
        plan.save(tmp_path)
    loaded = Session.load(tmp_path)
    assert loaded == plan
    assert [t.index for t in loaded.remaining()] == list(range(3, 24))
    loaded.check_same_plan(session())


def test_aborted_episodes_do_not_count() -> None:
    plan = session()
    outcomes = iter(["success", "aborted", "failure"])
    for trial in [t for t in plan.schedule() if t.arm == "qgf"][:3]:
        plan = plan.with_result(Result(trial, next(outcomes), 10))
    assert plan.success("qgf") == 0.5
    assert plan.success("off") is None


def test_matched_results_share_goal_and_seed() -> None:
    plan = session()
    for trial in plan.schedule()[:6]:
        plan = plan.with_result(Result(trial, "failure", 200))
    assert {frozenset(arms) for arms in plan.matched().values()} == {frozenset(ARMS)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ()}, "'arms' of a session must name at least one, each once: got"),
        ({"arms": ("off", "off")}, "'arms' of a session must name at least one, each once"),
        ({"goals": ()}, "'goals' of a session"),
        ({"episodes": 0}, "'episodes' of a session must be at least 1: got 0"),
    ],
)
def test_a_session_without_anything_to_run_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        session(**changes)


def test_another_plan_in_the_same_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="must have the 'seed' it began with, 100: got 1"):
        session().check_same_plan(session(seed=1))


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be the folder of a session"):
        Session.load(tmp_path)
    (tmp_path / SESSION).write_text('{"format": "qsteer_session", "version"')
    with pytest.raises(DataError, match="Restore it from a copy"):
        Session.load(tmp_path)
    session().save(tmp_path)
    newer = json.loads((tmp_path / SESSION).read_text()) | {"version": 2}
    (tmp_path / SESSION).write_text(json.dumps(newer))
    with pytest.raises(DataError, match="version 1: found qsteer_session 2"):
        Session.load(tmp_path)


def test_episode_ids_sort_as_they_ran() -> None:
    ids = [t.episode_id for t in session().schedule()]
    assert ids == sorted(ids)
    assert Trial(3, "qgf", 1, 7).episode_id == "0003_goal1_qgf_seed7"
