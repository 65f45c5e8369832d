"""Policies that learn to see: convolutions, crops, and cloning from logged pictures end to end."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_store import traffic, write_episode
from test_logged import LAYOUT, ROBOT, ROBOT_FILE, of_the_arm, picture, position_at
from torch import nn
from torch.nn import functional

from qsteer_ros import checkpoints
from qsteer_ros.critics.critic import Critic
from qsteer_ros.errors import ConfigError, DataError
from qsteer_ros.learning.pictures import PictureChunks, chunk_starts, load_picture_chunks
from qsteer_ros.learning.settings_critic import CriticSettings
from qsteer_ros.learning.settings_image_bc import ImageBcSettings
from qsteer_ros.learning.train_critic import train_critic
from qsteer_ros.learning.train_image_bc import ImageBcLearner, train_image_bc
from qsteer_ros.learning.trainer import Trainer, generator
from qsteer_ros.policies.conv_features import ConvFeatures, conv_feature_names
from qsteer_ros.policies.conv_network import (
    ConvNetwork,
    ConvView,
    crop,
    draw_offsets,
    shrink,
)
from qsteer_ros.policies.extractors import load_camera_extractor, load_extractor
from qsteer_ros.policies.features import PROPRIO_NAMES
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.steered import SteeredPolicy
from qsteer_ros.replay.transitions import logged_steps
from qsteer_ros.steering.settings import SteeringSettings
from qsteer_ros.types import Observation, RobotState


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=source)


def test_shrinking_averages_areas() -> None:
    pictures = pixels(2, 8, 12, 3)
    blocks = pictures.double().reshape(2, 4, 2, 4, 3, 3).mean(dim=(2, 4))  # (B, 4, 4, 3)
    found = shrink(pictures, 4).permute(0, 2, 3, 1).double()
    assert found.shape == (2, 4, 4, 3)
    assert float((found - blocks).abs().max()) <= 0.5 + 1e-4


def test_a_picture_of_the_right_size_is_not_changed() -> None:
    pictures = pixels(2, 16, 16, 3)
    assert torch.equal(shrink(pictures, 16), pictures.permute(0, 3, 1, 2))


def test_a_crop_is_cut_from_the_picture_with_its_border_repeated() -> None:
    pictures = pixels(6, 3, 16, 16)
    offsets = torch.tensor([[0, 0], [4, 4], [8, 8], [8, 0], [3, 7], [5, 4]])
    padded = functional.pad(pictures.float(), (4, 4, 4, 4), mode="replicate")
    found = crop(pictures, offsets)
    for one, whole, (row, column) in zip(found, padded, offsets.tolist(), strict=True):
        assert torch.equal(one.float(), whole[:, row : row + 16, column : column + 16])
    assert torch.equal(found[1], pictures[1])


def test_crops_are_drawn_evenly_from_nine_by_nine() -> None:
    offsets = draw_offsets(20_000, torch.Generator().manual_seed(0))
    assert offsets.min() == 0
    assert offsets.max() == 8
    counts = torch.bincount(offsets[:, 0] * 9 + offsets[:, 1], minlength=81)
    assert float((counts / 20_000 - 1 / 81).abs().max()) < 0.004


def test_a_view_is_four_convolutions_a_dense_layer_a_norm_and_a_tanh() -> None:
    torch.manual_seed(0)
    view, picture_ = ConvView(20), pixels(2, 3, 20, 20)
    signal = picture_.double() / 255 - 0.5
    layers = [layer for layer in view.convolutions if isinstance(layer, nn.Conv2d)]
    assert [layer.stride[0] for layer in layers] == [2, 1, 1, 1]
    for layer in layers:
        assert layer.weight.shape[0] == 32
        patches = signal.unfold(2, 3, layer.stride[0]).unfold(3, 3, layer.stride[0])
        signal = torch.einsum("bchwij,ocij->bohw", patches, layer.weight.double())
        signal = (signal + layer.bias.double()[:, None, None]).clamp_min(0)
    assert signal.shape == (2, 32, 3, 3)  # 20 -> 9 -> 7 -> 5 -> 3
    dense = signal.flatten(1) @ view.dense.weight.double().T + view.dense.bias.double()
    centred = dense - dense.mean(1, keepdim=True)
    expected = (centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()).tanh()
    torch.testing.assert_close(view(picture_).double(), expected, atol=1e-4, rtol=1e-4)


def test_pictures_too_small_for_the_convolutions_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 16 pixels wide: got 12"):
        ConvNetwork(["front"], 12)


def dots(count: int, source: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Dark pictures with one bright dot, and where it is in [-1, 1]."""
    place = torch.randint(0, 8, (count, 2), generator=source)
    dark = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    dark[torch.arange(count), :, place[:, 0], place[:, 1]] = 255
    return dark.repeat_interleave(2, 2).repeat_interleave(2, 3), place / 3.5 - 1.0


def test_a_short_training_finds_a_bright_dot() -> None:
    torch.manual_seed(0)
    network, head = ConvNetwork(["front"], 16), nn.Linear(50, 2)
    weights = [*network.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(weights, lr=2e-3)
    source = torch.Generator().manual_seed(1)
    for _ in range(90):
        pictures, place = dots(64, source)
        loss = (head(network({"front": pictures})) - place).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    pictures, place = dots(200, torch.Generator().manual_seed(2))
    with torch.no_grad():
        miss = (head(network({"front": pictures})) - place).abs().mean()
    assert float(miss) < 0.15, miss  # half a dot; guessing the middle misses by 0.57


def synthetic(count: int = 40) -> PictureChunks:
    """One camera whose picture alone says which of two chunks was executed."""
    source = torch.Generator().manual_seed(3)
    bright = torch.rand(count, generator=source) < 0.5
    grey = torch.where(bright, 220, 30).to(torch.uint8)
    chunk = torch.where(bright, 0.8, -0.8)[:, None, None].expand(count, 2, 1)
    return PictureChunks(
        pictures={"front": grey[:, None, None, None].expand(count, 3, 16, 16).contiguous()},
        shapes={"front": (16, 16)},
        proprio=np.zeros((count, 19), np.float32),
        chunk=chunk.numpy().astype(np.float32),
        data_hash="d",
        episodes=1,
    )


def small(**others) -> ImageBcSettings:
    return replace(
        ImageBcSettings(size=16, hidden="16", batch=8, steps=6, warmup=0, log_every=0), **others
    )


def test_randomness_of_a_step_depends_on_seed_and_step_only() -> None:
    learner = ImageBcLearner(synthetic(), small())
    one, again = learner.draw(generator(0, 5)), learner.draw(generator(0, 5))
    assert all(torch.equal(one[name], again[name]) for name in one)
    other = learner.draw(generator(0, 6))
    assert not torch.equal(one["offsets/front"], other["offsets/front"])
    assert one["pictures/front"].dtype == torch.uint8


def test_without_random_crops_pictures_stay_where_they_are() -> None:
    batch = ImageBcLearner(synthetic(), small(random_crop=False)).draw(generator(0, 0))
    pictures = batch["pictures/front"]
    assert torch.equal(crop(pictures, batch["offsets/front"]), pictures)


def test_the_gradient_of_the_flow_loss_reaches_the_convolutions() -> None:
    learner = ImageBcLearner(synthetic(), small(steps=80, batch=32, learning_rate=3e-3, ema=0.0))
    trainer = Trainer(learner, small(steps=80, batch=32, learning_rate=3e-3, ema=0.0))
    before = learner.encoder.views["front"].convolutions[0].weight.detach().clone()
    losses = [float(trainer.step(number)["loss"]) for number in range(80)]
    assert not torch.equal(learner.encoder.views["front"].convolutions[0].weight, before)
    # A policy that cannot see has to regress the mean of two chunks: its loss stays above 0.9.
    assert np.mean(losses[-30:]) < 0.6 * np.mean(losses[:10]), losses[::10]


def test_averages_follow_both_networks_at_their_rate() -> None:
    settings = small(ema=0.25)
    learner = ImageBcLearner(synthetic(), settings)
    trainer = Trainer(learner, settings)
    pairs = (
        (learner.encoder_average, learner.encoder),
        (learner.network_average, learner.network),
    )
    slow = [slow.state_dict() for slow, _ in pairs]
    slow = [{name: value.clone() for name, value in state.items()} for state in slow]
    trainer.step(0)
    for before, (average, network) in zip(slow, pairs, strict=True):
        for name, value in network.state_dict().items():
            expected = before[name] + 0.25 * (value - before[name])
            torch.testing.assert_close(average.state_dict()[name], expected)
    assert learner.kept == (learner.encoder_average, learner.network_average)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for name, success_at in (("e0", None), ("e1", 13)):
        messages = [of_the_arm(sent) for sent in traffic(success_at=success_at)]
        write_episode(folder, name, messages, robot=LAYOUT)
    return folder


def from_store(store: Path, **others) -> ImageBcSettings:
    return small(episodes=str(store), robot=ROBOT_FILE, **others)


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "image-bc"
    train_image_bc(from_store(store, out=str(out)), command="qsteer train image-bc")
    return out


def seen(row: int) -> Observation:
    stamp_ns = 10_000_000_000 + row * 50_000_000
    images = {camera: picture(camera, stamp_ns) for camera in ROBOT.cameras}
    state = RobotState(stamp_ns, position_at(stamp_ns), np.full(6, 0.02), 0.5, 0.2)
    return Observation(stamp_ns, images, state)


def test_every_executed_chunk_is_cloned_also_after_the_goal(store: Path) -> None:
    data = load_picture_chunks(from_store(store), ROBOT)
    assert data.chunk.shape == (2 * 16, 5, 5)  # 20 steps: the last chunk of 5 begins at 15
    assert data.pictures["front"].shape == (32, 3, 16, 16)
    np.testing.assert_allclose(data.chunk[3, :, 0], [0.03, 0.04, 0.05, 0.06, 0.07], atol=1e-6)
    only = load_picture_chunks(from_store(store, successes_only=True), ROBOT)
    assert (len(only.chunk), only.episodes) == (16, 1)
    assert only.data_hash != data.data_hash


def test_a_chunk_needs_a_measured_beginning_and_actions_to_its_end(store: Path) -> None:
    steps = next(found for found in logged_steps(store) if not isinstance(found, tuple))
    row = np.arange(20)
    patchy = replace(steps, complete=row != 4, acting=row != 12)
    assert chunk_starts(patchy, 5).tolist() == [0, 1, 2, 3, 5, 6, 7, 13, 14, 15]
    assert len(chunk_starts(steps, 21)) == 0


def test_training_keeps_the_pictures_that_a_decision_sees(store: Path) -> None:
    data = load_picture_chunks(from_store(store), ROBOT)
    from qsteer_ros.replay.images import decode_jpeg, encode_jpeg

    stamp_ns = 10_000_000_000 + 6 * 50_000_000
    image = decode_jpeg(encode_jpeg(picture("wrist", stamp_ns)))
    assert torch.equal(data.pictures["wrist"][6], shrink(torch.from_numpy(image[None]), 16)[0])


def test_two_checkpoints_come_out_that_decide_together(trained: Path) -> None:
    encoder = load_camera_extractor(trained / "encoder", ROBOT)
    policy = FlowPolicy.load(trained / "policy")
    assert isinstance(encoder, ConvFeatures)
    assert policy.interface.encoder_hash == encoder.hash
    assert policy.interface.feature_names == conv_feature_names(["front", "wrist"])
    assert policy.interface.feature_names[100:] == PROPRIO_NAMES
    assert torch.equal(policy.feature_mean[:100], torch.zeros(100))
    assert torch.equal(policy.feature_std[:100], torch.ones(100))
    policy.interface.check_robot(ROBOT, mine="the policy")
    steered = SteeredPolicy(encoder, policy, None, SteeringSettings(), backend="eager")
    one, other = steered.decide(seen(3), seed=0), steered.decide(seen(4), seed=0)
    assert one.chunk.shape == (5, 5)
    assert not np.array_equal(one.chunk, other.chunk)


def test_one_observation_or_many_give_the_same_features(trained: Path) -> None:
    encoder = load_extractor(trained / "encoder", ROBOT)
    observations = [seen(row) for row in range(3)]
    images = {name: np.stack([o.images[name] for o in observations]) for name in encoder.cameras}
    each = torch.cat([encoder.features(o) for o in observations])
    together = encoder.features_from_arrays(images, each[:, 100:].numpy())
    torch.testing.assert_close(together, each, atol=1e-6, rtol=1e-5)


def test_a_critic_trained_on_its_features_steers_the_policy(
    store: Path, trained: Path, tmp_path: Path
) -> None:
    settings = CriticSettings(
        episodes=str(store),
        encoder=str(trained / "encoder"),
        robot=ROBOT_FILE,
        out=str(tmp_path / "critic"),
        steps=3,
        hidden="16",
        batch=8,
        log_every=0,
    )
    train_critic(settings)
    steered = SteeredPolicy(
        load_camera_extractor(trained / "encoder", ROBOT),
        FlowPolicy.load(trained / "policy"),
        Critic.load(tmp_path / "critic"),
        SteeringSettings(mode="qgf", weight=0.05),
        backend="eager",
    )
    assert steered.decide(seen(2), seed=1).chunk.shape == (5, 5)


def test_a_resumed_run_ends_with_the_same_weights(store: Path, trained: Path, tmp_path) -> None:
    out = tmp_path / "image-bc"
    settings = from_store(store, out=str(out), checkpoint_every=4)

    class Stopped(Exception):
        pass

    data = load_picture_chunks(settings, ROBOT)
    from qsteer_ros.learning.trainer import run

    def stop(step: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        run(
            ImageBcLearner(data, settings),
            settings,
            data_hash=data.data_hash,
            description="",
            resume=False,
            on_state=stop,
        )
    train_image_bc(settings, resume=True)
    for name in ("encoder", "policy"):
        whole = checkpoints.load(trained / name, kind=name).tensors
        resumed = checkpoints.load(out / name, kind=name).tensors
        assert whole.keys() == resumed.keys()
        assert all(np.array_equal(whole[k], resumed[k]) for k in whole)


def test_another_robots_cameras_are_refused(trained: Path) -> None:
    from types import SimpleNamespace

    robot = SimpleNamespace(name="bare", cameras={"front": ROBOT.cameras["front"]})
    with pytest.raises(ConfigError, match="needs camera 'wrist'"):
        load_camera_extractor(trained / "encoder", robot)
    with pytest.raises(ConfigError, match="it needs a robot file"):
        load_extractor(trained / "encoder")


def test_weights_that_do_not_fit_are_refused(trained: Path, tmp_path: Path) -> None:
    saved = checkpoints.load(trained / "encoder", kind="encoder")
    architecture = {**saved.config["architecture"], "size": 20}
    checkpoints.save(
        tmp_path / "other", saved.tensors, {**saved.config, "architecture": architecture}
    )
    with pytest.raises(DataError, match="must hold the weights its config"):
        load_camera_extractor(tmp_path / "other", ROBOT)


def test_an_unknown_architecture_is_refused(trained: Path, tmp_path: Path) -> None:
    saved = checkpoints.load(trained / "encoder", kind="encoder")
    config = {**saved.config, "architecture": {"name": "eyes_v9"}}
    checkpoints.save(tmp_path / "other", saved.tensors, config)
    with pytest.raises(ConfigError, match="its architecture is 'eyes_v9'"):
        load_camera_extractor(tmp_path / "other", ROBOT)
    with pytest.raises(ConfigError, match="architecture of this version: it has 'eyes_v9'"):
        load_extractor(tmp_path / "other", ROBOT)


def test_no_episodes_are_refused_with_the_reason(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'episodes' is empty"):
        load_picture_chunks(small(), ROBOT)
    with pytest.raises(DataError, match=r"none can be used .*its goal is 1"):
        load_picture_chunks(from_store(store, goal=3), ROBOT)
    failed = next(p for p in store.iterdir() if p.name.endswith("e0"))
    shutil.copytree(failed, tmp_path / "store" / failed.name)
    with pytest.raises(DataError, match="it did not reach its goal"):
        load_picture_chunks(from_store(tmp_path / "store", successes_only=True), ROBOT)
