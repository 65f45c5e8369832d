"""Training that goes on while new episodes arrive."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_store import ROBOT, traffic, write_episode

from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.interface import Interface
from qsteer_ros.learning.arrivals import Arrival, FolderWatch
from qsteer_ros.learning.kept import keep, kept
from qsteer_ros.learning.online import OnlineRun, Taken, train_online
from qsteer_ros.learning.settings_online import OnlineSettings
from qsteer_ros.learning.trainer import warmup_cosine
from qsteer_ros.learning.transitions import Transitions, from_steps

SPACE = Interface(
    horizon=3,
    action_names=("a", "b", "c", "d", "e"),
    action_scale=(1.0,) * 5,
    feature_names=("x", "y"),
    control_dt_s=0.05,
    encoder_hash="e" * 64,
)


def episode_of(steps: int, *, seed: int, mark: float = 0.0) -> Transitions:
    """Windows of one episode that is never solved; ``mark`` is its first feature."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(steps + 1, 2)).astype(np.float32)
    features[:, 0] = mark
    return from_steps(
        features=features,
        action=rng.uniform(-1, 1, (steps + 1, 5)).astype(np.float32),
        state_reward=np.full(steps + 1, -1.0, np.float32),
        solved=np.zeros(steps + 1, dtype=bool),
        episode=np.zeros(steps + 1, dtype=np.int64),
        interface=SPACE,
        discount=0.9,
        data_hash=f"episode{seed}",
    )


class Waiting:
    """Episodes that lie ready, in order; notes how many updates had been made at each request."""

    def __init__(self, *lengths: int) -> None:
        self.ready = [
            Arrival(f"key{i}", n, episode_of(n, seed=i, mark=9.0)) for i, n in enumerate(lengths)
        ]
        self.asked: list[int] = []
        self.run: OnlineRun | None = None

    def next(self, taken) -> Arrival | None:
        assert self.run is not None
        self.asked.append(self.run.taken.updates)
        return next((arrival for arrival in self.ready if arrival.key not in taken), None)


def settings_in(folder: Path, **options) -> OnlineSettings:
    base = {"steps": 4, "batch": 8, "hidden": "8,8", "horizon": 3, "discount": 0.9, "log_every": 0}
    return OnlineSettings(**{**base, "watch": "unused", "out": str(folder / "c"), **options})


def run_of(settings: OnlineSettings, source: Waiting) -> OnlineRun:
    run = OnlineRun(settings, episode_of(30, seed=77), source)
    source.run = run
    return run


# The ratio of updates to control steps


@pytest.mark.parametrize(
    ("ratio", "extra"), [(1.0, 24), (0.5, 12), (0.29, 6), (0.0, 0), (2.0, 48)]
)
def test_every_control_step_earns_the_stated_updates_and_no_more(
    tmp_path: Path, ratio: float, extra: int
) -> None:
    source = Waiting(10, 7, 7)
    run = run_of(settings_in(tmp_path, updates_per_step=ratio, environment_steps=20), source)
    metrics = run.run()
    assert metrics["updates"] == run.taken.updates == int(run.learner.taken) == 4 + extra
    assert metrics["environment_steps"] == 24
    assert metrics["new_episodes"] == 3
    assert source.asked == [4, 4 + int(ratio * 10 + 1e-9), 4 + int(ratio * 17 + 1e-9)]


def test_the_count_of_updates_due_is_exact() -> None:
    taken = Taken([("a", 100)])
    assert taken.due(OnlineSettings(steps=1, updates_per_step=0.29)) == 30
    assert int(100 * 0.29) == 28  # what a float would make of it


def test_no_control_step_beyond_the_limit_is_waited_for(tmp_path: Path) -> None:
    source = Waiting(10, 10, 10)
    run_of(settings_in(tmp_path, environment_steps=11), source).run()
    assert len(source.asked) == 2


def test_the_learning_rate_stays_at_its_floor_after_the_fixed_phase() -> None:
    rates = [warmup_cosine(step, steps=10, warmup=2, floor=0.3) for step in (9, 10, 11, 19, 500)]
    assert rates[0] > 0.3
    assert rates[1:] == pytest.approx([0.3] * 4)


# Old and new data mixed


@pytest.mark.parametrize(("share", "expected"), [(0.25, 2), (0.5, 4), (1.0, 8), (0.0, 0)])
def test_the_share_of_new_rows_in_each_batch_is_the_stated_one(
    tmp_path: Path, share: float, expected: int
) -> None:
    source = Waiting(10)
    run = run_of(settings_in(tmp_path, new_share=share, environment_steps=5), source)
    counts: list[int] = []
    draw = run.learner.draw

    def counted(generator):
        batch = draw(generator)
        counts.append(int((batch["features"][:, 0] == 9.0).sum()))
        return batch

    run.learner.draw = counted
    run.run()
    assert counts == [0] * 4 + [expected] * 10


def test_without_a_share_rows_are_drawn_uniformly_from_all(tmp_path: Path) -> None:
    run = run_of(settings_in(tmp_path, new_share=-1.0, batch=4000), Waiting())
    run.learner.buffer.append(episode_of(58, seed=1, mark=9.0))
    batch = run.learner.draw(torch.Generator().manual_seed(0))
    share = 56 / (56 + 28)
    assert float((batch["features"][:, 0] == 9.0).float().mean()) == pytest.approx(share, abs=0.03)


# The checkpoint and the state


def test_the_checkpoint_is_there_before_the_first_episode_and_rewritten_as_asked(
    tmp_path: Path,
) -> None:
    settings = settings_in(tmp_path, publish_every=3, environment_steps=8)
    source = Waiting(8)
    run = run_of(settings, source)
    published: list[int] = []
    plain = run.publish

    def noted() -> None:
        plain()
        published.append(run.taken.updates)
        assert Critic.load(settings.out).training["metrics"]["updates"] == run.taken.updates

    run.publish = noted
    run.run()
    assert published == [4, 7, 10, 12]
    critic = Critic.load(settings.out)
    assert critic.training["episodes"] == ["key0"]
    assert critic.training["settings"]["objective"] == "iql"
    for slow, saved in zip(
        run.learner.target.parameters(), critic.network.parameters(), strict=True
    ):
        assert torch.equal(slow, saved)


def weights(folder: str) -> list[torch.Tensor]:
    return list(Critic.load(folder).network.parameters())


@pytest.mark.parametrize("at", [2, 4, 9, 14, 20])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path, at: int) -> None:
    """In the fixed phase, between phases, within an episode's updates, and after them."""
    whole = settings_in(tmp_path, environment_steps=20)
    run_of(whole, Waiting(10, 7, 7)).run()
    parts = replace(whole, out=str(tmp_path / "parts"))
    first = run_of(parts, Waiting(10, 7, 7))
    update = first._update

    def pressed(*arguments) -> None:
        update(*arguments)
        if first.taken.updates == at:
            os.kill(os.getpid(), signal.SIGINT)

    first._update = pressed
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert first.taken.updates == at
    source = Waiting(10, 7, 7)
    second = run_of(parts, source)
    second.resume()
    assert second.taken == first.taken
    second.run()
    assert Counter(key for key, _ in second.taken.episodes) == {"key0": 1, "key1": 1, "key2": 1}
    assert second.taken.updates == 28
    for one, other in zip(weights(whole.out), weights(parts.out), strict=True):
        assert torch.equal(one, other)


def test_a_finished_run_goes_on_with_a_higher_limit(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, environment_steps=10)
    run_of(settings, Waiting(10, 7)).run()
    more = run_of(replace(settings, environment_steps=17), Waiting(10, 7))
    more.resume()
    assert more.run()["updates"] == 4 + 17


def test_a_state_of_other_settings_is_not_resumed(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, environment_steps=3)
    run_of(settings, Waiting(10)).run()
    other = run_of(replace(settings, updates_per_step=2.0), Waiting(10))
    with pytest.raises(ConfigError, match=r"'updates_per_step' was 1\.0, now it is 2\.0"):
        other.resume()


def test_ctrl_c_ends_the_wait_for_an_episode(tmp_path: Path) -> None:
    run = run_of(settings_in(tmp_path, environment_steps=0, poll_s=3600.0), Waiting())
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run.run()
    timer.join()
    assert run.taken.updates == 4
    assert Critic.load(run.settings.out).training["metrics"]["updates"] == 4


def test_kept_windows_are_the_same_windows(tmp_path: Path) -> None:
    before = replace(episode_of(9, seed=1), episodes=("a", "b"))
    keep(tmp_path / "x.npz", before)
    after = kept(tmp_path / "x.npz")
    assert (after.interface, after.data_hash, after.episodes) == (SPACE, "episode1", ("a", "b"))
    assert after.arrays().keys() == before.arrays().keys()
    for name, array in before.arrays().items():
        assert array.dtype == after.arrays()[name].dtype
        assert np.array_equal(array, after.arrays()[name])
    (tmp_path / "x.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"x\.npz' must hold the transitions this run had taken"):
        kept(tmp_path / "x.npz")


# The watched folder


def watch(store: Path, said: list[str] | None = None) -> FolderWatch:
    return FolderWatch(
        store,
        interface=SPACE,
        features=lambda steps: np.stack([steps.position[:, 0], steps.reward], axis=1),
        goal=1,
        discount=0.9,
        say=(said if said is not None else []).append,
    )


def log(store: Path, name: str, *, steps: int = 12, **options) -> Path:
    return write_episode(store, name, list(traffic(steps)), robot=ROBOT, **options)


def contents(store: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def test_finished_episodes_are_given_once_each_in_the_order_of_their_names(tmp_path: Path) -> None:
    log(tmp_path, "b", steps=15)
    log(tmp_path, "a", steps=12)
    before = contents(tmp_path)
    found, keys = watch(tmp_path), []
    for steps in (12, 15):
        arrival = found.next(keys)
        assert arrival is not None
        assert arrival.steps == steps
        assert arrival.transitions.interface == SPACE
        assert len(arrival.transitions) == steps - SPACE.horizon
        assert arrival.transitions.episodes == (arrival.key,)
        keys.append(arrival.key)
    assert len(set(keys)) == 2
    assert found.next(keys) is None
    log(tmp_path, "a2")
    arrival = found.next(keys)
    assert arrival is not None
    assert arrival.key not in keys
    assert watch(tmp_path).next([*keys, arrival.key]) is None
    assert {k: v for k, v in contents(tmp_path).items() if "a2" not in k} == before


def test_an_episode_in_progress_is_left_alone_and_taken_when_it_is_finished(
    tmp_path: Path,
) -> None:
    finished = log(tmp_path / "elsewhere", "e")
    store = tmp_path / "store"
    open_one = log(store, "e", close=False)
    before, said = contents(store), []
    found = watch(store, said)
    assert found.next([]) is None
    assert found.next([]) is None
    assert len(said) == 1
    assert said[0].startswith("passed over e")
    assert "still being recorded" in said[0]
    assert contents(store) == before
    shutil.rmtree(open_one)
    shutil.copytree(finished, open_one)
    assert found.next([]) is not None


def test_a_half_copied_episode_is_left_alone_until_it_is_whole(tmp_path: Path) -> None:
    folder = log(tmp_path, "e")
    bag = next(folder.glob("*.mcap"))
    whole = bag.read_bytes()
    bag.write_bytes(whole[: len(whole) // 2])
    said: list[str] = []
    found = watch(tmp_path, said)
    assert found.next([]) is None
    assert said == [
        "passed over e: its MCAP file is not the one that was closed: torn, or half copied."
    ]
    bag.write_bytes(whole)
    assert found.next([]) is not None
    assert len(said) == 1


def test_what_cannot_be_used_is_said_once_and_does_not_stop_the_others(tmp_path: Path) -> None:
    log(tmp_path, "a", goal=2)
    log(tmp_path, "b", steps=2)
    log(tmp_path, "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "episode.json").write_text("{")
    said: list[str] = []
    found = watch(tmp_path, said)
    arrival = found.next([])
    assert arrival is not None
    assert arrival.steps == 12
    assert found.next([arrival.key]) is None
    assert found.next([arrival.key]) is None
    assert len(said) == 3
    assert "its goal is 2, not 1" in said[0]
    assert "no window of 3 executed actions" in said[1]
    assert "must describe an episode" in said[2]


def test_episodes_that_arrive_while_it_trains_are_taken_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    log(store, "e0")
    found = watch(store)

    class Growing:
        """The logger finishes another episode at every other look."""

        looks = 0

        def next(self, taken):
            self.looks += 1
            if self.looks in (2, 4):
                log(store, f"e{self.looks}")
            return found.next(taken)

    settings = settings_in(tmp_path, environment_steps=36, updates_per_step=0.5, poll_s=0.01)
    run = OnlineRun(settings, episode_of(30, seed=77), Growing())
    metrics = run.run()
    assert metrics["new_episodes"] == 3
    assert metrics["environment_steps"] == 36
    assert metrics["updates"] == 4 + 18
    assert len({key for key, _ in run.taken.episodes}) == 3
    assert run.learner.buffer.new == 3 * (12 - SPACE.horizon)


def test_an_episode_of_the_fixed_data_is_not_taken_again(tmp_path: Path) -> None:
    store = tmp_path / "store"
    log(store, "e0")
    first = watch(store).next([])
    assert first is not None
    log(store, "e1")
    settings = settings_in(tmp_path, environment_steps=12)
    run = OnlineRun(settings, first.transitions, watch(store))
    run.run()
    assert [key for key, _ in run.taken.episodes] != [first.key]
    assert len(run.taken.episodes) == 1


# What cannot be done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"watch": ""}, "must come from one place.*got neither"),
        ({"simulate": True}, "must come from one place.*got both"),
        ({"watch": "", "simulate": True}, "simulate=true needs a simulator"),
        ({"watch": "/nowhere"}, "must be a folder"),
    ],
)
def test_a_run_without_one_source_of_episodes_is_refused(tmp_path, options, message) -> None:
    options = {"robot": "robot_ur5e_sim.yaml", "encoder": "checkpoints/encoder", **options}
    with pytest.raises(ConfigError, match=message):
        train_online(settings_in(tmp_path, **options))
