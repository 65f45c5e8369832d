"""Training: windows, returns, resumption and settings, on tiny data."""

from __future__ import annotations

import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from qsteer_ros import checkpoints
from qsteer_ros.cli import main, parser
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.learning.play import Play, load_play, window_starts, windows, yaw_of
from qsteer_ros.learning.servo import fit_servo_of_play, robot_file_lines
from qsteer_ros.learning.settings import (
    PROGRAMS,
    CriticSettings,
    PolicySettings,
    checked,
    given,
)
from qsteer_ros.learning.train_bc import STD_FLOOR, noisy_cube, statistics, train_policy
from qsteer_ros.learning.train_critic import train_critic
from qsteer_ros.learning.trainer import STATE, warmup_cosine
from qsteer_ros.learning.transitions import Transitions, chunk_returns, from_play
from qsteer_ros.policies.flow_policy import FlowPolicy


def play(steps: int = 40, episodes: int = 2, seed: int = 0) -> Play:
    """Arms that wander and a cube that is carried along the x axis."""
    rng = np.random.default_rng(seed)
    rows = steps * episodes
    cube = np.zeros((rows, 3), dtype=np.float32)
    cube[:, 0] = np.tile(np.linspace(0.3, 0.6, steps), episodes)
    return Play(
        qpos=rng.normal(size=(rows, 21)).astype(np.float32),
        ctrl=rng.normal(size=(rows, 7)).astype(np.float32),
        action=rng.uniform(-1, 1, (rows, 5)).astype(np.float32),
        proprio=rng.normal(size=(rows, 19)).astype(np.float32),
        cube_xyz=cube,
        cube_yaw=np.zeros(rows, dtype=np.float32),
        episode=np.repeat(np.arange(episodes), steps),
        hash="play",
    )


def transitions(count: int = 300) -> Transitions:
    rng = np.random.default_rng(1)
    return Transitions(
        features=rng.normal(size=(count, 27)).astype(np.float32),
        chunk=rng.uniform(-1, 1, (count, 5, 5)).astype(np.float32),
        reward=-rng.random(count).astype(np.float32),
        bootstrap=np.full(count, 0.95, dtype=np.float32),
        next_features=rng.normal(size=(count, 27)).astype(np.float32),
        encoder_hash=None,
        data_hash="random",
    )


def write_play(folder: Path, episodes: int = 2, steps: int = 30) -> Path:
    """A data set as ``qsteer data`` lays it out."""
    rng = np.random.default_rng(0)
    (folder / "play").mkdir(parents=True)
    for index in range(episodes):
        widths = {"qpos": 21, "qvel": 20, "ctrl": 7, "action": 5, "tool_xyz": 3}
        arrays = {k: rng.normal(size=(steps, w)).astype(np.float32) for k, w in widths.items()}
        arrays |= {k: rng.random(steps).astype(np.float32) for k in ("effort", "tool_yaw")}
        np.savez(folder / "play" / f"episode_{index:05d}.npz", **arrays)
    return folder


def weights(folder: Path, kind: str) -> dict[str, np.ndarray]:
    return dict(checkpoints.load(folder, kind=kind).tensors)


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


# Windows and returns


def test_windows_never_cross_the_end_of_an_episode() -> None:
    episode = np.array([0] * 8 + [1] * 3 + [2] * 7)
    starts = window_starts(episode, 5)
    np.testing.assert_array_equal(starts, [0, 1, 2, 11, 12])
    rows = windows(np.arange(18, dtype=np.float32)[:, None], starts, 5)
    assert rows.shape == (5, 5, 1)
    np.testing.assert_array_equal(rows[3, :, 0], np.arange(11, 16))


def test_an_episode_shorter_than_a_window_gives_none() -> None:
    assert len(window_starts(np.zeros(5, dtype=np.int64), 5)) == 0


def test_return_and_bootstrap_before_at_and_after_the_goal() -> None:
    success = np.array([False] * 6 + [True] + [False] * 8)
    starts = np.arange(9)
    reward, bootstrap = chunk_returns(success, starts, 5, 0.9)
    far = -(1 + 0.9 + 0.81 + 0.729 + 0.6561)
    assert reward[0] == pytest.approx(far)  # states 1 to 5: not there yet
    assert bootstrap[0] == pytest.approx(0.9**5)
    assert reward[1] == pytest.approx(-(1 + 0.9 + 0.81 + 0.729))  # reached by the fifth action
    assert bootstrap[1] == 0.0
    assert reward[5] == 0.0  # reached by the first action
    assert reward[6] == 0.0  # already there
    assert bootstrap[6] == 0.0
    assert reward[7] == pytest.approx(far)  # left again: an episode of its own
    assert bootstrap[7] == pytest.approx(0.9**5)


def test_play_is_relabelled_with_the_distance_to_the_goal() -> None:
    source = play()
    found = from_play(
        source, goal_xyz=np.array([0.5, 0.0, 0.0]), radius_m=0.04, horizon=5, discount=0.99
    )
    starts = window_starts(source.episode, 5)
    near = np.abs(source.cube_xyz[:, 0] - 0.5) <= 0.04
    reached = [bool(near[s : s + 6].any()) for s in starts]
    np.testing.assert_array_equal(found.bootstrap == 0.0, reached)
    np.testing.assert_array_equal(found.features, source.features()[starts])
    np.testing.assert_array_equal(found.next_features, source.features()[starts + 5])
    np.testing.assert_array_equal(found.chunk[4, 2], source.action[starts[4] + 2])


def test_transitions_refuse_what_is_not_finite_or_missing() -> None:
    good = transitions(5)
    with pytest.raises(DataError, match="must be finite"):
        Transitions(**{**vars(good), "reward": np.full(5, np.nan, dtype=np.float32)})
    with pytest.raises(DataError, match="must have 5 rows like features: got 4"):
        Transitions(**{**vars(good), "reward": good.reward[:4]})
    with pytest.raises(DataError, match="there are none"):
        Transitions(**{k: v[:0] if hasattr(v, "ndim") else v for k, v in vars(good).items()})


def test_yaw_of_a_quaternion_is_the_angle_about_the_vertical() -> None:
    yaw = np.array([-2.0, 0.0, 0.5, 3.0])
    quat = np.stack([np.cos(yaw / 2), 0 * yaw, 0 * yaw, np.sin(yaw / 2)], axis=1)
    np.testing.assert_allclose(yaw_of(quat), yaw, atol=1e-6)


# Features for training


def test_no_feature_is_divided_by_less_than_the_floor() -> None:
    features = torch.randn(100, 3) * torch.tensor([1e-4, 0.05, 3.0])
    _, std = statistics(features)
    assert std[0] == std[1] == pytest.approx(STD_FLOOR)
    assert std[2] > 2.0


def test_cube_noise_moves_absolute_and_relative_position_alike() -> None:
    features = torch.randn(200, 27)
    moved = noisy_cube(features, 0.01, torch.Generator().manual_seed(0)) - features
    assert torch.equal(moved[:, :19], torch.zeros(200, 19))
    assert torch.equal(moved[:, 25:], torch.zeros(200, 2))
    torch.testing.assert_close(moved[:, 19:22], moved[:, 22:25])
    assert float(moved[:, 19:22].std()) == pytest.approx(0.1, rel=0.1)


def test_the_learning_rate_warms_up_and_ends_at_its_floor() -> None:
    factors = [warmup_cosine(s, steps=100, warmup=10, floor=0.05) for s in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[100] == pytest.approx(0.05)
    assert all(a >= b for a, b in pairwise(factors[10:]))


# Whole runs


def test_a_resumed_critic_has_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    settings = CriticSettings(steps=12, hidden=16, batch=8, checkpoint_every=5)
    train_critic(transitions(), tmp_path / "whole", settings)
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        interrupt_after(7, transitions(), stopped, settings)
    assert checkpoints.load(stopped / STATE, kind=STATE).config["step"] == 7
    train_critic(transitions(), stopped, settings, resume=True)
    assert_same(weights(tmp_path / "whole", "critic"), weights(stopped, "critic"))
    assert not (stopped / STATE).exists()


def interrupt_after(step: int, data: Transitions, out: Path, settings: CriticSettings) -> None:
    """Train, and press Ctrl-C while step ``step`` (from 1) is being taken."""
    from qsteer_ros.learning.train_critic import CriticLearner

    plain = CriticLearner.update

    def update(self, number):
        if number == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, number)

    CriticLearner.update = update
    try:
        train_critic(data, out, settings)
    finally:
        CriticLearner.update = plain


def test_a_resumed_policy_has_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    data = write_play(tmp_path / "data")
    settings = PolicySettings(steps=10, hidden=16, batch=8, checkpoint_every=4, cube_noise_m=0.01)
    train_policy(data, tmp_path / "whole", settings)
    part = tmp_path / "part"
    # The state saved after step 4 is what a killed run leaves behind.
    from qsteer_ros.learning import trainer

    kept = trainer._save

    def save_and_die(*arguments):
        kept(*arguments)
        raise RuntimeError("killed")

    trainer._save = save_and_die
    try:
        with pytest.raises(RuntimeError, match="killed"):
            train_policy(data, part, settings)
    finally:
        trainer._save = kept
    train_policy(data, part, settings, resume=True)
    assert_same(weights(tmp_path / "whole", "policy"), weights(part, "policy"))


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    data = transitions()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = CriticSettings(steps=3, hidden=16, batch=8, seed=seed)
        train_critic(data, tmp_path / name, settings)
    one, other = weights(tmp_path / "a", "critic"), weights(tmp_path / "c", "critic")
    assert_same(one, weights(tmp_path / "b", "critic"))
    assert not np.array_equal(one["target.kernels.0"], other["target.kernels.0"])


def test_a_state_of_other_settings_is_not_resumed(tmp_path: Path) -> None:
    data = transitions()
    settings = CriticSettings(steps=12, hidden=16, batch=8)
    with pytest.raises(KeyboardInterrupt):
        interrupt_after(3, data, tmp_path / "c", settings)
    with pytest.raises(ConfigError, match="same settings to be resumed"):
        train_critic(
            data, tmp_path / "c", CriticSettings(steps=13, hidden=16, batch=8), resume=True
        )


def test_a_trained_critic_loads_and_says_how_it_was_made(tmp_path: Path) -> None:
    settings = CriticSettings(goal=2, steps=3, hidden=16, batch=8)
    train_critic(transitions(), tmp_path / "critic", settings, command="qsteer train critic")
    critic = Critic.load(tmp_path / "critic")
    assert critic.training["command"] == "qsteer train critic"
    assert critic.training["goal"] == 2
    assert critic.training["data_hash"] == "random"
    assert critic.interface.encoder_hash is None
    assert critic.condition(torch.zeros(1, 27))(torch.zeros(4, 5, 5)).shape == (2, 4)


def test_a_trained_policy_loads_and_acts(tmp_path: Path) -> None:
    data = write_play(tmp_path / "data")
    train_policy(data, tmp_path / "policy", PolicySettings(steps=3, hidden=16, batch=8))
    policy = FlowPolicy.load(tmp_path / "policy")
    field = policy.condition(torch.zeros(1, 27))
    assert field(torch.zeros(2, 5, 5), torch.zeros(2)).shape == (2, 5, 5)


def test_the_critic_learns_the_value_of_a_known_problem(tmp_path: Path) -> None:
    """Reward -|a| in one step, then over: Q must rise towards a = 0."""
    rng = np.random.default_rng(0)
    chunk = rng.uniform(-1, 1, (2000, 1, 1)).astype(np.float32)
    data = Transitions(
        features=np.zeros((2000, 27), dtype=np.float32),
        chunk=np.repeat(chunk, 5, axis=2),
        reward=-np.abs(chunk[:, 0, 0]),
        bootstrap=np.zeros(2000, dtype=np.float32),
        next_features=np.zeros((2000, 27), dtype=np.float32),
        encoder_hash=None,
        data_hash="known",
    )
    settings = CriticSettings(horizon=1, steps=400, hidden=32, batch=64, ema=0.1)
    train_critic(data, tmp_path / "critic", settings)
    q = Critic.load(tmp_path / "critic").condition(torch.zeros(1, 27))
    probes = torch.tensor([-0.8, 0.0, 0.8]).view(3, 1, 1).expand(3, 1, 5)
    values = q(probes).mean(dim=0)
    assert values.tolist() == pytest.approx([-0.8, 0.0, -0.8], abs=0.12)


# Settings and refusals


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="CriticSettings has no setting 'learnrate'"):
        checked(CriticSettings, {"learnrate": 1.0})


def test_a_setting_out_of_bounds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'goal' must be in \[1, 3\]: got 4"):
        checked(CriticSettings, {"goal": 4})


def test_a_setting_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'steps' must be of type int: got 2\.5"):
        checked(PolicySettings, {"steps": 2.5})


def test_a_folder_without_play_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must hold episodes of play"):
        load_play(tmp_path)


def test_a_damaged_episode_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_play(tmp_path / "data") / "play"
    (folder / "episode_00001.npz").write_bytes(b"not a zip file")
    with pytest.raises(DataError, match=r"episode_00001\.npz' is damaged"):
        load_play(folder)


def test_metrics_in_a_checkpoint_are_plain_numbers(tmp_path: Path) -> None:
    train_critic(transitions(), tmp_path / "c", CriticSettings(steps=3, hidden=16, batch=8))
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert all(isinstance(v, float) for v in config["training"]["metrics"].values())


# From the command line


def test_the_command_line_trains_and_is_written_into_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_play(tmp_path / "data"), tmp_path / "policy"
    words = ["train", "bc", "--data", str(data), "--out", str(out)]
    words += ["--steps", "3", "--hidden", "16", "--batch", "8"]
    monkeypatch.setattr("sys.argv", ["qsteer", *words])
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == str(out)
    assert FlowPolicy.load(out).training["command"] == " ".join(["qsteer", *words])


def test_the_command_line_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "critic", "--out", str(tmp_path / "c"), "--goal", "7"]) == 1
    assert "'goal' must be in [1, 3]: got 7" in capsys.readouterr().err


def test_every_setting_is_an_option_with_its_default() -> None:
    for name, (kind, _) in PROGRAMS.items():
        parsed = parser().parse_args(["train", name, "--out", "x"])
        assert given(parsed, kind) == {}
        assert checked(kind, given(parsed, kind)) == kind()


def test_the_servo_lag_is_fitted_from_play_and_written_as_a_robot_file_wants_it(
    tmp_path: Path,
) -> None:
    data = write_play(tmp_path / "data", steps=200)
    tau = np.array([0.1, 0.08, 0.06, 0.05, 0.04, 0.2])
    for path in (data / "play").glob("*.npz"):
        with np.load(path) as episode:
            arrays = dict(episode)
        arrays["qpos"] = arrays["qpos"].astype(np.float64)
        q = arrays["qpos"]
        for row in range(len(q) - 1):
            gap = arrays["ctrl"][row, :6] - q[row, :6]
            q[row + 1, :6] = q[row, :6] + (1 - np.exp(-0.05 / tau)) * gap + 0.001
        np.savez(path, **arrays)
    servo = fit_servo_of_play(data)
    np.testing.assert_allclose(servo.tau_s, tau, rtol=1e-4)
    np.testing.assert_allclose(servo.bias_rad, 0.001, atol=1e-6)
    section = yaml.safe_load(robot_file_lines(servo))["servo"]
    np.testing.assert_allclose(section["tau_s"], tau, atol=1e-4)
