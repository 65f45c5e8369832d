"""The noise actor, its chunks and best-of-4 agree with the official DSRL code.

The golden file holds samples only. Losses are compared in `test_dsrl.py` with the official
formulas, written again there.
"""

from __future__ import annotations

import pytest
import torch
from golden_loader import ACTION_DIM, DTYPES, Golden, q_of
from torch import Tensor
from torch.nn import functional

from qsteer_ros.ensemble import mean
from qsteer_ros.flow import VelocityField, denoise
from qsteer_ros.policies.noise_network import NoiseActor
from qsteer_ros.policies.noise_policy import ChosenNoise
from qsteer_ros.steering.best_of_n import best_of_n

NOISE_SCALE, STEPS = 1.5, 10
BOTH = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in DTYPES]


@pytest.fixture(params=BOTH)
def file(request: pytest.FixtureRequest) -> Golden:
    return Golden("dsrl", request.param)


def actor_of(file: Golden) -> NoiseActor:
    """The official actor's weights in our network."""
    stem = "w/modules_actor/"
    ours = {"mean_net": "location", "log_std_net": "log_std"}
    weights = {}
    for key in (key.removeprefix(stem) for key in file.arrays if key.startswith(stem)):
        *_, layer, kind = key.split("/")
        name = ours.get(layer, "layers." + layer.rsplit("_", 1)[1])
        tensor = file.tensor(stem + key)
        weights[f"{name}.{'weight' if kind == 'kernel' else 'bias'}"] = (
            tensor.T if kind == "kernel" else tensor
        )
    out, hidden = weights["location.weight"].shape
    depth = sum(name.startswith("layers.") for name in weights) // 2
    inputs = weights["layers.0.weight"].shape[1]
    actor = NoiseActor(inputs, out, (hidden,) * depth, noise_scale=NOISE_SCALE)
    actor.to(file.dtype).load_state_dict(weights, strict=True)
    return actor.requires_grad_(False)


def noise_of(file: Golden, candidates: int) -> Tensor:
    """Noise for every observation and candidate, (B * N, H, A)."""
    rows = file.tensor("in/obs").repeat_interleave(candidates, dim=0)
    gaussian = file.chunk(f"in/eps_bestof{candidates}").flatten(0, 1)
    actor = actor_of(file)
    chosen = ChosenNoise(actor, actor.distribution(rows), (gaussian.shape[1], ACTION_DIM))
    return chosen.at(gaussian)


def raw_time_field(file: Golden, rows: Tensor) -> VelocityField:
    """The official target field of this file: raw time, no LayerNorm."""
    weights = file.parameters("w/modules_target_actor_bc_flow")
    depth = sum(name.startswith("layers.") for name in weights) // 2

    def field(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        signal = torch.cat([rows, noisy_chunk.flatten(1), flow_time.unsqueeze(1)], dim=1)
        for index in range(depth):
            signal = functional.linear(
                signal, weights[f"layers.{index}.weight"], weights[f"layers.{index}.bias"]
            )
            signal = functional.gelu(signal, approximate="tanh")
        velocity = functional.linear(signal, weights["head.weight"], weights["head.bias"])
        return velocity.view_as(noisy_chunk)

    return field


def chunks_of(file: Golden, candidates: int) -> Tensor:
    """Clipped chunks for every observation and candidate, (B * N, H, A)."""
    rows = file.tensor("in/obs").repeat_interleave(candidates, dim=0)
    field = raw_time_field(file, rows)
    return denoise(field, noise_of(file, candidates), denoising_steps=STEPS).clamp(-1.0, 1.0)


@pytest.mark.parametrize("candidates", [1, 4])
def test_the_noise_is_the_official_one(file: Golden, candidates: int) -> None:
    """The file holds it before scaling."""
    file.close(noise_of(file, candidates) / NOISE_SCALE, f"out/latent_bestof{candidates}")


def test_the_chunk_is_the_official_one(file: Golden) -> None:
    file.close(chunks_of(file, 1), "out/dsrl_bestof1")


def test_the_best_of_four_is_the_official_one(file: Golden) -> None:
    observations = file.tensor("in/obs")
    candidates = chunks_of(file, 4).unflatten(0, (len(observations), 4))
    critic = file.ensemble("w/modules_critic")
    winners = [
        best_of_n(chunks, q_of(critic, row.unsqueeze(0)), aggregate=mean)[0]
        for chunks, row in zip(candidates, observations, strict=True)
    ]
    file.close(torch.cat(winners), "out/dsrl_bestof4")
