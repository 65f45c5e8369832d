r"""Behaviour cloning from pictures: encoder and velocity network together, end to end.

.. math:: L = \operatorname{mean} \big( v(\phi(o), x_\tau, \tau) - (a - x_0) \big)^2

with :math:`\phi` the convolutional encoder of randomly cropped pictures and proprioception. The
two networks become two checkpoints, so that critics, steering and the node use the encoder's
features like any other's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from qsteer_ros.learning import states
from qsteer_ros.learning.buffer import statistics
from qsteer_ros.learning.learner import Batch, Learner
from qsteer_ros.learning.logged import interface_of
from qsteer_ros.learning.pictures import PictureChunks, load_picture_chunks
from qsteer_ros.learning.settings import widths
from qsteer_ros.learning.settings_image_bc import ImageBcSettings
from qsteer_ros.learning.trainer import provenance, run
from qsteer_ros.motion.robot import RobotFile
from qsteer_ros.policies.conv_features import conv_feature_names, save_conv_features
from qsteer_ros.policies.conv_network import (
    CROP_PIXELS,
    FEATURES_PER_VIEW,
    ConvNetwork,
    crop,
    draw_offsets,
)
from qsteer_ros.policies.flow_policy import FlowPolicy
from qsteer_ros.policies.networks import FlowMLP, flow_matching_loss, sample_flow_time
from qsteer_ros.weights import ema_update

Module = TypeVar("Module", bound=nn.Module)


class ImageBcLearner(Learner):
    """Encoder and velocity network under one loss.

    Attributes:
        encoder: What sees.
        network: What moves.
        mean: Of the features as the velocity network is given them: 0 for what is seen, that of
            the data for what is measured, (F,).
        std: Likewise 1, and the floored deviation of the data, (F,).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, data: PictureChunks, settings: ImageBcSettings) -> None:
        super().__init__()
        torch.manual_seed(settings.seed)
        self._settings = settings
        self._pictures = data.pictures
        self._proprio = torch.from_numpy(data.proprio)
        self._chunk = torch.from_numpy(data.chunk).flatten(1)
        cameras = sorted(data.pictures)
        seen = FEATURES_PER_VIEW * len(cameras)
        mean, std = statistics(self._proprio)
        self.register_buffer("mean", torch.cat([torch.zeros(seen), mean]))
        self.register_buffer("std", torch.cat([torch.ones(seen), std]))
        self.encoder = ConvNetwork(cameras, settings.size)
        self.network = FlowMLP(len(self.mean), self._chunk.shape[1], widths(settings.hidden))
        averaged = settings.ema > 0.0
        self.encoder_average = _still(self.encoder) if averaged else None
        self.network_average = _still(self.network) if averaged else None
        self.to(settings.device)
        weights = [*self.encoder.parameters(), *self.network.parameters()]
        self._optimisers = {
            "both": torch.optim.Adam(weights, lr=settings.learning_rate, fused=True)
        }

    @property
    def kept(self) -> tuple[ConvNetwork, FlowMLP]:
        """What becomes the checkpoints: the averages of the weights where they are kept."""
        if self.encoder_average is None or self.network_average is None:
            return self.encoder, self.network
        return self.encoder_average, self.network_average

    def draw(self, source: torch.Generator) -> Batch:
        """Rows of the data, a crop for each picture, noise and flow times."""
        count = self._settings.batch
        rows = torch.randint(len(self._chunk), (count,), generator=source)
        batch = {"proprio": self._proprio[rows], "chunk": self._chunk[rows]}
        for camera in self.encoder.cameras:
            offsets = draw_offsets(count, source)
            if not self._settings.random_crop:
                offsets.fill_(CROP_PIXELS)
            batch[f"offsets/{camera}"] = offsets
            batch[f"pictures/{camera}"] = self._pictures[camera][rows]
        batch["noise"] = torch.randn(batch["chunk"].shape, generator=source)
        batch["flow_time"] = sample_flow_time(count, generator=source)
        return {name: value.to(self._settings.device) for name, value in batch.items()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The flow-matching loss."""
        seen = self.encoder(
            {
                camera: crop(batch[f"pictures/{camera}"], batch[f"offsets/{camera}"])
                for camera in self.encoder.cameras
            }
        )
        features = (torch.cat([seen, batch["proprio"]], dim=1) - self.mean) / self.std
        loss = flow_matching_loss(
            self.network,
            features,
            batch["chunk"],
            noise=batch["noise"],
            flow_time=batch["flow_time"],
        )
        return {"loss": loss}

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One."""
        return self._optimisers

    def after_step(self) -> None:
        """The averages follow the weights."""
        for slow, fast in zip(self.kept, (self.encoder, self.network), strict=True):
            if slow is not fast:
                ema_update(slow, fast, rate=self._settings.ema)


def _still(module: Module) -> Module:
    """A copy that no gradient reaches."""
    return copy.deepcopy(module).requires_grad_(False)


def train_image_bc(
    settings: ImageBcSettings, *, resume: bool = False, command: str = ""
) -> dict[str, float]:
    """Clone logged episodes from their pictures.

    Writes ``encoder`` and ``policy`` into the folder ``settings.out``.

    Args:
        settings: How, and from what.
        resume: Continue an interrupted run.
        command: Written into both checkpoints.

    Returns:
        The mean loss over the last tenth of the steps.

    Raises:
        ConfigError: There are no data, or the run to resume was another one.
        DataError: No episode can be used.
    """
    robot = RobotFile.load(settings.robot)
    data = load_picture_chunks(settings, robot)
    learner = ImageBcLearner(data, settings)
    metrics = run(
        learner, settings, data_hash=data.data_hash, description="image-bc", resume=resume
    )
    training = provenance(settings, command=command, data_hash=data.data_hash, metrics=metrics)
    training |= {
        "transitions": len(data.chunk),
        "episodes": data.episodes,
        "left_out": list(data.left_out),
    }

    def save(folder: str | Path) -> None:
        encoder, network = learner.kept
        digest = save_conv_features(Path(folder) / "encoder", encoder, data.shapes, training)
        interface = interface_of(
            robot,
            horizon=settings.horizon,
            feature_names=conv_feature_names(encoder.cameras),
            encoder_hash=digest,
        )
        policy = FlowPolicy(network, learner.mean, learner.std, interface, training)
        policy.save(Path(folder) / "policy")

    states.finish(settings.out, save)
    return metrics
