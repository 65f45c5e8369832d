"""Features of the RL token: one trained vector per VLA prefix, then proprioception."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsteer_ros import checkpoints
from qsteer_ros.errors import ConfigError
from qsteer_ros.policies.prefix import prefix_feature_names, prefix_of, proprio_of
from qsteer_ros.policies.rl_token_network import (
    RLTokenAutoencoder,
    RLTokenEncoder,
    RLTokenShape,
)
from qsteer_ros.policies.token_test import TokenTest
from qsteer_ros.weights import arrays_of, load_frozen

ARCHITECTURE = "rl_token_v1"
AUTOENCODER = "autoencoder"
_KEYS = ("name", "proprio_dim", *RLTokenShape.__dataclass_fields__)


class RLToken:
    """A trained encoder of VLA prefixes.

    Attributes:
        feature_names: ``rl_token_0`` ... and ``proprio_0`` ...
        hash: SHA-256 of the checkpoint.
        shape: Sizes it was trained with.
    """

    def __init__(
        self,
        encoder: RLTokenEncoder,
        proprio_dim: int,
        *,
        checkpoint_hash: str,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape = encoder.shape
        self.feature_names = prefix_feature_names("rl_token", encoder.shape.width, proprio_dim)
        self.hash = checkpoint_hash
        self._encoder = encoder.to(device).eval().requires_grad_(False)
        self._proprio_dim = proprio_dim
        self._device = torch.device(device)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        without_test: bool = False,
    ) -> RLToken:
        """Read a checkpoint that ``qsteer train rl-token`` wrote.

        Args:
            folder: The checkpoint.
            device: Where the network runs.
            without_test: Also load a token that its own decoder ignores.

        Raises:
            ConfigError: It is another kind of checkpoint, or it failed the token test.
            DataError: It is damaged.
        """
        network, saved = load_autoencoder(folder, device=device)
        metrics = saved.config["training"]["metrics"]
        if not (without_test or metrics["token_test_passed"] == 1.0):
            raise ConfigError(
                f"the decoder of RL token '{folder}' must need its token: its error is "
                f"{metrics['error_true_token']:.4g} with it, {metrics['error_zeroed_token']:.4g} "
                f"without and {metrics['error_shuffled_token']:.4g} with another's. "
                "Train it longer, or with a higher context_dropout."
            )
        proprio_dim = int(saved.config["architecture"]["proprio_dim"])
        return cls(network.encoder, proprio_dim, checkpoint_hash=saved.hash, device=device)

    @torch.no_grad()
    def features_from_arrays(
        self, inputs: Mapping[str, NDArray[Any]], proprio: NDArray[np.floating]
    ) -> Tensor:
        """The features of N observations.

        Args:
            inputs: ``prefix``, (N, L, D), and ``mask``, (N, L) bool; without it every token
                counts.
            proprio: (N, P).

        Returns:
            (N, d + P) float32 on the encoder's device.

        Raises:
            ConfigError: A shape is another one.
            DataError: A prefix has no token.
        """
        prefix, mask = prefix_of(inputs, self.shape.prefix_width, self._device)
        measured = proprio_of(proprio, len(prefix), self._proprio_dim, self._device)
        return torch.cat([self._encoder(prefix, mask), measured], dim=1)


def save_rl_token(
    folder: str | Path,
    network: RLTokenAutoencoder,
    *,
    proprio_dim: int,
    training: Mapping[str, Any],
    test: TokenTest,
) -> Path:
    """Write a checkpoint folder atomically, decoder included; a failed test is written down.

    Args:
        folder: Where; one that is there is replaced.
        network: Its weights.
        proprio_dim: P, numbers appended to the token.
        training: Command, settings, data hash and metrics; those of the test are added.
        test: What the token test found.

    Raises:
        DataError: A weight is not finite. Nothing has been written.
    """
    names = prefix_feature_names("rl_token", network.shape.width, proprio_dim)
    config = {
        "kind": "encoder",
        "architecture": {
            "name": ARCHITECTURE,
            "proprio_dim": proprio_dim,
            **network.shape.to_config(),
        },
        "feature_names": list(names),
        "training": {
            **training,
            "metrics": {**training.get("metrics", {}), **test.to_metrics()},
        },
    }
    return checkpoints.save(folder, arrays_of(network, prefix=AUTOENCODER), config)


def load_autoencoder(
    folder: str | Path, *, device: torch.device | str = "cpu"
) -> tuple[RLTokenAutoencoder, checkpoints.Checkpoint]:
    """Encoder and decoder, frozen, whatever the token test said.

    Raises:
        ConfigError: It is another kind of checkpoint.
        DataError: It is damaged.
    """
    saved = checkpoints.load(folder, kind="encoder")
    found = checkpoints.architecture(saved, _KEYS)
    if found["name"] != ARCHITECTURE:
        raise ConfigError(
            f"'{folder}' must have architecture '{ARCHITECTURE}': it has '{found['name']}'."
        )
    with torch.inference_mode(False):
        network = RLTokenAutoencoder(RLTokenShape.from_config(found))
        load_frozen(network, saved, prefix=AUTOENCODER, device=device)
    return network, saved
