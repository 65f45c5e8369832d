"""Training RL tokens from files of prefixes, pooled prefixes, and features kept on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.learning.prefixes import cache_features, cached_features, find_prefixes
from qsteer_ros.learning.settings_rl_token import RLTokenSettings
from qsteer_ros.learning.train_rl_token import RLTokenLearner, train_rl_token
from qsteer_ros.learning.trainer import generator
from qsteer_ros.policies.extractors import (
    architecture_name,
    load_camera_extractor,
    load_extractor,
)
from qsteer_ros.policies.prefix import save_pooled_prefix
from qsteer_ros.policies.state_vector import save_state_vector

WIDTH, LENGTH, FILES = 4, 4, 60
MIXING = np.random.default_rng(8).normal(size=(2, LENGTH, WIDTH))


def write(folder: Path, count: int = FILES, **changes) -> Path:
    """Prefixes of 3 or 4 tokens that a hidden pair of numbers decides."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        prefix = np.einsum("k,kld->ld", rng.normal(size=2), MIXING)[: LENGTH - index % 2]
        arrays = {
            "prefix": prefix.astype(np.float16 if index % 3 else np.float32),
            "proprio": np.full(2, index, np.float32),
        }
        save_file({**arrays, **changes}, folder / f"prefix_{index:03d}.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("prefixes"))


def settings(folder: Path, out: Path | str = "", **others) -> RLTokenSettings:
    small = RLTokenSettings(
        prefixes=str(folder),
        out=str(out),
        width=8,
        blocks=1,
        heads=2,
        batch=16,
        held_out=0.3,
        warmup=0,
        log_every=0,
        learning_rate=5e-3,
        ema=0.1,
    )
    return replace(small, **others)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "rl-token"
    metrics = train_rl_token(settings(folder, out, steps=120))
    assert metrics["token_test_passed"] == 1.0, metrics
    return out


def test_a_token_trained_on_files_passes_and_says_so(trained: Path) -> None:
    config = checkpoints.config_of(trained, kind="encoder")
    metrics = config["training"]["metrics"]
    assert metrics["error_shuffled_token"] >= 1.5 * metrics["error_true_token"]
    assert metrics["error_zeroed_token"] >= 1.5 * metrics["error_true_token"]
    assert metrics["cosine"] > 0.5
    assert (config["training"]["files"], config["training"]["test_files"]) == (42, 18)
    extractor = load_extractor(trained)
    assert len(extractor.feature_names) == 8 + 2


def test_a_token_that_was_not_trained_is_written_and_refused(folder: Path, tmp_path: Path) -> None:
    metrics = train_rl_token(settings(folder, tmp_path / "raw", steps=1, learning_rate=0.0))
    assert metrics["token_test_passed"] == 0.0, metrics
    with pytest.raises(ConfigError, match="must need its token"):
        load_extractor(tmp_path / "raw")


def test_the_last_files_are_never_trained_on(folder: Path) -> None:
    learner = RLTokenLearner(find_prefixes(folder), 10, settings(folder, batch=400))
    files = find_prefixes(folder)
    known = {files.batch([row])["prefix"].tobytes() for row in range(10)}
    drawn = learner.draw(generator(0, 0))["prefix"].numpy()
    assert {row.tobytes() for row in drawn} == known


def test_a_step_is_drawn_from_seed_and_number_only(folder: Path) -> None:
    learner = RLTokenLearner(find_prefixes(folder), 40, settings(folder))
    one, again = learner.draw(generator(0, 3)), learner.draw(generator(0, 3))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["keep"], learner.draw(generator(0, 4))["keep"])


def test_a_batch_is_padded_to_the_longest_file_and_says_where(tmp_path: Path) -> None:
    write(tmp_path, count=2)
    hole = np.array([True, False, True, True])
    path = tmp_path / "prefix_000.safetensors"
    save_file({**load_file(path), "mask": hole}, path)
    files = find_prefixes(tmp_path)
    assert (files.width, files.tokens, files.proprio_dim, len(files)) == (4, 4, 2, 2)
    batch = files.batch([1, 0])
    assert batch["mask"].tolist() == [[True, True, True, False], hole.tolist()]
    assert batch["prefix"].dtype == np.float32
    np.testing.assert_array_equal(batch["prefix"][1][hole], load_file(path)["prefix"][hole])
    assert not batch["prefix"][~batch["mask"]].any()
    np.testing.assert_array_equal(batch["proprio"], [[1, 1], [0, 0]])


def damaged(tmp_path: Path, **changes) -> Path:
    write(tmp_path, count=3)
    path = tmp_path / "prefix_001.safetensors"
    save_file({**load_file(path), **changes}, path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix": np.zeros((3, 5), np.float32)}, r"widths of the files before it, \(4, 2\)"),
        ({"prefix": np.zeros(4, np.float32)}, r"must hold 'prefix', \(L, D\) float16 or float32"),
        ({"prefix": np.full((3, 4), np.nan, np.float32)}, "must be finite"),
        ({"proprio": np.full(2, np.inf, np.float32)}, "must be finite"),
        ({"mask": np.zeros(3, np.bool_)}, "bool with a True in it"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        find_prefixes(damaged(tmp_path, **changes))
    assert "prefix_001.safetensors" in str(caught.value)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (write(tmp_path, count=3) / "prefix_002.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"prefix_002.safetensors' is damaged"):
        find_prefixes(tmp_path)


def test_an_empty_folder_and_too_few_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are none"):
        find_prefixes(tmp_path)
    with pytest.raises(DataError, match="holds 3, of which 1 are held out"):
        train_rl_token(settings(write(tmp_path / "few", count=3), tmp_path / "out"))


def test_cached_features_are_those_of_the_extractor(
    folder: Path, trained: Path, tmp_path: Path
) -> None:
    extractor, files = load_extractor(trained), find_prefixes(folder)
    path = cache_features(extractor, files, tmp_path / "z.safetensors")
    found = cached_features(path, extractor, files)
    assert found.shape == (FILES, 10)
    arrays = files.batch([37])
    proprio = arrays.pop("proprio")
    one = extractor.features_from_arrays(arrays, proprio)
    np.testing.assert_allclose(found[37], one[0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(found[:, 8], np.arange(FILES))


def test_cached_features_of_other_files_or_another_extractor_are_refused(
    folder: Path, trained: Path, tmp_path: Path
) -> None:
    extractor, files = load_extractor(trained), find_prefixes(folder)
    path = cache_features(extractor, files, tmp_path / "z.safetensors")
    write(tmp_path / "other", count=FILES - 1)
    with pytest.raises(ConfigError, match="must be of the same prefixes"):
        cached_features(path, extractor, find_prefixes(tmp_path / "other"))
    pooled = save_pooled_prefix(tmp_path / "pooled", prefix_width=4, proprio_dim=2)
    with pytest.raises(ConfigError, match="must be of the same extractor"):
        cached_features(path, pooled, files)
    with pytest.raises(ConfigError, match="it is missing"):
        cached_features(tmp_path / "none", extractor, files)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="is damaged"):
        cached_features(path, extractor, files)


def test_a_changed_number_changes_the_hash_of_the_files(tmp_path: Path) -> None:
    write(tmp_path, count=3)
    before = find_prefixes(tmp_path).hash
    damaged(tmp_path, proprio=np.array([1.0, 1.5], np.float32))
    assert find_prefixes(tmp_path).hash != before


def inputs(seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.array([[True, True, False, True], [True, False, False, False]])
    prefix = rng.normal(size=(2, 4, 6)).astype(np.float32)
    return {"prefix": prefix, "mask": mask}, rng.normal(size=(2, 3)).astype(np.float32)


@pytest.mark.parametrize("projection", [0, 512])
def test_a_pooled_prefix_is_the_normalised_mean_of_its_tokens(
    tmp_path: Path, projection: int
) -> None:
    save_pooled_prefix(tmp_path / "p", prefix_width=6, proprio_dim=3, projection=projection)
    arrays, proprio = inputs()
    found = load_extractor(tmp_path / "p").features_from_arrays(arrays, proprio).numpy()
    matrix = checkpoints.load(tmp_path / "p", kind="encoder").tensors.get("projection", np.eye(6))
    for row in range(2):
        mean = arrays["prefix"][row][arrays["mask"][row]].mean(axis=0)
        normal = (mean - mean.mean()) / np.sqrt(mean.var() + 1e-5)
        np.testing.assert_allclose(found[row, :-3], matrix @ normal, atol=1e-5)
        np.testing.assert_array_equal(found[row, -3:], proprio[row])


def test_padding_of_a_pooled_prefix_changes_nothing(tmp_path: Path) -> None:
    extractor = save_pooled_prefix(tmp_path / "p", prefix_width=6, proprio_dim=3)
    arrays, proprio = inputs()
    before = extractor.features_from_arrays(arrays, proprio)
    arrays["prefix"][~arrays["mask"]] = np.nan
    assert torch.equal(extractor.features_from_arrays(arrays, proprio), before)


def test_projected_features_have_unit_variance_and_depend_on_the_seed(tmp_path: Path) -> None:
    matrices = []
    for seed in (0, 0, 1):
        save_pooled_prefix(tmp_path / "p", prefix_width=300, proprio_dim=0, seed=seed)
        matrices.append(checkpoints.load(tmp_path / "p", kind="encoder").tensors["projection"])
    assert matrices[0].shape == (512, 300)
    assert np.array_equal(matrices[0], matrices[1])
    assert not np.array_equal(matrices[0], matrices[2])
    assert abs(matrices[0].var() * 300 - 1.0) < 0.02


def test_a_prefix_without_tokens_is_refused(tmp_path: Path) -> None:
    extractor = save_pooled_prefix(tmp_path / "p", prefix_width=6, proprio_dim=3)
    arrays, proprio = inputs()
    arrays["mask"][1] = False
    with pytest.raises(DataError, match="at least one token"):
        extractor.features_from_arrays(arrays, proprio)


def test_a_state_vector_is_what_was_measured(tmp_path: Path) -> None:
    save_state_vector(tmp_path / "s", ["x", "y"])
    extractor = load_extractor(tmp_path / "s")
    state = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    assert extractor.feature_names == ("x", "y")
    assert torch.equal(extractor.features_from_arrays({}, state), torch.from_numpy(state))
    with pytest.raises(ConfigError, match=r"must have the 2 numbers"):
        extractor.features_from_arrays({}, state[:, :1])
    with pytest.raises(ConfigError, match="a name of its own"):
        save_state_vector(tmp_path / "s", ["x", "x"])


def test_what_reads_no_cameras_is_refused_where_cameras_are_read(tmp_path: Path) -> None:
    save_state_vector(tmp_path / "s", ["x"])
    assert architecture_name(tmp_path / "s") == "state_vector_v1"
    with pytest.raises(ConfigError, match="must read cameras: its architecture is 'state_vec"):
        load_camera_extractor(tmp_path / "s", None)
