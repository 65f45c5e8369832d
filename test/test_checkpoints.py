"""The checkpoint folder, and what policies and critics make of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import FEATURES, INTERFACE, make_critic, make_policy, other
from safetensors.numpy import load_file, save_file

from qsteer_ros import checkpoints
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.interface import Interface
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.weights import standardise

PARTS = [
    pytest.param(make_policy, FlowPolicy, id="policy"),
    pytest.param(make_critic, Critic, id="critic"),
]


def answer(part: FlowPolicy | Critic) -> torch.Tensor:
    chunk = torch.linspace(-1, 1, 12).view(2, 3, 2)
    if isinstance(part, Critic):
        return part.condition(FEATURES)(chunk)
    return part.condition(FEATURES)(chunk, torch.tensor([0.0, 0.4]))


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


def edit_tensors(folder: Path, **changes: np.ndarray | None) -> None:
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {key: value for key, value in tensors.items() if value is not None}
    save_file(kept, folder / "model.safetensors")


@pytest.mark.parametrize(("make", "kind"), PARTS)
def test_what_is_loaded_answers_as_what_was_saved(make, kind, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    part = make()
    loaded = kind.load(part.save(tmp_path / "c"))
    assert torch.equal(answer(loaded), answer(part))
    assert loaded.interface == INTERFACE
    assert dict(loaded.training) == dict(part.training)
    assert len(loaded.hash) == 64


@pytest.mark.parametrize(("make", "kind"), PARTS)
def test_what_is_loaded_is_frozen(make, kind, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    loaded = kind.load(make().save(tmp_path / "c"))
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert not loaded.network.training


@pytest.mark.parametrize(("make", "kind"), PARTS)
def test_what_is_loaded_under_inference_mode_can_still_be_differentiated(
    make, kind, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    folder = make().save(tmp_path / "c")
    with torch.inference_mode():
        loaded = kind.load(folder)
    chunk = torch.zeros(1, 3, 2, requires_grad=True)
    arguments = (chunk,) if kind is Critic else (chunk, torch.zeros(1))
    answers = loaded.condition(FEATURES)(*arguments)
    (gradient,) = torch.autograd.grad(answers.sum(), chunk)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(("make", "kind"), PARTS)
def test_the_hash_follows_the_weights(make, kind, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one, same = kind.load(make(3).save(tmp_path / "a")), kind.load(make(3).save(tmp_path / "b"))
    changed = kind.load(make(4).save(tmp_path / "c"))
    assert one.hash == same.hash != changed.hash


def test_saving_replaces_a_checkpoint_and_leaves_nothing_else(tmp_path: Path) -> None:
    make_policy(0).save(tmp_path / "c")
    make_policy(1).save(tmp_path / "c")
    assert torch.equal(answer(FlowPolicy.load(tmp_path / "c")), answer(make_policy(1)))
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    critic = make_critic()
    critic.network.kernels[0][0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"'target.kernels.0' must be finite"):
        critic.save(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a policy checkpoint: it has no model"):
        FlowPolicy.load(tmp_path)


def test_a_policy_is_no_critic(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"must be a critic checkpoint: its config.json says 'pol"
    ):
        Critic.load(make_policy().save(tmp_path / "c"))


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    folder = make_policy().save(tmp_path / "c")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(DataError, match="is damaged"):
        FlowPolicy.load(folder)


@pytest.mark.parametrize(("make", "kind"), PARTS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_names": "gone"}, r"must state 'feature_names' in its config.json. Train it"),
        ({"time_convention": "noise_at_one"}, "must have time_convention 'noise_at_zero'"),
        ({"action_dim": 7}, "must name each of its 7 action dimensions: it names 2"),
        ({"action_scale": [1.0]}, "'action_names' and 'action_scale' must be equally long"),
        ({"horizon": 0}, "at least one action per chunk"),
        ({"architecture": {"width": 3}}, "must state an architecture with .*hidden"),
    ],
)
def test_a_config_that_is_incomplete_or_contradicts_itself_is_refused(  # type: ignore[no-untyped-def]
    make, kind, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = make().save(tmp_path / "c")
    edit_config(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        kind.load(folder)


@pytest.mark.parametrize(("make", "kind"), PARTS)
def test_weights_that_do_not_fit_the_config_are_refused(make, kind, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = make().save(tmp_path / "c")
    edit_config(folder, horizon=4)
    with pytest.raises(DataError, match=r"must hold the weights its config.json describes"):
        kind.load(folder)


@pytest.mark.parametrize(
    ("statistic", "value", "message"),
    [
        ("feature_mean", None, "must hold 'feature_mean' of shape .4,.: found None"),
        ("feature_std", np.ones(3, np.float32), "must hold 'feature_std' of shape .4,.: found"),
        ("feature_std", np.zeros(4, np.float32), "must be positive: got 0.0"),
    ],
)
@pytest.mark.parametrize(("make", "kind"), PARTS)
def test_features_without_statistics_are_refused(  # type: ignore[no-untyped-def]
    make, kind, statistic: str, value: np.ndarray | None, message: str, tmp_path: Path
) -> None:
    folder = make().save(tmp_path / "c")
    edit_tensors(folder, **{statistic: value})
    with pytest.raises(DataError, match=message):
        kind.load(folder)


@pytest.mark.parametrize(("make", "kind"), PARTS)
def test_features_are_standardised_inside(make, kind, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Doubling spread and distance from the mean changes nothing."""
    folder = make().save(tmp_path / "c")
    stored = load_file(folder / "model.safetensors")
    edit_tensors(folder, feature_std=2 * stored["feature_std"])
    mean = torch.from_numpy(stored["feature_mean"])
    wide = kind.load(folder)
    stretched = mean + 2 * (FEATURES - mean)
    chunk = torch.linspace(-1, 1, 6).view(1, 3, 2)
    arguments = (chunk,) if kind is Critic else (chunk, torch.tensor([0.4]))
    torch.testing.assert_close(
        wide.condition(stretched)(*arguments), make().condition(FEATURES)(*arguments)
    )


def test_standardised_features_are_never_inference_tensors() -> None:
    with torch.inference_mode():
        rows = standardise(FEATURES.clone(), torch.zeros(4), torch.ones(4))
    assert not rows.is_inference()
    assert not rows.requires_grad


@pytest.mark.parametrize("make", [make_policy, make_critic])
def test_features_of_another_length_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=r"expects features of shape \(B, 4\): got \(1, 5\)"):
        make().condition(torch.zeros(1, 5))


def test_chunks_of_another_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"judges chunks of shape \(B, 3, 2\): got \(1, 2, 3\)"):
        make_critic().condition(FEATURES)(torch.zeros(1, 2, 3))
    with pytest.raises(ConfigError, match=r"moves chunks of shape \(B, 3, 2\): got \(1, 2, 3\)"):
        make_policy().condition(FEATURES)(torch.zeros(1, 2, 3), torch.zeros(1))


def test_a_network_made_for_another_space_is_refused() -> None:
    policy, critic = make_policy(), make_critic()
    with pytest.raises(ConfigError, match="its network has 4 and 6"):
        FlowPolicy(policy.network, policy.feature_mean, policy.feature_std, other(horizon=4))
    with pytest.raises(ConfigError, match="must have 12 inputs: its network has 10"):
        Critic(critic.network, critic.feature_mean, critic.feature_std, other(horizon=4))


def test_one_row_of_features_serves_a_batch_and_one_row_each_does_too() -> None:
    chunk = torch.linspace(-1, 1, 12).view(2, 3, 2)
    q = make_critic()
    torch.testing.assert_close(
        q.condition(FEATURES)(chunk), q.condition(FEATURES.expand(2, -1))(chunk)
    )


@pytest.mark.parametrize("make", [make_policy, make_critic])
def test_each_row_of_features_serves_its_own_run_of_chunks(make) -> None:  # type: ignore[no-untyped-def]
    """Six chunks, two rows of features: three chunks each, in order."""
    part = make()
    features = torch.cat([FEATURES, FEATURES + 1.0])
    chunk = torch.linspace(-1, 1, 36).view(6, 3, 2)
    time = torch.linspace(0, 0.5, 6)

    def asked(rows: torch.Tensor, of: slice) -> torch.Tensor:
        rest = () if make is make_critic else (time[of],)
        found = part.condition(rows)(chunk[of], *rest)
        return found.T if make is make_critic else found

    together = asked(features, slice(0, 6))
    alone = [asked(features[b : b + 1], slice(3 * b, 3 * b + 3)) for b in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.allclose(together, asked(features.flip(0), slice(0, 6)))


@pytest.mark.parametrize("make", [make_policy, make_critic])
@pytest.mark.parametrize(("rows", "chunks"), [(2, 3), (3, 2), (0, 2)])
def test_chunks_that_cannot_be_shared_out_evenly_are_refused(make, rows: int, chunks: int) -> None:  # type: ignore[no-untyped-def]
    asked = make().condition(FEATURES.expand(1, -1).repeat(rows, 1))
    rest = () if make is make_critic else (torch.zeros(chunks),)
    with pytest.raises(ConfigError, match=f"equally many chunks: got {rows} rows for {chunks}"):
        asked(torch.zeros(chunks, 3, 2), *rest)


def test_an_architecture_that_is_missing_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.save(tmp_path / "c", {"x": np.zeros(1)}, {"kind": "policy"})
    with pytest.raises(ConfigError, match=r"must state an architecture with hidden .*found None"):
        checkpoints.architecture(checkpoints.load(folder, kind="policy"), ("hidden",))


def test_the_interface_survives_its_config() -> None:
    assert Interface.from_config(INTERFACE.to_config(), source="c") == INTERFACE


def test_a_process_killed_between_two_names_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    folder = checkpoints.save(tmp_path / "c", {"w": np.zeros(2)}, {"kind": "policy"})
    folder.rename(tmp_path / "c.previous")  # where a kill between the two renames leaves it
    assert checkpoints.load(folder, kind="policy").config["kind"] == "policy"
    assert not (tmp_path / "c.previous").exists()
    folder.rename(tmp_path / "c.previous")
    checkpoints.save(folder, {"w": np.ones(2)}, {"kind": "policy"})
    np.testing.assert_array_equal(checkpoints.load(folder, kind="policy").tensors["w"], [1, 1])
