"""The noise policy: its distribution, its bounds and its checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from parts import FEATURES, INTERFACE, MEAN, STD, make_noise_policy, make_policy, other
from torch import Tensor
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.flow import sample_noise
from qsteer_ros.policies.noise_network import LOG_STD_RANGE, NoiseActor, SquashedGaussian
from qsteer_ros.policies.noise_policy import NoisePolicy

TRAINING = {"policy_hash": "policy0"}


def squashed(rows: int = 5, seed: int = 0) -> tuple[SquashedGaussian, Tensor]:
    """A distribution over 4 components, and standard normal noise for it, in float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(3, rows, 4, generator=generator, dtype=torch.float64)
    return SquashedGaussian(drawn[0], 0.4 * drawn[1]), drawn[2]


def test_the_log_density_is_that_of_a_normal_pushed_through_tanh() -> None:
    chosen, gaussian = squashed()
    normal = Normal(chosen.location, chosen.log_std.exp())
    reference = Independent(TransformedDistribution(normal, [TanhTransform()]), 1)
    found = chosen.log_density(gaussian)
    expected = reference.log_prob(torch.tanh(chosen.before_tanh(gaussian)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_density_integrates_to_one() -> None:
    chosen = SquashedGaussian(torch.full((1, 1), 0.4), torch.full((1, 1), -0.3))
    gaussian = torch.linspace(-8.0, 8.0, 4001).unsqueeze(1)
    point = torch.tanh(chosen.before_tanh(gaussian))[:, 0]
    density = chosen.log_density(gaussian).exp()
    assert float(torch.trapezoid(density, point)) == pytest.approx(1.0, abs=1e-4)


def test_the_log_density_and_its_slope_are_finite_where_tanh_has_rounded_to_one() -> None:
    location = torch.full((1, 3), 40.0, requires_grad=True)
    chosen = SquashedGaussian(location, torch.zeros(1, 3))
    density = chosen.log_density(torch.zeros(1, 3))
    density.sum().backward()
    each = -0.5 * math.log(2.0 * math.pi) - (math.log(4.0) - 80.0)  # log(1 - tanh^2) of 40
    assert float(density.detach()) == pytest.approx(3 * each, rel=1e-6)
    torch.testing.assert_close(location.grad, torch.full((1, 3), 2.0))


@pytest.mark.parametrize("scale", [0.4, 1.4])
def test_noise_never_leaves_the_box_of_its_scale_and_reaches_its_walls(scale: float) -> None:
    policy = make_noise_policy(noise_scale=scale)
    chosen = policy.condition(FEATURES.expand(64, -1))
    gaussian = 30.0 * sample_noise((64, 3, 2), seed=0, device=torch.device("cpu"))
    noise = chosen.at(gaussian)
    assert noise.shape == (64, 3, 2)
    assert float(noise.abs().max()) == pytest.approx(scale)
    assert bool((noise.abs() <= scale).all())


def test_the_median_has_half_of_the_draws_below_it() -> None:
    chosen = make_noise_policy().condition(FEATURES.expand(4000, -1))
    below = (chosen.draw(seed=1) < chosen.median()).float().mean(dim=0)
    torch.testing.assert_close(below, torch.full((3, 2), 0.5), atol=0.04, rtol=0)


def test_a_draw_is_the_turned_noise_that_the_policy_alone_would_start_from() -> None:
    chosen = make_noise_policy().condition(FEATURES)
    gaussian = sample_noise((1, 3, 2), seed=7, device=torch.device("cpu"))
    flat = gaussian.flatten(1)
    location, log_std = chosen.distribution.location, chosen.distribution.log_std
    expected = 0.8 * torch.tanh(location + log_std.exp() * flat)
    assert torch.equal(chosen.draw(seed=7), chosen.draw(seed=7))
    torch.testing.assert_close(chosen.draw(seed=7).flatten(1), expected)
    assert not torch.equal(chosen.draw(seed=7), chosen.draw(seed=8))


def test_the_noise_of_a_row_depends_on_its_own_features_in_units_of_their_spread() -> None:
    policy = make_noise_policy()
    rows = torch.cat([FEATURES, FEATURES + 0.5])
    both = policy.condition(rows).median()
    torch.testing.assert_close(both[1:], policy.condition(rows[1:]).median())
    location, _ = policy.network((rows - MEAN) / STD)
    torch.testing.assert_close(both.flatten(1), 0.8 * torch.tanh(location))


def test_the_spread_before_tanh_is_cut_to_its_range() -> None:
    network = make_noise_policy().network
    with torch.no_grad():
        network.log_std.bias += torch.tensor([-90.0, 90.0, 0.0, 0.0, 0.0, 0.0])
    _, log_std = network(FEATURES)
    assert (float(log_std[0, 0]), float(log_std[0, 1])) == LOG_STD_RANGE


def test_an_untrained_actor_is_almost_the_tanh_of_standard_normal_noise() -> None:
    torch.manual_seed(0)
    location, log_std = NoiseActor(4, 6).requires_grad_(False)(torch.randn(32, 4))
    assert float(location.abs().max()) < 0.2
    assert float(log_std.abs().max()) < 0.2


def test_a_saved_noise_policy_comes_back_bit_for_bit(tmp_path: Path) -> None:
    policy = make_noise_policy()
    loaded = NoisePolicy.load(policy.save(tmp_path / "noise"))
    assert torch.equal(
        loaded.condition(FEATURES).draw(seed=3), policy.condition(FEATURES).draw(seed=3)
    )
    assert loaded.policy_hash == "policy0"
    assert loaded.noise_scale == 0.8
    assert loaded.interface == INTERFACE
    assert len(loaded.hash) == 64
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = make_policy().save(tmp_path / "policy")
    with pytest.raises(ConfigError, match="must be a noise_policy checkpoint"):
        NoisePolicy.load(folder)


def test_a_checkpoint_that_names_no_flow_policy_is_refused(tmp_path: Path) -> None:
    folder = make_noise_policy().save(tmp_path / "noise")
    config = json.loads((folder / "config.json").read_text())
    del config["training"]["policy_hash"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="must name the flow policy it was trained for"):
        NoisePolicy.load(folder)


def test_a_checkpoint_without_its_scale_is_refused(tmp_path: Path) -> None:
    folder = make_noise_policy().save(tmp_path / "noise")
    config = json.loads((folder / "config.json").read_text())
    del config["architecture"]["noise_scale"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="noise_scale"):
        NoisePolicy.load(folder)


def test_a_checkpoint_with_weights_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = make_noise_policy().save(tmp_path / "noise")
    config = json.loads((folder / "config.json").read_text())
    config["architecture"]["hidden"] = [16, 17]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="must hold the weights"):
        NoisePolicy.load(folder)


def test_a_network_for_other_chunks_is_refused() -> None:
    network = make_noise_policy().network
    with pytest.raises(ConfigError, match="chunks of 8 must have a network of these sizes"):
        NoisePolicy(network, MEAN, STD, other(horizon=4), TRAINING)


def test_features_of_another_length_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expects features of shape \(B, 4\)"):
        make_noise_policy().condition(torch.zeros(1, 5))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_bounds_nothing_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="'noise_scale' must be finite and positive"):
        NoiseActor(4, 6, noise_scale=scale)


def test_an_actor_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one feature, action component"):
        NoiseActor(4, 6, ())
