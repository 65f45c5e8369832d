"""Reads the golden files and fills our networks with their weights (see test/golden/README.md)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from qsteer_ros.critics.networks import EnsembleMLP, ValueMLP, critic_input
from qsteer_ros.ensemble import QFunction
from qsteer_ros.flow import Sampler, VelocityField
from qsteer_ros.policies import networks
from qsteer_ros.policies.networks import FlowMLP

FOLDER = Path(__file__).resolve().parent / "golden"
ACTION_DIM = 4

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}
STRICT = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Of the largest component; in float64 only with the official time embedding."""

DTYPES = (torch.float64, torch.float32)


@cache
def golden(name: str) -> Mapping[str, Any]:
    """All arrays of one file."""
    with np.load(FOLDER / f"qgf_{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


class Golden:
    """One golden file, seen in one float type."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.arrays, self.dtype = golden(name), dtype

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key])).to(self.dtype)

    def chunk(self, key: str) -> Tensor:
        """Flat actions as chunks, (B, H, A)."""
        return self.tensor(key).unflatten(-1, (-1, ACTION_DIM))

    def parameters(self, prefix: str) -> dict[str, Tensor]:
        """Our name -> tensor, for the network stored under ``prefix``."""
        stem = f"{prefix}/"
        keys = [key.removeprefix(stem) for key in self.arrays if key.startswith(stem)]
        flow = any(key.startswith("MLP_0/") for key in keys)
        ours = _flow_name if flow else _value_name
        return dict(ours(key, self.tensor(stem + key)) for key in keys)

    def close(self, found: Tensor, key: str) -> None:
        """Our result is the golden one within the tolerance of the float type."""
        expected = torch.from_numpy(np.asarray(self.arrays[key])).double()
        torch.testing.assert_close(
            found.detach().double().reshape(expected.shape),
            expected,
            atol=TOLERANCE[self.dtype],
            rtol=TOLERANCE[self.dtype],
        )

    def agrees(self, found: Tensor, key: str, *, amplification: float = 1.0) -> None:
        """Our result is the golden one up to rounding: `STRICT` of the largest component.

        Where a change of the noise comes out so many times larger, ten roundings may show.
        """
        tolerance = max(STRICT[self.dtype], 10 * torch.finfo(self.dtype).eps * amplification)
        expected = torch.from_numpy(np.asarray(self.arrays[key])).double()
        difference = found.detach().double().reshape(expected.shape) - expected
        relative = float(difference.abs().max() / expected.abs().max())
        print(f"{relative:.1e} {str(self.dtype).removeprefix('torch.')} {key}")
        assert relative <= tolerance, f"{key} deviates by {relative:.1e}"

    def flow(self, prefix: str, *, official_time: bool = False) -> FlowMLP:
        """The flow network; ``official_time`` feeds it the recorded time embedding.

        The official code rounds the embedding's frequencies in float32 with another library than
        ours: 1e-7 in a chunk, whatever the float type of the rest.
        """
        if official_time:
            with mock.patch.object(networks, "sinusoidal16", official_embedding):
                return self.flow(prefix)
        weights = self.parameters(prefix)
        out, hidden = weights["head.weight"].shape
        inputs = weights["layers.0.weight"].shape[1]
        depth = sum(name.startswith("layers.") for name in weights) // 2
        network = FlowMLP(inputs - out - 16, out, (hidden,) * depth, time_embedding="sinusoidal16")
        return _filled(network, weights, self.dtype)

    def ensemble(self, prefix: str) -> EnsembleMLP:
        weights = self.parameters(prefix)
        members, inputs, hidden = weights["kernels.0"].shape
        depth = sum(name.startswith("scales.") for name in weights)
        return _filled(EnsembleMLP(members, inputs, (hidden,) * depth), weights, self.dtype)

    def value(self, prefix: str) -> ValueMLP:
        weights = self.parameters(prefix)
        _, inputs, hidden = weights["kernels.0"].shape
        depth = sum(name.startswith("scales.") for name in weights)
        weights = {f"body.{name}": tensor for name, tensor in weights.items()}
        return _filled(ValueMLP(inputs, (hidden,) * depth), weights, self.dtype)


def official_embedding(flow_time: Tensor) -> Tensor:
    """The embedding that the official code gave these flow times, (B,) -> (B, 16) float32."""
    recorded = golden("nets")
    times = torch.from_numpy(recorded["in/emb_t"])
    embeddings = torch.from_numpy(recorded["out/timestep_embedding_16"])
    same = flow_time.float().unsqueeze(1) == times
    assert same.any(dim=1).all(), f"not recorded: {flow_time[~same.any(dim=1)]}"
    return embeddings[same.int().argmax(dim=1)]


def path(field: VelocityField, noise: Tensor, *, steps: int = 10) -> Tensor:
    """All points from the noise to the chunk, (T + 1, B, H, A)."""
    points = [noise]
    for step in range(steps):
        points.append(Sampler(steps).step(field, points[-1], step))
    return torch.stack(points)


def field_of(network: FlowMLP, observation: Tensor) -> VelocityField:
    """A velocity field from a bare network."""

    def field(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        rows = observation.expand(noisy_chunk.shape[0], -1)
        velocity: Tensor = network(rows, noisy_chunk.flatten(1), flow_time)
        return velocity.view_as(noisy_chunk)

    return field


def q_of(network: EnsembleMLP, observation: Tensor) -> QFunction:
    """A value function from a bare network."""
    return lambda chunk: network(critic_input(observation, chunk))


def _filled(network: Any, weights: dict[str, Tensor], dtype: torch.dtype) -> Any:
    network.to(dtype).load_state_dict(weights, strict=True)
    return network.requires_grad_(False)


def _flow_name(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    *folder, layer, kind = key.split("/")
    index = layer.rsplit("_", 1)[1]
    if not folder:  # Dense_0 at the top is the head
        return ("head.weight", tensor.T) if kind == "kernel" else ("head.bias", tensor)
    if layer.startswith("LayerNorm"):
        return f"norms.{index}.{'weight' if kind == 'scale' else 'bias'}", tensor
    name = f"layers.{index}"
    return (f"{name}.weight", tensor.T) if kind == "kernel" else (f"{name}.bias", tensor)


def _value_name(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    layer, kind = key.split("/")[-2:]
    index = layer.rsplit("_", 1)[1]
    if kind == "kernel":
        return f"kernels.{index}", tensor if tensor.ndim == 3 else tensor.unsqueeze(0)
    if tensor.ndim == 1:  # a single network: give it the member axis
        tensor = tensor.unsqueeze(0)
    tensor = tensor.unsqueeze(1)  # (E, 1, width)
    if layer.startswith("Dense"):
        return f"biases.{index}", tensor
    return (f"scales.{index}" if kind == "scale" else f"shifts.{index}"), tensor
