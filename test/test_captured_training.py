"""Captured training steps: on a CPU a replay does the work again; to capture takes a GPU.

A learning rate that the device reads is a float32 number: eager steps differ by that rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from played import random_transitions
from torch import Tensor

from qsteer_ros import capture
from qsteer_ros.errors import ConfigError
from qsteer_ros.learning import captured, states
from qsteer_ros.learning.captured import CapturedStep, put_back, state_of
from qsteer_ros.learning.learner import Batch, Learner
from qsteer_ros.learning.settings_bc import PolicySettings
from qsteer_ros.learning.settings_critic import CriticSettings
from qsteer_ros.learning.train_bc import PolicyLearner
from qsteer_ros.learning.train_critic import CriticLearner
from qsteer_ros.learning.trainer import Trainer, run

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SMALL: dict[str, Any] = {"hidden": "32,32", "batch": 16, "steps": 12, "warmup": 4, "log_every": 0}
CRITIC = CriticSettings(**SMALL)
CASES: dict[str, tuple[type[Learner], Any]] = {
    "critic": (CriticLearner, CRITIC),
    "critic, clipped": (CriticLearner, replace(CRITIC, gradient_clip=0.1)),
    "critic, warm start": (CriticLearner, replace(CRITIC, warm_start=5)),
    "policy": (PolicyLearner, PolicySettings(**SMALL)),
    "policy, averaged": (PolicyLearner, PolicySettings(**SMALL, ema=0.1)),
}


class Rerun:
    """Stands for a CUDA graph: does the work again and leaves the result where it was."""

    def __init__(self, work: Callable[[], Tensor], learner: Learner) -> None:
        before = state_of(learner)
        self._work, self.result = work, work()
        put_back(learner, before)  # a capture does nothing

    def replay(self) -> None:
        self.result.copy_(self._work())


class Counted(Rerun):
    """Counts captures."""

    made = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        Counted.made += 1


def learner_of(case: str, **options: Any) -> tuple[Any, Any]:
    kind, settings = CASES[case]
    settings = replace(settings, **options)
    return kind(random_transitions(), settings), settings


def pretending(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU passes for a GPU."""

    def recorded(work: Callable[[], Tensor], device: torch.device, **_: Any) -> Any:
        graph = Counted(work, learner)
        return graph, graph.result

    def warm_up(work: Callable[[], object], device: torch.device) -> None:
        for _ in range(capture.WARM_UPS):
            work()

    Counted.made = 0
    monkeypatch.setattr(capture, "captured", recorded)
    monkeypatch.setattr(capture, "warm_up", warm_up)
    monkeypatch.setattr(captured, "check", lambda learner, *, count: None)


def steps_of(learner: Learner, settings: Any, first: int = 0) -> list[dict[str, float]]:
    trainer = Trainer(learner, settings)
    shown = [trainer.step(number) for number in range(first, settings.steps)]
    return [{name: float(value) for name, value in one.items()} for one in shown]


def assert_same_state(one: Learner, other: Learner, *, atol: float = 1e-6) -> None:
    (weights, entries), (theirs, their_entries) = state_of(one), state_of(other)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=atol)
    for mine, yours in zip(entries, their_entries, strict=True):
        assert mine.keys() == yours.keys()
        for key in mine:
            tensors = mine[key].flatten(), yours[key].flatten()
            torch.testing.assert_close(*tensors, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_the_eager_ones_in_weights_moments_and_scalars(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, settings = learner_of(case)
    expected = steps_of(eager, settings)
    replayed, _ = learner_of(case)
    pretending(replayed, monkeypatch)
    found = steps_of(replayed, replace(settings, cuda_graph=True))
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert_same_state(replayed, eager)
    assert Counted.made == (2 if "warm start" in case else 1)


def test_scalars_of_a_step_stay_what_they_were_when_others_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner, settings = learner_of("critic")
    pretending(learner, monkeypatch)
    trainer = Trainer(learner, replace(settings, cuda_graph=True))
    first = trainer.step(0)
    before = {name: float(value) for name, value in first.items()}
    trainer.step(1)
    assert {name: float(value) for name, value in first.items()} == before


def test_a_batch_of_another_size_is_captured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, settings = learner_of("critic")
    pretending(learner, monkeypatch)
    step = CapturedStep(learner, Trainer(learner, settings)._update)
    batch = learner.draw(torch.Generator().manual_seed(0))
    for rows in (16, 8, 16):
        step({name: tensor[:rows] for name, tensor in batch.items()}, factor=1.0)
    assert Counted.made == 2


def test_a_resumed_run_goes_on_from_the_saved_weights_and_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, settings = learner_of("critic")
    expected = steps_of(whole, settings)
    first, _ = learner_of("critic")
    trainer = Trainer(first, settings)
    for number in range(6):
        trainer.step(number)
    states.save(first, tmp_path / "out", {}, 6)
    second, _ = learner_of("critic")
    pretending(second, monkeypatch)
    trainer = Trainer(second, replace(settings, cuda_graph=True))
    assert states.restore(second, tmp_path / "out", {}) == 6
    found = [trainer.step(number) for number in range(6, settings.steps)]
    losses = [float(one["loss"]) for one in found]
    assert losses == pytest.approx([one["loss"] for one in expected[6:]], rel=1e-5)
    assert_same_state(second, whole)


def test_a_step_that_cannot_be_captured_is_refused_and_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner, settings = learner_of("critic")
    pretending(learner, monkeypatch)
    weights = {name: tensor.clone() for name, tensor in learner.state_dict().items()}

    def fails(work: Callable[[], Tensor], device: torch.device) -> Any:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(capture, "captured", fails)
    trainer = Trainer(learner, replace(settings, cuda_graph=True))
    with pytest.raises(ConfigError, match=r"not permitted when stream is .*cuda_graph=false"):
        trainer.step(0)
    assert all(torch.equal(t, weights[n]) for n, t in learner.state_dict().items())


def test_without_a_gpu_it_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    learner, settings = learner_of("critic", cuda_graph=True, out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="needs device=cuda: the learner is on 'cpu'"):
        run(learner, settings, data_hash="", description="", resume=False)


class Other(Learner):
    """Is not the same work every time."""

    def __init__(self) -> None:
        super().__init__()
        self.guess = torch.nn.Parameter(torch.zeros(1))
        self.made = {"guess": torch.optim.SGD(self.parameters(), lr=0.1)}

    def draw(self, source: torch.Generator) -> Batch:
        return {"row": torch.arange(4.0)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (self.guess - batch["row"]).square().mean()}

    def optimisers(self) -> dict[str, Any]:
        return self.made


def test_what_is_not_the_same_work_every_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(captured, "_device_of", lambda learner: cuda)
    learner, _ = learner_of("critic")
    captured.check(learner, count=1)
    with pytest.raises(ConfigError, match="one process: 2 share each batch"):
        captured.check(learner, count=2)
    other = Other()
    with pytest.raises(ConfigError, match="Other is none"):
        captured.check(other, count=1)
    monkeypatch.setattr(Other, "capturable", True)
    with pytest.raises(ConfigError, match="Adam family"):
        captured.check(other, count=1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("full_precision")
class TestOnAGpu:
    """What only a GPU can show."""

    pytestmark = gpu

    def test_captured_and_eager_training_agree(self, case: str) -> None:
        eager, settings = learner_of(case, device="cuda")
        expected = steps_of(eager, settings)
        replayed, _ = learner_of(case, device="cuda")
        found = steps_of(replayed, replace(settings, cuda_graph=True))
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
        assert_same_state(replayed, eager, atol=1e-5)

    def test_a_captured_run_repeats_itself_bit_for_bit(self, case: str) -> None:
        one, settings = learner_of(case, device="cuda", cuda_graph=True)
        other, _ = learner_of(case, device="cuda", cuda_graph=True)
        assert steps_of(one, settings) == steps_of(other, settings)
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.fixture
def full_precision() -> None:
    torch.set_float32_matmul_precision("highest")
