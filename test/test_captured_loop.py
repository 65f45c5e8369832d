"""The loop behind the engine ``cuda_graph``, on a CPU: a replay runs the same work again.

What is left to the GPU tests is the capture itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from parts import FEATURES, make_critic, make_noise_policy, make_policy
from torch import Tensor

from qsteer_ros import capture
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, sample_noise
from qsteer_ros.policies import cuda_graph
from qsteer_ros.policies.cuda_graph import CudaGraph
from qsteer_ros.policies.engines import make_engine
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.settings import FIELD_MODES, MODES, SteeringSettings
from qsteer_ros.steering.trace import Trace

CPU = torch.device("cpu")
OPTIONS: dict[str, dict[str, Any]] = {
    **{mode: {"mode": mode} for mode in FIELD_MODES},
    "limited": {"mode": "qgf", "max_ratio": 0.1, "project": True},
    "chain": {"mode": "qgf", "estimate": "chain"},
    "ratio": {"mode": "qpilots_m", "ratio": 0.2},
}


class Rerun:
    """Stands for a CUDA graph: does the work again and leaves the result where it was."""

    def __init__(self, work: Callable[[], Tensor]) -> None:
        self._work, self.result = work, work()

    def replay(self) -> None:
        self.result.copy_(self._work())


@pytest.fixture(autouse=True)
def rerun(monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(work: Callable[[], Tensor], device: torch.device, **_: Any) -> Any:
        graph = Rerun(work)
        return graph, graph.result

    monkeypatch.setattr(capture, "captured", captured)
    monkeypatch.setattr(capture, "warm_up", lambda work, device: work())


def settings_of(mode: str, **options: Any) -> SteeringSettings:
    return SteeringSettings(mode, weight=0.3, tilt_mean=0.0, tilt_std=1.0, **options)


def loop_of(settings: SteeringSettings, *, rows: int = 2, sampler: Sampler | None = None) -> Any:
    critic = make_critic() if settings.mode in FIELD_MODES else None
    return cuda_graph._Loop(make_policy(), critic, settings, sampler or Sampler(), CPU, rows)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(4, "heun", time_power=2.0)])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_chunk_is_the_readable_loops_for_its_features_noise_and_seed(
    name: str, sampler: Sampler
) -> None:
    settings = settings_of(**OPTIONS[name])
    loop = loop_of(settings, sampler=sampler)
    for seed, scale in ((3, 1.0), (4, 0.5), (4, 1.0), (3, 1.0), (0, 1.0)):
        features = scale * FEATURES
        noise = sample_noise((2, 3, 2), seed=seed, device=CPU)
        field, q = make_policy().condition(features), make_critic().condition(features)
        traces = Trace(), Trace()
        with torch.no_grad():
            found = loop.replay(features, noise, seed, traces[0])
            steered = steer(field, q, settings, sampler=sampler, seed=seed, trace=traces[1])
            expected = sampler.denoise(steered, noise)
        assert torch.equal(found, expected)
        for column, rows in traces[1].arrays().items():
            np.testing.assert_array_equal(traces[0].arrays()[column], rows, err_msg=column)


def test_a_chunk_and_its_trace_stay_when_the_next_is_made() -> None:
    loop, trace = loop_of(settings_of("qgf")), Trace()
    noise = sample_noise((2, 3, 2), seed=1, device=CPU)
    first = loop.replay(FEATURES, noise, 0, trace)
    chunk, columns = first.clone(), trace.columns().clone()
    loop.replay(FEATURES + 1.0, noise + 1.0, 1, Trace())
    assert torch.equal(first, chunk)
    assert torch.equal(trace.columns(), columns)


class Replaying:
    """An engine of loops on a CPU."""

    name = "replaying"

    def __init__(self, settings: SteeringSettings, rows: int) -> None:
        self._guided = loop_of(settings, rows=rows)
        self._frozen = loop_of(settings_of("off"), rows=1)

    def denoise(
        self,
        features: Tensor,
        noise: Tensor,
        *,
        seed: int,
        trace: Trace | None = None,
        guided: bool = True,
    ) -> Tensor:
        found: Tensor = (self._guided if guided else self._frozen).replay(
            features, noise, seed, trace
        )
        return found


@pytest.mark.parametrize("mode", MODES)
def test_a_decision_with_an_engine_is_the_readable_one_and_says_so(mode: str) -> None:
    settings = settings_of(mode, twin_rate=1.0, max_displacement=0.1, num_samples=4)
    parts = (None, make_policy(), make_critic(), settings)
    chooser = make_noise_policy()
    fast, plain = (SteeredPolicy(*parts, backend="eager", noise_policy=chooser) for _ in range(2))
    engine = Replaying(settings, 4 if mode == "best_of_n" else 1)
    object.__setattr__(fast, "_engine", engine)
    for seed in (3, 4):
        found, expected = (one.act(FEATURES, seed=seed).record for one in (fast, plain))
        assert (found.meta["backend"], expected.meta["backend"]) == ("replaying", "eager")
        assert found.tensors.keys() == expected.tensors.keys()
        for name, values in expected.tensors.items():
            np.testing.assert_array_equal(found.tensors[name], values, err_msg=name)


def test_a_cpu_that_asks_for_a_graph_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'cuda_graph' needs a CUDA device: .* on 'cpu'"):
        make_engine("cuda_graph", make_policy(), None, SteeringSettings(), Sampler(), CPU)


def test_a_mode_that_bends_the_field_needs_a_critic() -> None:
    with pytest.raises(ConfigError, match="mode 'qgf' needs a critic"):
        CudaGraph(make_policy(), None, settings_of("qgf"), Sampler(), torch.device("cuda"))
