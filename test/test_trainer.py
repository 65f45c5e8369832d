"""The loop of every training program: resumption, interruption, processes, scalars."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from played import random_transitions, write_play

from qsteer_ros import checkpoints
from qsteer_ros.cli import main
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.learning import states
from qsteer_ros.learning.learner import Learner
from qsteer_ros.learning.play import arm_interface
from qsteer_ros.learning.settings_bc import PolicySettings
from qsteer_ros.learning.settings_critic import CriticSettings
from qsteer_ros.learning.train_bc import train_policy
from qsteer_ros.learning.train_critic import CriticLearner, train_critic
from qsteer_ros.learning.trainer import Trainer, run, warmup_cosine
from qsteer_ros.learning.transitions import Transitions
from qsteer_ros.policies.flow_policy import FlowPolicy

SMALL = {"hidden": "16,16", "batch": 8, "log_every": 0}


def weights(folder: str | Path, kind: str) -> dict[str, np.ndarray]:
    return dict(checkpoints.load(folder, kind=kind).tensors)


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def interrupt_after(
    step: int, settings: CriticSettings, monkeypatch: pytest.MonkeyPatch, **options
) -> None:
    """Train, and press Ctrl-C while step ``step`` (from 1) is being taken."""
    plain, drawn = CriticLearner.draw, []

    def draw(self, source):
        drawn.append(source)
        if len(drawn) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, source)

    monkeypatch.setattr(CriticLearner, "draw", draw)
    with pytest.raises(KeyboardInterrupt):
        train_critic(settings, transitions=random_transitions(), **options)
    monkeypatch.setattr(CriticLearner, "draw", plain)


class Line(Learner):
    """Fits a number to the mean of the rows 0 to 7."""

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.guess = torch.nn.Parameter(torch.zeros(1))
        self._optimiser = torch.optim.SGD(self.parameters(), lr=rate)
        self.order: list[str] = []

    def draw(self, source: torch.Generator) -> dict[str, torch.Tensor]:
        return {"row": torch.arange(8.0)}

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": 0.5 * (self.guess - batch["row"]).square().mean()}

    def optimisers(self):
        return {"guess": self._optimiser}

    def before_step(self) -> None:
        self.order.append(f"before at {self.guess.item():g}")

    def after_step(self) -> None:
        self.order.append(f"after at {self.guess.item():g}")


def test_the_learning_rate_warms_up_and_ends_at_its_floor() -> None:
    factors = [warmup_cosine(s, steps=100, warmup=10, floor=0.05) for s in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[100] == pytest.approx(0.05)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_what_follows_the_weights_is_asked_before_and_after_each_step() -> None:
    learner = Line()
    trainer = Trainer(learner, PolicySettings(steps=2, warmup=0, lr_floor=1.0))
    trainer.step(0)
    assert learner.order == ["before at 0", "after at 1.75"]  # 0 + 0.5 * (3.5 - 0)


def test_a_gradient_is_shortened_to_the_clip() -> None:
    learner = Line()
    settings = PolicySettings(steps=2, warmup=0, lr_floor=1.0, gradient_clip=0.5)
    Trainer(learner, settings).step(0)
    assert learner.guess.item() == pytest.approx(0.25)


def test_a_loss_that_is_not_finite_ends_the_run_and_says_at_which_step(tmp_path: Path) -> None:
    settings = PolicySettings(out=str(tmp_path / "x"), steps=100, lr_floor=1.0, warmup=0)
    with pytest.raises(DataError, match=r"loss must be finite: it is .* at step 50"):
        run(
            Line(rate=1e6),
            replace(settings, log_every=0),
            data_hash="",
            description="",
            resume=False,
        )


def test_a_resumed_critic_has_the_same_weights_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CriticSettings(steps=12, checkpoint_every=5, **SMALL)
    whole = replace(settings, out=str(tmp_path / "whole"))
    stopped = replace(settings, out=str(tmp_path / "stopped"))
    train_critic(whole, transitions=random_transitions())
    interrupt_after(7, stopped, monkeypatch)
    state = states.run_folder(stopped.out) / states.STATE
    assert checkpoints.load(state, kind=states.STATE).config["step"] == 7
    train_critic(stopped, transitions=random_transitions(), resume=True)
    assert_same(weights(whole.out, "critic"), weights(stopped.out, "critic"))
    assert not state.exists()


@pytest.mark.parametrize("ema", [0.0, 0.1])
def test_a_resumed_policy_has_the_same_weights_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    data = str(write_play(tmp_path / "data"))
    settings = PolicySettings(data=data, steps=10, checkpoint_every=4, ema=ema, **SMALL)
    whole = replace(settings, out=str(tmp_path / "whole"))
    part = replace(settings, out=str(tmp_path / "part"))
    train_policy(whole)
    kept = states.save

    def save_and_die(*arguments):  # what a killed run leaves behind
        kept(*arguments)
        raise RuntimeError("killed")

    monkeypatch.setattr(states, "save", save_and_die)
    with pytest.raises(RuntimeError, match="killed"):
        train_policy(part)
    monkeypatch.setattr(states, "save", kept)
    train_policy(part, resume=True)
    assert_same(weights(whole.out, "policy"), weights(part.out, "policy"))


def test_the_policy_is_the_average_of_the_weights_where_one_is_kept(tmp_path: Path) -> None:
    data = str(write_play(tmp_path / "data"))
    for name, ema in (("last", 0.0), ("copy", 1.0), ("slow", 0.01)):
        settings = PolicySettings(data=data, out=str(tmp_path / name), steps=5, ema=ema, **SMALL)
        train_policy(settings)
    last, copy, slow = (weights(tmp_path / n, "policy") for n in ("last", "copy", "slow"))
    assert_same(last, copy)
    assert not np.array_equal(last["velocity.head.weight"], slow["velocity.head.weight"])


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = CriticSettings(out=str(tmp_path / name), steps=3, seed=seed, **SMALL)
        train_critic(settings, transitions=random_transitions())
    one, other = weights(tmp_path / "a", "critic"), weights(tmp_path / "c", "critic")
    assert_same(one, weights(tmp_path / "b", "critic"))
    assert not np.array_equal(one["target.kernels.0"], other["target.kernels.0"])


def test_a_state_of_other_settings_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CriticSettings(out=str(tmp_path / "c"), steps=12, **SMALL)
    interrupt_after(3, settings, monkeypatch)
    with pytest.raises(ConfigError, match="same settings to be resumed: 'steps' was 12"):
        train_critic(replace(settings, steps=13), transitions=random_transitions(), resume=True)


def test_a_trained_critic_loads_and_says_how_it_was_made(tmp_path: Path) -> None:
    settings = CriticSettings(out=str(tmp_path / "critic"), goal=2, steps=3, **SMALL)
    train_critic(settings, transitions=random_transitions(), command="qsteer train critic")
    critic = Critic.load(tmp_path / "critic")
    assert critic.training["command"] == "qsteer train critic"
    assert critic.training["goal"] == 2
    assert critic.training["data_hash"] == "random"
    assert critic.interface.encoder_hash is None
    assert critic.condition(torch.zeros(1, 27))(torch.zeros(4, 5, 5)).shape == (2, 4)
    assert all(isinstance(v, float) for v in critic.training["metrics"].values())


def test_a_trained_policy_loads_and_acts(tmp_path: Path) -> None:
    data = str(write_play(tmp_path / "data"))
    train_policy(PolicySettings(data=data, out=str(tmp_path / "policy"), steps=3, **SMALL))
    field = FlowPolicy.load(tmp_path / "policy").condition(torch.zeros(1, 27))
    assert field(torch.zeros(2, 5, 5), torch.zeros(2)).shape == (2, 5, 5)


def test_the_critic_learns_the_value_of_a_known_problem(tmp_path: Path) -> None:
    """Reward -|a| in one step, then over: Q must rise towards a = 0."""
    rng = np.random.default_rng(0)
    chunk = rng.uniform(-1, 1, (2000, 1, 1)).astype(np.float32)
    data = Transitions(
        features=np.zeros((2000, 27), dtype=np.float32),
        chunk=np.repeat(chunk, 5, axis=2),
        interface=arm_interface(1),
        data_hash="known",
        reward=-np.abs(chunk[:, 0, 0]),
        bootstrap=np.zeros(2000, dtype=np.float32),
        next_features=np.zeros((2000, 27), dtype=np.float32),
    )
    settings = CriticSettings(
        out=str(tmp_path / "critic"), horizon=1, steps=400, hidden="32,32,32", batch=64, ema=0.1
    )
    train_critic(settings, transitions=data)
    q = Critic.load(tmp_path / "critic").condition(torch.zeros(1, 27))
    probes = torch.tensor([-0.8, 0.0, 0.8]).view(3, 1, 1).expand(3, 1, 5)
    values = q(probes).mean(dim=0)
    assert values.tolist() == pytest.approx([-0.8, 0.0, -0.8], abs=0.12)


def test_scalars_are_written_for_tensorboard_and_replaced_after_a_resumed_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = CriticSettings(
        out=str(tmp_path / "c"), steps=12, hidden="16,16", batch=8, log_every=2, checkpoint_every=5
    )
    interrupt_after(7, settings, monkeypatch)
    train_critic(settings, transitions=random_transitions(), resume=True)
    events = EventAccumulator(str(states.run_folder(settings.out) / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("loss")] == [0, 2, 4, 6, 8, 10]


SHARED = """
import sys
from played import random_transitions
from qsteer_ros.learning.settings_critic import CriticSettings
from qsteer_ros.learning.train_critic import train_critic
settings = CriticSettings(out=sys.argv[1], steps=6, hidden="16,16", batch=8, log_every=2)
print(train_critic(settings, transitions=random_transitions()))
"""


def test_two_processes_that_share_each_batch_train_what_one_does(tmp_path: Path) -> None:
    """Real torchrun, real Gloo: same losses and weights up to rounding."""
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"}
    one = [sys.executable, str(script), str(tmp_path / "one")]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    two += [str(script), str(tmp_path / "two")]
    for command in (one, two):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    alone, shared = (Critic.load(tmp_path / name).training["metrics"] for name in ("one", "two"))
    assert shared == pytest.approx(alone, rel=1e-5)
    ours, theirs = (weights(tmp_path / name, "critic") for name in ("one", "two"))
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_batch_that_processes_cannot_share_equally_is_refused() -> None:
    from qsteer_ros.learning.processes import Processes

    with pytest.raises(ConfigError, match="'batch' must be a multiple of the 3 processes"):
        Processes(rank=0, count=3).check_batch(8)


def test_the_command_line_trains_and_is_written_into_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_play(tmp_path / "data"), tmp_path / "policy"
    config = tmp_path / "bc.yaml"
    config.write_text(f"data: {data}\nsteps: 5\nhidden: 16,16\nbatch: 8\nlearning_rate: 1e-4\n")
    words = ["train", "bc", "--config", str(config), f"out={out}", "steps=3"]
    monkeypatch.setattr("sys.argv", ["qsteer", *words])
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == str(out)
    training = FlowPolicy.load(out).training
    assert training["command"] == " ".join(["qsteer", *words])
    assert training["steps"] == 3
    assert training["settings"]["learning_rate"] == 1e-4
