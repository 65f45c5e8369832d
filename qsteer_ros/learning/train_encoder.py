"""Training the camera encoder on rendered frames with the simulator's truth beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qsteer_ros import checkpoints
from qsteer_ros.learning import states
from qsteer_ros.learning.data import Frames, load_frames
from qsteer_ros.learning.learner import Batch, Learner
from qsteer_ros.learning.settings_encoder import EncoderSettings
from qsteer_ros.learning.trainer import provenance, run
from qsteer_ros.policies.encoder import encoder_config
from qsteer_ros.policies.encoder_network import PROPRIO_INDEX, CubeNetwork, ViewNetwork
from qsteer_ros.policies.features import LENGTH_SCALE, TABLE_CENTRE_M

STD_FLOOR = 0.1
CENTIMETRES = 100.0 / LENGTH_SCALE


class EncoderLearner(Learner):
    r"""Regresses cube position and four-fold yaw.

    .. math:: L = \mathrm{smoothL1}_{\beta = 0.5}(\text{position error in cm})
                  + w \, \lVert (\cos, \sin)(4 \psi) \text{ error} \rVert^2
    """

    taken: Tensor

    def __init__(self, frames: Frames, settings: EncoderSettings) -> None:
        super().__init__()
        torch.manual_seed(settings.seed)
        self._settings = settings
        self._images = {k: torch.from_numpy(v) for k, v in frames.images.items()}
        self._proprio = torch.from_numpy(frames.proprio)
        self._position = torch.from_numpy(
            ((frames.cube_xyz - TABLE_CENTRE_M) * LENGTH_SCALE).astype(np.float32)
        )
        four = torch.from_numpy(4.0 * frames.cube_yaw)
        self._yaw = torch.stack([four.cos(), four.sin()], dim=1)
        self.network = CubeNetwork(sorted(self._images))
        seen = self._proprio[:, PROPRIO_INDEX]
        self.network.proprio_mean = seen.mean(dim=0)
        self.network.proprio_std = seen.std(dim=0).clamp_min(STD_FLOOR)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _convolve_in_bfloat16(self.network, settings.bfloat16)
        self._order = np.empty(0, dtype=np.int64)
        self._epoch = -1
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
        self._optimisers = {
            "network": torch.optim.AdamW(
                self.network.parameters(),
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                fused=True,
            )
        }

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One."""
        return self._optimisers

    def draw(self, source: torch.Generator) -> Batch:
        """The frames of this step; every epoch has its own order of them."""
        size = min(self._settings.batch, len(self._proprio))
        epoch, index = divmod(int(self.taken), len(self._proprio) // size)
        if epoch != self._epoch:
            rng = np.random.default_rng((self._settings.seed, epoch))
            self._order, self._epoch = rng.permutation(len(self._proprio)), epoch
        rows = torch.from_numpy(self._order[index * size : (index + 1) * size])
        return {
            "proprio": self._proprio[rows],
            "position": self._position[rows],
            "yaw": self._yaw[rows],
            **{f"image/{camera}": images[rows] for camera, images in self._images.items()},
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The two losses and their sum."""
        images = {camera: batch[f"image/{camera}"] for camera in self._images}
        position, yaw = self.network(images, batch["proprio"])
        position_loss = functional.smooth_l1_loss(
            position * CENTIMETRES, batch["position"] * CENTIMETRES, beta=0.5
        )
        yaw_loss = functional.mse_loss(yaw, batch["yaw"])
        loss = position_loss + self._settings.yaw_weight * yaw_loss
        return {"loss": loss, "position": position_loss, "yaw": yaw_loss}

    def after_step(self) -> None:
        """Count."""
        self.taken += 1


def _convolve_in_bfloat16(network: CubeNetwork, enabled: bool) -> None:
    for view in network.views.values():
        assert isinstance(view, ViewNetwork)
        view.in_bfloat16 = enabled


@torch.no_grad()
def errors(network: CubeNetwork, frames: Frames) -> dict[str, float]:
    """How far the estimate is off on test frames, by situation.

    Returns:
        ``<group>/median_mm``, ``/p95_mm`` of the 3-d error, ``/rmse_{x,y,z}_mm`` and
        ``/yaw_median_deg`` for the groups all, free, near (within 6 cm of the pinch point, open),
        grasped (within 3 cm with contact), nominal camera and moved camera.
    """
    _convolve_in_bfloat16(network, False)
    position, yaw = [], []
    for first in range(0, len(frames.proprio), 100):
        rows = slice(first, first + 100)
        estimate = network(
            {k: torch.from_numpy(v[rows]) for k, v in frames.images.items()},
            torch.from_numpy(frames.proprio[rows]),
        )
        position.append(estimate[0].numpy())
        yaw.append(estimate[1].numpy())
    cube = np.concatenate(position) / LENGTH_SCALE + TABLE_CENTRE_M
    miss = (cube - frames.cube_xyz) * 1000.0
    angle = np.arctan2(*np.concatenate(yaw).T[::-1])
    turn = np.degrees(np.abs(np.angle(np.exp(1j * (angle - 4.0 * frames.cube_yaw))))) / 4.0
    tool = frames.proprio[:, 12:15] / LENGTH_SCALE + TABLE_CENTRE_M
    apart = np.linalg.norm(tool - frames.cube_xyz, axis=1)
    grasped = (apart < 0.03) & (frames.proprio[:, 18] > 0.02)
    groups = {
        "all": np.ones(len(miss), dtype=bool),
        "free": ~grasped,
        "free_play": ~grasped & ~frames.random_cube,
        "near": ~grasped & (apart < 0.06),
        "grasped": grasped,
        "nominal_camera": ~frames.moved_camera,
        "moved_camera": frames.moved_camera,
    }
    report: dict[str, float] = {}
    for name, rows_in in groups.items():
        if rows_in.sum() == 0:
            continue
        distance = np.linalg.norm(miss[rows_in], axis=1)
        report[f"{name}/count"] = int(rows_in.sum())
        report[f"{name}/median_mm"] = round(float(np.median(distance)), 2)
        report[f"{name}/p95_mm"] = round(float(np.percentile(distance, 95)), 2)
        for axis, value in zip("xyz", np.sqrt(np.mean(miss[rows_in] ** 2, axis=0)), strict=True):
            report[f"{name}/rmse_{axis}_mm"] = round(float(value), 2)
        report[f"{name}/yaw_median_deg"] = round(float(np.median(turn[rows_in])), 2)
    return report


def train_encoder(
    settings: EncoderSettings, *, resume: bool = False, command: str = ""
) -> dict[str, float]:
    """Train an encoder and write its checkpoint.

    Args:
        settings: How, and from what.
        resume: Continue an interrupted run.
        command: Written into the checkpoint.

    Returns:
        Errors on the test frames, see :func:`errors`.

    Raises:
        ConfigError: There are no frames, or the run to resume was another one.
    """
    data = Path(settings.data)
    frames = load_frames(data, "train")
    digest = hashlib.sha256()
    for array in (frames.proprio, frames.cube_xyz, frames.cube_yaw):
        digest.update(array.tobytes())
    learner = EncoderLearner(frames, settings)
    losses = run(
        learner,
        settings,
        data_hash=digest.hexdigest(),
        description="encoder",
        resume=resume,
    )
    metrics = errors(learner.network, load_frames(data, "test"))
    shapes = {k: (int(v.shape[1]), int(v.shape[2])) for k, v in frames.images.items()}
    training = provenance(
        settings, command=command, data_hash=digest.hexdigest(), metrics=losses
    ) | {"frames": len(frames.proprio), "test_errors": metrics}
    tensors = {k: v.detach().cpu().numpy() for k, v in learner.network.state_dict().items()}
    config = encoder_config(shapes, training)
    states.finish(settings.out, lambda folder: checkpoints.save(folder, tensors, config))
    return metrics
