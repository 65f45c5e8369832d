"""Decisions with the two further parts: a noise policy before, a posterior map during."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from parts import (
    FEATURES,
    make_critic,
    make_noise_policy,
    make_policy,
    make_posterior_map,
    other,
)

from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError
from qsteer_ros.flow import Sampler, denoise, sample_noise
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.replay.decision import DecisionRecord
from qsteer_ros.steering.modes import steer
from qsteer_ros.steering.settings import NOISE_DRAWS, SteeringSettings

CPU = torch.device("cpu")
TILT = {"tilt_mean": 0.0, "tilt_std": 1.0}


def choosing(critic: Critic | None = None, backend: str = "auto", **options: Any) -> SteeredPolicy:
    settings = SteeringSettings(mode="dsrl", **options)
    parts = (None, make_policy(), critic, settings)
    return SteeredPolicy(*parts, backend=backend, noise_policy=make_noise_policy())


def mapped(backend: str = "auto", *, with_map: bool = True) -> SteeredPolicy:
    settings = SteeringSettings(mode="qpilots_m", weight=0.4, **TILT)
    parts = (None, make_policy(), make_critic(), settings)
    chosen = make_posterior_map() if with_map else None
    return SteeredPolicy(*parts, backend=backend, posterior_map=chosen)


def alone(seed: int) -> torch.Tensor:
    return sample_noise((1, 3, 2), seed=seed, device=CPU)


def frozen(noise: torch.Tensor) -> torch.Tensor:
    """What the policy makes of noise, as integrated."""
    return denoise(make_policy().condition(FEATURES), noise, denoising_steps=10)


def again(record: DecisionRecord, **parts: Any) -> DecisionRecord:
    """The decision of a stored record, made by new objects."""
    stored = DecisionRecord.decode(
        record.extended(meta={"execute_steps": 3, "stamp_ns": 0}).encode()
    )
    settings = SteeringSettings.from_json(stored.meta["steering"])
    policy = SteeredPolicy(
        None,
        make_policy(),
        make_critic(),
        settings,
        sampler=Sampler(**stored.meta["sampler"]),
        **parts,
    )
    features = torch.from_numpy(stored.tensors["features"].copy())[None]
    return policy.act(features, seed=stored.meta["seed"]).record


def test_a_chunk_from_chosen_noise_is_the_chain_written_out() -> None:
    noise = make_noise_policy().condition(FEATURES).draw(seed=3)
    record = choosing(backend="eager").act(FEATURES, seed=3).record
    np.testing.assert_array_equal(record.tensors["noise"], noise[0].numpy())
    np.testing.assert_array_equal(record.tensors["chunk_unclipped"], frozen(noise)[0].numpy())
    np.testing.assert_array_equal(record.tensors["noise_alone"], alone(3)[0].numpy())


def test_the_median_does_not_depend_on_the_seed() -> None:
    policy = choosing(noise_draw="median", backend="eager")
    first, second = (policy.act(FEATURES, seed=seed).record for seed in (3, 4))
    noise = make_noise_policy().condition(FEATURES).median()[0].numpy()
    np.testing.assert_array_equal(first.tensors["noise"], noise)
    np.testing.assert_array_equal(first.chunk, second.chunk)


@pytest.mark.parametrize("draw", NOISE_DRAWS)
def test_a_chunk_from_chosen_noise_is_made_again_from_its_record(draw: str) -> None:
    first = choosing(make_critic(), noise_draw=draw, twin_rate=1.0).act(FEATURES, seed=3).record
    second = again(first, noise_policy=make_noise_policy())
    assert first.meta["hashes"]["noise_policy"] == "noise4"
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        np.testing.assert_array_equal(second.tensors[name], tensor, err_msg=name)


def test_the_twin_starts_from_the_noise_of_the_policy_alone() -> None:
    record = choosing(make_critic(), twin_rate=1.0).act(FEATURES, seed=3).record
    off = SteeredPolicy(None, make_policy(), None, SteeringSettings()).act(FEATURES, seed=3)
    np.testing.assert_array_equal(record.tensors["chunk_unguided"], off.chunk)
    q = make_critic().condition(FEATURES)
    values = q(torch.from_numpy(np.stack([record.chunk, off.chunk]))).amin(dim=0)
    assert record.meta["delta_q"] == pytest.approx(float(values[0] - values[1]), abs=1e-5)


def test_without_a_critic_the_twin_still_says_how_far_the_chunk_went() -> None:
    record = choosing(twin_rate=1.0).act(FEATURES, seed=3).record
    difference = record.chunk - record.tensors["chunk_unguided"]
    expected = float(np.sqrt(np.mean(difference**2)))
    assert record.meta["displacement"] == pytest.approx(expected, rel=1e-5)
    assert "delta_q" not in record.meta
    near = choosing(max_displacement=expected / 2).act(FEATURES, seed=3).record
    assert near.meta["displacement"] == pytest.approx(expected / 2, rel=1e-4)


def test_chosen_noise_takes_the_fast_loop_where_there_is_one() -> None:
    fast, slow = (choosing(backend=backend).act(FEATURES, seed=3) for backend in ("auto", "eager"))
    assert (fast.record.meta["backend"], slow.record.meta["backend"]) == ("compiled", "eager")
    np.testing.assert_allclose(fast.chunk, slow.chunk, atol=1e-5)


def test_a_noise_policy_changes_no_other_mode() -> None:
    for mode in ("off", "qgf", "best_of_n"):
        settings = SteeringSettings(mode=mode, weight=0.3, num_samples=4)
        parts = (None, make_policy(), make_critic(), settings)
        found = SteeredPolicy(*parts, noise_policy=make_noise_policy()).act(FEATURES, seed=3)
        expected = SteeredPolicy(*parts).act(FEATURES, seed=3)
        np.testing.assert_array_equal(found.chunk, expected.chunk)
        assert "noise_alone" not in found.record.tensors


def test_choosing_noise_without_a_noise_policy_is_refused() -> None:
    settings = SteeringSettings(mode="dsrl")
    with pytest.raises(ConfigError, match=r"'dsrl' needs a noise policy: none is loaded\. Set 'n"):
        SteeredPolicy(None, make_policy(), None, settings)
    with pytest.raises(ConfigError, match="needs a noise policy"):
        replace(choosing(), noise_policy=None)


@pytest.mark.parametrize("mode", ["off", "dsrl"])
def test_a_noise_policy_of_another_policy_is_refused_in_every_mode(mode: str) -> None:
    chooser, settings = make_noise_policy(make_policy(seed=8)), SteeringSettings(mode=mode)
    message = (
        r"the noise policy must be used with the policy it was trained for: that is policy8, "
    )
    with pytest.raises(
        ConfigError, match=message + r"loaded is policy0\. Train one .* train dsrl"
    ):
        SteeredPolicy(None, make_policy(), None, settings, noise_policy=chooser)


def test_a_posterior_map_of_another_policy_is_refused() -> None:
    message = r"the posterior map must be used with the policy .* policy8, .* train posterior-map"
    with pytest.raises(ConfigError, match=message):
        replace(mapped(), posterior_map=make_posterior_map(make_policy(seed=8)))


@pytest.mark.parametrize("name", ["noise_policy", "posterior_map"])
def test_parts_of_another_space_are_refused(name: str) -> None:
    make = {"noise_policy": make_noise_policy, "posterior_map": make_posterior_map}[name]
    part = make(make_policy(interface=other(horizon=4)))
    message = f"the {name.replace('_', ' ')} and the policy must have the same horizon"
    with pytest.raises(ConfigError, match=message):
        SteeredPolicy(None, make_policy(), None, SteeringSettings(), **{name: part})


def test_qpilots_m_asks_the_map_where_there_is_one() -> None:
    field, q = make_policy().condition(FEATURES), make_critic().condition(FEATURES)
    posterior = make_posterior_map().condition(FEATURES)
    settings = mapped().settings
    bent = steer(field, q, settings, seed=3, posterior=posterior)
    expected = denoise(bent, alone(3), denoising_steps=10)[0].detach().numpy()
    record = mapped().act(FEATURES, seed=3).record
    np.testing.assert_array_equal(record.tensors["chunk_unclipped"], expected)
    assert (record.meta["posterior"], record.meta["backend"]) == ("map", "eager")
    assert record.meta["hashes"]["posterior_map"] == "map6"


def test_without_a_map_the_record_says_that_the_field_drew_the_samples() -> None:
    with_map, without = mapped(), mapped(with_map=False)
    found, expected = (policy.act(FEATURES, seed=3).record for policy in (without, with_map))
    assert found.meta["posterior"] == "glass"
    assert found.meta["hashes"]["posterior_map"] is None
    assert not np.array_equal(found.chunk, expected.chunk)


def test_a_chunk_of_a_posterior_map_is_made_again_from_its_record() -> None:
    first = mapped().act(FEATURES, seed=3).record
    second = again(first, posterior_map=make_posterior_map())
    for name, tensor in first.tensors.items():
        np.testing.assert_array_equal(second.tensors[name], tensor, err_msg=name)


def test_a_posterior_map_changes_no_other_mode() -> None:
    settings = SteeringSettings(mode="qgf", weight=0.3)
    parts = (None, make_policy(), make_critic(), settings)
    found = SteeredPolicy(*parts, posterior_map=make_posterior_map()).act(FEATURES, seed=3)
    expected = SteeredPolicy(*parts).act(FEATURES, seed=3)
    np.testing.assert_array_equal(found.chunk, expected.chunk)
    assert found.record.meta["backend"] == expected.record.meta["backend"] == "compiled"
    assert "posterior" not in found.record.meta


def test_an_engine_that_cannot_ask_a_map_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="backend 'compiled' cannot ask a posterior map"):
        mapped("compiled")
    assert mapped("eager").act(FEATURES, seed=3).record.meta["backend"] == "eager"


def test_an_unknown_way_to_draw_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="'noise_draw' must be one of sampled, median: got 'me"):
        SteeringSettings(mode="dsrl", noise_draw="mean")
