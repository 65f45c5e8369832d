"""Gaussian mixtures, for which flows, posteriors and tilted means are known, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qsteer_ros.flow import VelocityField
from qsteer_ros.posterior import PosteriorMap


@dataclass(frozen=True)
class Mixture:
    """Clean chunks (1, D) from a mixture of K Gaussians; one mixture per row, or one for all.

    weights (..., K), means (..., K, D), covariances (K, D, D).
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        return (self.weights.unsqueeze(-1) * self.means).sum(dim=-2)

    @property
    def covariance(self) -> Tensor:
        """(D, D); for one mixture only."""
        off = self.means - self.mean
        return torch.einsum(
            "k,kde->de", self.weights, self.covariances + off.unsqueeze(2) * off.unsqueeze(1)
        )

    def responsibilities(self, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of x (B, D) at flow time t: (B, K), deviations (B, K, D), covariances (K, D, D)."""
        eye = torch.eye(x.shape[1], dtype=x.dtype)
        noisy = t * t * self.covariances + (1.0 - t) ** 2 * eye
        off = x.unsqueeze(1) - t * self.means
        solved = torch.linalg.solve(noisy, off.unsqueeze(-1)).squeeze(-1)
        logits = self.weights.log() - 0.5 * ((off * solved).sum(-1) + torch.logdet(noisy))
        return torch.softmax(logits, dim=1), solved, noisy

    def velocity_at(self, x: Tensor, t: float) -> Tensor:
        """E[a - noise | x], (B, D): without a pole at either end."""
        shares, solved, _ = self.responsibilities(x, t)
        eye = torch.eye(x.shape[1], dtype=x.dtype)
        slope = t * self.covariances - (1.0 - t) * eye
        each = self.means + torch.einsum("kde,bke->bkd", slope, solved)
        return (shares.unsqueeze(-1) * each).sum(dim=1)

    def posterior(self, x: Tensor, t: float) -> Mixture:
        """Of the clean chunk given x (B, D) at flow time t: one mixture per row."""
        shares, solved, noisy = self.responsibilities(x, t)
        gain = t * self.covariances @ torch.linalg.inv(noisy)
        means = self.means + t * torch.einsum("kde,bke->bkd", self.covariances, solved)
        return Mixture(shares, means, self.covariances - t * gain @ self.covariances)

    def field(self) -> VelocityField:
        """The exact velocity field, on chunks of any H A = D; it depends on flow time."""

        def velocity(noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
            assert (flow_time == flow_time[0]).all()
            return self.velocity_at(noisy_chunk.flatten(1), float(flow_time[0])).view_as(
                noisy_chunk
            )

        return velocity

    def tilted(self, slope: Tensor) -> Mixture:
        """The mixture times exp(slope . a), normalised; slope (D,)."""
        shift = torch.einsum("kde,e->kd", self.covariances, slope)
        logits = self.weights.log() + (self.means + 0.5 * shift) @ slope
        return Mixture(torch.softmax(logits, dim=-1), self.means + shift, self.covariances)


def mixture(dims: int = 4, components: int = 3, *, seed: int = 0) -> Mixture:
    """A mixture of sheared Gaussians."""
    generator = torch.Generator().manual_seed(seed)
    options = {"dtype": torch.float64, "generator": generator}
    roots = 0.3 * torch.randn(components, dims, dims, **options)  # type: ignore[call-overload]
    weights = torch.softmax(torch.randn(components, **options), dim=0)  # type: ignore[call-overload]
    means = 0.7 * torch.randn(components, dims, **options)  # type: ignore[call-overload]
    eye = torch.eye(dims, dtype=torch.float64)
    return Mixture(weights, means, roots @ roots.mT + 0.02 * eye)


def spread_normals(count: int, dims: int, *, seed: int = 0) -> Tensor:
    """Standard normals (count, dims) spread more evenly than chance: a scrambled Sobol set."""
    uniform = torch.quasirandom.SobolEngine(dims, scramble=True, seed=seed).draw(
        count, dtype=torch.float64
    )
    return torch.special.ndtri(uniform.clamp(1e-9, 1.0 - 1e-9))


def exact_samples(axes: list[Mixture]) -> PosteriorMap:
    """The exact posterior map for chunks (1, A) whose components are independent 1-D mixtures.

    Each component goes through the inverse distribution function of its posterior, found by
    bisection; one Newton step at the solution makes it differentiable in the noisy chunk.
    """

    def samples(noise: Tensor, noisy_chunk: Tensor, flow_time: Tensor) -> Tensor:
        t, level = float(flow_time[0]), torch.special.ndtr(noise.detach())
        columns = []
        for axis, data in enumerate(axes):
            posterior = data.posterior(noisy_chunk[:, 0, axis : axis + 1], t)
            columns.append(_inverse(posterior, level[:, :, 0, axis]))
        return torch.stack(columns, dim=2).unsqueeze(2)

    return samples


def _inverse(posterior: Mixture, level: Tensor) -> Tensor:
    """Where each row's 1-D mixture reaches these levels, (B, N)."""
    deviation = posterior.covariances.flatten().sqrt()  # (K,)

    def scores(point: Tensor) -> Tensor:
        return (point.unsqueeze(2) - posterior.means.mT) / deviation

    def reached(point: Tensor) -> Tensor:
        return (posterior.weights.unsqueeze(1) * torch.special.ndtr(scores(point))).sum(dim=2)

    with torch.no_grad():
        low, high = torch.full_like(level, -20.0), torch.full_like(level, 20.0)
        for _ in range(48):
            middle = 0.5 * (low + high)
            below = reached(middle) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        density = torch.exp(-0.5 * scores(low).square()) / (deviation * math.sqrt(2.0 * math.pi))
        density = (posterior.weights.unsqueeze(1) * density).sum(dim=2)
    return low - (reached(low) - level) / density
