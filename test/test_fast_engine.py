"""The compiled engine: identities to the bit, threads, what is not finite, what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import make_noise_policy
from test_fast import CPU, MODES, noise_of, relative, settings_of
from torch import Tensor
from wide_parts import drawn, readable

from qsteer_ros.critics.injected import InjectedMLP
from qsteer_ros.critics.networks import EnsembleMLP, QNetwork
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler
from qsteer_ros.policies.engines import make_engine
from qsteer_ros.policies.fast import building, many_rows, one_row
from qsteer_ros.policies.fast.engine import CompiledEngine
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.steering.settings import MODES as ALL_MODES
from qsteer_ros.steering.settings import SteeringSettings
from qsteer_ros.steering.trace import Trace

BATCHES = (1, 70)
TILT = {"tilt_mean": 0.0, "tilt_std": 1.0}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def chunk_of(settings: SteeringSettings, batch: int = 1, **options: Any) -> Tensor:
    policy, critic, features = drawn()
    engine = CompiledEngine(policy, critic, settings, Sampler())
    return engine.denoise(features, noise_of(policy, batch), seed=0, **options)


def equal(found: Tensor, expected: Tensor) -> bool:
    assert bool(torch.isfinite(expected).all())
    return torch.equal(found, expected)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("mode", MODES)
def test_unguided_is_mode_off_bit_for_bit(mode: str, batch: int) -> None:
    off = chunk_of(settings_of("off"), batch)
    assert equal(chunk_of(settings_of(mode), batch, guided=False), off)
    assert equal(chunk_of(settings_of(mode), batch), off) == (mode in ("off", "zero"))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("mode", MODES)
def test_weight_zero_is_mode_off_bit_for_bit(mode: str, batch: int) -> None:
    assert equal(chunk_of(SteeringSettings(mode), batch), chunk_of(settings_of("off"), batch))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("mode", MODES)
def test_a_trace_changes_no_bit(mode: str, batch: int) -> None:
    settings = settings_of(mode)
    assert equal(chunk_of(settings, batch, trace=Trace()), chunk_of(settings, batch))


@pytest.mark.parametrize("batch", BATCHES)
def test_the_same_question_has_the_same_answer_in_a_new_tensor(batch: int) -> None:
    policy, critic, features = drawn()
    engine = CompiledEngine(policy, critic, settings_of("qpilots_u"), Sampler())
    noise = noise_of(policy, batch)
    before = noise.clone()
    first = engine.denoise(features, noise, seed=0)
    kept = first.clone()
    second = engine.denoise(features, noise, seed=1)
    assert torch.equal(noise, before)
    assert equal(second, kept)
    second.zero_()
    assert torch.equal(first, kept)


@pytest.mark.parametrize("batch", [2, 64, 70, 300])
@pytest.mark.parametrize("mode", ["off", "qgf", "qpilots_u"])
def test_the_number_of_threads_changes_no_bit(mode: str, batch: int, threads: None) -> None:
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(chunk_of(settings_of(mode), batch))
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])


@pytest.mark.parametrize("mode", ["off", "qgf", "qpilots_u"])
def test_a_row_does_not_depend_on_its_neighbours(mode: str) -> None:
    policy, critic, features = drawn()
    engine = CompiledEngine(policy, critic, settings_of(mode), Sampler())
    noise = noise_of(policy, 70)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    whole = engine.denoise(features, noise, seed=0)
    assert equal(engine.denoise(features, noise[order], seed=0), whole[order])
    assert relative(engine.denoise(features, noise[:1], seed=0), whole[:1]) < 1e-5


@pytest.mark.parametrize("batch", [1, 40])
def test_several_threads_may_use_one_engine(batch: int) -> None:
    policy, critic, features = drawn(hidden=(256, 256))
    engine = CompiledEngine(policy, critic, settings_of("qgf"), Sampler())
    noises = [noise_of(policy, batch, seed=seed) for seed in range(16)]
    expected = [engine.denoise(features, noise, seed=0) for noise in noises]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda noise: engine.denoise(features, noise, seed=0), noises * 4))
    assert all(equal(one, other) for one, other in zip(found, expected * 4, strict=True))


def test_inference_mode_and_recording_of_gradients_change_nothing() -> None:
    policy, critic, features = drawn()
    engine = CompiledEngine(policy, critic, settings_of("qgf"), Sampler())
    noise = noise_of(policy, 2)
    expected = engine.denoise(features, noise, seed=0)
    with torch.inference_mode():
        inside = engine.denoise(features.clone(), noise.clone(), seed=0)
    with torch.enable_grad():
        policy.network.requires_grad_(True)
        recording = engine.denoise(features.requires_grad_(True), noise, seed=0)
    assert torch.equal(inside, expected)
    assert torch.equal(recording, expected)
    assert not recording.requires_grad


BROKEN = {
    "field": lambda policy, critic: policy.network.layers[1].weight,
    "field's first bias": lambda policy, critic: policy.network.layers[0].bias,
    "field's head": lambda policy, critic: policy.network.head.bias,
    "critic": lambda policy, critic: critic.network.kernels[1][1],
    "critic's scale": lambda policy, critic: critic.network.scales[0][1],
    "critic's last bias": lambda policy, critic: critic.network.biases[-1][1],
}


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", BROKEN)
@pytest.mark.parametrize(("mode", "reduction"), [("qgf", "min"), ("qpilots_u", "pessimistic")])
def test_a_weight_that_is_not_finite_comes_out_as_such(
    mode: str, reduction: str, where: str, value: float, batch: int
) -> None:
    policy, critic, features = drawn()
    with torch.no_grad():
        BROKEN[where](policy, critic).view(-1)[0] = value
    engine = CompiledEngine(policy, critic, settings_of(mode, reduction=reduction), Sampler())
    chunk = engine.denoise(features, noise_of(policy, batch), seed=0)
    assert not bool(torch.isfinite(chunk).flatten(1).all(dim=1).any())


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_and_noise_that_are_not_finite_spoil_their_rows_and_no_other(
    value: float, batch: int
) -> None:
    policy, critic, features = drawn()
    engine = CompiledEngine(policy, critic, settings_of("qpilots_u"), Sampler())
    noise = noise_of(policy, batch)
    whole = engine.denoise(features, noise, seed=0)
    broken = features.clone()
    broken[0, 2] = value
    assert not bool(torch.isfinite(engine.denoise(broken, noise, seed=0)).any())
    spoiled = noise.clone()
    spoiled[0, 1, 2] = value
    chunk = engine.denoise(features, spoiled, seed=0)
    assert not bool(torch.isfinite(chunk[0]).all())
    assert torch.equal(chunk[1:], whole[1:])
    assert torch.equal(engine.denoise(features, noise, seed=0), whole)


def test_a_prediction_that_is_nan_passes_the_clip_as_nan() -> None:
    import numba

    from qsteer_ros.policies.fast import arithmetic

    judge_at = numba.njit(lambda x, v, r, n, c, p: arithmetic.judge_at(x, v, r, n, c, p))
    numbers = np.zeros(arithmetic.NUMBERS, np.float32)
    numbers[arithmetic.LOW], numbers[arithmetic.HIGH] = -1.0, 1.0
    x = np.tile(np.array([np.nan, 3.0, -3.0, 0.5], np.float32), 9)
    clean, point = np.empty_like(x), np.empty_like(x)
    judge_at(x, np.zeros_like(x), np.float32(0.5), numbers, clean, point)
    np.testing.assert_array_equal(point, np.tile(np.float32([np.nan, 1.0, -1.0, 0.5]), 9))


def test_weights_written_to_later_count() -> None:
    policy, critic, features = drawn()
    settings, noise = settings_of("qgf"), noise_of(policy, 2)
    engine = CompiledEngine(policy, critic, settings, Sampler())
    before = engine.denoise(features, noise, seed=0)
    with torch.no_grad():
        policy.network.head.bias += 0.1
        critic.network.kernels[0] *= 1.5
    after = engine.denoise(features, noise, seed=0)
    assert relative(after, readable(policy, critic, settings, features, noise)) < 1e-5
    assert relative(before, after) > 1e-2


def test_a_critic_of_another_size_compiles_nothing() -> None:
    kernels = (one_row.sample_one, many_rows.sample_rows)
    for members, hidden in ((2, (40, 70)), (5, (300,)), (1, (8, 8, 8))):
        policy, critic, features = drawn(members=members, critic_hidden=hidden)
        engine = CompiledEngine(policy, critic, settings_of("qgf"), Sampler())
        for batch in (1, 4):
            engine.denoise(features, noise_of(policy, batch), seed=0)
    assert [len(kernel.signatures) for kernel in kernels] == [1, 1]  # type: ignore[attr-defined]


def test_a_change_in_any_file_of_kernels_is_noticed(tmp_path: Path) -> None:
    for name in building.SOURCES:
        shutil.copy(Path(building.__file__).parent / f"{name}.py", tmp_path)
    before = building.fingerprint(tmp_path)
    assert before == building.fingerprint()
    for name in building.SOURCES:
        with (tmp_path / f"{name}.py").open("a") as file:
            file.write("# changed\n")
        after = building.fingerprint(tmp_path)
        assert after != before
        before = after


KEEP = """
import sys, logging
logging.basicConfig()
from qsteer_ros.policies.fast import building
import numba
def double(x):
    x[0] *= 2
sys.path.insert(0, {folder!r})
import kernel_of_a_test as made
kernel = building.compiled(numba.void(numba.float32[::1]), made.double)
import numpy as np
x = np.ones(1, np.float32)
kernel(x)
print(x[0])
"""


def test_without_a_place_for_machine_code_a_kernel_works_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "kernel_of_a_test.py").write_text("def double(x):\n    x[0] *= 2\n")
    (folder / "__pycache__").write_text("in the way")
    (tmp_path / "file").write_text("no folder")
    nowhere = str(tmp_path / "file" / "below")
    environment = {
        **os.environ, "HOME": nowhere, "XDG_CACHE_HOME": nowhere, "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(building.__file__).parents[3]),
    }  # fmt: skip
    code = KEEP.format(folder=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "2.0", done.stderr
    assert "compiled kernels cannot be kept" in done.stderr
    elsewhere = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(elsewhere)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "2.0", done.stderr
    assert "cannot be kept" not in done.stderr
    assert list(elsewhere.rglob("*.nbi"))


REFUSED: list[tuple[dict[str, Any], Sampler, str]] = [
    ({"mode": "bptt"}, Sampler(), r"'steering' must be one of off, zero.*: got 'bptt'"),
    ({"mode": "random_matched"}, Sampler(), r"'steering' must be one of .*: got 'random_matched'"),
    ({"mode": "qgf", "estimate": "chain"}, Sampler(), r"'estimate' must be euler: got 'chain'"),
    ({"mode": "zero", "estimate": "noisy"}, Sampler(), r"'estimate' must be euler: got 'noisy'"),
    ({"mode": "qgf"}, Sampler(integrator="heun"), r"'integrator' must be euler: got 'heun'"),
    ({"mode": "off"}, Sampler(time_power=2.0), r"flow times must be uniform"),
    ({"mode": "off"}, Sampler(2, times=(0.0, 0.3, 1.0)), r"flow times must be uniform"),
]


@pytest.mark.parametrize(("choice", "sampler", "message"), REFUSED)
def test_what_is_not_covered_is_refused_by_name_and_left_to_the_readable_loop(
    choice: dict[str, Any], sampler: Sampler, message: str
) -> None:
    policy, critic, _ = drawn()
    settings = SteeringSettings(weight=0.1, **choice)
    assert make_engine("auto", policy, critic, settings, sampler, CPU) is None
    with pytest.raises(ConfigError, match=f"for backend 'compiled', {message}.*Set backend: auto"):
        make_engine("compiled", policy, critic, settings, sampler, CPU)


def test_float64_weights_and_other_devices_are_refused() -> None:
    policy, critic, _ = drawn()
    settings, cuda = settings_of("qgf"), torch.device("cuda")
    with pytest.raises(ConfigError, match=r"'device' must be cpu: got 'cuda'"):
        make_engine("compiled", policy, critic, settings, Sampler(), cuda)
    critic.network.double()
    with pytest.raises(ConfigError, match=r"must be torch.float32: got torch.float32, torch.fl"):
        make_engine("compiled", policy, critic, settings, Sampler(), CPU)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (InjectedMLP(2, 7, 25, (16, 16)), "networks must be FlowMLP and Ens.*, InjectedMLP"),
        (EnsembleMLP(2, 32, (16,), activation="silu"), "the critic must have.*gelu: got silu"),
        (EnsembleMLP(2, 32, (16,), layer_norm=False), "the critic must have .*: got no LayerNorm"),
        (EnsembleMLP(2, 32, (16,), outputs=5), "the critic must have one.*: got 5 outputs"),
    ],
)
def test_a_critic_of_another_layout_is_left_to_the_readable_loop(
    network: QNetwork, message: str
) -> None:
    policy, critic, features = drawn()
    other = replace(critic, network=network.requires_grad_(False))
    settings = settings_of("qgf")
    with pytest.raises(ConfigError, match=f"for backend 'compiled', {message}"):
        make_engine("compiled", policy, other, settings, Sampler(), CPU)
    assert make_engine("auto", policy, other, settings, Sampler(), CPU) is None
    noise = noise_of(policy, 1)
    chunk = readable(policy, other, settings, features, noise)
    assert not torch.equal(chunk, readable(policy, other, settings_of("off"), features, noise))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 7)}, r"features of one observation, \(1, 7\): got \(2, 7\)"),
        ({"features": torch.zeros(1, 6)}, r"features of one observation, \(1, 7\): got \(1, 6\)"),
        ({"noise": torch.zeros(1, 5, 4)}, r"noise must have the shape \(B, 5, 5\): got \(1, 5, 4"),
        ({"noise": torch.zeros(0, 5, 5)}, r"noise must have the shape \(B, 5, 5\): got \(0, 5, 5"),
        ({"noise": torch.zeros(1, 5, 5).double()}, r"noise of type torch.float32.*torch.float64"),
        ({"features": torch.zeros(1, 7).half()}, r"features of type torch.float32.*got torch.flo"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], message: str) -> None:
    policy, critic, features = drawn()
    engine = CompiledEngine(policy, critic, settings_of("qgf"), Sampler())
    asked = {"features": features, "noise": noise_of(policy, 1)} | change
    with pytest.raises(ConfigError, match=message):
        engine.denoise(asked["features"], asked["noise"], seed=0)


@pytest.mark.parametrize("mode", ALL_MODES)
def test_a_decision_by_the_default_backend_is_that_of_the_readable_loop(mode: str) -> None:
    policy, critic, features = drawn()
    settings = SteeringSettings(mode, weight=0.1, num_samples=4, twin_rate=1.0, **TILT)
    chooser = make_noise_policy(policy)
    fast = SteeredPolicy(None, policy, critic, settings, noise_policy=chooser)
    slow = replace(fast, backend="eager")
    found, expected = fast.act(features, seed=3), slow.act(features, seed=3)
    np.testing.assert_allclose(found.chunk, expected.chunk, atol=1e-5)
    assert found.record.tensors.keys() == expected.record.tensors.keys()
    for name, values in expected.record.tensors.items():
        np.testing.assert_allclose(
            found.record.tensors[name], values, rtol=1e-3, atol=1e-4, err_msg=name
        )
    covered = mode in (*MODES, "best_of_n", "gradient_step", "dsrl")
    assert found.record.meta["backend"] == ("compiled" if covered else "eager")
    assert expected.record.meta["backend"] == "eager"
